//! Changes of the configuration while requests wait and are served.
//!
//! ```text
//!   Added       a cold lane, at a vacant id or at the next one
//!   Kept        slots, group, residency and backoff apply at once
//!   Restarted   the lane leaves: its requests wait, its streams finish; what is about its memory
//!               applies once the engine has been unloaded
//!   Retired     waiting requests are rejected, streams finish; vacant once nothing is left of it
//! ```
//!
//! The groups are built anew. A switch in progress goes on in the group of its target.

use std::time::Duration;

use super::events::{AcquireError, Effect};
use super::lane::Lane;
use super::setup::{GroupSetup, LaneSetup, Residency, Rules};
use super::switch::{Group, Switch};
use super::{Dispatcher, lane_ids, reject_all};
use crate::fleet_view::LaneId;
use crate::lifecycle::{EngineState, EngineTransition};

/// What becomes of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaneUpdate {
    /// A new lane. Its id must be [vacant](Dispatcher::is_vacant), and no events of an earlier
    /// engine are to follow.
    Added(LaneSetup),
    /// The lane goes on with the same engine.
    Kept(LaneSetup),
    /// The engine does not fit the settings any more, and is replaced. Once the restart is not
    /// [pending](Dispatcher::is_restart_pending), no events of the earlier engine are to follow.
    Restarted(LaneSetup),
    /// The operator has removed the lane, now or earlier.
    Retired,
}

/// A new configuration of the dispatcher.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconfiguration {
    /// The lanes, by id. Further lanes are retired.
    pub lanes: Vec<LaneUpdate>,
    /// The groups, each with the index that it had before; `None` for a new one. Lanes that wait
    /// to leave a group that is gone hold their memory alone until then.
    pub groups: Vec<(GroupSetup, Option<usize>)>,
    /// The rules. Requests that wait already keep their places.
    pub rules: Rules,
}

impl Dispatcher {
    /// Applies a new configuration at once. Returns when all that can be decided now has been; what
    /// has to wait for engines and leases follows with their events.
    pub fn reconfigure(&mut self, new: Reconfiguration, now: Duration, effects: &mut Vec<Effect>) {
        self.expire(now, effects);
        let Reconfiguration { lanes, groups, rules } = new;
        self.rules = rules;
        self.queue.configure(lanes.len(), rules.aging);
        self.renumber_groups(&groups);
        self.known_groups = groups.len();
        let groups = groups.into_iter().map(|(setup, _)| Group::new(setup)).collect();
        let before = std::mem::replace(&mut self.groups, groups);
        let all = lanes.len().max(self.lanes.len());
        let updates = lanes.into_iter().chain(std::iter::repeat(LaneUpdate::Retired));
        for (id, update) in lane_ids().zip(updates).take(all) {
            self.update(id, update, now, effects);
        }
        self.join_groups();
        for switch in before.into_iter().filter_map(|group| group.switch) {
            self.continue_switch(switch, now);
        }
        for group in 0..self.groups.len() {
            self.shrink(group);
        }
        for group in 0..self.groups.len() {
            self.balance(group, now, effects);
        }
    }

    /// Returns true if another lane can have this id: the lane has been removed, its engine is
    /// gone, and no request refers to it.
    pub fn is_vacant(&self, id: LaneId) -> bool {
        self.lanes.get(id.index()).is_some_and(Lane::is_vacant)
    }

    /// Returns true if the operator has removed the lane.
    pub fn is_retired(&self, id: LaneId) -> bool {
        self.lanes.get(id.index()).is_some_and(|lane| lane.retired)
    }

    /// Returns true while an engine that a restart replaces still exists.
    pub fn is_restart_pending(&self, id: LaneId) -> bool {
        self.lanes.get(id.index()).is_some_and(|lane| lane.next.is_some())
    }

    /// Returns true if an engine that the host runs may hold memory for the lane.
    pub fn has_engine(&self, id: LaneId) -> bool {
        self.lanes.get(id.index()).is_some_and(Lane::has_engine)
    }

    /// Gives the lanes the new numbers of their groups.
    fn renumber_groups(&mut self, groups: &[(GroupSetup, Option<usize>)]) {
        let new_number = |old: usize| groups.iter().position(|(_, before)| *before == Some(old));
        let known = self.known_groups;
        for lane in &mut self.lanes {
            let old = lane.setup.group;
            let new = (old < known).then(|| new_number(old)).flatten();
            lane.setup.group = new.unwrap_or(usize::MAX);
        }
    }

    fn update(&mut self, id: LaneId, update: LaneUpdate, now: Duration, effects: &mut Vec<Effect>) {
        let Some(lane) = self.lanes.get_mut(id.index()) else {
            let setup = match update {
                LaneUpdate::Added(setup)
                | LaneUpdate::Kept(setup)
                | LaneUpdate::Restarted(setup) => setup,
                LaneUpdate::Retired => return,
            };
            // Ids are consecutive here, so that this is the next one.
            self.lanes.push(Lane::added(setup, None, now));
            return;
        };
        match update {
            LaneUpdate::Added(setup) if lane.is_vacant() => {
                *lane = Lane::added(setup, Some(&*lane), now);
            }
            LaneUpdate::Kept(setup) => lane.change(setup, now),
            LaneUpdate::Added(setup) | LaneUpdate::Restarted(setup) => lane.restart(setup, now),
            LaneUpdate::Retired => {
                lane.retire(now);
                let waiting = self.queue.drain(id, |_| true);
                reject_all(waiting, &AcquireError::LaneRemoved, effects);
            }
        }
    }

    /// Continues a switch in the group of its target, with those of its victims that are there.
    fn continue_switch(&mut self, mut switch: Switch, now: Duration) {
        let group = self.lanes[switch.target.index()].setup.group;
        let is_target_left = self.lanes[switch.target.index()].retired;
        let continues = !is_target_left && self.groups[group].switch.is_none();
        let lanes = &self.lanes;
        let is_kept = |id: &LaneId| !continues || lanes[id.index()].setup.group != group;
        let kept: Vec<LaneId> = switch.victims.iter().copied().filter(is_kept).collect();
        for id in &kept {
            self.keep(*id, now);
        }
        if continues {
            switch.victims.retain(|id| !kept.contains(id));
            self.groups[group].switch = Some(switch);
        }
    }
}

impl Lane {
    /// Creates a lane that was added while the host serves. Its generations continue those of the
    /// lane that had the id before, so that late events of that one do not count.
    fn added(setup: LaneSetup, before: Option<&Self>, now: Duration) -> Self {
        let generation = before.map(|lane| lane.generation).unwrap_or_default();
        Self { generation, since: now, ..Self::new(setup) }
    }

    fn is_vacant(&self) -> bool {
        self.retired && self.engine == EngineState::Cold && !self.asleep && self.leases == 0
    }

    /// Changes the settings of a lane whose engine stays.
    fn change(&mut self, setup: LaneSetup, now: Duration) {
        if self.retired {
            return;
        }
        self.load.expect(setup.expected_load);
        if self.next.is_some() {
            self.wait_for_end(setup);
        } else {
            self.setup = setup;
        }
        // A shorter backoff holds at once.
        let latest = now.saturating_add(self.setup.backoff.pause(self.failures));
        if self.engine == EngineState::BackingOff {
            self.retry_at = self.retry_at.min(latest);
        }
    }

    /// Replaces the engine of a lane.
    fn restart(&mut self, setup: LaneSetup, now: Duration) {
        if self.retired {
            return;
        }
        if self.setup.residency == Residency::External {
            self.detach(now);
        }
        if self.has_engine() {
            self.reload |= matches!(self.engine, EngineState::Starting | EngineState::Ready);
            self.leaving = true;
            self.wait_for_end(setup);
        } else {
            self.restart_with(setup, now);
        }
    }

    /// Applies settings, except those of the memory, which the engine holds until it has ended.
    fn wait_for_end(&mut self, setup: LaneSetup) {
        let LaneSetup { group, need, asleep, residency, .. } = self.setup;
        let is_external = setup.residency == Residency::External;
        let residency = if is_external { residency } else { setup.residency };
        self.setup = LaneSetup { group, need, asleep, residency, ..setup.clone() };
        self.next = Some(setup);
    }

    /// Removes a lane. Its engine leaves, if there is one.
    fn retire(&mut self, now: Duration) {
        if self.retired {
            return;
        }
        if self.setup.residency == Residency::External {
            self.detach(now);
        }
        (self.retired, self.reload, self.hint, self.next) = (true, false, None, None);
        self.manual = None;
        self.leaving = self.has_engine();
        if !self.leaving {
            self.transition(EngineTransition::Retry, now);
        }
    }
}
