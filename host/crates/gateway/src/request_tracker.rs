//! Counts and reports every request exactly once.
//!
//! ```text
//!   accepted = answered + fell back and answered + explicit error + client gone + in flight
//! ```
//!
//! A [`RequestTracker`] is created when a request is accepted and lives until its response body
//! has ended. It counts the end exactly once: explicitly, or on drop, which is what happens when
//! hyper abandons the request because the client disconnected.
//!
//! It also owns the request's tracing span, in which every event about the request is logged:
//! id, lane and policy are fields of the span and are not repeated by the events.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use pointsman_domain::{AttemptResult, FleetView, LaneId, Outcome, RequestView as _, Trace};
use pointsman_openai::{Request, Usage};
use tokio::time::Instant;
use tracing::Span;
use tracing::field::Empty;

use crate::AdvisorHandle;
use crate::metrics::{End, GatewayMetrics};
use crate::recording::Recording;

/// Creates the span of a request. Fields that are not known yet are recorded later.
pub(crate) fn request_span(request_id: &str, endpoint: &'static str) -> Span {
    tracing::info_span!(
        "request",
        request_id,
        endpoint,
        tenant = Empty,
        model = Empty,
        policy = Empty,
        lane = Empty,
        attempt = Empty,
    )
}

/// One accepted request, until its response has ended.
#[derive(Debug)]
pub(crate) struct RequestTracker {
    metrics: Arc<GatewayMetrics>,
    endpoint: &'static str,
    span: Span,
    started: Instant,
    lane: Option<Arc<str>>,
    attempts: u32,
    /// Another lane than the first one is being attempted.
    has_changed_lane: bool,
    has_ended: bool,
    /// The status that the client got; `None` until the response has begun.
    status: Option<StatusCode>,
    /// Time to the first byte of the response.
    ttft: Option<Duration>,
    /// Tokens as counted by the engine, if it reported any.
    usage: Option<Usage>,
    /// What is reported at the end. Boxed, because many requests may wait at a time and most of
    /// them need no report.
    report: Option<Box<OutcomeReport>>,
}

/// The outcome as far as it is known, and its receivers.
#[derive(Debug)]
struct OutcomeReport {
    outcome: Outcome,
    /// The advisor that decided about the request, if it observes outcomes.
    observer: Option<AdvisorHandle>,
    recording: Option<Recording>,
    /// When the current wait for a slot began.
    queued_since: Option<Instant>,
}

/// Describes a failed request for the log.
pub(crate) struct Failure<'a> {
    /// The status that the client gets; `None` if the response has already begun.
    pub(crate) status: Option<StatusCode>,
    /// The code that the client gets; `None` if the engine's own response was passed on.
    pub(crate) code: Option<&'a str>,
    pub(crate) error: &'a dyn fmt::Display,
    /// Why the response was aborted after its first byte; `None` for all other failures.
    pub(crate) abort_cause: Option<&'static str>,
    /// The failure is not the client's and is logged as a warning.
    pub(crate) is_severe: bool,
}

impl RequestTracker {
    pub(crate) fn new(metrics: Arc<GatewayMetrics>, endpoint: &'static str, span: Span) -> Self {
        metrics.accepted.inc();
        metrics.in_flight.inc();
        Self {
            metrics,
            endpoint,
            span,
            started: Instant::now(),
            lane: None,
            attempts: 0,
            has_changed_lane: false,
            has_ended: false,
            status: None,
            ttft: None,
            usage: None,
            report: None,
        }
    }

    /// Returns the span of the request.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Registers the routing decision: its advisor receives the outcome if it observes outcomes,
    /// and the recorder receives the recording.
    pub(crate) fn set_decision(
        &mut self,
        advisor: &AdvisorHandle,
        request: &Request,
        fleet: &FleetView,
        recording: Option<Recording>,
    ) {
        let observer = advisor.observes_outcomes().then(|| Arc::clone(advisor));
        if observer.is_none() && recording.is_none() {
            return;
        }
        let outcome = Outcome {
            request_id: request.id().into(),
            tenant: request.tenant().map(Arc::from),
            model: request.model().into(),
            lane: LaneId(0),
            topology: fleet.topology.generation(),
            ended: AttemptResult::Other,
            tries: 0,
            queue: Duration::ZERO,
            ttft: Duration::ZERO,
            total: Duration::ZERO,
            prompt_tokens: request.info().prompt_tokens,
            cached_tokens: 0,
            output_tokens: 0,
        };
        self.report =
            Some(Box::new(OutcomeReport { outcome, observer, recording, queued_since: None }));
    }

    /// Returns true if the token usage of the response has a receiver. Reading the usage of a
    /// response that is not a stream means to keep its tail, which is not done for the log alone.
    pub(crate) fn needs_usage(&self) -> bool {
        self.report.as_ref().is_some_and(|report| {
            report.observer.is_some()
                || report.recording.as_ref().is_some_and(Recording::is_certain)
        })
    }

    /// Returns the trace for policy calls that follow the decision.
    pub(crate) fn trace(&self) -> Trace {
        let is_recorded = self.report.as_ref().is_some_and(|report| report.recording.is_some());
        if is_recorded { Trace::on() } else { Trace::off() }
    }

    /// Adds the policy calls collected by [`RequestTracker::trace`] to the recording.
    pub(crate) fn add_policy_calls(&mut self, trace: Trace) {
        if let Some(recording) = self.recording() {
            recording.add_policy_calls(trace.into_calls());
        }
    }

    fn recording(&mut self) -> Option<&mut Recording> {
        self.report.as_mut()?.recording.as_mut()
    }

    /// Returns the time since the request was accepted.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Begins an attempt on a lane. The attempt starts with the wait for a slot.
    pub(crate) fn begin_attempt(&mut self, id: LaneId, lane: &str) {
        // A second attempt on the same lane is not a fallback.
        self.has_changed_lane |= self.lane.as_deref().is_some_and(|before| before != lane);
        self.lane = Some(lane.into());
        self.attempts += 1;
        self.span.record("lane", lane).record("attempt", self.attempts);
        if let Some(report) = &mut self.report {
            report.outcome.lane = id;
            report.queued_since = Some(Instant::now());
            if let Some(recording) = &mut report.recording {
                recording.begin_attempt(id, self.started.elapsed());
            }
        }
    }

    /// Ends the wait for a slot, whether a slot was granted or not.
    pub(crate) fn end_wait(&mut self) {
        if let Some(report) = &mut self.report
            && let Some(since) = report.queued_since.take()
        {
            let waited = since.elapsed();
            report.outcome.queue += waited;
            if let Some(recording) = &mut report.recording {
                recording.set_wait(waited);
            }
        }
    }

    /// Ends the current attempt after a failure. A status of 0 means that the engine sent none.
    pub(crate) fn fail_attempt(&mut self, result: AttemptResult, status: u16) {
        let age = self.age();
        if let Some(recording) = self.recording() {
            recording.set_status(status);
            recording.end_attempt(result, age);
        }
    }

    /// Returns the number of attempts so far.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Notes that the first byte of the response is sent.
    pub(crate) fn first_byte(&mut self, status: StatusCode) {
        let age = self.age();
        self.metrics.first_byte_seconds.observe(age.as_secs_f64());
        (self.status, self.ttft) = (Some(status), Some(age));
        if let Some(report) = &mut self.report {
            report.outcome.ttft = age;
            if let Some(recording) = &mut report.recording {
                recording.set_status(status.as_u16());
            }
        }
    }

    /// Notes the token counts that the engine reported.
    pub(crate) fn set_usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// Ends the request after a complete response.
    pub(crate) fn complete(&mut self) {
        let end = if self.has_changed_lane { End::FellBack } else { End::Answered };
        self.end(end, AttemptResult::Ok, None);
    }

    /// Ends the request after an explicit error; `last` is the result of the last attempt.
    pub(crate) fn fail(&mut self, last: AttemptResult, failure: &Failure<'_>) {
        self.end(End::Error, last, Some(failure));
    }

    fn end(&mut self, end: End, last: AttemptResult, failure: Option<&Failure<'_>>) {
        if std::mem::replace(&mut self.has_ended, true) {
            return;
        }
        self.end_wait();
        let total = self.age();
        self.metrics.ended(self.endpoint, self.lane.as_deref().unwrap_or(""), end, total);
        self.log_end(end, last, total, failure);
        let Some(report) = self.report.take() else { return };
        let OutcomeReport { mut outcome, observer, recording, .. } = *report;
        if let Some(usage) = self.usage {
            // An engine that reports no prompt tokens leaves the host's estimate in place.
            if usage.prompt_tokens > 0 {
                outcome.prompt_tokens = usage.prompt_tokens;
            }
            outcome.cached_tokens = usage.cached_tokens;
            outcome.output_tokens = usage.completion_tokens;
        }
        let outcome = Outcome { ended: last, tries: self.attempts, total, ..outcome };
        // A request without any attempt was rejected: its outcome says nothing about the lanes.
        if let Some(observer) = observer.filter(|_| self.attempts > 0) {
            observer.ended(&outcome);
        }
        if let Some(recording) = recording {
            recording.finish(end.into(), last, outcome);
        }
    }

    /// Logs the end of the request as one event.
    fn log_end(
        &self,
        end: End,
        last: AttemptResult,
        total: Duration,
        failure: Option<&Failure<'_>>,
    ) {
        // The tracker may be dropped outside the span, for example when a connection is closed.
        let _entered = self.span.enter();
        let status = failure.and_then(|failure| failure.status).or(self.status);
        let error = failure.map(|failure| failure.error.to_string());
        let cause = failure.and_then(|failure| failure.abort_cause);
        let failed = if cause.is_some() { "response_aborted" } else { "request_failed" };
        macro_rules! log {
            ($level:ident, $event:expr, $message:literal) => {
                tracing::$level!(
                    event = $event,
                    status = status.map(|status| status.as_u16()),
                    outcome = end.label(),
                    result = last.label(),
                    duration_ms = millis(total),
                    ttft_ms = self.ttft.map(millis),
                    attempts = self.attempts,
                    prompt_tokens = self.usage.map(|usage| usage.prompt_tokens),
                    cached_tokens = self.usage.map(|usage| usage.cached_tokens),
                    output_tokens = self.usage.map(|usage| usage.completion_tokens),
                    code = failure.and_then(|failure| failure.code),
                    // A string, so that the text format quotes it: it may contain client input.
                    error = error.as_deref(),
                    cause,
                    $message
                )
            };
        }
        match failure {
            None => log!(info, "request_finished", "request finished"),
            Some(failure) if failure.is_severe => log!(warn, failed, "request failed"),
            Some(_) => log!(info, failed, "request failed"),
        }
    }
}

/// Converts to whole milliseconds. Saturates, because the log needs no more than `u64`.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Drop for RequestTracker {
    fn drop(&mut self) {
        self.end(End::ClientGone, AttemptResult::ClientGone, None);
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn second_attempt_on_same_lane_is_not_a_fallback() {
        for (lanes, outcome) in [
            (["a", "a"], "pointsman_answered_total 1"),
            (["a", "b"], "pointsman_fell_back_total 1"),
        ] {
            let mut registry = Registry::default();
            let metrics = GatewayMetrics::register(&mut registry);
            let mut tracker = RequestTracker::new(metrics, "chat", Span::none());
            lanes.into_iter().for_each(|lane| tracker.begin_attempt(LaneId(0), lane));
            assert_eq!(tracker.attempts(), 2);
            tracker.complete();
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            assert!(text.contains(outcome), "{lanes:?}: {text}");
        }
    }
}
