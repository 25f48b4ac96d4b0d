//! Grants and releases of slots.

use std::time::Duration;

use super::events::{AcquireError, Effect, FlowId, Generation};
use super::metrics::Report;
use super::queue::Waiter;
use super::{Dispatcher, SUSPECT_WINDOW, reject_all};
use crate::fleet_view::LaneId;

impl Dispatcher {
    /// Grants the free slots of a lane to the requests that wait for it.
    pub(super) fn serve(&mut self, id: LaneId, now: Duration, effects: &mut Vec<Effect>) {
        loop {
            let lane = &self.lanes[id.index()];
            if lane.free_slots(now) == 0 {
                return;
            }
            let Some(waiter) = self.queue.pop(id, (lane.slots(), &lane.holders), now) else {
                return;
            };
            self.grant(&waiter, id, now, effects);
        }
    }

    pub(super) fn grant(
        &mut self,
        waiter: &Waiter,
        id: LaneId,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Waiter { ticket, flow, weight, since, .. } = *waiter;
        let lane = &mut self.lanes[id.index()];
        if lane.running == 0 {
            lane.busy_since = now;
        }
        lane.running += 1;
        lane.leases = lane.leases.saturating_add(1);
        lane.holders.add(flow, weight);
        lane.last_used = now;
        let waited = now.saturating_sub(since);
        let generation = lane.generation;
        effects.push(Effect::Grant { ticket, lane: id, generation, flow, waited });
    }

    /// Notes that a lease was granted that no request can get, because the engine has gone down in
    /// the meantime. Its slot ends with the engine.
    pub fn forget_lease(&mut self, id: LaneId) {
        if let Some(lane) = self.lanes.get_mut(id.index()) {
            // Saturating, as for the release of a lease.
            lane.leases = lane.leases.saturating_sub(1);
        }
    }

    pub(super) fn release(
        &mut self,
        id: LaneId,
        (generation, flow): (Generation, FlowId),
        report: Report,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Some(lane) = self.lanes.get_mut(id.index()) else { return };
        // Saturating: a caller that releases a lease twice must not take the dispatcher down.
        lane.leases = lane.leases.saturating_sub(1);
        // Metrics describe the lane over restarts, so leases of earlier generations count.
        lane.metrics.record(report);
        if lane.generation != generation {
            return;
        }
        lane.running = lane.running.saturating_sub(1);
        lane.holders.remove(flow);
        lane.last_used = now;
        if report.severed {
            lane.suspect_until = now.saturating_add(SUSPECT_WINDOW);
        }
        // A client that disconnected before the first byte says nothing about the engine.
        let opened = match report.first_byte.is_some() || report.failed {
            true if report.failed => lane.breaker.record_failure(now),
            true => {
                lane.breaker.record_success();
                false
            }
            false => {
                lane.breaker.abandon_probe(now);
                false
            }
        };
        if opened && let Err(retry_in) = lane.check_breaker(now) {
            let rejected = self.queue.drain(id, |waiter| waiter.has_fallback);
            reject_all(rejected, &AcquireError::CircuitOpen { retry_in }, effects);
        }
        self.balance_lane(id, now, effects);
    }
}
