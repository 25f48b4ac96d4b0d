//! The attempts of a request: the counterpart of the gateway's `attempt` and `recover`.

use std::time::Duration;

use pointsman_domain::dispatch::{AcquireError, Event, FlowId, Generation, Report, Ticket};
use pointsman_domain::{
    AttemptResult, FailureClass, FailureReport, LaneId, NextAction, Recovery, Trace, Trigger,
};

use super::World;
use super::in_flight::{InFlight, InFlightRequest, Lease, RequestStage};
use crate::engine::{RequestKey, ResponseProgress, TokenUsage};
use crate::observe::{Attempt, RequestResult};

/// The failure of an attempt of which nothing was sent to the client.
struct AttemptError {
    class: FailureClass,
    reason: String,
}

/// How a lease ends, as it is reported to the dispatcher.
#[derive(Debug, Clone, Copy, Default)]
struct LeaseEnd {
    /// The engine failed the request.
    failed: bool,
    /// The connection to the engine is lost.
    severed: bool,
}

impl World<'_> {
    /// Starts an attempt on the current lane of the plan: the request enters the lane's queue.
    pub(super) fn start_attempt(&mut self, key: RequestKey) {
        let ticket = self.in_flight.new_ticket(key);
        let Some(request) = self.in_flight.get(key) else { return };
        let left = self.config.fleet.deadline.saturating_sub(request.age(self.now));
        let lane = request.cursor.step().lane;
        // A retry on the same lane is not a fallback.
        request.fell_back |= request.attempts.last().is_some_and(|previous| previous.lane != lane);
        request.attempts.push(Attempt {
            lane,
            result: AttemptResult::Other,
            begun: self.now,
            queue: Duration::ZERO,
        });
        request.stage = RequestStage::Queued(ticket);
        let tenant = FlowId::from_name(request.sim.tenant.as_deref().unwrap_or(""));
        let slot_request = request.cursor.slot_request(tenant, left);
        let arrival = slot_request.arrival(ticket, self.now);
        self.count_waiting(lane, true);
        self.dispatch(Event::Arrived(arrival));
    }

    /// Sends a request that was granted a slot to the engine.
    pub(super) fn on_granted(&mut self, ticket: Ticket, lane: LaneId, generation: Generation) {
        let key = InFlight::key_of(ticket);
        self.count_waiting(lane, false);
        let Some(request) = self.in_flight.get(key) else { return };
        request.leave_queue(self.now);
        let config = &self.config.fleet.lanes[lane.index()];
        let left = self.config.fleet.deadline.saturating_sub(request.age(self.now));
        let job = request.prepare_job(config.info.max_context);
        // A plan limits the time to the first token, which only shows in a stream.
        let timeout = request.cursor.plan().first_token.filter(|_| request.is_streaming);
        let timeout = timeout.unwrap_or(config.first_byte_timeout).min(left);
        request.stage = RequestStage::Leased(Lease {
            lane,
            generation,
            granted_at: self.now,
            first_byte_timeout: timeout,
            first_byte_deadline: self.now.saturating_add(timeout),
        });
        self.observer.granted(self.now, &request.sim, lane);
        if !self.supervisors[lane.index()].is_serving() {
            return self.connect_failed(key);
        }
        match job {
            Some(job) => {
                self.update_timer(key);
                self.supervisors[lane.index()].submit(key, job, self.now);
            }
            None => self.prompt_too_long(key),
        }
    }

    /// The lane's queue rejected the request.
    pub(super) fn on_acquire_failed(&mut self, ticket: Ticket, error: &AcquireError) {
        let key = InFlight::key_of(ticket);
        let Some(request) = self.in_flight.get(key) else { return };
        let lane = request.cursor.step().lane;
        request.leave_queue(self.now);
        request.stage = RequestStage::BetweenAttempts;
        self.count_waiting(lane, false);
        let error = AttemptError { class: error.into(), reason: error.to_string() };
        self.attempt_failed(key, &error);
    }

    /// A response made progress.
    pub(super) fn on_progress(&mut self, progress: ResponseProgress) {
        match progress {
            ResponseProgress::FirstToken(key) => {
                // A response that is not streamed is sent when it is complete.
                if self.in_flight.get(key).is_some_and(|request| request.is_streaming) {
                    self.on_first_byte(key);
                }
            }
            ResponseProgress::Done(key, usage) => {
                self.on_first_byte(key);
                let Some(mut request) = self.take(key, usage, LeaseEnd::default()) else { return };
                let result = if request.fell_back {
                    RequestResult::FellBack
                } else {
                    RequestResult::Answered
                };
                self.finish(&mut request, result, AttemptResult::Ok, None);
            }
        }
    }

    fn on_first_byte(&mut self, key: RequestKey) {
        if let Some(request) = self.in_flight.get(key)
            && request.first_byte.is_none()
        {
            request.first_byte = Some(request.age(self.now));
            self.update_timer(key);
        }
    }

    /// The connection to the engine was lost.
    pub(super) fn on_disconnected(&mut self, key: RequestKey, usage: TokenUsage) {
        self.end_response(
            key,
            usage,
            Trigger::ServerError,
            LeaseEnd { failed: true, severed: true },
            "the connection to the engine was lost",
        );
    }

    /// Aborts the response of a request whose lane exceeded the drain timeout.
    pub(super) fn abort(&mut self, key: RequestKey) {
        let Some(InFlightRequest { stage: RequestStage::Leased(lease), .. }) =
            self.in_flight.get(key)
        else {
            return;
        };
        let usage = self.supervisors[lease.lane.index()].cancel(key, self.now);
        let reason = "aborted: the lane is being evicted and the drain timeout expired";
        self.end_response(key, usage, Trigger::EngineRestart, LeaseEnd::default(), reason);
    }

    /// Ends an incomplete response. Before the first byte this is a failed attempt; after it, the
    /// client has received a part, and the request fails.
    fn end_response(
        &mut self,
        key: RequestKey,
        usage: TokenUsage,
        trigger: Trigger,
        end: LeaseEnd,
        reason: &str,
    ) {
        let Some(request) = self.in_flight.get(key) else { return };
        if request.first_byte.is_none() {
            self.release(key, end);
            let class = FailureClass { trigger: Some(trigger), safe_to_resend: false };
            self.attempt_failed(key, &AttemptError { class, reason: reason.to_owned() });
        } else if let Some(mut request) = self.take(key, usage, end) {
            self.finish(&mut request, RequestResult::Error, trigger.into(), Some(reason));
        }
    }

    /// The engine went down at the moment when the request was to be sent.
    fn connect_failed(&mut self, key: RequestKey) {
        self.release(key, LeaseEnd { failed: true, severed: true });
        let class = FailureClass { trigger: Some(Trigger::ConnectError), safe_to_resend: true };
        let reason = "cannot connect to the engine".to_owned();
        self.attempt_failed(key, &AttemptError { class, reason });
    }

    /// The engine rejects a prompt that exceeds its context. That is the client's error, and not a
    /// failure of the engine.
    fn prompt_too_long(&mut self, key: RequestKey) {
        self.on_first_byte(key);
        if let Some(mut request) = self.take(key, TokenUsage::default(), LeaseEnd::default()) {
            let reason = "the prompt exceeds the model's maximum context";
            self.finish(&mut request, RequestResult::Error, AttemptResult::Other, Some(reason));
        }
    }

    /// The client disconnects, or the first-byte timeout has expired.
    pub(super) fn on_timer(&mut self, key: RequestKey) {
        let Some(request) = self.in_flight.get(key) else { return };
        request.timer = None;
        let is_client_gone = request.client_leaves_at <= self.now;
        match request.stage {
            RequestStage::Leased(lease) => {
                let usage = self.supervisors[lease.lane.index()].cancel(key, self.now);
                if is_client_gone {
                    if let Some(mut request) = self.take(key, usage, LeaseEnd::default()) {
                        self.client_gone(&mut request);
                    }
                } else {
                    self.release(key, LeaseEnd { failed: true, severed: false });
                    let class = FailureClass {
                        trigger: Some(Trigger::FirstTokenTimeout),
                        safe_to_resend: false,
                    };
                    let timeout_ms = lease.first_byte_timeout.as_millis();
                    let reason = format!("no first byte within {timeout_ms} ms");
                    self.attempt_failed(key, &AttemptError { class, reason });
                }
            }
            RequestStage::Queued(ticket) => {
                request.leave_queue(self.now);
                let lane = request.cursor.step().lane;
                self.count_waiting(lane, false);
                self.dispatch(Event::Cancelled(ticket));
                if let Some(mut request) = self.in_flight.remove(key) {
                    self.client_gone(&mut request);
                }
            }
            RequestStage::BetweenAttempts => {}
        }
    }

    fn client_gone(&mut self, request: &mut InFlightRequest) {
        self.finish(request, RequestResult::ClientGone, AttemptResult::ClientGone, None);
    }

    /// Continues after a failed attempt: with the next attempt, or with the end of the request.
    fn attempt_failed(&mut self, key: RequestKey, error: &AttemptError) {
        let result = error.class.trigger.map_or(AttemptResult::Other, AttemptResult::from);
        let recovery = self.recovery(key, error, result);
        let Some(request) = self.in_flight.get(key) else { return };
        if let Some(attempt) = request.attempts.last_mut() {
            attempt.result = result;
        }
        let in_time = request.age(self.now) < self.config.fleet.deadline;
        let (end, reason, last) = match request.cursor.after(error.class, recovery, in_time) {
            NextAction::Attempt => {
                self.update_timer(key);
                self.start_attempt(key);
                return;
            }
            NextAction::Reject(rejection) => {
                (RequestResult::Rejected, rejection.message, AttemptResult::Other)
            }
            NextAction::Fail => (RequestResult::Error, error.reason.clone(), result),
        };
        if let Some(mut request) = self.remove(key) {
            self.finish(&mut request, end, last, Some(&reason));
        }
    }

    /// Asks the policies how to recover from a failed attempt. Advice that cannot be followed is
    /// ignored.
    fn recovery(&mut self, key: RequestKey, error: &AttemptError, what: AttemptResult) -> Recovery {
        if !self.advisor.advisor().has_recovery() || error.class.trigger.is_none() {
            return Recovery::Planned;
        }
        let fleet = self.fleet_view();
        let (now, deadline) = (self.now, self.config.fleet.deadline);
        let Some(request) = self.in_flight.get(key) else { return Recovery::Planned };
        let in_time = request.age(now) < deadline;
        let begun = request.attempts.last().map_or(now, |attempt| attempt.begun);
        let attempts_left = if in_time { request.cursor.attempts_left() } else { 0 };
        let failure = FailureReport {
            lane: request.cursor.step().lane,
            what,
            status: 0,
            sent_bytes: 0,
            elapsed: now.saturating_sub(begun),
            attempts_left: u32::try_from(attempts_left).unwrap_or(u32::MAX),
        };
        let arrived_at = request.sim.at;
        let failed_attempts = request.attempts.len();
        // Cloned because `facts` borrows all of `self`.
        let http_request = request.request.clone();
        let facts = self.facts(&http_request, arrived_at, failed_attempts);
        let recovery = self.advisor.advisor().recover(&facts, &fleet, &failure, &mut Trace::off());
        let Some(request) = self.in_flight.get(key) else { return Recovery::Planned };
        match &recovery {
            Recovery::Retry(step) if request.cursor.objection(step, &fleet, in_time).is_some() => {
                Recovery::Planned
            }
            _ => recovery,
        }
    }

    /// Releases the lease of a request that has ended, and removes the request.
    fn take(
        &mut self,
        key: RequestKey,
        usage: TokenUsage,
        end: LeaseEnd,
    ) -> Option<InFlightRequest> {
        self.release(key, end);
        let mut request = self.remove(key)?;
        request.usage = usage;
        Some(request)
    }

    /// Removes a request together with its timer.
    fn remove(&mut self, key: RequestKey) -> Option<InFlightRequest> {
        let request = self.in_flight.remove(key)?;
        if let Some(timer) = request.timer {
            self.timers.remove(&(timer, key));
        }
        Some(request)
    }

    fn release(&mut self, key: RequestKey, end: LeaseEnd) {
        let Some(request) = self.in_flight.get(key) else { return };
        let RequestStage::Leased(Lease { lane, generation, granted_at, .. }) = request.stage else {
            return;
        };
        request.stage = RequestStage::BetweenAttempts;
        let before_grant = granted_at.saturating_sub(request.sim.at);
        let report = Report {
            held: self.now.saturating_sub(granted_at),
            first_byte: request.first_byte.map(|age| age.saturating_sub(before_grant)),
            failed: end.failed,
            severed: end.severed,
        };
        self.dispatch(Event::Released { lane, generation, report });
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
        let timer = (request.first_byte.is_none() && at < Duration::MAX).then_some(at);
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
