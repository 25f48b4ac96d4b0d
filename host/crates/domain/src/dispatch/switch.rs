//! Which lanes of a group are loaded, and which have to go.
//!
//! After every event the group that it concerns is balanced:
//!
//! ```text
//!   1. Serve        every loaded lane gives its free slots to those who wait for it
//!   2. Carry on     the switch under way: 2.1 nobody wants its target any more: lanes that only drain are kept
//!                                         2.2 a victim without leases is unloaded
//!                                         2.3 it has been draining for too long: its leases are cut, if the rules say so
//!                                         2.4 all victims are gone: load the target, or whoever has become more
//!                                             urgent meanwhile and fits
//!   3. Unload       lanes that nobody has used for their time
//!   4. Load         lanes that somebody wants, the most urgent one first:
//!                                         4.1 it is backing off: not yet
//!                                         4.2 there is room: load it
//!                                         4.3 a switch is under way already: wait for it
//!                                         4.4 victims can be found: switch
//!                                         4.5 else: wait until one may go
//! ```
//!
//! Urgent is, in this order: whoever has waited longest of those who have waited too long; a lane that is always to be
//! loaded; the highest priority with age; the longest wait; a policy's wish.
//!
//! A victim is a loaded lane that takes turns and may go now: `dispatch/victims.rs`. **Invariant:** a lane that is
//! loading, draining or stopping is never a victim, and no lane is unloaded while it has leases.

use std::cmp::Reverse;
use std::time::Duration;

use super::events::{AcquireError, Effect, LaneHint, SwitchReport};
use super::setup::{GroupSetup, Residency};
use super::{Dispatcher, refuse_all};
use crate::advice::Switching;
use crate::fleet_view::LaneId;
use crate::lifecycle::{EngineState, EngineTransition};

/// Lanes that share memory.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) setup: GroupSetup,
    pub(super) lanes: Vec<LaneId>,
    /// The one that waits for its victims to go.
    pub(super) switch: Option<Switch>,
    /// When it has to be balanced again, should nothing happen before; due at once to begin with.
    pub(super) wake: Option<Duration>,
}

impl Group {
    pub(super) fn new(setup: GroupSetup) -> Self {
        Self { setup, lanes: Vec::new(), switch: None, wake: Some(Duration::ZERO) }
    }
}

/// A switch on its way.
#[derive(Debug, Clone)]
pub(super) struct Switch {
    pub(super) target: LaneId,
    pub(super) victims: Vec<LaneId>,
    since: Duration,
    drained: Option<Duration>,
    overdue: bool,
    cut: bool,
}

/// Who may be unloaded for a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Lanes that a policy has released.
    Released,
    /// Those, and idle lanes.
    Idle,
    /// Those, and lanes with work, after their residence.
    Busy,
    /// Every lane that takes turns, now.
    Overdue,
}

/// That a lane is wanted, and how much.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    pub(super) lane: LaneId,
    pub(super) reach: Reach,
    /// When the longest wait ends that lanes with work may be exchanged for.
    pub(super) overdue_at: Option<Duration>,
    /// Highest priority of those who wait, with age.
    pub(super) aged: i64,
    standing: bool,
}

impl Demand {
    pub(super) fn new(lane: LaneId, reach: Reach, overdue_at: Option<Duration>, aged: i64) -> Self {
        Self { lane, reach, overdue_at, aged, standing: false }
    }

    /// Smaller is more urgent.
    pub(super) fn rank(
        &self,
    ) -> (bool, Option<Duration>, bool, Reverse<i64>, Option<Duration>, LaneId) {
        let overdue = self.reach == Reach::Overdue;
        (
            !overdue,
            self.overdue_at.filter(|_| overdue),
            !self.standing,
            Reverse(self.aged),
            self.overdue_at,
            self.lane,
        )
    }
}

impl Dispatcher {
    /// Steps 1 to 4, for one group.
    pub(super) fn balance(&mut self, group: usize, now: Duration, effects: &mut Vec<Effect>) {
        let mut wake = Wake::default();
        for index in 0..self.groups[group].lanes.len() {
            let id = self.groups[group].lanes[index];
            self.serve(id, now, effects);
            let suspect_until = self.lanes[id.index()].suspect_until;
            if suspect_until > now {
                wake.at_latest(suspect_until);
            }
        }
        if !self.closed {
            self.carry_on(group, now, &mut wake, effects);
            self.unload_unused(group, now, &mut wake, effects);
            self.load_wanted(group, now, &mut wake, effects);
        }
        self.groups[group].wake = wake.at;
    }

    /// Bytes that the lanes of a group hold.
    pub(super) fn held(&self, group: &Group) -> u64 {
        group.lanes.iter().fold(0, |sum, id| sum.saturating_add(self.lanes[id.index()].held()))
    }

    /// Bytes that a lane could take now, without taking them from the switch under way.
    pub(super) fn room(&self, group: &Group) -> u64 {
        let held = self.held(group);
        let now = group.setup.budget.saturating_sub(held);
        let Some(switch) = &group.switch else { return now };
        let freed = switch.victims.iter().fold(0u64, |sum, id| {
            let victim = &self.lanes[id.index()];
            sum.saturating_add(victim.held().saturating_sub(victim.setup.asleep))
        });
        let target = self.lanes[switch.target.index()].setup.need;
        let later =
            group.setup.budget.saturating_sub(held.saturating_sub(freed)).saturating_sub(target);
        now.min(later)
    }

    /// Bytes that a lane needs beyond those it holds.
    pub(super) fn lacks(&self, id: LaneId) -> u64 {
        let lane = &self.lanes[id.index()];
        lane.setup.need.saturating_sub(lane.held())
    }

    /// Step 2.
    fn carry_on(
        &mut self,
        group: usize,
        now: Duration,
        wake: &mut Wake,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut switch) = self.groups[group].switch.take() else { return };
        // 2.1
        if self.demand(switch.target, now).is_none() {
            for id in switch.victims {
                if self.lanes[id.index()].step(EngineTransition::Keep, now) {
                    self.serve(id, now, effects);
                }
            }
            return;
        }
        // 2.2
        for id in &switch.victims {
            self.unload_drained(*id, now, effects);
        }
        let is = |this: &Self, id: &LaneId, state| this.lanes[id.index()].engine == state;
        let draining = switch.victims.iter().any(|id| is(self, id, EngineState::Draining));
        if !draining && switch.drained.is_none() {
            switch.drained = Some(now);
        }
        // 2.3
        if draining
            && !switch.cut
            && let Some(drain_timeout) = self.rules.drain_timeout
        {
            let due = switch.since.saturating_add(drain_timeout);
            switch.cut = due <= now;
            if switch.cut {
                let draining =
                    switch.victims.iter().filter(|id| is(self, id, EngineState::Draining));
                let cut = |id: &LaneId| Effect::Abort {
                    lane: *id,
                    generation: self.lanes[id.index()].generation,
                };
                effects.extend(draining.map(cut));
            } else {
                wake.at_latest(due);
            }
        }
        // 2.4
        if draining || switch.victims.iter().any(|id| is(self, id, EngineState::Stopping)) {
            self.groups[group].switch = Some(switch);
        } else if let Some(lane) = self.first_that_fits(group, now) {
            self.load(lane, Some(switch), now, effects);
        }
    }

    /// The most urgent lane of a group that there is room for.
    fn first_that_fits(&self, group: usize, now: Duration) -> Option<LaneId> {
        let group = &self.groups[group];
        let room = self.room(group);
        let wanted = group.lanes.iter().filter_map(|id| self.demand(*id, now));
        let fitting = wanted.filter(|demand| self.lacks(demand.lane) <= room);
        fitting.min_by_key(Demand::rank).map(|demand| demand.lane)
    }

    /// Unload a draining lane that has no lease left.
    fn unload_drained(&mut self, id: LaneId, now: Duration, effects: &mut Vec<Effect>) {
        let lane = &mut self.lanes[id.index()];
        if lane.engine == EngineState::Draining
            && lane.running == 0
            && lane.step(EngineTransition::Stop, now)
        {
            effects.push(Effect::Unload { lane: id, fully: false });
            let never = self.queue.drain(id, |waiter| waiter.switching == Switching::Never);
            refuse_all(never, &AcquireError::NotLoaded, effects);
        }
    }

    /// Step 3.
    fn unload_unused(
        &mut self,
        group: usize,
        now: Duration,
        wake: &mut Wake,
        effects: &mut Vec<Effect>,
    ) {
        for index in 0..self.groups[group].lanes.len() {
            let id = self.groups[group].lanes[index];
            let lane = &mut self.lanes[id.index()];
            let Residency::OnDemand { unload_after: Some(after), .. } = lane.setup.residency else {
                continue;
            };
            let wished = matches!(lane.wish_at(now), Some(LaneHint::Keep | LaneHint::Load));
            if lane.engine != EngineState::Ready
                || lane.running > 0
                || !self.queue.is_empty(id)
                || wished
            {
                continue;
            }
            let due = lane.last_used.saturating_add(after);
            if due > now {
                wake.at_latest(due);
            } else if lane.step(EngineTransition::Drain, now) {
                self.unload_drained(id, now, effects);
            }
        }
    }

    /// Step 4.
    fn load_wanted(
        &mut self,
        group: usize,
        now: Duration,
        wake: &mut Wake,
        effects: &mut Vec<Effect>,
    ) {
        self.end_pauses(group, now, wake);
        let lanes = &self.groups[group].lanes;
        let mut wanted: Vec<Demand> = lanes.iter().filter_map(|id| self.demand(*id, now)).collect();
        wanted.sort_unstable_by_key(Demand::rank);
        for demand in wanted {
            let of = &self.groups[group];
            if of.switch.as_ref().is_some_and(|switch| switch.target == demand.lane) {
                continue;
            }
            let (extra, room) = (self.lacks(demand.lane), self.room(of));
            if extra <= room {
                // 4.2
                self.load(demand.lane, None, now, effects);
            } else if of.switch.is_none() {
                match self.victims(of, &demand, extra - room, now) {
                    // 4.4
                    Ok(victims) => {
                        self.begin(group, &demand, victims, now, effects);
                        self.carry_on(group, now, wake, effects);
                    }
                    // 4.5
                    Err(next) => wake.at_latest(next),
                }
            }
        }
    }

    /// Step 4.1: a lane that was backing off, and has done so for its time, is one that can be loaded again.
    fn end_pauses(&mut self, group: usize, now: Duration, wake: &mut Wake) {
        for index in 0..self.groups[group].lanes.len() {
            let id = self.groups[group].lanes[index];
            let lane = &mut self.lanes[id.index()];
            let paused = matches!(lane.engine, EngineState::BackingOff | EngineState::Failed);
            if paused && lane.setup.residency != Residency::External {
                if lane.retry_at > now {
                    wake.at_latest(lane.retry_at);
                } else {
                    lane.step(EngineTransition::Retry, now);
                }
            }
        }
    }

    /// Who wants a lane that could be loaded; `None` if nobody does.
    pub(super) fn demand(&self, id: LaneId, now: Duration) -> Option<Demand> {
        let lane = &self.lanes[id.index()];
        if lane.engine != EngineState::Cold || lane.setup.residency == Residency::External {
            return None;
        }
        let standing = lane.setup.residency == Residency::Always;
        let overdue_at = self
            .queue
            .oldest_exchanging(id)
            .map(|since| since.saturating_add(self.rules.starvation_timeout));
        let aged = self.queue.urgency(id, now);
        let reach = match (overdue_at, aged) {
            (Some(at), _) if at <= now => Reach::Overdue,
            (Some(_), _) => Reach::Busy,
            (None, _) if standing => Reach::Busy,
            (None, Some(_)) => Reach::Idle,
            (None, None) if lane.wish_at(now) == Some(LaneHint::Load) => Reach::Released,
            (None, None) => return None,
        };
        Some(Demand { standing, ..Demand::new(id, reach, overdue_at, aged.unwrap_or(i64::MIN)) })
    }

    fn begin(
        &mut self,
        group: usize,
        demand: &Demand,
        victims: Vec<LaneId>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        for id in &victims {
            let lane = &mut self.lanes[id.index()];
            if lane.sleeps() {
                lane.step(EngineTransition::Stop, now);
                effects.push(Effect::Unload { lane: *id, fully: true });
            } else {
                lane.step(EngineTransition::Drain, now);
            }
        }
        let overdue = demand.reach == Reach::Overdue;
        self.groups[group].switch = Some(Switch {
            target: demand.lane,
            victims,
            since: now,
            drained: None,
            overdue,
            cut: false,
        });
    }

    fn load(
        &mut self,
        id: LaneId,
        switch: Option<Switch>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let alone = Switch {
            target: id,
            victims: Vec::new(),
            since: now,
            drained: Some(now),
            overdue: false,
            cut: false,
        };
        let lane = &mut self.lanes[id.index()];
        if lane.step(EngineTransition::Load, now) {
            lane.loading = Some(switch.unwrap_or(alone));
            effects.push(Effect::Load(id));
        }
    }

    /// The engine of a lane serves: the switch that it was loaded by is complete. Called before the lane's state changes.
    pub(super) fn switched(
        &mut self,
        id: LaneId,
        loading_since: Duration,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Some(switch) = self.lanes[id.index()].loading.take() else { return };
        let drained = switch.drained.unwrap_or(loading_since);
        effects.push(Effect::Switched(SwitchReport {
            target: id,
            victims: switch.victims,
            drain: drained.saturating_sub(switch.since),
            stop: loading_since.saturating_sub(drained),
            load: now.saturating_sub(loading_since),
            overdue: switch.overdue,
        }));
    }
}

/// The earliest of several times.
#[derive(Debug, Default)]
pub(super) struct Wake {
    pub(super) at: Option<Duration>,
}

impl Wake {
    pub(super) fn at_latest(&mut self, at: Duration) {
        if at < Duration::MAX {
            self.at = Some(self.at.map_or(at, |other| other.min(at)));
        }
    }
}

pub(super) fn part(of: Duration, thousandths: u32) -> Duration {
    of.saturating_mul(thousandths) / 1000
}
