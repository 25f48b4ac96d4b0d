//! Decides which loaded lanes are evicted for another lane, and when they may be.

use std::cmp::Reverse;
use std::time::Duration;

use super::Dispatcher;
use super::events::LaneHint;
use super::switch::{Demand, EvictionScope, Group, WakeTime, permille_of};
use crate::fleet_view::LaneId;

impl Dispatcher {
    /// Returns the lanes to evict for a lane that needs `shortage` more bytes: idle lanes first,
    /// then those with the least to lose. If there are not enough, returns the latest time to check
    /// again.
    pub(super) fn victims(
        &self,
        group: &Group,
        demand: &Demand,
        shortage: u64,
        now: Duration,
    ) -> Result<Vec<LaneId>, Duration> {
        let mut next = WakeTime::default();
        let mut candidates = Vec::new();
        for id in group.lanes.iter().filter(|id| **id != demand.lane) {
            let lane = &self.lanes[id.index()];
            match self.evictable_at(*id, demand, now).filter(|_| lane.can_be_victim()) {
                Some(at) if at <= now => {
                    let frees = if lane.is_asleep() {
                        lane.held_bytes()
                    } else {
                        // The engine may be put to sleep, which keeps a part of its memory.
                        lane.held_bytes().saturating_sub(lane.setup.asleep)
                    };
                    let work = lane.running as usize + self.queue.waiting(*id);
                    candidates.push((
                        (lane.is_asleep(), work, lane.load.estimate(), Reverse(frees)),
                        *id,
                        frees,
                    ));
                }
                Some(at) => next.no_later_than(at),
                None => {}
            }
        }
        candidates.sort_unstable_by_key(|(key, _, _)| *key);
        let mut freed = 0u64;
        let mut chosen: Vec<(LaneId, u64)> = Vec::new();
        for (_, id, frees) in candidates {
            if freed < shortage {
                freed = freed.saturating_add(frees);
                chosen.push((id, frees));
            }
        }
        if freed < shortage {
            return Err(next.at.unwrap_or(Duration::MAX));
        }
        // A small lane that was chosen first may be redundant next to a large one that was chosen
        // later.
        chosen.retain(|(_, frees)| {
            let spare = freed - shortage >= *frees;
            freed -= if spare { *frees } else { 0 };
            !spare
        });
        Ok(chosen.into_iter().map(|(id, _)| id).collect())
    }

    /// Returns when a loaded lane may be evicted for another one; `None` if not before another
    /// event.
    pub(super) fn evictable_at(
        &self,
        id: LaneId,
        demand: &Demand,
        now: Duration,
    ) -> Option<Duration> {
        let lane = &self.lanes[id.index()];
        let idle = lane.running == 0 && self.queue.is_empty(id);
        let cost = self.switch_cost(id, demand.lane);
        if demand.scope == EvictionScope::Overdue {
            return Some(self.evictable_at_if_overdue(id, demand, idle, cost, now));
        }
        let released = lane.hint_at(now) == Some(LaneHint::Release);
        let at = match demand.scope {
            _ if idle && (released || lane.is_asleep()) => now,
            EvictionScope::Released => return None,
            _ if idle => {
                let linger = permille_of(cost, self.rules.linger).min(self.rules.max_linger);
                lane.last_used.saturating_add(linger)
            }
            EvictionScope::Idle => return None,
            EvictionScope::Busy | EvictionScope::Overdue => {
                let min_residency =
                    lane.up_since.saturating_add(permille_of(cost, self.rules.min_residency));
                match self.queue.urgency(id, now) {
                    // The lane's own requests are more urgent. That changes with age even without
                    // another event.
                    Some(own) if own > demand.aged => {
                        min_residency.max(now.saturating_add(self.recheck_interval()))
                    }
                    _ => min_residency,
                }
            }
        };
        let kept = lane
            .hint
            .filter(|(hint, _)| *hint == LaneHint::Keep)
            .map_or(Duration::ZERO, |(_, until)| until);
        let at = at.max(kept);
        Some(demand.overdue_at.map_or(at, |overdue| at.min(overdue)))
    }

    /// Returns when a lane may be evicted for an overdue request.
    ///
    /// An idle lane may be evicted at once. A busy lane keeps a residency of one load: under
    /// overload every request becomes overdue, and without this rule each load would serve a single
    /// round of slots. Of two overdue requests, the older one is served first.
    fn evictable_at_if_overdue(
        &self,
        id: LaneId,
        demand: &Demand,
        idle: bool,
        cost: Duration,
        now: Duration,
    ) -> Duration {
        let min_residency = permille_of(cost, self.rules.min_residency.min(1000));
        let at =
            if idle { now } else { self.lanes[id.index()].up_since.saturating_add(min_residency) };
        let own = self
            .queue
            .oldest_allowing_switch(id)
            .map(|since| since.saturating_add(self.rules.starvation_timeout));
        let older = own.is_some() && own < demand.overdue_at;
        if older { at.max(now.saturating_add(self.recheck_interval())) } else { at }
    }

    /// Returns the interval after which age may have changed which request is more urgent.
    fn recheck_interval(&self) -> Duration {
        self.rules.aging.max(Duration::from_millis(100))
    }

    /// Returns the expected duration of switching from one lane to another.
    pub(super) fn switch_cost(&self, from: LaneId, to: LaneId) -> Duration {
        self.lanes[from.index()]
            .stop
            .estimate()
            .saturating_add(self.lanes[to.index()].load.estimate())
    }
}
