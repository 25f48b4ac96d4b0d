//! Requests that have not ended.

use std::time::Duration;

use pointsman_domain::dispatch::{Generation, Ticket};
use pointsman_domain::{AttemptCursor, LaneId, Plan, RequestView as _};
use pointsman_openai::Request;

use crate::engine::{Job, Key, Used};
use crate::observe::Try;
use crate::traffic::Ask;

/// A request on its way.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) ask: Ask,
    pub(super) request: Request,
    pub(super) cursor: AttemptCursor<Plan>,
    pub(super) place: Place,
    pub(super) tries: Vec<Try>,
    /// Another lane than the first one is being tried.
    pub(super) moved: bool,
    /// Its client leaves then, if the first byte is not there.
    pub(super) leaves: Duration,
    /// When something becomes of it by itself, next.
    pub(super) limit: Option<Duration>,
    pub(super) first_byte: Option<Duration>,
    pub(super) used: Used,
    /// As it was sent last, it asks for a stream.
    pub(super) streams: bool,
    /// What its prompt has in common with others of its class.
    pub(super) common: u32,
    /// Its prompt as it came, by the estimate.
    pub(super) came_with: u32,
}

/// Where a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Between two tries.
    OnItsWay,
    /// In a queue.
    Waits(Ticket),
    /// At an engine.
    Leased(Lease),
}

/// The slot that a request has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) lane: LaneId,
    pub(super) generation: Generation,
    pub(super) granted: Duration,
    /// When the engine's time for the first byte is over, and how long that is.
    pub(super) first_byte: (Duration, Duration),
}

impl Live {
    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.ask.at)
    }

    /// It waits no more.
    pub(super) fn waited(&mut self, now: Duration) {
        if let Some(tried) = self.tries.last_mut() {
            tried.queue = now.saturating_sub(tried.begun);
        }
    }

    /// The work that it is for an engine: as long as the edits of its plan and of this step leave it.
    /// An engine refuses one whose prompt is longer than what it can read, which then is `None`.
    pub(super) fn send(&mut self, longest: u32) -> Option<Job> {
        let edits = &self.cursor.step().edits;
        let edited = (!edits.is_empty()).then(|| self.request.apply(edits).0);
        let request = edited.as_ref().unwrap_or(&self.request);
        self.streams = request.streaming();
        let figures = request.figures();
        let ask = &self.ask;
        let prompt = match u64::from(self.came_with) {
            0 => ask.prompt_tokens,
            before => {
                let edited =
                    u64::from(ask.prompt_tokens) * u64::from(figures.prompt_tokens) / before;
                u32::try_from(edited).unwrap_or(u32::MAX)
            }
        };
        let most = if figures.max_output_tokens > 0 { figures.max_output_tokens } else { u32::MAX };
        let room = if longest > 0 { longest.saturating_sub(prompt) } else { u32::MAX };
        let job = Job {
            prompt,
            output: ask.output_tokens.min(most).min(room),
            common: (ask.class, self.common),
            history: (ask.session, ask.shared_tokens),
            took: ask.took,
        };
        (longest == 0 || prompt < longest).then_some(job)
    }
}

/// Live requests by keys that are used again, so that a long run needs no more memory than a short one.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    places: Vec<Option<Live>>,
    free: Vec<Key>,
    /// Tickets are numbered, so that earlier ones are smaller, and have their request's key in the last bits.
    tickets: u64,
}

/// Bits of a ticket that are the key: many more requests than there is memory for.
const KEY_BITS: u32 = 24;

impl Crowd {
    pub(super) fn add(&mut self, live: Live) -> Key {
        match self.free.pop() {
            Some(key) => {
                self.places[key] = Some(live);
                key
            }
            None => {
                self.places.push(Some(live));
                self.places.len() - 1
            }
        }
    }

    pub(super) fn get(&mut self, key: Key) -> Option<&mut Live> {
        self.places.get_mut(key)?.as_mut()
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<Live> {
        let live = self.places.get_mut(key)?.take()?;
        self.free.push(key);
        Some(live)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.places.len() == self.free.len()
    }

    /// A new ticket for a request.
    pub(super) fn ticket(&mut self, key: Key) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets << KEY_BITS | key as u64)
    }

    /// Whose ticket it is.
    pub(super) fn of(ticket: Ticket) -> Key {
        (ticket.0 & ((1 << KEY_BITS) - 1)) as Key
    }

    /// Those with a lease of a life of a lane's engine, in the order of their keys.
    pub(super) fn leased(&self, lane: LaneId, generation: Generation) -> Vec<Key> {
        let of = |live: &Live| matches!(live.place, Place::Leased(lease) if lease.lane == lane && lease.generation == generation);
        let leased =
            self.places.iter().enumerate().filter(|(_, live)| live.as_ref().is_some_and(of));
        leased.map(|(key, _)| key).collect()
    }
}
