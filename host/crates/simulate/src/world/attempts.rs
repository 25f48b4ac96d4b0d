//! Drives the flows of requests in virtual time: feeds what happens in the queue, at the engine and
//! to the client as events, and carries out the effects.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{self, AcquireError, FlowId, Generation, Report, Ticket};
use pointsman_domain::request_flow::{
    Action, Declined, Effects, EngineFailure, Event, LeaseEnd, Release,
};
use pointsman_domain::{Facts, FailureReport, LaneId, SlotRequest, TokenCounts, Trace};

use super::World;
use super::in_flight::{InFlight, Lease, RequestStage};
use crate::engine::{Job, RequestKey, ResponseProgress, TokenUsage};

/// The HTTP status of a response.
const OK: u16 = 200;
/// The HTTP status of a response to an invalid request.
const BAD_REQUEST: u16 = 400;

impl World<'_> {
    /// Feeds an event to the flow of a request and carries out its effects. `reason` says what
    /// happened, for people, if the request ends with it.
    fn feed(&mut self, key: RequestKey, event: Event<'_>, reason: &str) {
        let Some(request) = self.in_flight.get(key) else { return };
        let age = request.age(self.now);
        let effects = request.flow.on(event, age);
        self.carry_out(key, effects, reason);
    }

    pub(super) fn carry_out(&mut self, key: RequestKey, effects: Effects, reason: &str) {
        match effects.release {
            Some(Release::Ticket) => self.leave_queue(key),
            Some(Release::Lease(end)) => self.release(key, end),
            // The dispatcher grants no slot to a request that has left its queue.
            Some(Release::Unused) | None => {}
        }
        match effects.action {
            Action::Acquire(slot_request) => self.enqueue(key, slot_request),
            Action::Recover(report) => self.recover(key, &report, reason),
            Action::Respond => self.update_timer(key),
            Action::End(end) => {
                if let Some(request) = self.remove(key) {
                    self.finish_request(&request, &end, reason);
                }
            }
            // Policies are asked on arrival, and requests are sent when a slot is granted.
            Action::Wait | Action::Advise | Action::Send { .. } => {}
        }
    }

    /// Enters the queue of a lane.
    fn enqueue(&mut self, key: RequestKey, slot_request: SlotRequest) {
        self.update_timer(key);
        let ticket = self.in_flight.new_ticket(key);
        let Some(request) = self.in_flight.get(key) else { return };
        request.stage = RequestStage::Queued(ticket);
        self.count_waiting(slot_request.lane, true);
        self.dispatch(dispatch::Event::Arrived(slot_request.arrival(ticket, self.now)));
    }

    /// Sends a request that was granted a slot to the engine.
    pub(super) fn on_granted(
        &mut self,
        ticket: Ticket,
        lane: LaneId,
        (generation, flow): (Generation, FlowId),
    ) {
        let key = InFlight::key_of(ticket);
        self.count_waiting(lane, false);
        let Some(request) = self.in_flight.get(key) else { return };
        let config = &self.config.fleet.lanes[lane.index()];
        let job = request.prepare_job(config.info.max_context);
        let granted = Event::Granted {
            first_byte_timeout: config.first_byte_timeout,
            is_streaming: request.is_streaming,
        };
        let age = request.age(self.now);
        let Action::Send { timeout } = request.flow.on(granted, age).action else { return };
        request.stage = RequestStage::Leased(Lease {
            lane,
            generation,
            flow,
            granted_at: self.now,
            first_byte_timeout: timeout,
            first_byte_deadline: self.now.saturating_add(timeout),
        });
        self.observer.granted(self.now, &request.sim, lane);
        self.send(key, lane, job);
    }

    /// Sends a job to the engine of a lane; `None` is a prompt that exceeds the engine's context.
    fn send(&mut self, key: RequestKey, lane: LaneId, job: Option<Job>) {
        if !self.supervisors[lane.index()].is_serving() {
            // The engine went down at this moment.
            let reason = "cannot connect to the engine";
            return self.feed(key, Event::Failed(EngineFailure::Connect), reason);
        }
        match job {
            Some(job) => {
                self.update_timer(key);
                self.supervisors[lane.index()].submit(key, job, self.now);
            }
            None => {
                let reason = "the prompt exceeds the model's maximum context";
                let max_context = self.config.fleet.lanes[lane.index()].info.max_context;
                let reason_of = Declined::TooLong { max_context };
                let failure = EngineFailure::Declined { status: BAD_REQUEST, reason: reason_of };
                self.feed(key, Event::Failed(failure), reason);
                // Ignored if another lane has a longer context.
                self.feed(key, Event::Completed, reason);
            }
        }
    }

    /// The lane's queue rejected the request.
    pub(super) fn on_acquire_failed(&mut self, ticket: Ticket, error: &AcquireError) {
        let key = InFlight::key_of(ticket);
        let Some(request) = self.in_flight.get(key) else { return };
        request.stage = RequestStage::BetweenAttempts;
        if let Some(lane) = request.flow.lane() {
            self.count_waiting(lane, false);
        }
        self.feed(key, Event::Denied(error), &error.to_string());
    }

    /// A response made progress.
    pub(super) fn on_progress(&mut self, progress: ResponseProgress) {
        match progress {
            ResponseProgress::FirstToken(key) => {
                // A response that is not streamed is sent when it is complete.
                if self.in_flight.get(key).is_some_and(|request| request.is_streaming) {
                    self.prompt_served(key);
                    self.feed(key, Event::FirstByte { status: OK }, "");
                }
            }
            ResponseProgress::Done(key, usage) => {
                self.prompt_served(key);
                self.feed(key, Event::FirstByte { status: OK }, "");
                self.report_usage(key, usage);
                let Some(request) = self.in_flight.get(key) else { return };
                request.usage = usage;
                // An engine only reports token counts at the end of a complete response.
                let counts = TokenCounts {
                    prompt: request.sim.prompt_tokens,
                    cached: usage.cached,
                    output: usage.generated,
                };
                self.feed(key, Event::Usage(counts), "");
                self.feed(key, Event::Completed, "");
            }
        }
    }

    /// The connection to the engine was lost.
    pub(super) fn on_disconnected(&mut self, key: RequestKey, usage: TokenUsage) {
        let reason = "the connection to the engine was lost";
        self.end_response(key, usage, EngineFailure::Broken, reason);
    }

    /// Aborts the response of a request whose lane exceeded the drain timeout.
    pub(super) fn abort(&mut self, key: RequestKey) {
        if let Some(usage) = self.cancel(key) {
            let reason = "aborted: the lane is being evicted and the drain timeout expired";
            self.end_response(key, usage, EngineFailure::Evicted, reason);
        }
    }

    fn end_response(
        &mut self,
        key: RequestKey,
        usage: TokenUsage,
        failure: EngineFailure,
        reason: &str,
    ) {
        let Some(request) = self.in_flight.get(key) else { return };
        // The tokens of a failed attempt are not part of the response.
        if request.flow.ttft().is_some() {
            request.usage = usage;
        }
        self.feed(key, Event::Failed(failure), reason);
    }

    /// The client disconnects, or the first-byte timeout has expired.
    pub(super) fn on_timer(&mut self, key: RequestKey) {
        let Some(request) = self.in_flight.get(key) else { return };
        request.timer = None;
        let is_client_gone = request.client_leaves_at <= self.now;
        let timeout = match request.stage {
            RequestStage::Leased(lease) => lease.first_byte_timeout,
            RequestStage::BetweenAttempts | RequestStage::Queued(_) => Duration::MAX,
        };
        let usage = self.cancel(key);
        if is_client_gone {
            if let (Some(usage), Some(request)) = (usage, self.in_flight.get(key)) {
                request.usage = usage;
            }
            self.feed(key, Event::ClientGone, "");
        } else {
            let reason = format!("no first byte within {} ms", timeout.as_millis());
            self.feed(key, Event::Failed(EngineFailure::FirstByteTimeout), &reason);
        }
    }

    /// Cancels the work of an engine on a request, and returns the tokens so far; `None` if the
    /// request is not at an engine.
    fn cancel(&mut self, key: RequestKey) -> Option<TokenUsage> {
        match self.in_flight.get(key)?.stage {
            RequestStage::Leased(lease) => {
                Some(self.supervisors[lease.lane.index()].cancel(key, self.now))
            }
            RequestStage::BetweenAttempts | RequestStage::Queued(_) => None,
        }
    }

    /// Asks the policies how to recover from a failed attempt.
    fn recover(&mut self, key: RequestKey, report: &FailureReport, reason: &str) {
        let Some(request) = self.in_flight.get(key) else { return };
        let (arrived_at, attempts) = (request.sim.at, request.flow.attempt_count());
        // Cloned because the calls below borrow all of `self`.
        let http_request = request.request.clone();
        let lanes_left = Some(Arc::clone(&request.kept.lanes_left));
        let fleet = self.fleet_view_for(&http_request);
        let facts = self.facts(&http_request, arrived_at, attempts);
        let facts = Facts { lanes_left, ..facts };
        let recovered = self.advisor.advisor().recover(&facts, &fleet, report, &mut Trace::off());
        let endpoint = facts.request.info().endpoint;
        self.feed(key, Event::Recovered { recovered, fleet: &fleet, endpoint }, reason);
    }

    fn leave_queue(&mut self, key: RequestKey) {
        let Some(request) = self.in_flight.get(key) else { return };
        let RequestStage::Queued(ticket) = request.stage else { return };
        request.stage = RequestStage::BetweenAttempts;
        if let Some(lane) = request.flow.lane() {
            self.count_waiting(lane, false);
        }
        self.dispatch(dispatch::Event::Cancelled(ticket));
    }

    fn release(&mut self, key: RequestKey, end: LeaseEnd) {
        let Some(request) = self.in_flight.get(key) else { return };
        let RequestStage::Leased(lease) = request.stage else { return };
        let Lease { lane, generation, flow, granted_at, .. } = lease;
        request.stage = RequestStage::BetweenAttempts;
        let before_grant = granted_at.saturating_sub(request.sim.at);
        let report = Report {
            held: self.now.saturating_sub(granted_at),
            first_byte: request.flow.ttft().map(|age| age.saturating_sub(before_grant)),
            failed: end.failed,
            severed: end.severed,
        };
        self.dispatch(dispatch::Event::Released { lane, generation, flow, report });
    }

    /// Updates the timer of a request: until the first byte, the client may disconnect and the
    /// first-byte timeout may expire.
    pub(super) fn update_timer(&mut self, key: RequestKey) {
        let Some(request) = self.in_flight.get(key) else { return };
        let first_byte_deadline = match request.stage {
            RequestStage::Leased(lease) => lease.first_byte_deadline,
            RequestStage::BetweenAttempts | RequestStage::Queued(_) => Duration::MAX,
        };
        let at = request.client_leaves_at.min(first_byte_deadline);
        let timer = (request.flow.ttft().is_none() && at < Duration::MAX).then_some(at);
        let before = std::mem::replace(&mut request.timer, timer);
        if before != timer {
            if let Some(before) = before {
                self.timers.remove(&(before, key));
            }
            if let Some(timer) = timer {
                self.timers.insert((timer, key));
            }
        }
    }

    /// Counts a request that enters or leaves the queue of a lane.
    fn count_waiting(&mut self, lane: LaneId, enters: bool) {
        if let Some(waiting) = self.waiting.get_mut(lane.index()) {
            *waiting = if enters { *waiting + 1 } else { waiting.saturating_sub(1) };
        }
    }
}
