//! The demand for a lane: how urgent it is, and which lanes may be evicted for it.

use std::cmp::Reverse;
use std::time::Duration;

use crate::dispatch::{Dispatcher, LaneHint, LaneMode, Residency};
use crate::fleet_view::LaneId;
use crate::lifecycle::EngineState;

/// The lanes that may be evicted for a demand. Each scope includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum EvictionScope {
    /// Idle lanes that a policy has released.
    Released,
    /// Idle lanes.
    Idle,
    /// Busy lanes, after their minimum residency.
    Busy,
    /// Every on-demand lane, now.
    Overdue,
}

/// The demand for a lane, and its urgency.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Demand {
    pub(in super::super) lane: LaneId,
    pub(in super::super) scope: EvictionScope,
    /// When the oldest waiting request that allows switching becomes overdue.
    pub(in super::super) overdue_at: Option<Duration>,
    /// Highest priority of the waiting requests, including age.
    pub(in super::super) aged: i64,
    /// True for an always-on lane.
    always_on: bool,
}

impl Demand {
    pub(in super::super) fn new(
        lane: LaneId,
        scope: EvictionScope,
        overdue_at: Option<Duration>,
        aged: i64,
    ) -> Self {
        Self { lane, scope, overdue_at, aged, always_on: false }
    }

    /// Returns the sort key of the demand; smaller is more urgent.
    pub(in super::super) fn rank(
        &self,
    ) -> (bool, Option<Duration>, bool, Reverse<i64>, Option<Duration>, LaneId) {
        let overdue = self.scope == EvictionScope::Overdue;
        (
            !overdue,
            self.overdue_at.filter(|_| overdue),
            !self.always_on,
            Reverse(self.aged),
            self.overdue_at,
            self.lane,
        )
    }
}

impl Dispatcher {
    /// Returns the demand for a lane that could be loaded; `None` if there is none.
    pub(in super::super) fn demand(&self, id: LaneId, now: Duration) -> Option<Demand> {
        let lane = &self.lanes[id.index()];
        let is_managed = lane.setup.residency != Residency::External;
        let is_held = lane.mode() == Some(LaneMode::Held);
        let may_load = is_managed && !lane.retired && !lane.leaving && !is_held;
        if lane.engine != EngineState::Cold || !may_load {
            return None;
        }
        let always_on = lane.setup.residency == Residency::Always;
        // An operator who loads a lane by hand waits like a request.
        let wanted = lane.wanted_since();
        let oldest = self.queue.oldest_allowing_switch(id);
        let oldest = oldest.into_iter().chain(wanted).min();
        let overdue_at = oldest.map(|since| since.saturating_add(self.rules.starvation_timeout));
        let aged = self.queue.urgency(id, now).max(wanted.map(|_| 0));
        let scope = match (overdue_at, aged) {
            (Some(at), _) if at <= now => EvictionScope::Overdue,
            (Some(_), _) => EvictionScope::Busy,
            (None, _) if always_on => EvictionScope::Busy,
            (None, Some(_)) => EvictionScope::Idle,
            (None, None) if lane.reload || lane.hint_at(now) == Some(LaneHint::Load) => {
                EvictionScope::Released
            }
            (None, None) => return None,
        };
        Some(Demand { always_on, ..Demand::new(id, scope, overdue_at, aged.unwrap_or(i64::MIN)) })
    }
}
