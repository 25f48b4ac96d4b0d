//! The queue in front of the lanes, as a pure state machine: events in, effects out, time as an argument.
//!
//! One waiting request is a [`Ticket`]; one slot in use is a lease, told apart by lane and generation. The fleet's
//! actor owns the only [`Dispatcher`] of a host and carries out its [`Effect`]s; a simulation drives the same code with
//! a virtual clock.
//!
//! ```text
//!   Arrived ──> waiting ──Grant──> leased ──Released──> gone
//!      │           │
//!      │           ├── Cancelled ──> gone            every ticket ends in exactly one of
//!      │           └── deadline, lane down, Closed   Grant, Refuse or Cancelled
//!      └── Refuse (unknown lane, down, full, closed)
//! ```

mod figures;
mod queue;

use std::time::Duration;

use self::figures::LoadFigures;
pub use self::figures::Report;
use self::queue::{Queue, Waiter};
use crate::fleet_view::{LaneId, LaneStat, LaneState};

/// One request that waits for a lane; numbered by whoever sends the events, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Number of an engine's life. A lease of an earlier life does not count against the slots of a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u64);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request wants a lane.
    Arrived(Arrival),
    /// Whoever waited with this ticket is gone. Ignored if the ticket has ended.
    Cancelled(Ticket),
    /// A lease was given back.
    Released {
        /// Its lane.
        lane: LaneId,
        /// Its generation.
        generation: Generation,
        /// How the request went.
        report: Report,
    },
    /// A lane's engine changed its state.
    LaneChanged {
        /// The lane.
        lane: LaneId,
        /// Its new state.
        state: LaneState,
        /// Estimated time until it is ready.
        ready_in: Duration,
    },
    /// Time has passed (see [`Dispatcher::next_deadline`]).
    Tick,
    /// The host stops: refuse everybody who waits and whoever comes.
    Closed,
}

/// A request that wants a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its ticket.
    pub ticket: Ticket,
    /// The lane it wants.
    pub lane: LaneId,
    /// Higher goes first.
    pub priority: i32,
    /// When its wait ends.
    pub deadline: Duration,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// The request has a slot now.
    Grant {
        /// Whose.
        ticket: Ticket,
        /// Of which lane.
        lane: LaneId,
        /// Of which life of its engine.
        generation: Generation,
        /// How long it waited.
        waited: Duration,
    },
    /// The request will get no slot of this lane.
    Refuse {
        /// Whose.
        ticket: Ticket,
        /// Why.
        refusal: Refusal,
    },
}

/// Why a request got no slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The topology has no such lane.
    #[error("there is no such lane")]
    UnknownLane,
    /// The lane is down or draining.
    #[error("the lane is {}", .0.label())]
    NotServing(LaneState),
    /// The lane's queue, or the queues together, have no room.
    #[error("{queued} requests wait already, which is the limit")]
    QueueFull {
        /// How many wait.
        queued: usize,
        /// Estimated time until there is room.
        retry_in: Duration,
    },
    /// It waited for its longest time.
    #[error("waited {} ms without getting a slot", .waited.as_millis())]
    TimedOut {
        /// How long that was.
        waited: Duration,
    },
    /// The host is stopping.
    #[error("the host is stopping")]
    Closing,
}

/// Limits on waiting requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most that wait for one lane.
    pub per_lane: usize,
    /// Most that wait in all.
    pub total: usize,
}

/// All lanes' queues, slots and figures.
#[derive(Debug)]
pub struct Dispatcher {
    lanes: Vec<Lane>,
    queue: Queue,
    limits: QueueLimits,
    closed: bool,
}

#[derive(Debug)]
struct Lane {
    state: LaneState,
    ready_in: Duration,
    slots: u32,
    running: u32,
    generation: Generation,
    figures: LoadFigures,
}

impl Lane {
    fn free(&self) -> u32 {
        if self.state.serving() { self.slots.saturating_sub(self.running) } else { 0 }
    }
}

impl Dispatcher {
    /// Lanes with these numbers of slots, in the order of their ids, all in state [`LaneState::Starting`].
    pub fn new(slots: impl IntoIterator<Item = u32>, limits: QueueLimits) -> Self {
        let lane = |slots| Lane {
            state: LaneState::Starting,
            ready_in: Duration::ZERO,
            slots,
            running: 0,
            generation: Generation::default(),
            figures: LoadFigures::default(),
        };
        let lanes: Vec<Lane> = slots.into_iter().map(lane).collect();
        Self { queue: Queue::new(lanes.len()), lanes, limits, closed: false }
    }

    /// Take in one event and append what has to be done. `now` never goes back.
    pub fn on(&mut self, event: Event, now: Duration, effects: &mut Vec<Effect>) {
        match event {
            Event::Arrived(arrival) => self.arrive(arrival, now, effects),
            Event::Cancelled(ticket) => self.queue.cancel(ticket),
            Event::Released { lane, generation, report } => {
                self.release(lane, generation, report, now, effects)
            }
            Event::LaneChanged { lane, state, ready_in } => self.change(lane, state, ready_in, now, effects),
            Event::Tick => self.expire(now, effects),
            Event::Closed => {
                self.closed = true;
                refuse_all(self.queue.drain_all(), &Refusal::Closing, effects);
            }
        }
    }

    /// When the next wait ends by itself: the time for the next [`Event::Tick`].
    pub fn next_deadline(&self) -> Option<Duration> {
        self.queue.next_deadline()
    }

    /// Requests that hold a slot of `lane`, in this life of its engine.
    pub fn running(&self, lane: LaneId) -> u32 {
        self.lanes.get(lane.index()).map_or(0, |lane| lane.running)
    }

    /// Requests that wait, in all.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Figures of all lanes, in the order of their ids.
    pub fn stats(&self) -> Vec<LaneStat> {
        self.lanes.iter().enumerate().map(|(index, lane)| self.stat(index, lane)).collect()
    }

    /// A request wants a lane:
    ///
    /// 1. The host is stopping: refuse.
    /// 2. There is no such lane, or it is down: refuse.
    /// 3. A slot is free and nobody waits for it: grant.
    /// 4. Its time is up already: refuse.
    /// 5. The queue is full: refuse.
    /// 6. It waits.
    fn arrive(&mut self, arrival: Arrival, now: Duration, effects: &mut Vec<Effect>) {
        let Arrival { ticket, lane: id, priority, deadline } = arrival;
        let refused = match self.lanes.get_mut(id.index()) {
            _ if self.closed => Some(Refusal::Closing),
            None => Some(Refusal::UnknownLane),
            Some(lane) if !lane.state.able_to_serve() => Some(Refusal::NotServing(lane.state)),
            Some(lane) if lane.free() > 0 && self.queue.is_empty(id) => {
                lane.running += 1;
                let generation = lane.generation;
                effects.push(Effect::Grant { ticket, lane: id, generation, waited: Duration::ZERO });
                return;
            }
            Some(_) if deadline <= now => Some(Refusal::TimedOut { waited: Duration::ZERO }),
            Some(lane) if self.queue.is_full(id, self.limits) => {
                let queued = self.queue.waiting(id);
                Some(Refusal::QueueFull { queued, retry_in: lane.figures.wait_for(queued, lane.slots) })
            }
            Some(_) => None,
        };
        match refused {
            Some(refusal) => effects.push(Effect::Refuse { ticket, refusal }),
            None => self.queue.push(id, priority, Waiter { ticket, deadline, since: now }),
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
        if lane.generation == generation {
            lane.running = lane.running.saturating_sub(1);
            self.grant_waiting(id, now, effects);
        }
    }

    fn change(
        &mut self,
        id: LaneId,
        state: LaneState,
        ready_in: Duration,
        now: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Some(lane) = self.lanes.get_mut(id.index()) else { return };
        if state.serving() && !lane.state.serving() {
            lane.generation = Generation(lane.generation.0 + 1);
            lane.running = 0;
        }
        lane.state = state;
        lane.ready_in = ready_in;
        if state.able_to_serve() {
            self.grant_waiting(id, now, effects);
        } else {
            refuse_all(self.queue.drain(id), &Refusal::NotServing(state), effects);
        }
    }

    fn grant_waiting(&mut self, id: LaneId, now: Duration, effects: &mut Vec<Effect>) {
        self.expire(now, effects);
        let Some(lane) = self.lanes.get_mut(id.index()) else { return };
        while lane.free() > 0
            && let Some(Waiter { ticket, since, .. }) = self.queue.pop(id)
        {
            lane.running += 1;
            let waited = now.saturating_sub(since);
            effects.push(Effect::Grant { ticket, lane: id, generation: lane.generation, waited });
        }
    }

    fn expire(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        while let Some(Waiter { ticket, since, .. }) = self.queue.pop_expired(now) {
            let refusal = Refusal::TimedOut { waited: now.saturating_sub(since) };
            effects.push(Effect::Refuse { ticket, refusal });
        }
    }

    fn stat(&self, index: usize, lane: &Lane) -> LaneStat {
        let id = LaneId(u32::try_from(index).unwrap_or(u32::MAX));
        let queued = self.queue.waiting(id);
        let wait = if lane.free() > 0 && queued == 0 {
            Duration::ZERO
        } else {
            lane.figures.wait_for(queued, lane.slots)
        };
        LaneStat {
            running: lane.running,
            queued: u32::try_from(queued).unwrap_or(u32::MAX),
            slots_free: lane.free(),
            errors: lane.figures.errors(),
            ttft_p50_ms: lane.figures.ttft_p50_ms(),
            ttft_p99_ms: lane.figures.ttft_p99_ms(),
            est_wait_ms: whole_ms(wait),
            ready_in_ms: if lane.state.serving() { 0 } else { whole_ms(lane.ready_in) },
            ..LaneStat::idle(id, lane.state, lane.slots)
        }
    }
}

fn refuse_all(waiters: Vec<Waiter>, refusal: &Refusal, effects: &mut Vec<Effect>) {
    let refuse = |waiter: Waiter| Effect::Refuse { ticket: waiter.ticket, refusal: refusal.clone() };
    effects.extend(waiters.into_iter().map(refuse));
}

fn whole_ms(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
