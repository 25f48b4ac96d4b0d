//! The spans of a request, made of what is known when it has ended.
//!
//! ```text
//!   POST /v1/chat/completions            from the request to the last byte
//!   ├── policy                           each call of the chain
//!   └── attempt                          each step of the plan
//!       ├── queue                        the wait for a slot
//!       │   └── load                     if the lane was not loaded; linked to the switch
//!       └── chat MODEL                   what was sent to the engine, whose own spans are below
//!           └── stream                   from the first byte to the last one
//! ```
//!
//! The spans of a switch are in `switch_spans.rs`.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_domain::{Attempt, AttemptResult, Endpoint, TokenCounts, Topology};
use pointsman_gateway::{EngineSpan, FinishedRequest, RequestTrace};
use pointsman_otlp::{Span, SpanKind, SpanStatus};

use super::fields::MAX_VALUE;
use super::switch_spans::SwitchIds;

/// Numbers of child spans beside those of attempts, which are small: [`TraceContext::child_span`].
///
/// [`TraceContext::child_span`]: pointsman_gateway::TraceContext::child_span
const POLICY: u32 = 1 << 16;
const ATTEMPT: u32 = 2 << 16;
const QUEUE: u32 = 3 << 16;
const LOAD: u32 = 4 << 16;
const STREAM: u32 = 5 << 16;

/// A traced request that has ended, with all that its spans need.
#[derive(Debug)]
pub(super) struct FinishedTrace {
    trace: Arc<RequestTrace>,
    /// When the request began, in nanoseconds since the Unix epoch. All spans have the same clock:
    /// that of its end.
    begun: u64,
    total: Duration,
    ttft: Option<Duration>,
    endpoint: Endpoint,
    id: String,
    tenant: Option<String>,
    key: Option<String>,
    model: Option<String>,
    policies: Option<String>,
    status: Option<u16>,
    outcome: &'static str,
    code: Option<String>,
    is_streaming: bool,
    usage: Option<TokenCounts>,
    attempts: Vec<Attempt>,
    /// The names of the lanes.
    topology: Option<Arc<Topology>>,
}

impl FinishedTrace {
    /// Copies what is needed of a request; `None` if it is not traced.
    pub(super) fn new(request: &FinishedRequest<'_>) -> Option<Self> {
        let trace = request.trace.filter(|trace| trace.context.is_sampled)?;
        let owned = |text: Option<&str>| text.map(bounded);
        let flow = request.flow;
        let total = flow.total().unwrap_or_default();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Self {
            trace: Arc::clone(trace),
            begun: nanos(now.saturating_sub(total)),
            total,
            ttft: flow.ttft(),
            endpoint: request.endpoint,
            id: bounded(request.id),
            tenant: owned(request.tenant),
            key: owned(request.key),
            model: owned(request.model),
            policies: owned(request.policies),
            status: request.status,
            outcome: request.outcome,
            code: owned(request.code),
            is_streaming: request.is_streaming,
            usage: flow.usage(),
            attempts: flow.attempts().copied().collect(),
            topology: request.topology.cloned(),
        })
    }

    /// Appends the spans, with links to those of switches.
    pub(super) fn append_to(&self, spans: &mut Vec<Span>, switches: &SwitchIds) {
        self.append_root(spans);
        for (number, call) in (0..).zip(&self.trace.policy_calls) {
            let ids = (POLICY + number, self.trace.context.span_id);
            let times = (call.begun, call.ended);
            let mut span = self.span(ids, "policy", SpanKind::Internal, times);
            span.set("pointsman.hook", call.hook);
            set_text(&mut span, "pointsman.policy", self.policies.as_deref());
            spans.push(span);
        }
        for (number, attempt) in (1..).zip(&self.attempts) {
            self.append_attempt(spans, number, attempt, switches);
        }
    }

    fn append_root(&self, spans: &mut Vec<Span>) {
        let context = &self.trace.context;
        let name = match self.endpoint.path() {
            Some(path) => Cow::Owned(format!("POST {path}")),
            None => Cow::Borrowed("engine path"),
        };
        let ids = (context.trace_id, context.span_id, context.parent);
        let times = (self.nanos(Duration::ZERO), self.nanos(self.total));
        let mut span = Span::new(ids, &name, SpanKind::Server, times);
        self.set_state(&mut span);
        if let Some(path) = self.endpoint.path() {
            span.set("http.request.method", "POST");
            span.set("http.route", path);
        }
        if let Some(status) = self.status {
            span.set("http.response.status_code", u64::from(status));
        }
        span.set("gen_ai.operation.name", operation(self.endpoint));
        set_text(&mut span, "gen_ai.request.model", self.model.as_deref());
        span.set("pointsman.request_id", self.id.as_str());
        set_text(&mut span, "pointsman.tenant", self.tenant.as_deref());
        set_text(&mut span, "pointsman.key", self.key.as_deref());
        set_text(&mut span, "pointsman.policy", self.policies.as_deref());
        span.set("pointsman.outcome", self.outcome);
        span.set("pointsman.attempts", self.attempts.len() as u64);
        set_text(&mut span, "error.type", self.code.as_deref());
        // Errors of a client are not those of the server (HTTP conventions).
        if self.outcome == "error" && self.status.is_none_or(|status| status >= 500) {
            span.set_status(SpanStatus::Error);
        }
        spans.push(span);
    }

    fn append_attempt(
        &self,
        spans: &mut Vec<Span>,
        number: u32,
        attempt: &Attempt,
        switches: &SwitchIds,
    ) {
        let context = &self.trace.context;
        let lane = self.topology.as_ref().map_or("", |topology| topology.name(attempt.lane));
        let (begun, end) = (attempt.begun, attempt.begun + attempt.took);
        let granted = begun + attempt.queue;
        let ids = (ATTEMPT + number, context.span_id);
        let mut span = self.span(ids, "attempt", SpanKind::Internal, (begun, end));
        span.set("pointsman.lane", lane);
        span.set("pointsman.attempt", u64::from(number));
        span.set("pointsman.result", attempt.result.label());
        if has_failed(attempt) {
            span.set_status(SpanStatus::Error);
        }
        spans.push(span);
        let ids = (QUEUE + number, context.child_span(ATTEMPT + number));
        spans.push(self.span(ids, "queue", SpanKind::Internal, (begun, granted)));
        if let Some(load) = self.trace.loads.iter().find(|load| load.attempt == number) {
            let ids = (LOAD + number, context.child_span(QUEUE + number));
            let mut span = self.span(ids, "load", SpanKind::Internal, (begun, granted));
            span.set("pointsman.lane", lane);
            span.set("pointsman.lane_state", load.lane_state);
            if let Some((trace_id, span_id)) = load.switch.map(|number| switches.span(number)) {
                span.link(trace_id, span_id);
            }
            spans.push(span);
        }
        if let Some(engine) = self.trace.engines.iter().find(|engine| engine.attempt == number) {
            self.append_engine(spans, engine, attempt);
        }
    }

    /// Appends the spans of what was sent to an engine.
    fn append_engine(&self, spans: &mut Vec<Span>, engine: &EngineSpan, attempt: &Attempt) {
        let (context, number) = (&self.trace.context, engine.attempt);
        let (granted, end) = (attempt.begun + attempt.queue, attempt.begun + attempt.took);
        let (operation, model) = (operation(self.endpoint), self.model.as_deref());
        let name = match model {
            Some(model) => Cow::Owned(format!("{operation} {model}")),
            None => Cow::Borrowed(operation),
        };
        let ids = (number, context.child_span(ATTEMPT + number));
        let mut span = self.span(ids, &name, SpanKind::Client, (granted, end));
        span.set("gen_ai.operation.name", operation);
        set_text(&mut span, "gen_ai.request.model", model);
        let (host, port) = split_authority(&engine.authority);
        span.set("server.address", host);
        if let Some(port) = port {
            span.set("server.port", port);
        }
        if attempt.status != 0 {
            span.set("http.response.status_code", u64::from(attempt.status));
        }
        let is_last = number as usize == self.attempts.len();
        if is_last && attempt.result == AttemptResult::Ok {
            let of_engine = engine.model.as_deref().map(bounded);
            set_text(&mut span, "gen_ai.response.model", of_engine.as_deref().or(model));
        }
        if let Some(usage) = self.usage.filter(|_| is_last) {
            // Without a prompt, the engine has reported nothing.
            if usage.prompt > 0 {
                span.set("gen_ai.usage.input_tokens", u64::from(usage.prompt));
            }
            span.set("gen_ai.usage.output_tokens", u64::from(usage.output));
        }
        if has_failed(attempt) {
            span.set("error.type", attempt.result.label());
            span.set_status(SpanStatus::Error);
        }
        spans.push(span);
        if let Some(ttft) = self.ttft.filter(|_| is_last) {
            let name = if self.is_streaming { "stream" } else { "response" };
            let ids = (STREAM + number, context.child_span(number));
            spans.push(self.span(ids, name, SpanKind::Internal, (ttft, end)));
        }
    }

    /// Returns a span with the id of this number and a parent, between two ages of the request.
    fn span(
        &self,
        (number, parent): (u32, u64),
        name: &str,
        kind: SpanKind,
        (begun, ended): (Duration, Duration),
    ) -> Span {
        let context = &self.trace.context;
        let ids = (context.trace_id, context.child_span(number), Some(parent));
        let mut span = Span::new(ids, name, kind, (self.nanos(begun), self.nanos(ended)));
        self.set_state(&mut span);
        span
    }

    fn set_state(&self, span: &mut Span) {
        if let Some(state) = self.trace.context.state.as_ref().and_then(|state| state.to_str().ok())
        {
            span.set_trace_state(state);
        }
    }

    /// Returns the time at an age of the request, in nanoseconds since the Unix epoch.
    fn nanos(&self, age: Duration) -> u64 {
        self.begun.saturating_add(nanos(age))
    }
}

fn nanos(time: Duration) -> u64 {
    // Since the epoch: until the year 2554.
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns true if an attempt has failed. A client that has gone is not an error of an engine.
fn has_failed(attempt: &Attempt) -> bool {
    !matches!(attempt.result, AttemptResult::Ok | AttemptResult::ClientGone)
}

fn set_text(span: &mut Span, key: &str, text: Option<&str>) {
    if let Some(text) = text {
        span.set(key, text);
    }
}

/// Cuts a text as the log does.
fn bounded(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_VALUE)].to_owned()
}

/// Returns the value of `gen_ai.operation.name`, for other endpoints their own name.
fn operation(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::ChatCompletions
        | Endpoint::Messages
        | Endpoint::Responses
        | Endpoint::OllamaChat => "chat",
        Endpoint::Completions
        | Endpoint::LlamaCompletion
        | Endpoint::LlamaInfill
        | Endpoint::OllamaGenerate => "text_completion",
        Endpoint::Embeddings
        | Endpoint::LlamaEmbedding
        | Endpoint::OllamaEmbed
        | Endpoint::OllamaEmbeddings => "embeddings",
        Endpoint::CountTokens
        | Endpoint::Rerank
        | Endpoint::Score
        | Endpoint::Classify
        | Endpoint::Pooling
        | Endpoint::Tokenize
        | Endpoint::Detokenize
        | Endpoint::Moderations
        | Endpoint::ImageGenerations
        | Endpoint::ImageEdits
        | Endpoint::ImageVariations
        | Endpoint::Transcriptions
        | Endpoint::Translations
        | Endpoint::Speech
        | Endpoint::LlamaApplyTemplate
        | Endpoint::Other => endpoint.label(),
    }
}

/// Returns host and port. IPv6 addresses are without their brackets.
fn split_authority(authority: &str) -> (&str, Option<u64>) {
    let split = authority.rsplit_once(':');
    let port = split.and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = match port {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    (host.trim_start_matches('[').trim_end_matches(']'), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_split_into_host_and_port() {
        for (authority, expected) in [
            ("127.0.0.1:8000", ("127.0.0.1", Some(8000))),
            ("api.example.org", ("api.example.org", None)),
            ("[::1]:80", ("::1", Some(80))),
            ("[::1]", ("::1", None)),
        ] {
            assert_eq!(split_authority(authority), expected);
        }
    }
}
