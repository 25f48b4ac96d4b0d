//! The queue in front of the lanes and the turns that lanes take, as a pure state machine: events in, effects out, time as
//! an argument.
//!
//! One waiting request is a [`Ticket`]; one slot in use is a lease, told apart by lane and generation. The fleet's
//! actor owns the only [`Dispatcher`] of a host and carries out its [`Effect`]s; a simulation drives the same code with
//! a virtual clock.
//!
//! ```text
//!   Arrived ──> waiting ──Grant──> leased ──Released──> gone
//!      │           │
//!      │           ├── Cancelled ──> gone            every ticket ends in exactly one of
//!      │           └── deadline, failed load, Closed Grant, Refuse or Cancelled
//!      └── Refuse (unknown lane, down, full, too late, closed)
//! ```
//!
//! Which lane is loaded and which one has to go is decided in `dispatch/switch.rs`.

mod breaker;
mod costs;
mod estimate;
mod events;
mod figures;
mod lane;
mod queue;
mod setup;
mod switch;
mod victims;

use std::sync::Arc;
use std::time::Duration;

pub use self::events::{
    AcquireError, Effect, EngineEvent, Enqueue, Event, FlowId, Generation, LaneHint, SwitchReport,
    Ticket,
};
pub use self::figures::Report;
use self::lane::Lane;
use self::queue::{Queue, Waiter};
pub use self::setup::{BackOff, GroupSetup, LaneSetup, QueueLimits, Residency, Rules};
use self::switch::Group;
use crate::advice::Switching;
use crate::fleet_view::LaneId;
use crate::lifecycle::{EngineState, EngineTransition};

/// How long a lane whose connection broke is given to say whether its engine lives.
const SUSPICION: Duration = Duration::from_millis(300);

/// All lanes' queues, slots, engines and figures.
#[derive(Debug)]
pub struct Dispatcher {
    lanes: Vec<Lane>,
    groups: Vec<Group>,
    queue: Queue,
    rules: Rules,
    closed: bool,
}

impl Dispatcher {
    /// Lanes in the order of their ids, nothing loaded. The first [`Event::Tick`] loads what is to be loaded at the start. A
    /// lane whose group there is none of gets one of its own.
    pub fn new(lanes: Vec<LaneSetup>, groups: &[GroupSetup], rules: Rules) -> Self {
        let mut groups: Vec<Group> = groups.iter().map(|setup| Group::new(*setup)).collect();
        let known = groups.len();
        let mut all = Vec::with_capacity(lanes.len());
        for (id, mut setup) in lane_ids().zip(lanes) {
            if setup.group >= known {
                setup.group = groups.len();
                groups.push(Group::new(GroupSetup::ALONE));
            }
            groups[setup.group].lanes.push(id);
            all.push(Lane::new(setup));
        }
        Self { queue: Queue::new(all.len(), rules.aging), lanes: all, groups, rules, closed: false }
    }

    /// Take in one event and append what has to be done. `now` never goes back.
    pub fn on(&mut self, event: Event, now: Duration, effects: &mut Vec<Effect>) {
        self.expire(now, effects);
        match event {
            Event::Arrived(arrival) => self.arrive(arrival, now, effects),
            Event::Cancelled(ticket) => {
                if let Some((lane, _)) = self.queue.remove(ticket) {
                    self.balance_of(lane, now, effects);
                }
            }
            Event::Released { lane, generation, report } => {
                self.release(lane, generation, report, now, effects)
            }
            Event::Engine { lane, news } => self.engine(lane, news, now, effects),
            Event::Hinted { lane, hint, until } => {
                if let Some(of) = self.lanes.get_mut(lane.index()) {
                    of.hint = hint.map(|hint| (hint, until));
                    self.balance_of(lane, now, effects);
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
                    refuse_all(self.queue.drain(id, |_| true), &AcquireError::Closing, effects);
                }
            }
        }
    }

    /// When something happens by itself: the time for the next [`Event::Tick`].
    pub fn next_wake(&self) -> Option<Duration> {
        let groups = self.groups.iter().filter_map(|group| group.wake);
        groups.chain(self.queue.next_deadline()).min()
    }

    /// Requests that hold a slot of `lane`, in this life of its engine.
    pub fn running(&self, lane: LaneId) -> u32 {
        self.lanes.get(lane.index()).map_or(0, |lane| lane.running)
    }

    /// Requests that wait, in all.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// How many wait for a lane, by priority.
    pub fn queued_by_priority(&self, lane: LaneId) -> Vec<(i32, usize)> {
        self.queue.by_priority(lane)
    }

    /// Where a lane's engine is in its life.
    pub fn engine_state(&self, lane: LaneId) -> Option<EngineState> {
        self.lanes.get(lane.index()).map(|lane| lane.engine)
    }

    /// What went wrong with a lane's engine last, until it serves again.
    pub fn problem(&self, lane: LaneId) -> Option<Arc<str>> {
        self.lanes.get(lane.index())?.problem.clone()
    }

    /// Bytes that the lanes of a lane's group hold, and may hold, together.
    pub fn group_memory(&self, lane: LaneId) -> Option<(u64, u64)> {
        let group = self.groups.get(self.lanes.get(lane.index())?.setup.group)?;
        Some((self.held(group), group.setup.budget))
    }

    /// A request wants a lane:
    ///
    /// 1. The host is stopping: refuse.
    /// 2. There is no such lane: refuse.
    /// 3. Its breaker is open, and the request has somewhere else to go: refuse.
    /// 4. A slot is free and nobody waits for it: grant.
    /// 5. It is down: refuse. One that comes back by itself in a moment is not, for a request that has nowhere else to go.
    /// 6. It is not loaded, and the request may not change that: refuse.
    /// 7. Its time is up already: refuse.
    /// 8. It would wait in vain, and has somewhere else to go: refuse.
    /// 9. The queue is full: refuse.
    /// 10. It waits.
    fn arrive(&mut self, arrival: Enqueue, now: Duration, effects: &mut Vec<Effect>) {
        let Enqueue { ticket, lane: id, priority, flow, deadline, switching, has_fallback } =
            arrival;
        let granted = match self.may_wait(&arrival, now) {
            Err(refusal) => {
                effects.push(Effect::Reject { ticket, refusal });
                return;
            }
            Ok(granted) => granted,
        };
        if has_fallback {
            self.lanes[id.index()].breaker.tries(now);
        }
        if granted {
            self.grant(ticket, id, now, now, effects);
        } else {
            let waiter =
                Waiter { ticket, priority, flow, since: now, deadline, switching, has_fallback };
            self.queue.push(id, waiter);
            self.balance_of(id, now, effects);
        }
    }

    /// Can it have a slot now? If it may not even wait for one: why.
    fn may_wait(&self, arrival: &Enqueue, now: Duration) -> Result<bool, AcquireError> {
        let Enqueue { lane: id, deadline, switching, has_fallback, .. } = *arrival;
        if self.closed {
            return Err(AcquireError::Closing);
        }
        let Some(lane) = self.lanes.get(id.index()) else { return Err(AcquireError::UnknownLane) };
        if has_fallback && let Err(retry_in) = lane.breaker.admits(now) {
            return Err(AcquireError::Faulty { retry_in });
        }
        if lane.free(now) > 0 && self.queue.is_empty(id) {
            return Ok(true);
        }
        if !lane.state().able_to_serve() || lane.recovering() && has_fallback {
            return Err(self.not_serving(id, now));
        }
        let loaded = matches!(lane.engine, EngineState::Ready | EngineState::Starting);
        if switching == Switching::Never && !loaded {
            return Err(AcquireError::NotLoaded);
        }
        if deadline <= now {
            return Err(AcquireError::TimedOut {
                waited: Duration::ZERO,
                retry_in: self.start_in(id, now),
            });
        }
        if has_fallback {
            let estimate = self.start_in(id, now);
            if now.saturating_add(estimate) > deadline {
                return Err(AcquireError::TooLate { estimate });
            }
        }
        if self.queue.is_full(id, self.rules.queue) {
            let queued = self.queue.waiting(id);
            return Err(AcquireError::QueueFull { queued, retry_in: self.start_in(id, now) });
        }
        Ok(false)
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

    fn release(
        &mut self,
        id: LaneId,
        generation: Generation,
        report: Report,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Some(lane) = self.lanes.get_mut(id.index()) else { return };
        lane.figures.add(report);
        if lane.generation != generation {
            return;
        }
        lane.running = lane.running.saturating_sub(1);
        lane.last_used = now;
        if report.severed {
            lane.suspect_until = now.saturating_add(SUSPICION);
        }
        let opened = match report.first_byte.is_some() || report.failed {
            true => lane.breaker.ended(report.failed, now),
            false => {
                lane.breaker.untold(now);
                false
            }
        };
        if opened && let Err(retry_in) = lane.breaker.admits(now) {
            let leave = self.queue.drain(id, |waiter| waiter.has_fallback);
            refuse_all(leave, &AcquireError::Faulty { retry_in }, effects);
        }
        self.balance_of(id, now, effects);
    }

    /// News of an engine. What makes no sense in its state is late news of an earlier life.
    fn engine(&mut self, id: LaneId, news: EngineEvent, now: Duration, effects: &mut Vec<Effect>) {
        let Some(lane) = self.lanes.get_mut(id.index()) else { return };
        let external = lane.setup.residency == Residency::External;
        match news {
            EngineEvent::Ready => {
                if external && lane.engine == EngineState::BackingOff {
                    lane.step(EngineTransition::Retry, now);
                    lane.step(EngineTransition::Load, now);
                }
                if lane.engine == EngineState::Starting {
                    let loading_since = lane.since;
                    lane.came_up(now);
                    lane.step(EngineTransition::Answers, now);
                    self.switched(id, loading_since, now, effects);
                }
            }
            EngineEvent::Dying(reason) => {
                let served = lane.served(now);
                if lane.engine != EngineState::Stopping && lane.step(EngineTransition::Stop, now) {
                    lane.dying = Some(served);
                    lane.problem = Some(reason);
                    // Whoever waits for a load hears of its end when all is known about it.
                    if served.is_some() {
                        self.leave_lost(id, now, effects);
                    }
                }
            }
            EngineEvent::LoadFailed(reason) | EngineEvent::Lost(reason) => {
                let served = lane.dying.unwrap_or(lane.served(now));
                let was_to_end = lane.engine == EngineState::Stopping && lane.dying.is_none();
                if was_to_end {
                    // And has, if not quite as asked.
                    lane.step(EngineTransition::Exited, now);
                    lane.asleep = false;
                } else if lane.step(EngineTransition::Lost, now) {
                    lane.went_down(reason, served, now);
                    self.leave_lost(id, now, effects);
                }
            }
            EngineEvent::Stopped { asleep } => {
                if lane.engine == EngineState::Stopping && lane.dying.is_none() {
                    lane.stop.add(now.saturating_sub(lane.since));
                    lane.step(EngineTransition::Exited, now);
                    lane.asleep = asleep;
                } else if lane.sleeps() && !asleep {
                    lane.asleep = false;
                }
            }
        }
        self.balance_of(id, now, effects);
    }

    /// Those who waited for an engine that ended: whoever has somewhere else to go does so; the others wait for it to come
    /// back, unless it never served, or dies again and again.
    fn leave_lost(&mut self, id: LaneId, now: Duration, effects: &mut Vec<Effect>) {
        let refusal = self.not_serving(id, now);
        let stay = self.lanes[id.index()].recovering();
        let leave = self.queue.drain(id, |waiter| !stay || waiter.has_fallback);
        refuse_all(leave, &refusal, effects);
    }

    /// Serve those who wait for a lane, as far as it has slots.
    fn serve(&mut self, id: LaneId, now: Duration, effects: &mut Vec<Effect>) {
        while self.lanes[id.index()].free(now) > 0
            && let Some(Waiter { ticket, since, .. }) = self.queue.pop(id, now)
        {
            self.grant(ticket, id, since, now, effects);
        }
    }

    fn grant(
        &mut self,
        ticket: Ticket,
        id: LaneId,
        since: Duration,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let lane = &mut self.lanes[id.index()];
        lane.running += 1;
        lane.last_used = now;
        let waited = now.saturating_sub(since);
        effects.push(Effect::Grant { ticket, lane: id, generation: lane.generation, waited });
    }

    fn expire(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while let Some((lane, Waiter { ticket, since, .. })) = self.queue.pop_expired(now) {
            let retry_in = self.start_in(lane, now);
            let refusal = AcquireError::TimedOut { waited: now.saturating_sub(since), retry_in };
            effects.push(Effect::Reject { ticket, refusal });
            self.balance_of(lane, now, effects);
        }
    }

    fn balance_of(&mut self, lane: LaneId, now: Duration, effects: &mut Vec<Effect>) {
        if let Some(group) = self.lanes.get(lane.index()).map(|lane| lane.setup.group) {
            self.balance(group, now, effects);
        }
    }
}

fn refuse_all(waiters: Vec<Waiter>, refusal: &AcquireError, effects: &mut Vec<Effect>) {
    let refuse =
        |waiter: Waiter| Effect::Reject { ticket: waiter.ticket, refusal: refusal.clone() };
    effects.extend(waiters.into_iter().map(refuse));
}

fn lane_ids() -> impl Iterator<Item = LaneId> {
    (0..).map(LaneId)
}

#[cfg(test)]
mod tests;
