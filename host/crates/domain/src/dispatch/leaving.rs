//! Lanes that leave: their engines are unloaded without going to sleep, as soon as they have no
//! leases.
//!
//! ```text
//!   retired        unloaded ──> vacant: its id can be used again
//!   restarted      unloaded ──> new settings of memory ──> loaded again, if it was loaded
//!   over budget    unloaded ──> cold, until its next request
//!   by hand        unloaded ──> cold, held, or loaded again (`dispatch/manual.rs`)
//! ```
//!
//! Nothing cuts a stream here: the drain timeout only concerns victims of switches.

use std::cmp::Reverse;
use std::time::Duration;

use super::Dispatcher;
use super::events::Effect;
use super::lane::Lane;
use super::setup::{LaneSetup, Residency};
use super::switch::Group;
use crate::fleet_view::LaneId;
use crate::lifecycle::{EngineState, EngineTransition};

impl Dispatcher {
    /// Takes the leaving lanes of a group a step further. Returns other groups whose memory has
    /// changed because a lane has moved there.
    pub(super) fn advance_leaving(
        &mut self,
        group: usize,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Vec<usize> {
        let mut changed = Vec::new();
        while !self.closed {
            let lanes = self.groups[group].lanes.iter().copied();
            let leaving: Vec<LaneId> = lanes.filter(|id| self.lanes[id.index()].leaving).collect();
            let mut is_over_budget = false;
            for id in leaving {
                if !self.advance_lane(id, now, effects) {
                    continue;
                }
                match self.lanes[id.index()].setup.group {
                    same if same == group => is_over_budget |= self.shrink(group),
                    other => {
                        self.shrink(other);
                        changed.push(other);
                    }
                }
            }
            // Lanes that have to leave because another one needs more memory now.
            if !is_over_budget {
                break;
            }
        }
        changed
    }

    /// Takes a leaving lane a step further. Returns true if it has left.
    fn advance_lane(&mut self, id: LaneId, now: Duration, effects: &mut Vec<Effect>) -> bool {
        let lane = &mut self.lanes[id.index()];
        // Not while it is draining already.
        lane.transition(EngineTransition::Drain, now);
        match lane.engine {
            EngineState::Draining => self.unload_drained(id, now, effects),
            EngineState::Starting => {
                // What it holds by now is not known, even if it was about to wake up.
                lane.asleep = false;
                lane.pending_switch = None;
                lane.transition(EngineTransition::Stop, now);
                self.unload(id, true, effects);
            }
            EngineState::Cold if lane.asleep => {
                lane.transition(EngineTransition::Stop, now);
                self.unload(id, true, effects);
            }
            // Its engine is gone with the next event.
            EngineState::Ready | EngineState::Stopping => {}
            EngineState::Cold | EngineState::BackingOff | EngineState::Failed => {
                self.has_left(id, now);
                return true;
            }
        }
        false
    }

    /// Applies what waited for the engine to be gone.
    fn has_left(&mut self, id: LaneId, now: Duration) {
        let lane = &mut self.lanes[id.index()];
        lane.leaving = false;
        lane.end_manual_unload();
        let before = lane.setup.group;
        match lane.next.take() {
            Some(setup) => {
                lane.restart_with(setup, now);
                self.groups[before].lanes.retain(|other| *other != id);
                self.join_group(id);
            }
            None if lane.retired => {
                lane.transition(EngineTransition::Retry, now);
            }
            None => {}
        }
    }

    /// Lets on-demand lanes of a group leave until its budget suffices for the others. Returns true
    /// if it has chosen one.
    pub(super) fn shrink(&mut self, group: usize) -> bool {
        let Group { setup, lanes, .. } = &self.groups[group];
        let stays = |lane: &Lane| {
            !lane.leaving || (lane.setup.residency == Residency::Always && !lane.retired)
        };
        let mut held = 0u64;
        let mut candidates = Vec::new();
        for id in lanes {
            let lane = &self.lanes[id.index()];
            if !stays(lane) || lane.held_bytes() == 0 {
                continue;
            }
            held = held.saturating_add(lane.held_bytes());
            if matches!(lane.setup.residency, Residency::OnDemand { .. }) {
                let is_going = matches!(lane.engine, EngineState::Stopping | EngineState::Draining);
                let work = lane.running as usize + self.queue.waiting(*id);
                let key =
                    (Reverse(is_going), Reverse(lane.is_asleep()), work, lane.load.estimate());
                candidates.push((key, *id));
            }
        }
        let mut excess = held.saturating_sub(setup.budget);
        let has_chosen = excess > 0 && !candidates.is_empty();
        candidates.sort_unstable();
        for (_, id) in candidates {
            if excess == 0 {
                break;
            }
            let lane = &mut self.lanes[id.index()];
            lane.leaving = true;
            excess = excess.saturating_sub(lane.held_bytes());
        }
        has_chosen
    }

    /// Returns true if a group holds more than its budget, and lanes are leaving that it waits for.
    pub(super) fn is_crowded(&self, group: usize) -> bool {
        let group = &self.groups[group];
        let is_leaving = |id: &LaneId| {
            let lane = &self.lanes[id.index()];
            lane.leaving && lane.has_engine()
        };
        self.held(group) > group.setup.budget && group.lanes.iter().any(is_leaving)
    }
}

impl Lane {
    /// Restarts a lane without an engine: its settings apply, and earlier failures do not count.
    pub(super) fn restart_with(&mut self, setup: LaneSetup, now: Duration) {
        self.transition(EngineTransition::Retry, now);
        (self.failures, self.had_served, self.problem) = (0, false, None);
        self.load.expect(setup.expected_load);
        self.breaker.reset();
        (self.next, self.leaving) = (None, false);
        // The events of the earlier engine are not reported any more.
        self.unanswered = 0;
        if setup.residency == Residency::External {
            // It is probed, and not loaded.
            self.transition(EngineTransition::Load, now);
        }
        self.setup = setup;
    }

    /// Lets go of an engine that the host does not run. The leases of its generation stay valid and
    /// do not count any more.
    pub(super) fn detach(&mut self, now: Duration) {
        self.engine = EngineState::Cold;
        self.since = now;
        self.suspect_until = Duration::ZERO;
        self.remote = None;
        self.begin_generation();
    }
}
