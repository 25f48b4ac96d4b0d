//! Decides which lanes of a group are loaded and which are evicted.
//!
//! After every event, the group that the event concerns is balanced:
//!
//! ```text
//!   0. Leave        unload lanes that were removed, restarted, or exceed the budget
//!                   (`dispatch/leaving.rs`)
//!   1. Serve        grant the free slots of every loaded lane to the requests waiting for it
//!   2. Advance      the switch in progress:
//!                     2.1 its target is no longer in demand: keep the victims still draining
//!                     2.2 a victim has no leases: unload it
//!                     2.3 draining exceeds the drain timeout, if set: abort the remaining leases
//!                     2.4 all victims are unloaded: load the target, or a lane that fits and has
//!                         become more urgent meanwhile
//!   3. Unload       lanes that have been unused for longer than their idle time
//!   4. Load         lanes in demand, most urgent first:
//!                     4.1 the lane is backing off: not yet
//!                     4.2 memory is free: load the lane
//!                     4.3 a switch is in progress: wait for it
//!                     4.4 victims are available: start a switch
//!                     4.5 otherwise: wait until a victim becomes available
//! ```
//!
//! Urgency is ordered by: the longest wait among the lanes with an overdue request; always-on
//! lanes; the highest priority including age; the longest wait; a policy's hint.
//!
//! A victim is a loaded on-demand lane that may be evicted now: `dispatch/victims.rs`.
//! **Invariant:** a lane that is loading, draining or stopping is never a victim, and no lane is
//! unloaded while it has leases.

mod demand;

use std::time::Duration;

pub(super) use self::demand::{Demand, EvictionScope};
use super::events::{AcquireError, Effect, LaneHint, SwitchReport};
use super::setup::{GroupSetup, Residency};
use super::{Dispatcher, reject_all};
use crate::advice::Switching;
use crate::fleet_view::LaneId;
use crate::lifecycle::{EngineState, EngineTransition};

/// A group of lanes that share memory.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) setup: GroupSetup,
    pub(super) lanes: Vec<LaneId>,
    /// The switch in progress, which waits for its victims to be unloaded.
    pub(super) switch: Option<Switch>,
    /// When the group has to be balanced again if no event comes before; due at once at startup.
    pub(super) wake: Option<Duration>,
}

impl Group {
    pub(super) fn new(setup: GroupSetup) -> Self {
        Self { setup, lanes: Vec::new(), switch: None, wake: Some(Duration::ZERO) }
    }
}

/// A switch in progress.
#[derive(Debug, Clone)]
pub(super) struct Switch {
    pub(super) target: LaneId,
    pub(super) victims: Vec<LaneId>,
    pub(super) since: Duration,
    drained: Option<Duration>,
    overdue: bool,
    aborted: bool,
}

impl Dispatcher {
    /// Runs steps 0 to 4 for one group.
    pub(super) fn balance(&mut self, group: usize, now: Duration, effects: &mut Vec<Effect>) {
        let mut wake = WakeTime::default();
        let changed = self.advance_leaving(group, now, effects);
        for index in 0..self.groups[group].lanes.len() {
            let id = self.groups[group].lanes[index];
            self.serve(id, now, effects);
            let suspect_until = self.lanes[id.index()].suspect_until;
            if suspect_until > now {
                wake.no_later_than(suspect_until);
            }
        }
        if !self.closed {
            self.advance_switch(group, now, &mut wake, effects);
            self.unload_unused(group, now, &mut wake, effects);
            self.load_demanded(group, now, &mut wake, effects);
        }
        self.groups[group].wake = wake.at;
        for other in changed {
            self.balance(other, now, effects);
        }
    }

    /// Returns the bytes held by the lanes of each group, in the order of the configuration.
    pub fn memory_by_group(&self) -> impl Iterator<Item = u64> {
        self.groups.iter().take(self.known_groups).map(|group| self.held(group))
    }

    /// Returns the bytes that the lanes of a group hold.
    pub(super) fn held(&self, group: &Group) -> u64 {
        group
            .lanes
            .iter()
            .fold(0, |sum, id| sum.saturating_add(self.lanes[id.index()].held_bytes()))
    }

    /// Returns the bytes available to a lane now, without taking memory from the switch in
    /// progress.
    pub(super) fn free_memory(&self, group: &Group) -> u64 {
        let held = self.held(group);
        // Saturating: the reserved memory of always-on lanes may exceed the budget.
        let now = group.setup.budget.saturating_sub(held);
        let Some(switch) = &group.switch else { return now };
        let freed = switch.victims.iter().fold(0u64, |sum, id| {
            let victim = &self.lanes[id.index()];
            sum.saturating_add(victim.held_bytes().saturating_sub(victim.setup.asleep))
        });
        let target = self.lanes[switch.target.index()].setup.need;
        let later =
            group.setup.budget.saturating_sub(held.saturating_sub(freed)).saturating_sub(target);
        now.min(later)
    }

    /// Returns the bytes that a lane needs in addition to those it holds.
    pub(super) fn missing_memory(&self, id: LaneId) -> u64 {
        let lane = &self.lanes[id.index()];
        lane.setup.need.saturating_sub(lane.held_bytes())
    }

    /// Step 2: advances the switch in progress.
    fn advance_switch(
        &mut self,
        group: usize,
        now: Duration,
        wake: &mut WakeTime,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut switch) = self.groups[group].switch.take() else { return };
        // 2.1
        if self.demand(switch.target, now).is_none() {
            for id in switch.victims {
                if self.keep(id, now) {
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
            && !switch.aborted
            && let Some(drain_timeout) = self.rules.drain_timeout
        {
            let due = switch.since.saturating_add(drain_timeout);
            switch.aborted = due <= now;
            if switch.aborted {
                let draining =
                    switch.victims.iter().filter(|id| is(self, id, EngineState::Draining));
                let abort = |id: &LaneId| Effect::Abort {
                    lane: *id,
                    generation: self.lanes[id.index()].generation,
                };
                effects.extend(draining.map(abort));
            } else {
                wake.no_later_than(due);
            }
        }
        // 2.4
        if draining || switch.victims.iter().any(|id| is(self, id, EngineState::Stopping)) {
            self.groups[group].switch = Some(switch);
        } else if let Some(lane) = self.first_that_fits(group, now) {
            self.load(lane, Some(switch), now, effects);
        }
    }

    /// Returns the most urgent lane of a group for which memory is free.
    fn first_that_fits(&self, group: usize, now: Duration) -> Option<LaneId> {
        if self.is_crowded(group) {
            return None;
        }
        let group = &self.groups[group];
        let free = self.free_memory(group);
        let demands = group.lanes.iter().filter_map(|id| self.demand(*id, now));
        let fitting = demands.filter(|demand| self.missing_memory(demand.lane) <= free);
        fitting.min_by_key(Demand::rank).map(|demand| demand.lane)
    }

    /// Keeps a victim that is still draining, unless it has to be unloaded anyway.
    pub(super) fn keep(&mut self, id: LaneId, now: Duration) -> bool {
        let lane = &mut self.lanes[id.index()];
        let is_kept = !lane.leaving && lane.transition(EngineTransition::Keep, now);
        if is_kept {
            lane.end_manual_load();
        }
        is_kept
    }

    /// Unloads a draining lane that has no leases.
    pub(super) fn unload_drained(&mut self, id: LaneId, now: Duration, effects: &mut Vec<Effect>) {
        let lane = &mut self.lanes[id.index()];
        if lane.engine == EngineState::Draining
            && lane.running == 0
            && lane.transition(EngineTransition::Stop, now)
        {
            let (fully, is_loaded_again) = (lane.leaving, lane.reload);
            self.unload(id, fully, effects);
            if !is_loaded_again {
                // These requests only accept a loaded lane, and the lane is being unloaded now.
                let never = self.queue.drain(id, |waiter| waiter.switching == Switching::Never);
                reject_all(never, &AcquireError::NotLoaded, effects);
            }
        }
    }

    /// Commands that an engine is unloaded.
    pub(super) fn unload(&mut self, id: LaneId, fully: bool, effects: &mut Vec<Effect>) {
        let lane = &mut self.lanes[id.index()];
        lane.unanswered = lane.unanswered.saturating_add(1);
        effects.push(Effect::Unload { lane: id, fully });
    }

    /// Step 3: unloads lanes that have been unused for their idle time.
    fn unload_unused(
        &mut self,
        group: usize,
        now: Duration,
        wake: &mut WakeTime,
        effects: &mut Vec<Effect>,
    ) {
        for index in 0..self.groups[group].lanes.len() {
            let id = self.groups[group].lanes[index];
            let lane = &mut self.lanes[id.index()];
            let Residency::OnDemand { unload_after: Some(after), .. } = lane.setup.residency else {
                continue;
            };
            let kept = lane.is_paused()
                || matches!(lane.hint_at(now), Some(LaneHint::Keep | LaneHint::Load));
            if lane.engine != EngineState::Ready
                || lane.running > 0
                || !self.queue.is_empty(id)
                || kept
            {
                continue;
            }
            let due = lane.last_used.saturating_add(after);
            if due > now {
                wake.no_later_than(due);
            } else if lane.transition(EngineTransition::Drain, now) {
                self.unload_drained(id, now, effects);
            }
        }
    }

    /// Step 4: loads lanes in demand.
    fn load_demanded(
        &mut self,
        group: usize,
        now: Duration,
        wake: &mut WakeTime,
        effects: &mut Vec<Effect>,
    ) {
        self.end_backoffs(group, now, wake);
        if self.is_crowded(group) {
            // The lanes that leave are waited for.
            return;
        }
        let lanes = &self.groups[group].lanes;
        let mut demands: Vec<Demand> =
            lanes.iter().filter_map(|id| self.demand(*id, now)).collect();
        demands.sort_unstable_by_key(Demand::rank);
        for demand in demands {
            let current = &self.groups[group];
            if current.switch.as_ref().is_some_and(|switch| switch.target == demand.lane) {
                continue;
            }
            let (missing, free) = (self.missing_memory(demand.lane), self.free_memory(current));
            if missing <= free {
                // 4.2
                self.load(demand.lane, None, now, effects);
            } else if current.switch.is_none() {
                // Otherwise step 4.3: a switch is in progress, wait for it.
                match self.victims(current, &demand, missing - free, now) {
                    // 4.4
                    Ok(victims) => {
                        self.begin_switch(group, &demand, victims, now, effects);
                        self.advance_switch(group, now, wake, effects);
                    }
                    // 4.5
                    Err(next) => wake.no_later_than(next),
                }
            }
        }
    }

    /// Step 4.1: makes lanes whose backoff has expired loadable again.
    fn end_backoffs(&mut self, group: usize, now: Duration, wake: &mut WakeTime) {
        for index in 0..self.groups[group].lanes.len() {
            let id = self.groups[group].lanes[index];
            let lane = &mut self.lanes[id.index()];
            let backing_off = matches!(lane.engine, EngineState::BackingOff | EngineState::Failed);
            if backing_off && lane.setup.residency != Residency::External {
                if lane.retry_at > now {
                    wake.no_later_than(lane.retry_at);
                } else {
                    lane.transition(EngineTransition::Retry, now);
                }
            }
        }
    }

    fn begin_switch(
        &mut self,
        group: usize,
        demand: &Demand,
        victims: Vec<LaneId>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        for id in &victims {
            let lane = &mut self.lanes[id.index()];
            if lane.is_asleep() {
                lane.transition(EngineTransition::Stop, now);
                self.unload(*id, true, effects);
            } else {
                lane.transition(EngineTransition::Drain, now);
            }
        }
        let overdue = demand.scope == EvictionScope::Overdue;
        self.groups[group].switch = Some(Switch {
            target: demand.lane,
            victims,
            since: now,
            drained: None,
            overdue,
            aborted: false,
        });
    }

    fn load(
        &mut self,
        id: LaneId,
        switch: Option<Switch>,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let without_victims = Switch {
            target: id,
            victims: Vec::new(),
            since: now,
            drained: Some(now),
            overdue: false,
            aborted: false,
        };
        let lane = &mut self.lanes[id.index()];
        if lane.transition(EngineTransition::Load, now) {
            lane.pending_switch = Some(switch.unwrap_or(without_victims));
            effects.push(Effect::Load(id));
        }
    }

    /// Reports the switch that a load completes. Called when the engine serves, before the state of
    /// the lane changes.
    pub(super) fn report_switch(
        &mut self,
        id: LaneId,
        loading_since: Duration,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Some(switch) = self.lanes[id.index()].pending_switch.take() else { return };
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

/// The earliest of several wake-up times.
#[derive(Debug, Default)]
pub(super) struct WakeTime {
    pub(super) at: Option<Duration>,
}

impl WakeTime {
    pub(super) fn no_later_than(&mut self, at: Duration) {
        // `Duration::MAX` means never.
        if at < Duration::MAX {
            self.at = Some(self.at.map_or(at, |other| other.min(at)));
        }
    }
}

/// Returns `permille` thousandths of a duration.
pub(super) fn permille_of(duration: Duration, permille: u32) -> Duration {
    duration.saturating_mul(permille) / 1000
}
