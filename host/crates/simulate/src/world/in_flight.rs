//! In-flight requests: those that have arrived and have not ended.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{FlowId, Generation, Ticket};
use pointsman_domain::{
    Edit, LaneId, Note, PolicyRef, RequestFlow, RequestView as _, ServedPrompt,
};
use pointsman_openai::Request;

use crate::engine::{Job, RequestKey, TokenUsage};
use crate::traffic::SimRequest;

/// An in-flight request.
#[derive(Debug)]
pub(super) struct InFlightRequest {
    pub(super) sim: SimRequest,
    pub(super) request: Request,
    /// The request as it was last sent to an engine, with the edits of the step.
    pub(super) sent: Option<Request>,
    /// What the prefix index knew of the prompt that the engine has processed.
    pub(super) served: Option<ServedPrompt>,
    pub(super) flow: RequestFlow,
    pub(super) stage: RequestStage,
    /// When the client disconnects if it has not received the first byte.
    pub(super) client_leaves_at: Duration,
    /// The request's entry in the timer set.
    pub(super) timer: Option<Duration>,
    pub(super) usage: TokenUsage,
    /// Whether the request asked for a stream when it was last sent to an engine.
    pub(super) is_streaming: bool,
    /// The length of the prefix that the prompts of the class share.
    pub(super) class_prefix: u32,
    /// The estimated length of the prompt before any edits.
    pub(super) original_estimate: u32,
    pub(super) kept: Kept,
}

/// What of a decision is kept until the end of its request.
#[derive(Debug)]
pub(super) struct Kept {
    /// The notes that policies get with the outcome.
    pub(super) notes: Vec<(PolicyRef, Note)>,
    /// The lanes that the filters of all policies left.
    pub(super) lanes_left: Arc<[LaneId]>,
}

/// What an in-flight request holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestStage {
    /// Between two attempts.
    BetweenAttempts,
    /// In the queue of a lane.
    Queued(Ticket),
    /// At an engine.
    Leased(Lease),
}

/// The slot that a request holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) lane: LaneId,
    pub(super) generation: Generation,
    pub(super) flow: FlowId,
    pub(super) granted_at: Duration,
    pub(super) first_byte_timeout: Duration,
    /// When the first-byte timeout expires.
    pub(super) first_byte_deadline: Duration,
}

impl InFlightRequest {
    pub(super) fn age(&self, now: Duration) -> Duration {
        now.saturating_sub(self.sim.at)
    }

    /// Returns the request as a job for an engine, after the edits of the plan and of the current
    /// step, or `None` if its prompt exceeds the engine's maximum context (0 means unlimited).
    pub(super) fn prepare_job(&mut self, max_context: u32) -> Option<Job> {
        let edits = self.flow.step_edits();
        let edited = (!edits.is_empty()).then(|| with_output_limit(self.request.apply(edits).0));
        let request = edited.as_ref().unwrap_or(&self.request);
        self.is_streaming = request.streaming();
        let figures = request.info();
        let sim = &self.sim;
        // Edits can change the prompt. Only its estimate is known then, so the true length is
        // scaled by the change of the estimate.
        let prompt = match u64::from(self.original_estimate) {
            0 => sim.prompt_tokens,
            original => {
                let scaled =
                    u64::from(sim.prompt_tokens) * u64::from(figures.prompt_tokens) / original;
                u32::try_from(scaled).unwrap_or(u32::MAX)
            }
        };
        let max_output =
            if figures.max_output_tokens > 0 { figures.max_output_tokens } else { u32::MAX };
        let context_left =
            if max_context > 0 { max_context.saturating_sub(prompt) } else { u32::MAX };
        let job = Job {
            prompt,
            output: sim.output_tokens.min(max_output).min(context_left),
            class_prefix: (sim.class, self.class_prefix),
            session_prefix: (sim.session, sim.shared_tokens),
            recorded_times: sim.recorded_times,
        };
        let fits = max_context == 0 || prompt < max_context;
        self.sent = fits.then(|| request.clone());
        fits.then_some(job)
    }
}

/// A slab of in-flight requests. Keys are reused, so that a long run needs no more memory than a
/// short one.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    slots: Vec<Option<InFlightRequest>>,
    free: Vec<RequestKey>,
    /// The sequence number of the last ticket.
    tickets: u64,
}

/// The bits of a ticket that hold the request's key. Far more requests than fit into memory.
const KEY_BITS: u32 = 24;

impl InFlight {
    pub(super) fn insert(&mut self, request: InFlightRequest) -> RequestKey {
        match self.free.pop() {
            Some(key) => {
                self.slots[key] = Some(request);
                key
            }
            None => {
                self.slots.push(Some(request));
                self.slots.len() - 1
            }
        }
    }

    pub(super) fn get(&mut self, key: RequestKey) -> Option<&mut InFlightRequest> {
        self.slots.get_mut(key)?.as_mut()
    }

    pub(super) fn remove(&mut self, key: RequestKey) -> Option<InFlightRequest> {
        let request = self.slots.get_mut(key)?.take()?;
        self.free.push(key);
        Some(request)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.len() == self.free.len()
    }

    /// Returns a new ticket for a request. The sequence number is in the upper bits, because the
    /// dispatcher expects later tickets to be larger; the key is in the lower ones.
    pub(super) fn new_ticket(&mut self, key: RequestKey) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets << KEY_BITS | key as u64)
    }

    /// Returns the key of the request that holds this ticket.
    pub(super) fn key_of(ticket: Ticket) -> RequestKey {
        (ticket.0 & ((1 << KEY_BITS) - 1)) as RequestKey
    }

    /// Returns the requests that hold a lease of this generation of a lane, in the order of their
    /// keys.
    pub(super) fn leased(&self, lane: LaneId, generation: Generation) -> Vec<RequestKey> {
        let is_leased = |request: &InFlightRequest| match request.stage {
            RequestStage::Leased(lease) => lease.lane == lane && lease.generation == generation,
            RequestStage::BetweenAttempts | RequestStage::Queued(_) => false,
        };
        let slots = self.slots.iter().enumerate();
        slots.filter(|(_, slot)| slot.as_ref().is_some_and(is_leased)).map(|(key, _)| key).collect()
    }
}

/// Returns a request with the limit of its output that guards demand. Simulated requests have one
/// output each.
pub(super) fn with_output_limit(request: Request) -> Request {
    let limit = request.constraint().and_then(|constraint| constraint.max_output_tokens());
    match limit {
        Some((max, _)) => request.apply(&[Edit::CapOutputTokens(max)]).0,
        None => request,
    }
}
