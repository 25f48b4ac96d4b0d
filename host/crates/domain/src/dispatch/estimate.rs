//! Lane statistics and estimated waits, as policies and operators see them.

use std::time::Duration;

use super::Dispatcher;
use super::events::AcquireError;
use super::lane::Lane;
use super::switch::{Demand, EvictionScope, Group, permille_of};
use crate::fleet_view::{LaneId, LaneStat};
use crate::lifecycle::EngineState;

/// Limits of the time after which a request may be sent again while nothing has been measured.
const BLIND_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

impl Dispatcher {
    /// Returns the statistics of all lanes that the operator has not removed, in id order.
    pub fn stats(&self, now: Duration) -> Vec<LaneStat> {
        let lanes = super::lane_ids().zip(&self.lanes).filter(|(_, lane)| !lane.retired);
        lanes.map(|(id, lane)| self.stat(id, lane, now)).collect()
    }

    fn stat(&self, id: LaneId, lane: &Lane, now: Duration) -> LaneStat {
        let queued = self.queue.waiting(id);
        let (ready_in, displaces) = self.outlook(id, now);
        LaneStat {
            running: lane.running,
            queued: u32::try_from(queued).unwrap_or(u32::MAX),
            slots_free: lane.free_slots(now),
            errors: lane.metrics.errors(),
            ttft_p50_ms: lane.metrics.ttft_p50_ms(),
            ttft_p99_ms: lane.metrics.ttft_p99_ms(),
            est_wait_ms: whole_ms(self.queue_wait(id)),
            ready_in_ms: whole_ms(ready_in),
            displaces,
            ..LaneStat::idle(id, lane.state(), lane.slots())
        }
    }

    /// Checks that a request would start before its deadline.
    pub(super) fn check_estimate(
        &self,
        id: LaneId,
        deadline: Duration,
        now: Duration,
    ) -> Result<(), AcquireError> {
        let estimate = self.start_in(id, now);
        match now.saturating_add(estimate) > deadline {
            true => Err(AcquireError::DeadlineTooEarly { estimate }),
            false => Ok(()),
        }
    }

    /// Returns the estimated time until a request that arrived now would start.
    pub(super) fn start_in(&self, id: LaneId, now: Duration) -> Duration {
        self.ready_in(id, now).saturating_add(self.queue_wait(id))
    }

    /// Returns the time after which a rejected request may be sent again. Before any request has
    /// been served, the running ones are expected to take as long again as they have taken.
    pub(super) fn retry_in(&self, id: LaneId, now: Duration) -> Duration {
        let estimate = self.start_in(id, now);
        let Some(lane) = self.lanes.get(id.index()) else { return estimate };
        let is_blind = lane.metrics.is_untrained() && lane.running > 0;
        let age = now.saturating_sub(lane.busy_since);
        if is_blind { estimate.max(age.clamp(BLIND_RETRY.0, BLIND_RETRY.1)) } else { estimate }
    }

    /// Returns the estimated time until a lane serves.
    pub(super) fn ready_in(&self, id: LaneId, now: Duration) -> Duration {
        self.outlook(id, now).0
    }

    /// Returns the estimated wait for a slot once the lane serves.
    fn queue_wait(&self, id: LaneId) -> Duration {
        let Some(lane) = self.lanes.get(id.index()) else { return Duration::ZERO };
        let free = lane.slots().saturating_sub(lane.running) as usize;
        let wait = match self.queue.waiting(id) {
            queued if queued < free => Duration::ZERO,
            queued => lane.metrics.wait_for(queued - free.min(queued), lane.slots()),
        };
        wait.saturating_add(lane.remote.map_or(Duration::ZERO, |remote| remote.est_wait))
    }

    /// Returns the estimated time until a lane serves, and the number of requests of other lanes
    /// that it delays.
    fn outlook(&self, id: LaneId, now: Duration) -> (Duration, u32) {
        let Some(lane) = self.lanes.get(id.index()) else { return (Duration::MAX, 0) };
        if lane.is_paused() {
            return (Duration::MAX, 0);
        }
        let elapsed = now.saturating_sub(lane.since);
        let load = lane.load.estimate();
        match lane.engine {
            EngineState::Ready => match lane.remote {
                // What a silent host has said may not hold any more.
                Some(remote) => {
                    (remote.ready_in.max(remote.silent.unwrap_or_default()), remote.displaces)
                }
                None => (Duration::ZERO, 0),
            },
            EngineState::Starting => (lane.load.remaining(elapsed), 0),
            EngineState::BackingOff | EngineState::Failed => {
                (lane.retry_at.saturating_sub(now).saturating_add(load), 0)
            }
            EngineState::Cold => {
                let (free_in, displaced) = self.memory_free_in(id, now);
                (free_in.saturating_add(load), displaced)
            }
            // The lane has to be unloaded and loaded again, after the lane that evicts it has had
            // its minimum residency.
            EngineState::Draining | EngineState::Stopping => {
                let unload = lane.stop.estimate().saturating_add(lane.metrics.mean_held());
                (unload.saturating_add(self.residency_of_target(lane, id)).saturating_add(load), 0)
            }
        }
    }

    /// Returns how long the target of the switch in progress takes to load and then keeps its
    /// memory.
    fn residency_of_target(&self, lane: &Lane, id: LaneId) -> Duration {
        let Some(switch) = &self.groups[lane.setup.group].switch else { return Duration::ZERO };
        self.load_and_residency(switch.target, id)
    }

    /// Returns how long it takes to load a lane and keep it for its minimum residency, after which
    /// `next` may follow.
    fn load_and_residency(&self, id: LaneId, next: LaneId) -> Duration {
        let min_residency = permille_of(self.switch_cost(id, next), self.rules.min_residency);
        self.lanes[id.index()].load.estimate().saturating_add(min_residency)
    }

    /// Returns the estimated time until there is memory for a cold lane, and the number of requests
    /// displaced for it.
    fn memory_free_in(&self, id: LaneId, now: Duration) -> (Duration, u32) {
        let lane = &self.lanes[id.index()];
        let group = &self.groups[lane.setup.group];
        let (missing, free) = (self.missing_memory(id), self.free_memory(group));
        if missing <= free {
            return (Duration::ZERO, 0);
        }
        let demand = self.demand(id, now).unwrap_or(Demand::for_newcomer(id, now, &self.rules));
        let mut others: Vec<(Duration, LaneId)> = group
            .lanes
            .iter()
            .filter(|other| **other != id && self.lanes[other.index()].held_bytes() > 0)
            .map(|other| (self.unloaded_in(*other, &demand, now), *other))
            .collect();
        others.sort_unstable();
        let (mut last, mut displaced, mut freed) = (Duration::ZERO, 0u32, 0u64);
        for (unloaded_in, other) in others {
            if freed >= missing - free {
                break;
            }
            let victim = &self.lanes[other.index()];
            freed = freed.saturating_add(victim.held_bytes());
            last = last.max(unloaded_in);
            let queued = u32::try_from(self.queue.waiting(other)).unwrap_or(u32::MAX);
            displaced = displaced.saturating_add(victim.running).saturating_add(queued);
        }
        (last.saturating_add(self.time_of_more_urgent(group, &demand, now)), displaced)
    }

    /// Returns how long the lanes with more urgent demand take, each of which has to be loaded and
    /// keeps its minimum residency.
    fn time_of_more_urgent(&self, group: &Group, demand: &Demand, now: Duration) -> Duration {
        let others = group.lanes.iter().filter(|id| **id != demand.lane);
        let before = others
            .filter_map(|id| self.demand(*id, now))
            .filter(|other| other.rank() < demand.rank());
        before.fold(Duration::ZERO, |sum, other| {
            sum.saturating_add(self.load_and_residency(other.lane, demand.lane))
        })
    }

    /// Returns the estimated time until a lane would be unloaded for another one.
    fn unloaded_in(&self, id: LaneId, demand: &Demand, now: Duration) -> Duration {
        let lane = &self.lanes[id.index()];
        let stop = lane.stop.estimate();
        let drain = if lane.running > 0 { lane.metrics.mean_held() } else { Duration::ZERO };
        let first = if lane.engine == EngineState::Starting {
            let min_residency =
                permille_of(self.switch_cost(id, demand.lane), self.rules.min_residency);
            lane.load.remaining(now.saturating_sub(lane.since)).saturating_add(min_residency)
        } else {
            match self.evictable_at(id, demand, now) {
                Some(at) => at.saturating_sub(now),
                None => self.rules.starvation_timeout,
            }
        };
        first.saturating_add(drain).saturating_add(stop)
    }
}

impl Demand {
    /// Returns the demand of a first request for a lane that arrived now.
    fn for_newcomer(lane: LaneId, now: Duration, rules: &super::Rules) -> Self {
        let overdue_at = Some(now.saturating_add(rules.starvation_timeout));
        Self::new(lane, EvictionScope::Busy, overdue_at, 0)
    }
}

fn whole_ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
