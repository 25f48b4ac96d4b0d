//! What operators do with lanes by hand.
//!
//! ```text
//!   Load          ──> Loading     until it serves, or its load fails
//!   Unload        ──> Unloading   until its engine is gone; its next request loads it again
//!   Unload, hold  ──> Held        until Load or Restart; its requests are rejected
//!   Drain         ──> Draining    until Load, Resume, Unload or Restart; its requests are rejected
//!   Restart       ──> Restarting  until it serves again, or its load fails; its requests wait
//! ```
//!
//! An engine is unloaded as that of a lane that leaves (`dispatch/leaving.rs`): no stream is cut.
//! The load competes with other lanes like a request that has waited since the command.
//!
//! **Invariant:** a paused lane, one that is held or draining, has neither waiting requests nor new
//! leases.

use std::time::Duration;

use super::events::{AcquireError, Effect};
use super::lane::Lane;
use super::lane_mode::{LaneCommand, LaneCommandError, LaneMode};
use super::problem::Problem;
use super::setup::Residency;
use super::{Dispatcher, reject_all};
use crate::advice::Switching;
use crate::fleet_view::LaneId;
use crate::lifecycle::{EngineState, EngineTransition};

impl Dispatcher {
    /// Carries out a command of an operator: what has to wait for engines and leases follows with
    /// their events.
    ///
    /// # Errors
    /// If the lane cannot do that.
    pub fn command(
        &mut self,
        id: LaneId,
        command: LaneCommand,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Result<(), LaneCommandError> {
        self.expire(now, effects);
        if self.closed {
            return Err(LaneCommandError::Closing);
        }
        let lane = self.lanes.get_mut(id.index()).filter(|lane| !lane.retired);
        let lane = lane.ok_or(LaneCommandError::UnknownLane)?;
        lane.command(command, now)?;
        if let Some(mode) = lane.mode().filter(|mode| mode.is_paused()) {
            let waiting = self.queue.drain(id, |_| true);
            reject_all(waiting, &AcquireError::Paused(mode), effects);
        } else if !lane.stays_loaded() {
            // They were only let in because the lane was loading, or about to be by a restart.
            let never = self.queue.drain(id, |waiter| waiter.switching == Switching::Never);
            reject_all(never, &AcquireError::NotLoaded, effects);
        }
        self.balance_lane(id, now, effects);
        Ok(())
    }

    /// Returns what remains of the last command for a lane.
    pub fn lane_mode(&self, id: LaneId) -> Option<LaneMode> {
        self.lanes.get(id.index())?.mode()
    }
}

impl Lane {
    pub(super) fn mode(&self) -> Option<LaneMode> {
        self.manual.map(|(mode, _)| mode)
    }

    /// Returns true if the operator lets the lane have no requests.
    pub(super) fn is_paused(&self) -> bool {
        self.mode().is_some_and(LaneMode::is_paused)
    }

    /// Returns since when the operator wants the lane to be loaded.
    pub(super) fn wanted_since(&self) -> Option<Duration> {
        self.manual
            .filter(|(mode, _)| matches!(mode, LaneMode::Loading | LaneMode::Restarting))
            .map(|(_, since)| since)
    }

    /// Returns true if the operator's last command leaves the lane loaded, or loads it. A lane that
    /// still drains counts as loaded: its waiting requests may have slots until then.
    fn stays_loaded(&self) -> bool {
        let is_unloaded = matches!(self.engine, EngineState::Cold | EngineState::Stopping)
            || (self.leaving && self.engine == EngineState::Starting);
        !is_unloaded || self.reload || self.wanted_since().is_some()
    }

    /// Returns why the lane is paused.
    pub(super) fn pause_problem(&self) -> Option<Problem> {
        match self.mode()? {
            LaneMode::Held => Some(Problem::new(
                "lane_held",
                "the operator holds the lane unloaded; `pointsman lane load` ends that",
            )),
            LaneMode::Draining => Some(Problem::new(
                "lane_draining",
                "the operator drains the lane; `pointsman lane drain --undo` ends that",
            )),
            LaneMode::Loading | LaneMode::Unloading | LaneMode::Restarting => None,
        }
    }

    fn command(&mut self, command: LaneCommand, now: Duration) -> Result<(), LaneCommandError> {
        let is_external = self.setup.residency == Residency::External;
        let is_held = self.mode() == Some(LaneMode::Held);
        let mode = match command {
            LaneCommand::Unload { .. } | LaneCommand::Restart if is_external => {
                return Err(LaneCommandError::NotManaged);
            }
            LaneCommand::Drain | LaneCommand::Resume if is_held => {
                return Err(LaneCommandError::Held);
            }
            LaneCommand::Load if is_external => None,
            LaneCommand::Load => self.load_by_hand(now),
            LaneCommand::Unload { hold } => {
                self.unload_by_hand();
                let unloading = self.leaving.then_some(LaneMode::Unloading);
                if hold { Some(LaneMode::Held) } else { unloading }
            }
            LaneCommand::Drain => Some(LaneMode::Draining),
            LaneCommand::Resume if self.mode() == Some(LaneMode::Draining) => None,
            LaneCommand::Resume => return Err(LaneCommandError::NotDraining),
            LaneCommand::Restart => {
                self.unload_by_hand();
                self.reload = true;
                self.forget_failures(now);
                Some(LaneMode::Restarting)
            }
        };
        self.manual = mode.map(|mode| (mode, now));
        Ok(())
    }

    /// Lets the lane be loaded. Returns nothing if it serves.
    fn load_by_hand(&mut self, now: Duration) -> Option<LaneMode> {
        if self.leaving {
            // The engine that is about to end is not kept: it may have other settings.
            self.reload = true;
        } else if self.engine == EngineState::Ready {
            return None;
        }
        self.forget_failures(now);
        Some(LaneMode::Loading)
    }

    fn unload_by_hand(&mut self) {
        self.leaving |= self.has_engine();
        (self.reload, self.hint) = (false, None);
    }

    /// Ends the pause after a failure.
    fn forget_failures(&mut self, now: Duration) {
        if matches!(self.engine, EngineState::BackingOff | EngineState::Failed) {
            self.transition(EngineTransition::Retry, now);
            (self.failures, self.problem) = (0, None);
        }
    }

    /// Notes that the engine serves.
    pub(super) fn end_manual_load(&mut self) {
        if self.wanted_since().is_some() {
            self.manual = None;
        }
    }

    /// Notes that the engine is gone.
    pub(super) fn end_manual_unload(&mut self) {
        if self.mode() == Some(LaneMode::Unloading) {
            self.manual = None;
        }
    }
}
