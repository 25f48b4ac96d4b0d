//! The spans of a request, made of what is known when it has ended.
//!
//! ```text
//!   POST /v1/chat/completions            from the request to the last byte
//!   ├── policy                           each call of the chain, unless it is empty
//!   └── attempt                          each step of the plan
//!       ├── queue                        the wait for a slot, unless it was short
//!       │   └── load                     if the lane was not loaded; linked to the switch
//!       └── chat MODEL                   what was sent to the engine, whose own spans are below
//!           └── stream                   from the first byte to the last one, if it is a stream
//! ```
//!
//! The spans of a switch are in `switch_spans.rs`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_domain::{Attempt, AttemptResult, Endpoint};
use pointsman_gateway::{EngineSpan, FinishedRequest, RequestTrace};
use pointsman_otlp::{EncodedSpans, Span, SpanKind, SpanStatus, Spans};

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

/// Shorter waits have no span: a request takes that long to the dispatcher and back.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// Returns the spans of a request that has ended, with links to those of switches; `None` if it is
/// not traced.
pub(super) fn request_spans(
    request: &FinishedRequest<'_>,
    switches: &SwitchIds,
) -> Option<EncodedSpans> {
    let trace = request.trace.filter(|trace| trace.context.is_sampled)?;
    let total = request.flow.total().unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut spans = RequestSpans {
        request,
        trace,
        switches,
        begun: nanos(now.saturating_sub(total)),
        spans: Spans::default(),
    };
    spans.add_root(total);
    spans.add_policy_calls();
    for (number, attempt) in (1..).zip(request.flow.attempts()) {
        spans.add_attempt(number, attempt);
    }
    Some(spans.spans.finish())
}

/// The spans of one request, while they are made.
struct RequestSpans<'a> {
    request: &'a FinishedRequest<'a>,
    trace: &'a RequestTrace,
    switches: &'a SwitchIds,
    /// When the request began, in nanoseconds since the Unix epoch. All spans have the same clock:
    /// that of its end.
    begun: u64,
    spans: Spans,
}

impl RequestSpans<'_> {
    fn add_root(&mut self, total: Duration) {
        let (request, context) = (self.request, &self.trace.context);
        let path = request.endpoint.path();
        let name: &[&str] = match &path {
            Some(path) => &["POST ", path],
            None => &["engine path"],
        };
        let ids = (context.trace_id, context.span_id, context.parent);
        let times = (self.begun, self.nanos(total));
        let span = self.spans.begin(ids, name, SpanKind::Server, times);
        set_state(span, self.trace);
        if let Some(path) = path {
            span.set("http.request.method", "POST");
            span.set("http.route", path);
        }
        if let Some(status) = request.status {
            span.set("http.response.status_code", u64::from(status));
        }
        span.set("gen_ai.operation.name", operation(request.endpoint));
        set_text(span, "gen_ai.request.model", request.model);
        span.set("pointsman.request_id", bounded(request.id));
        set_text(span, "pointsman.tenant", request.tenant);
        set_text(span, "pointsman.key", request.key);
        set_text(span, "pointsman.policy", request.policies);
        span.set("pointsman.outcome", request.outcome);
        span.set("pointsman.attempts", u64::from(request.flow.attempt_count()));
        set_text(span, "error.type", request.code);
        // Errors of a client are not those of the server (HTTP conventions).
        if request.outcome == "error" && request.status.is_none_or(|status| status >= 500) {
            span.set_status(SpanStatus::Error);
        }
    }

    fn add_policy_calls(&mut self) {
        for (number, call) in (0..).zip(&self.trace.policy_calls) {
            let policies = self.request.policies;
            let ids = (POLICY + number, self.trace.context.span_id);
            let span = self.begin(ids, &["policy"], SpanKind::Internal, (call.begun, call.ended));
            span.set("pointsman.hook", call.hook);
            set_text(span, "pointsman.policy", policies);
        }
    }

    fn add_attempt(&mut self, number: u32, attempt: &Attempt) {
        let trace = self.trace;
        let topology = self.request.topology;
        let lane = topology.map_or("", |topology| topology.name(attempt.lane));
        let (begun, end) = (attempt.begun, attempt.begun + attempt.took);
        let granted = begun + attempt.queue;
        let ids = (ATTEMPT + number, trace.context.span_id);
        let span = self.begin(ids, &["attempt"], SpanKind::Internal, (begun, end));
        span.set("pointsman.lane", lane);
        span.set("pointsman.attempt", u64::from(number));
        span.set("pointsman.result", attempt.result.label());
        if has_failed(attempt) {
            span.set_status(SpanStatus::Error);
        }
        let load = trace.loads.iter().find(|load| load.attempt == number);
        if load.is_some() || attempt.queue >= SHORTEST_WAIT {
            let ids = (QUEUE + number, trace.context.child_span(ATTEMPT + number));
            self.begin(ids, &["queue"], SpanKind::Internal, (begun, granted));
        }
        if let Some(load) = load {
            let switch = load.switch.map(|number| self.switches.span(number));
            let ids = (LOAD + number, trace.context.child_span(QUEUE + number));
            let span = self.begin(ids, &["load"], SpanKind::Internal, (begun, granted));
            span.set("pointsman.lane", lane);
            span.set("pointsman.lane_state", load.lane_state);
            if let Some((trace_id, span_id)) = switch {
                span.link(trace_id, span_id);
            }
        }
        if let Some(engine) = trace.engines.iter().find(|engine| engine.attempt == number) {
            self.add_engine(engine, attempt);
        }
    }

    /// Adds the spans of what was sent to an engine.
    fn add_engine(&mut self, engine: &EngineSpan, attempt: &Attempt) {
        let (request, context, number) = (self.request, &self.trace.context, engine.attempt);
        let (granted, end) = (attempt.begun + attempt.queue, attempt.begun + attempt.took);
        let (operation, model) = (operation(request.endpoint), request.model.map(bounded));
        let name: &[&str] = match &model {
            Some(model) => &[operation, " ", model],
            None => &[operation],
        };
        let ids = (number, context.child_span(ATTEMPT + number));
        let span = self.begin(ids, name, SpanKind::Client, (granted, end));
        span.set("gen_ai.operation.name", operation);
        set_text(span, "gen_ai.request.model", model);
        let (host, port) = split_authority(&engine.authority);
        span.set("server.address", host);
        if let Some(port) = port {
            span.set("server.port", port);
        }
        if attempt.status != 0 {
            span.set("http.response.status_code", u64::from(attempt.status));
        }
        let is_last = number == request.flow.attempt_count();
        if is_last && attempt.result == AttemptResult::Ok {
            set_text(span, "gen_ai.response.model", engine.model.as_deref().or(model));
        }
        if let Some(usage) = request.flow.usage().filter(|_| is_last) {
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
        // A complete response arrives at once: the time of its first byte is the end of the parent.
        if let Some(ttft) = request.flow.ttft().filter(|_| is_last && request.is_streaming) {
            let ids = (STREAM + number, context.child_span(number));
            self.begin(ids, &["stream"], SpanKind::Internal, (ttft, end));
        }
    }

    /// Begins a span with the id of this number and a parent, between two ages of the request.
    fn begin(
        &mut self,
        (number, parent): (u32, u64),
        name: &[&str],
        kind: SpanKind,
        (begun, ended): (Duration, Duration),
    ) -> &mut Span {
        let context = &self.trace.context;
        let ids = (context.trace_id, context.child_span(number), Some(parent));
        let times = (self.nanos(begun), self.nanos(ended));
        let span = self.spans.begin(ids, name, kind, times);
        set_state(span, self.trace);
        span
    }

    /// Returns the time at an age of the request, in nanoseconds since the Unix epoch.
    fn nanos(&self, age: Duration) -> u64 {
        self.begun.saturating_add(nanos(age))
    }
}

fn set_state(span: &mut Span, trace: &RequestTrace) {
    if let Some(state) = trace.context.state.as_ref().and_then(|state| state.to_str().ok()) {
        span.set_trace_state(state);
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
        span.set(key, bounded(text));
    }
}

/// Cuts a text as the log does.
fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_VALUE)]
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
