//! The queue in front of the lanes and the switching between lanes that share memory, as a pure
//! state machine: events in, effects out, time as an argument.
//!
//! A waiting request is a [`Ticket`]; a slot in use is a lease, identified by lane and generation.
//! The fleet's actor owns the only [`Dispatcher`] of a host and carries out its [`Effect`]s; a
//! simulation drives the same code with a virtual clock.
//!
//! ```text
//!   Arrived ──> waiting ──Grant──> leased ──Released──> done
//!      │           │
//!      │           ├── Cancelled ──> done            every ticket ends in exactly one of
//!      │           └── deadline, failed load, Closed Grant, Reject or Cancelled
//!      └── Reject (unknown lane, down, full, too late, closed)
//! ```
//!
//! `dispatch/switch.rs` decides which lane is loaded and which one is evicted;
//! `dispatch/reconfigure.rs` changes lanes, groups and rules meanwhile, and `dispatch/manual.rs`
//! carries out commands of operators.

mod costs;
mod estimate;
mod events;
mod fairness;
mod grants;
mod lane;
mod lane_mode;
mod leaving;
mod manual;
mod metrics;
mod problem;
mod queries;
mod queue;
mod reconfigure;
mod remote;
mod remote_lane;
mod setup;
mod switch;
mod victims;

use std::time::Duration;

pub use self::events::{
    AcquireError, Effect, EngineEvent, Enqueue, Event, FlowId, Generation, LaneHint, SwitchReport,
    Ticket, again,
};
use self::lane::Lane;
pub use self::lane_mode::{LaneCommand, LaneCommandError, LaneMode};
pub use self::metrics::Report;
pub use self::problem::Problem;
use self::queue::{Queue, Waiter};
pub use self::reconfigure::{LaneUpdate, Reconfiguration};
pub use self::remote_lane::RemoteLane;
pub use self::setup::{Backoff, GroupSetup, LaneSetup, QueueLimits, Residency, Rules};
use self::switch::Group;
use crate::advice::Switching;
use crate::fleet_view::LaneId;
use crate::lifecycle::{EngineState, EngineTransition};

/// How long a lane gets no new requests after a connection to its engine broke. Gives the engine's
/// supervisor time to report whether the engine is still alive.
const SUSPECT_WINDOW: Duration = Duration::from_millis(300);

/// The queues, slots, engine states and metrics of all lanes.
#[derive(Debug)]
pub struct Dispatcher {
    lanes: Vec<Lane>,
    /// The groups of the configuration, followed by those of lanes that share no memory.
    groups: Vec<Group>,
    /// The number of groups of the configuration.
    known_groups: usize,
    queue: Queue,
    rules: Rules,
    closed: bool,
}

impl Dispatcher {
    /// Creates a dispatcher for `lanes`, in id order, with no lane loaded. The first
    /// [`Event::Tick`] loads the lanes to be loaded at startup. A lane with an unknown group gets a
    /// group of its own.
    pub fn new(lanes: Vec<LaneSetup>, groups: &[GroupSetup], rules: Rules) -> Self {
        let all: Vec<Lane> = lanes.into_iter().map(Lane::new).collect();
        let mut dispatcher = Self {
            queue: Queue::new(all.len(), rules.aging),
            lanes: all,
            groups: groups.iter().map(|setup| Group::new(*setup)).collect(),
            known_groups: groups.len(),
            rules,
            closed: false,
        };
        dispatcher.join_groups();
        dispatcher
    }

    /// Adds every lane to its group.
    fn join_groups(&mut self) {
        for id in lane_ids().take(self.lanes.len()) {
            self.join_group(id);
        }
    }

    /// Adds a lane to its group. A lane with an unknown group gets a group of its own.
    fn join_group(&mut self, id: LaneId) -> usize {
        let setup = &mut self.lanes[id.index()].setup;
        if setup.group >= self.known_groups {
            setup.group = self.groups.len();
            self.groups.push(Group::new(GroupSetup::ALONE));
        }
        self.groups[setup.group].lanes.push(id);
        setup.group
    }

    /// Notes that the engine of a lane is running already, because an earlier host has left it: the
    /// lane is loading until its supervisor reports whether the engine serves. To be called before
    /// the first event; no [`Effect::Load`] follows.
    pub fn adopt(&mut self, lane: LaneId) {
        if let Some(lane) = self.lanes.get_mut(lane.index()) {
            lane.adopted = lane.transition(EngineTransition::Load, Duration::ZERO);
        }
    }

    /// Handles one event and appends the resulting effects. `now` must not decrease.
    pub fn on(&mut self, event: Event, now: Duration, effects: &mut Vec<Effect>) {
        self.expire(now, effects);
        match event {
            Event::Arrived(enqueue) => self.arrive(enqueue, now, effects),
            Event::Cancelled(ticket) => {
                if let Some((lane, _)) = self.queue.remove(ticket) {
                    self.balance_lane(lane, now, effects);
                }
            }
            Event::Released { lane, generation, flow, report } => {
                self.release(lane, (generation, flow), report, now, effects)
            }
            Event::Engine { lane, news } => self.engine(lane, news, now, effects),
            Event::Remote { lane, remote } => {
                // Not the other lanes: there may be hundreds, and they do not depend on this one.
                if self.note_remote(lane, remote) {
                    self.serve(lane, now, effects);
                }
            }
            Event::Hinted { lane, hint, until } => {
                let lanes = self.lanes.get_mut(lane.index());
                if let Some(hinted) = lanes.filter(|lane| !lane.retired) {
                    hinted.hint = hint.map(|hint| (hint, until));
                    self.balance_lane(lane, now, effects);
                }
            }
            Event::Tick => {
                for group in 0..self.groups.len() {
                    if self.groups[group].wake.is_none_or(|wake| wake <= now) {
                        self.balance(group, now, effects);
                    }
                }
            }
            Event::Closed => {
                self.closed = true;
                for id in lane_ids().take(self.lanes.len()) {
                    reject_all(self.queue.drain(id, |_| true), &AcquireError::Closing, effects);
                }
            }
        }
    }

    /// Returns the time of the next [`Event::Tick`], at which something happens without another
    /// event.
    pub fn next_wake(&self) -> Option<Duration> {
        let groups = self.groups.iter().filter_map(|group| group.wake);
        groups.chain(self.queue.next_deadline()).min()
    }

    /// Handles a request for a slot of a lane:
    ///
    /// 1. The host is stopping: reject.
    /// 2. The lane does not exist, has been removed, or is paused by the operator: reject.
    /// 3. The lane's circuit breaker is open and the request has a fallback: reject.
    /// 4. A slot is free and no request waits for it: grant.
    /// 5. The lane is down: reject. A lane that is about to recover by itself does not count as
    ///    down for a request without a fallback.
    /// 6. The lane is not loaded and the request does not allow loading it: reject.
    /// 7. The deadline has passed: reject.
    /// 8. The estimated wait exceeds the deadline and the request has a fallback: reject.
    /// 9. The queue is full: reject. A flow that keeps at least as many places for its weight as
    ///    the flow of this request gets gives up one: its newest request is rejected instead.
    /// 10. Otherwise the request waits.
    fn arrive(&mut self, enqueue: Enqueue, now: Duration, effects: &mut Vec<Effect>) {
        let (ticket, id) = (enqueue.ticket, enqueue.lane);
        let granted = match self.may_wait(&enqueue, now) {
            Err(error) => {
                effects.push(Effect::Reject { ticket, refusal: error });
                return;
            }
            Ok(granted) => granted,
        };
        let waiter = Waiter::new(&enqueue, now);
        if waiter.has_fallback {
            self.lanes[id.index()].breaker.start_probe(now);
        }
        if granted {
            self.grant(&waiter, id, now, effects);
        } else {
            let displaced = if self.queue.is_full(id, self.rules.queue) {
                self.displace(&waiter, id, now, effects)
            } else {
                None
            };
            self.queue.push(id, waiter);
            self.balance_lane(id, now, effects);
            if let Some(other) = displaced.filter(|other| *other != id) {
                self.balance_lane(other, now, effects);
            }
        }
    }

    /// Returns true if the request can have a slot now, false if it has to wait for one, and an
    /// error if it may not wait.
    fn may_wait(&self, enqueue: &Enqueue, now: Duration) -> Result<bool, AcquireError> {
        let Enqueue {
            lane: id, flow, weight, deadline, switching, has_fallback, has_begun, ..
        } = *enqueue;
        if self.closed {
            return Err(AcquireError::Closing);
        }
        let Some(lane) = self.lanes.get(id.index()) else { return Err(AcquireError::UnknownLane) };
        if lane.retired {
            return Err(AcquireError::LaneRemoved);
        }
        if has_begun && lane.engine == EngineState::Ready {
            return Ok(true);
        }
        if let Some(mode) = lane.mode().filter(|mode| mode.is_paused()) {
            return Err(AcquireError::Paused(mode));
        }
        if has_fallback && let Err(retry_in) = lane.check_breaker(now) {
            return Err(AcquireError::CircuitOpen { retry_in });
        }
        self.may_wait_elsewhere(lane, enqueue, now)?;
        if lane.free_slots(now) > 0 && self.queue.is_empty(id) {
            return Ok(true);
        }
        if !lane.state().can_serve() || lane.is_recovering() && has_fallback {
            return Err(self.not_serving(id, now));
        }
        let loaded = matches!(lane.engine, EngineState::Ready | EngineState::Starting);
        // A restart loads the lane again without a decision to do so.
        let loaded = loaded || lane.reload;
        if switching == Switching::Never && !loaded {
            return Err(AcquireError::NotLoaded);
        }
        if deadline <= now {
            return Err(self.timed_out(id, Duration::ZERO, now));
        }
        if has_fallback {
            self.check_estimate(id, deadline, now)?;
        }
        let (queue, limits) = (&self.queue, self.rules.queue);
        let can_displace = || queue.displaced_by((flow, weight), id, limits).is_some();
        if queue.is_full(id, limits) && !can_displace() {
            return Err(self.queue_full(id, now));
        }
        Ok(false)
    }

    fn queue_full(&self, id: LaneId, now: Duration) -> AcquireError {
        let queued = self.queue.waiting(id);
        AcquireError::QueueFull { queued, retry_in: self.retry_in(id, now) }
    }

    fn timed_out(&self, id: LaneId, waited: Duration, now: Duration) -> AcquireError {
        let state = self.lanes[id.index()].state();
        AcquireError::TimedOut { state, waited, retry_in: self.retry_in(id, now) }
    }

    /// Rejects the request that makes room for another one, and returns its lane.
    fn displace(
        &mut self,
        waiter: &Waiter,
        id: LaneId,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) -> Option<LaneId> {
        let flow = (waiter.flow, waiter.weight);
        let ticket = self.queue.displaced_by(flow, id, self.rules.queue)?;
        let lane = self.queue.lane_of(ticket)?;
        let refusal = self.queue_full(lane, now);
        self.queue.remove(ticket);
        effects.push(Effect::Reject { ticket, refusal });
        Some(lane)
    }

    fn not_serving(&self, id: LaneId, now: Duration) -> AcquireError {
        let lane = &self.lanes[id.index()];
        let retry_in = self.ready_in(id, now);
        let never_served = !lane.had_served && lane.dying.is_none();
        match lane.problem.clone() {
            Some(reason) if never_served && lane.setup.residency != Residency::External => {
                AcquireError::LoadFailed { reason, retry_in }
            }
            reason => AcquireError::NotServing { state: lane.state(), reason, retry_in },
        }
    }

    /// Handles an event of a lane's engine. An event that its state does not allow is a late event
    /// of an earlier generation and is ignored.
    fn engine(&mut self, id: LaneId, news: EngineEvent, now: Duration, effects: &mut Vec<Effect>) {
        let Some(lane) = self.lanes.get_mut(id.index()) else { return };
        let external = lane.setup.residency == Residency::External;
        match news {
            EngineEvent::Ready => {
                if external && lane.engine == EngineState::BackingOff {
                    lane.transition(EngineTransition::Retry, now);
                    lane.transition(EngineTransition::Load, now);
                }
                if lane.engine == EngineState::Starting {
                    let loading_since = lane.since;
                    lane.on_ready(now);
                    lane.transition(EngineTransition::BecameReady, now);
                    self.report_switch(id, loading_since, now, effects);
                }
            }
            EngineEvent::Dying(reason) => {
                let served = lane.served_for(now);
                if lane.engine != EngineState::Stopping
                    && lane.transition(EngineTransition::Stop, now)
                {
                    lane.dying = Some(served);
                    lane.problem = Some(reason);
                    // Requests waiting for a load are rejected only when `LoadFailed` brings the
                    // final reason.
                    if served.is_some() {
                        self.reject_waiters_of_lost(id, now, effects);
                    }
                }
            }
            EngineEvent::LoadFailed(reason) | EngineEvent::Lost(reason) => {
                let served = lane.dying.unwrap_or(lane.served_for(now));
                let was_stopping = lane.engine == EngineState::Stopping && lane.dying.is_none();
                if was_stopping {
                    // The engine did exit, even if not the way it was asked to.
                    lane.transition(EngineTransition::Exited, now);
                    lane.asleep = false;
                } else if lane.transition(EngineTransition::Lost, now) {
                    lane.on_lost(reason, served, now);
                    self.reject_waiters_of_lost(id, now, effects);
                } else if external {
                    // It is still down, for another reason.
                    lane.problem = Some(reason);
                }
            }
            EngineEvent::Stopped { asleep } => {
                // Saturating: an engine that ends while it sleeps was not commanded to.
                lane.unanswered = lane.unanswered.saturating_sub(1);
                let is_last = lane.unanswered == 0;
                if lane.engine == EngineState::Stopping && lane.dying.is_none() && is_last {
                    lane.stop.record(now.saturating_sub(lane.since));
                    lane.transition(EngineTransition::Exited, now);
                    lane.asleep = asleep;
                } else if lane.is_asleep() && !asleep {
                    lane.asleep = false;
                }
            }
        }
        self.balance_lane(id, now, effects);
    }

    /// Rejects requests that waited for an engine that exited, if they have a fallback. The others
    /// keep waiting for the engine to recover, unless it never served or keeps crashing.
    fn reject_waiters_of_lost(&mut self, id: LaneId, now: Duration, effects: &mut Vec<Effect>) {
        let lane = &self.lanes[id.index()];
        if lane.reload || lane.next.is_some() || lane.retired {
            // It is loaded again at once, or has no waiters.
            return;
        }
        let error = self.not_serving(id, now);
        let recovering = self.lanes[id.index()].is_recovering();
        let rejected = self.queue.drain(id, |waiter| !recovering || waiter.has_fallback);
        reject_all(rejected, &error, effects);
    }

    fn expire(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while let Some((lane, Waiter { ticket, since, .. })) = self.queue.pop_expired(now) {
            let error = self.timed_out(lane, now.saturating_sub(since), now);
            effects.push(Effect::Reject { ticket, refusal: error });
            self.balance_lane(lane, now, effects);
        }
    }

    fn balance_lane(&mut self, lane: LaneId, now: Duration, effects: &mut Vec<Effect>) {
        if let Some(group) = self.lanes.get(lane.index()).map(|lane| lane.setup.group) {
            self.balance(group, now, effects);
        }
    }
}

fn reject_all(waiters: Vec<Waiter>, error: &AcquireError, effects: &mut Vec<Effect>) {
    let reject = |waiter: Waiter| Effect::Reject { ticket: waiter.ticket, refusal: error.clone() };
    effects.extend(waiters.into_iter().map(reject));
}

fn lane_ids() -> impl Iterator<Item = LaneId> {
    (0..).map(LaneId)
}

#[cfg(test)]
mod tests;
