//! What the access log and traces are told of a request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use pointsman_domain::{AttemptResult, LaneId, RequestResult};
use pointsman_fleet::{Fleet, Lease};

use super::{Failure, RequestTracker};
use crate::finished::{ClientAddress, FinishedRequest, RequestObserver};
use crate::label_values::outcome_label;
use crate::pipeline::Pipeline;
use crate::trace_context::{
    EngineSpan, LoadSpan, PolicyCallSpan, RequestTrace, TraceContext, TraceHeaders,
};

/// What is only noted for the observer of the request's end.
#[derive(Debug)]
pub(super) struct Details {
    observer: Option<Arc<dyn RequestObserver>>,
    client: Option<IpAddr>,
    pub(super) is_streaming: bool,
    pub(super) request_bytes: u64,
    response_bytes: u64,
    /// On the heap, because traces may be off, and many requests wait at a time.
    trace: Option<Box<RequestTrace>>,
}

impl Details {
    /// Notes where the request comes from.
    pub(super) fn new(pipeline: &Pipeline, parts: &Parts) -> Self {
        let trace = pipeline.settings.traces.as_ref().map(|settings| {
            Box::new(RequestTrace {
                context: TraceContext::new(settings, &parts.headers),
                policy_calls: Vec::new(),
                loads: Vec::new(),
                engines: Vec::new(),
            })
        });
        Self {
            observer: pipeline.observer.clone(),
            client: parts.extensions.get().map(|ClientAddress(client)| *client),
            is_streaming: false,
            request_bytes: 0,
            response_bytes: 0,
            trace,
        }
    }

    /// Returns the trace if it is sampled.
    fn sampled(&mut self) -> Option<&mut RequestTrace> {
        self.trace.as_deref_mut().filter(|trace| trace.context.is_sampled)
    }
}

impl RequestTracker {
    /// Notes bytes of the response that are passed on.
    pub(crate) fn add_response_bytes(&mut self, bytes: usize) {
        self.details.response_bytes += bytes as u64;
    }

    /// Returns the trace context of the current attempt for its engine; `None` if traces are off,
    /// so that the client's passes.
    pub(crate) fn trace_headers(&self) -> Option<TraceHeaders> {
        let trace = self.details.trace.as_ref()?;
        Some(trace.context.headers(self.flow.attempt_count()))
    }

    /// Notes a call of the policies that began at this age and ends now.
    pub(crate) fn note_policy_call(&mut self, hook: &'static str, begun: Duration) {
        let ended = self.age();
        if let Some(trace) = self.details.sampled() {
            trace.policy_calls.push(PolicyCallSpan { hook, begun, ended });
        }
    }

    /// Notes the state of a lane for which the request begins to wait.
    pub(super) fn note_lane_state(&mut self, fleet: &Fleet, lane: LaneId) {
        let attempt = self.flow.attempt_count();
        let Some(trace) = self.details.sampled() else { return };
        let view = fleet.view();
        if let Some(stat) = view.stat(lane).filter(|stat| !stat.state.serving()) {
            let lane_state = stat.state.label();
            trace.loads.push(LoadSpan { attempt, lane_state, switch: None });
        }
    }

    /// Notes the engine of the current attempt, and the name of the model that it gets.
    pub(crate) fn note_engine(&mut self, lease: &Lease, model: Option<&str>) {
        let attempt = self.flow.attempt_count();
        if let Some(trace) = self.details.sampled() {
            let (authority, model) = (lease.authority().to_owned(), model.map(str::to_owned));
            let load = trace.loads.iter_mut().find(|load| load.attempt == attempt);
            if let Some(load) = load {
                load.switch = lease.switch();
            }
            trace.engines.push(EngineSpan { attempt, authority, model });
        }
    }

    /// Tells the observer of the end of the request.
    pub(super) fn tell_observer(
        &self,
        result: RequestResult,
        last: AttemptResult,
        failure: Option<&Failure<'_>>,
    ) {
        let Some(observer) = &self.details.observer else { return };
        let (identity, model) = (self.metering.identity(), self.in_flight.model());
        let attribution = self.attribution.as_ref();
        observer.ended(&FinishedRequest {
            id: self.in_flight.id(),
            endpoint: self.endpoint,
            client: self.details.client,
            tenant: identity.tenant.as_deref(),
            key: Some(identity.name.as_str()).filter(|name| !name.is_empty()),
            model: model.as_deref(),
            lane: Some(self.lane_name()).filter(|lane| !lane.is_empty()),
            policies: attribution.map(|attribution| attribution.policies.as_str()),
            status: failure.and_then(|failure| failure.status).or(self.sent_status()),
            outcome: outcome_label(result),
            result: last.label(),
            code: failure.and_then(|failure| failure.code),
            is_streaming: self.details.is_streaming,
            request_bytes: self.details.request_bytes,
            response_bytes: self.details.response_bytes,
            flow: &self.flow,
            topology: self.topology.as_ref(),
            trace: self.details.trace.as_deref(),
        });
    }
}
