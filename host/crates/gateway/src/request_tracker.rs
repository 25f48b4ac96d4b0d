//! Counts and reports every request exactly once.
//!
//! ```text
//!   accepted = answered + fell back and answered + explicit error + client gone + in flight
//! ```
//!
//! A [`RequestTracker`] is created when a request is accepted and lives until its response body
//! has ended. It owns the [`RequestFlow`] of the request and carries out those effects that are
//! the same wherever they arise: it releases the lease and reports the end. Its drop is the event
//! that the client is gone, because hyper abandons a request when its client disconnects.
//!
//! It also owns the request's tracing span, in which every event about the request is logged:
//! id, lane and policy are fields of the span and are not repeated by the events.

mod attempts;
mod ended;
mod errors;
mod finish;
mod log;
mod report;
mod span;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use http::request::Parts;
use pointsman_access::{Identity, Refusal};
use pointsman_domain::request_flow::{Action, Effects, End, Event, LeaseEnd, Release};
use pointsman_domain::{
    Allowance, AttemptResult, Deadline, Endpoint, Facts, OutcomeSubject, RequestFlow,
    RequestResult, RequestView as _, TokenCounts, Topology, Trace, Trigger,
};
use pointsman_fleet::Lease;
use pointsman_openai::{EndpointShape, ErrorForm, Request, Usage};
use tokio::time::Instant;
use tracing::Span;

use self::finish::Details;
pub(crate) use self::report::Observed;
use self::report::OutcomeReport;
pub(crate) use self::span::request_span;
use crate::attribution::Attribution;
use crate::decisions::Decisions;
use crate::error::RouteError;
use crate::forwarded::Forwarded;
use crate::guard::RequestGuard;
use crate::in_flight::InFlight;
use crate::metering::{Meter, Metering, PathRequest};
use crate::metrics::GatewayMetrics;
use crate::pipeline::Pipeline;
use crate::proxying::ProxyContext;
use crate::recording::Recording;
use crate::settings::AdvisorHandle;

/// A flag that is set if a response fails after its head.
type Failed = Arc<AtomicBool>;

/// One accepted request, until its response has ended.
#[derive(Debug)]
pub(crate) struct RequestTracker {
    metrics: Arc<GatewayMetrics>,
    endpoint: Endpoint,
    span: Span,
    /// What operators see of the request.
    in_flight: InFlight,
    /// What operators see of it after its end.
    decisions: Decisions,
    started: Instant,
    nonce: u64,
    flow: RequestFlow,
    lease: Option<Lease>,
    /// Who sent the request, and what it uses.
    pub(crate) metering: Metering,
    /// The policies that took part in the decision; `None` before it.
    attribution: Option<Arc<Attribution>>,
    pub(crate) guard: RequestGuard,
    /// Sends the request; `None` if the host does.
    pub(crate) proxy: Option<Arc<ProxyContext>>,
    /// What another host has said of the request. Boxed, because most have none.
    forwarded: Option<Box<Forwarded>>,
    /// The names of the lanes; `None` before the decision.
    topology: Option<Arc<Topology>>,
    /// Is set if the response fails after its head.
    failed: Option<Failed>,
    details: Details,
    /// An end of the flow that has not been reported.
    ended: Option<(RequestResult, AttemptResult)>,
    /// The receivers of the outcome. Boxed, because many requests may wait at a time and most of
    /// them need no report.
    report: Option<Box<OutcomeReport>>,
}

/// Describes a failed request for the log and for operators.
pub(crate) struct Failure<'a> {
    /// The status that the client gets; `None` if the response has already begun.
    pub(crate) status: Option<u16>,
    /// The code that the client gets; `None` if the engine's own response was passed on.
    pub(crate) code: Option<&'a str>,
    pub(crate) error: &'a dyn fmt::Display,
    /// Why the response was aborted after its first byte; `None` for all other failures.
    pub(crate) abort_cause: Option<&'static str>,
    /// The failure is not the client's and is logged as a warning.
    pub(crate) is_severe: bool,
}

impl RequestTracker {
    /// Creates the tracker of a request that arrives now. Boxed, because it is moved through all
    /// steps, each of which would have space for it.
    pub(crate) fn new(
        pipeline: &Pipeline,
        id: &str,
        endpoint: Endpoint,
        span: Span,
        parts: &Parts,
    ) -> Box<Self> {
        let (metrics, settings) = (Arc::clone(&pipeline.metrics), &pipeline.settings);
        metrics.accepted.inc();
        metrics.in_flight.inc();
        let guard = RequestGuard::new(Arc::clone(&metrics));
        Box::new(Self {
            metrics,
            endpoint,
            span,
            in_flight: pipeline.in_flight.enter(id, endpoint),
            decisions: pipeline.decisions.clone(),
            started: Instant::now(),
            nonce: settings.nonce,
            flow: RequestFlow::new(Deadline::new(settings.deadline), &settings.plan),
            lease: None,
            metering: Metering::default(),
            attribution: None,
            guard,
            proxy: parts.extensions.get().cloned(),
            forwarded: None,
            topology: None,
            failed: None,
            details: Details::new(pipeline, parts),
            ended: None,
            report: None,
        })
    }

    /// Notes who sent the request.
    pub(crate) fn identify(&mut self, identity: &Arc<Identity>) {
        self.metering.identify(identity);
        self.in_flight.identify(identity);
    }

    /// Counts the request on the accounts of its key; without one, only as a request.
    ///
    /// # Errors
    /// If it exceeds a limit.
    pub(crate) fn admit(
        &mut self,
        meter: &Meter,
        request: Option<&Request>,
    ) -> Result<Allowance, Refusal> {
        self.metering.admit(meter, request)
    }

    /// Counts a request for a path of an engine.
    ///
    /// # Errors
    /// If it exceeds a limit.
    pub(crate) fn admit_path(
        &mut self,
        meter: &Meter,
        request: PathRequest,
    ) -> Result<Allowance, Refusal> {
        self.metering.admit_path(meter, request)
    }

    /// Counts a request that is refused before its decision, and feeds that to the flow. Returns
    /// the error for the client.
    pub(crate) fn refuse(&mut self, meter: &Meter, error: RouteError) -> RouteError {
        let limited = match error {
            RouteError::Limited(_) => None,
            _ => self.metering.admit(meter, None).err(),
        };
        self.on(Event::Refused);
        limited.map_or(error, RouteError::from)
    }

    /// Returns what the limits of the key leave; `None` if it has no limits.
    pub(crate) fn allowance(&self) -> Option<Allowance> {
        self.metering.allowance()
    }

    /// Sets what is to be set if the response fails after its head.
    pub(crate) fn set_failed_flag(&mut self, failed: Option<Failed>) {
        self.failed = failed;
    }

    /// Notes that the response has failed after its head.
    pub(crate) fn note_failed_response(&self) {
        if let Some(failed) = &self.failed {
            // Relaxed: read by the task that reads the end of the response.
            failed.store(true, Ordering::Relaxed);
        }
    }

    /// Returns what operators see of the request.
    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// Returns why the request is aborted.
    pub(crate) fn aborted(&self) -> RouteError {
        if self.in_flight.is_cancelled() { RouteError::Cancelled } else { RouteError::Stopping }
    }

    /// Returns the form of errors for the client.
    pub(crate) fn error_form(&self) -> ErrorForm {
        EndpointShape::for_endpoint(self.endpoint).errors
    }

    /// Returns the span of the request.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Returns the seed of the decision about the request with this id.
    pub(crate) fn seed(&self, id: &str) -> u64 {
        Facts::seed(format!("{:016x}{id}", self.nonce).as_str())
    }

    /// Returns a random number for the request with this id, which a client can neither choose nor
    /// repeat.
    pub(crate) fn draw(&self, id: &str) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Facts::seed((self.nonce, now, id))
    }

    /// Returns the flow of the request.
    pub(crate) fn flow(&self) -> &RequestFlow {
        &self.flow
    }

    /// Feeds an event to the flow, and releases what the request gives back. Returns the action for
    /// the caller, who also reports an end: with [`RequestTracker::error_response`] or
    /// [`RequestTracker::report`].
    pub(crate) fn on(&mut self, event: Event<'_>) -> Action {
        self.handle(event).action
    }

    /// Does the same as [`RequestTracker::on`], and returns all effects.
    pub(crate) fn handle(&mut self, event: Event<'_>) -> Effects {
        let effects = self.flow.on(event, self.age());
        match effects.release {
            Some(Release::Lease(LeaseEnd { failed, severed })) => {
                if let Some(lease) = self.lease.take() {
                    lease.finish(failed, severed);
                }
            }
            // The dropped future of the wait has left the queue, and a lease that is not used is
            // dropped by its holder.
            Some(Release::Ticket | Release::Unused) | None => {}
        }
        self.in_flight.follow(&effects.action, self.topology.as_ref(), self.flow.lane());
        if let Action::End(End { result, last, .. }) = &effects.action {
            self.ended = Some((*result, *last));
        }
        effects
    }

    /// Registers the routing decision: its advisor receives the outcome if it observes outcomes,
    /// and the recorder receives the recording.
    pub(crate) fn set_decision(
        &mut self,
        advisor: &AdvisorHandle,
        request: &Request,
        topology: &Arc<Topology>,
        Observed { notes, recording, watch }: Observed,
    ) {
        self.topology = Some(Arc::clone(topology));
        self.details.is_streaming = request.streaming();
        self.details.request_bytes = request.body().len() as u64;
        let observer = advisor.observes_outcomes().then(|| Arc::clone(advisor));
        if observer.is_none() && recording.is_none() && watch.is_none() {
            return;
        }
        let subject = OutcomeSubject {
            request_id: request.id().into(),
            tenant: request.tenant().map(Arc::from),
            model: request.model().into(),
            topology: topology.generation(),
            prompt_tokens: request.info().prompt_tokens,
            notes,
        };
        self.report = Some(Box::new(OutcomeReport { subject, observer, recording, watch }));
    }

    /// Registers the policies that took part in the decision, which error responses name too.
    pub(crate) fn set_attribution(&mut self, attribution: &Arc<Attribution>) {
        self.attribution = Some(Arc::clone(attribution));
    }

    /// Registers the lanes of a request about which no advisor decides.
    pub(crate) fn set_topology(&mut self, topology: &Arc<Topology>) {
        self.topology = Some(Arc::clone(topology));
    }

    /// Returns true if the token usage of the response has a receiver. Reading the usage of a
    /// response that is not a stream means to keep its tail, which is not done for the log alone.
    pub(crate) fn needs_usage(&self) -> bool {
        self.metering.is_counted()
            || self.lease.as_ref().is_some_and(Lease::needs_usage)
            || self.report.as_ref().is_some_and(|report| {
                report.observer.is_some()
                    || report.recording.as_ref().is_some_and(Recording::is_certain)
            })
    }

    /// Returns the trace for policy calls that follow the decision.
    pub(crate) fn trace(&self) -> Trace {
        let recording = self.report.as_ref().and_then(|report| report.recording.as_ref());
        recording.map_or_else(Trace::off, Recording::trace)
    }

    /// Adds the policy calls collected by [`RequestTracker::trace`] to the recording.
    pub(crate) fn add_policy_calls(&mut self, trace: Trace) {
        let recording = self.report.as_mut().and_then(|report| report.recording.as_mut());
        if let Some(recording) = recording {
            recording.add_policy_calls(trace.into_calls());
        }
    }

    /// Returns the time since the request was accepted.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the name of the lane of the current attempt; empty if there is none.
    pub(crate) fn lane_name(&self) -> &str {
        match (&self.topology, self.flow.lane()) {
            (Some(topology), Some(lane)) => topology.name(lane),
            (None, _) | (_, None) => "",
        }
    }

    /// Records the attempt that begins in the span.
    pub(crate) fn record_attempt(&self) {
        self.span.record("lane", self.lane_name()).record("attempt", self.flow.attempt_count());
    }

    /// Returns the trigger that the configuration of the current lane names for a status.
    pub(crate) fn fallback_trigger(&self, status: u16) -> Option<Trigger> {
        self.lease.as_ref()?.fallback_trigger(status)
    }

    /// Takes a lease that was granted. Returns it together with the maximum time to the first byte;
    /// `None` if the request does not wait any more, and the lease is released.
    pub(crate) fn grant(&mut self, lease: Lease, is_streaming: bool) -> Option<(&Lease, Duration)> {
        let first_byte_timeout = lease.first_byte_timeout();
        match self.on(Event::Granted { first_byte_timeout, is_streaming }) {
            Action::Send { timeout } => {
                self.metering.set_sent(true);
                Some((&*self.lease.insert(lease), timeout))
            }
            Action::Wait
            | Action::Advise
            | Action::Acquire(_)
            | Action::Recover(_)
            | Action::Respond
            | Action::End(_) => None,
        }
    }

    /// Notes that the first byte of the response to `request`, as it was sent, has arrived.
    pub(crate) fn first_byte(&mut self, status: StatusCode, request: &Request) {
        if let Some(lease) = &mut self.lease {
            lease.first_byte();
            if status.is_success() {
                let prompt = request.prompt_hashes(lease.prompt_hasher());
                lease.prompt_served(prompt);
            }
        }
        self.on(Event::FirstByte { status: status.as_u16() });
        if let Some(ttft) = self.flow.ttft() {
            self.metrics.first_byte(self.lane_name(), ttft);
        }
    }

    /// Notes the token counts that the engine reported.
    pub(crate) fn set_usage(&mut self, usage: Usage) {
        if let Some(lease) = &mut self.lease {
            let Usage { prompt_tokens, cached_tokens, completion_tokens } = usage;
            lease.report_usage(prompt_tokens, cached_tokens, completion_tokens);
        }
        self.on(Event::Usage(TokenCounts {
            prompt: usage.prompt_tokens,
            cached: usage.cached_tokens.unwrap_or(0),
            output: usage.completion_tokens,
        }));
    }

    /// Notes that the response has at least so many tokens: the engine has reported no usage, or
    /// its stream was cut before that.
    pub(crate) fn set_output_tokens(&mut self, at_least: u64) {
        let output = u32::try_from(at_least).unwrap_or(u32::MAX);
        if output > 0 {
            self.on(Event::Usage(TokenCounts { prompt: 0, cached: 0, output }));
        }
    }

    /// Reports the end of the request to metrics, log, policies and records, if its flow has ended
    /// and it was not reported yet.
    pub(crate) fn report(&mut self, failure: Option<&Failure<'_>>) {
        let Some((result, last)) = self.ended.take() else { return };
        let total = self.flow.total().unwrap_or_default();
        self.metrics.ended(self.endpoint.label(), self.lane_name(), result, total);
        self.log_end(result, last, total, failure);
        self.tell_observer(result, last, failure);
        self.metering.end(&self.metrics, &self.flow, self.topology.as_deref(), result);
        let detail = self.report.take().and_then(|report| {
            let OutcomeReport { subject, observer, recording, watch } = *report;
            let outcome = self.flow.outcome(subject);
            if let (Some(watch), Some(outcome)) = (watch, &outcome) {
                watch.ended(outcome);
            }
            if let (Some(observer), Some(outcome)) = (observer, &outcome) {
                observer.ended(outcome);
            }
            Some(recording?.finish(result, total, self.flow.attempts(), outcome))
        });
        self.remember(result, total, failure, detail);
    }
}

impl Drop for RequestTracker {
    fn drop(&mut self) {
        // No effect if the flow has ended.
        self.on(Event::ClientGone);
        self.report(None);
    }
}
