//! What the lanes look like to policies and to people: figures, and estimates of waits.

use std::time::Duration;

use super::Dispatcher;
use super::lane::Lane;
use super::switch::{Demand, Group, Reach, part};
use crate::fleet_view::{LaneId, LaneStat};
use crate::lifecycle::EngineState;

impl Dispatcher {
    /// Figures of all lanes, in the order of their ids.
    pub fn stats(&self, now: Duration) -> Vec<LaneStat> {
        super::lane_ids().zip(&self.lanes).map(|(id, lane)| self.stat(id, lane, now)).collect()
    }

    fn stat(&self, id: LaneId, lane: &Lane, now: Duration) -> LaneStat {
        let queued = self.queue.waiting(id);
        let (ready_in, displaces) = self.outlook(id, now);
        LaneStat {
            running: lane.running,
            queued: u32::try_from(queued).unwrap_or(u32::MAX),
            slots_free: lane.free(now),
            errors: lane.figures.errors(),
            ttft_p50_ms: lane.figures.ttft_p50_ms(),
            ttft_p99_ms: lane.figures.ttft_p99_ms(),
            est_wait_ms: whole_ms(self.queue_wait(id)),
            ready_in_ms: whole_ms(ready_in),
            displaces,
            ..LaneStat::idle(id, lane.state(), lane.setup.slots)
        }
    }

    /// Estimated time until a request that came now would start.
    pub(super) fn start_in(&self, id: LaneId, now: Duration) -> Duration {
        self.ready_in(id, now).saturating_add(self.queue_wait(id))
    }

    /// Estimated time until a lane serves.
    pub(super) fn ready_in(&self, id: LaneId, now: Duration) -> Duration {
        self.outlook(id, now).0
    }

    /// Estimated wait for a slot, once the lane serves.
    fn queue_wait(&self, id: LaneId) -> Duration {
        let Some(lane) = self.lanes.get(id.index()) else { return Duration::ZERO };
        let free = lane.setup.slots.saturating_sub(lane.running) as usize;
        match self.queue.waiting(id) {
            queued if queued < free => Duration::ZERO,
            queued => lane.figures.wait_for(queued - free.min(queued), lane.setup.slots),
        }
    }

    /// Estimated time until a lane serves, and how many requests of other lanes have to end or wait for that.
    fn outlook(&self, id: LaneId, now: Duration) -> (Duration, u32) {
        let Some(lane) = self.lanes.get(id.index()) else { return (Duration::MAX, 0) };
        let elapsed = now.saturating_sub(lane.since);
        let load = lane.load.estimate();
        match lane.engine {
            EngineState::Ready => (Duration::ZERO, 0),
            EngineState::Starting => (lane.load.left(elapsed), 0),
            EngineState::BackingOff | EngineState::Failed => {
                (lane.retry_at.saturating_sub(now).saturating_add(load), 0)
            }
            EngineState::Cold => {
                let (room, displaced) = self.room_in(id, now);
                (room.saturating_add(load), displaced)
            }
            // It has to go, and then to come back: whoever displaced it has its residence first.
            EngineState::Draining | EngineState::Stopping => {
                let going = lane.stop.estimate().saturating_add(lane.figures.mean_held());
                (going.saturating_add(self.turn_of_target(lane, id)).saturating_add(load), 0)
            }
        }
    }

    /// How long the target of the switch under way keeps its room.
    fn turn_of_target(&self, lane: &Lane, id: LaneId) -> Duration {
        let Some(switch) = &self.groups[lane.setup.group].switch else { return Duration::ZERO };
        self.turn(switch.target, id)
    }

    /// How long a lane takes that is loaded first, and then keeps its room for its residence, until another one may follow.
    fn turn(&self, id: LaneId, next: LaneId) -> Duration {
        let min_residency = part(self.switch_cost(id, next), self.rules.min_residency);
        self.lanes[id.index()].load.estimate().saturating_add(min_residency)
    }

    /// Estimated time until there is room for a cold lane, and whom that displaces.
    fn room_in(&self, id: LaneId, now: Duration) -> (Duration, u32) {
        let lane = &self.lanes[id.index()];
        let group = &self.groups[lane.setup.group];
        let (extra, room) = (self.lacks(id), self.room(group));
        if extra <= room {
            return (Duration::ZERO, 0);
        }
        let demand = self.demand(id, now).unwrap_or(Demand::of_newcomer(id, now, &self.rules));
        let mut others: Vec<(Duration, LaneId)> = group
            .lanes
            .iter()
            .filter(|other| **other != id && self.lanes[other.index()].held() > 0)
            .map(|other| (self.gone_in(*other, &demand, now), *other))
            .collect();
        others.sort_unstable();
        let (mut last, mut displaced, mut freed) = (Duration::ZERO, 0u32, 0u64);
        for (gone_in, other) in others {
            if freed >= extra - room {
                break;
            }
            let victim = &self.lanes[other.index()];
            freed = freed.saturating_add(victim.held());
            last = last.max(gone_in);
            let queued = u32::try_from(self.queue.waiting(other)).unwrap_or(u32::MAX);
            displaced = displaced.saturating_add(victim.running).saturating_add(queued);
        }
        (last.saturating_add(self.turns_before(group, &demand, now)), displaced)
    }

    /// How long the lanes take that are wanted more urgently, each of which has to be loaded and has its residence.
    fn turns_before(&self, group: &Group, demand: &Demand, now: Duration) -> Duration {
        let others = group.lanes.iter().filter(|id| **id != demand.lane);
        let before = others
            .filter_map(|id| self.demand(*id, now))
            .filter(|other| other.rank() < demand.rank());
        before.fold(Duration::ZERO, |sum, other| {
            sum.saturating_add(self.turn(other.lane, demand.lane))
        })
    }

    /// Estimated time until a lane would be unloaded for another one.
    fn gone_in(&self, id: LaneId, demand: &Demand, now: Duration) -> Duration {
        let lane = &self.lanes[id.index()];
        let stop = lane.stop.estimate();
        let drain = if lane.running > 0 { lane.figures.mean_held() } else { Duration::ZERO };
        let first = match lane.engine {
            EngineState::Starting => {
                let min_residency =
                    part(self.switch_cost(id, demand.lane), self.rules.min_residency);
                lane.load.left(now.saturating_sub(lane.since)).saturating_add(min_residency)
            }
            _ => match self.may_go_at(id, demand, now) {
                Some(at) => at.saturating_sub(now),
                None => self.rules.starvation_timeout,
            },
        };
        first.saturating_add(drain).saturating_add(stop)
    }
}

impl Demand {
    /// Of the first request for a lane, if it came now.
    fn of_newcomer(lane: LaneId, now: Duration, rules: &super::Rules) -> Self {
        let overdue_at = Some(now.saturating_add(rules.starvation_timeout));
        Self::new(lane, Reach::Busy, overdue_at, 0)
    }
}

fn whole_ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
