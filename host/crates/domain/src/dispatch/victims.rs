//! Which loaded lanes have to go for another one, and when they may.

use std::cmp::Reverse;
use std::time::Duration;

use super::Dispatcher;
use super::events::LaneHint;
use super::switch::{Demand, Group, Reach, Wake, part};
use crate::fleet_view::LaneId;

impl Dispatcher {
    /// The lanes to unload for a lane that lacks `shortage` bytes: idle ones first, then those with little to lose. Otherwise
    /// when to look again: never later than that.
    pub(super) fn victims(
        &self,
        group: &Group,
        demand: &Demand,
        shortage: u64,
        now: Duration,
    ) -> Result<Vec<LaneId>, Duration> {
        let mut next = Wake::default();
        let mut candidates = Vec::new();
        for id in group.lanes.iter().filter(|id| **id != demand.lane) {
            let lane = &self.lanes[id.index()];
            match self.may_go_at(*id, demand, now).filter(|_| lane.may_be_victim()) {
                Some(at) if at <= now => {
                    let frees = if lane.sleeps() {
                        lane.held()
                    } else {
                        lane.held() - lane.setup.asleep.min(lane.held())
                    };
                    let work = lane.running as usize + self.queue.waiting(*id);
                    candidates.push((
                        (lane.sleeps(), work, lane.load.estimate(), Reverse(frees)),
                        *id,
                        frees,
                    ));
                }
                Some(at) => next.at_latest(at),
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
        // A small lane that was taken first may not be needed beside a big one that was taken after it.
        chosen.retain(|(_, frees)| {
            let spare = freed - shortage >= *frees;
            freed -= if spare { *frees } else { 0 };
            !spare
        });
        Ok(chosen.into_iter().map(|(id, _)| id).collect())
    }

    /// When a loaded lane may be unloaded for another one; `None`: not as things are.
    pub(super) fn may_go_at(&self, id: LaneId, demand: &Demand, now: Duration) -> Option<Duration> {
        let lane = &self.lanes[id.index()];
        let idle = lane.running == 0 && self.queue.is_empty(id);
        let cost = self.switch_cost(id, demand.lane);
        if demand.reach == Reach::Overdue {
            return Some(self.may_go_for_overdue(id, demand, idle, cost, now));
        }
        let released = lane.wish_at(now) == Some(LaneHint::Release);
        let at = match demand.reach {
            _ if idle && (released || lane.sleeps()) => now,
            Reach::Released => return None,
            _ if idle => {
                let linger = part(cost, self.rules.linger).min(self.rules.max_linger);
                lane.last_used.saturating_add(linger)
            }
            Reach::Idle => return None,
            Reach::Busy | Reach::Overdue => {
                let min_residency =
                    lane.up_since.saturating_add(part(cost, self.rules.min_residency));
                match self.queue.urgency(id, now) {
                    // Its own work is more urgent. That changes with age, if with nothing else.
                    Some(own) if own > demand.aged => {
                        min_residency.max(now.saturating_add(self.look_again()))
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

    /// The same for whoever has waited too long: nothing keeps an idle lane. One with work keeps, of its residence, what
    /// loading it has cost: under overload everybody waits too long, and without that each load would serve one round of
    /// slots. And of two that have waited too long the older one goes first.
    fn may_go_for_overdue(
        &self,
        id: LaneId,
        demand: &Demand,
        idle: bool,
        cost: Duration,
        now: Duration,
    ) -> Duration {
        let min_residency = part(cost, self.rules.min_residency.min(1000));
        let turn =
            if idle { now } else { self.lanes[id.index()].up_since.saturating_add(min_residency) };
        let own = self
            .queue
            .oldest_exchanging(id)
            .map(|since| since.saturating_add(self.rules.starvation_timeout));
        let older = own.is_some() && own < demand.overdue_at;
        if older { turn.max(now.saturating_add(self.look_again())) } else { turn }
    }

    /// How long to wait for age to change who is more urgent.
    fn look_again(&self) -> Duration {
        self.rules.aging.max(Duration::from_millis(100))
    }

    /// What exchanging one lane for another is expected to take.
    pub(super) fn switch_cost(&self, from: LaneId, to: LaneId) -> Duration {
        self.lanes[from.index()]
            .stop
            .estimate()
            .saturating_add(self.lanes[to.index()].load.estimate())
    }
}
