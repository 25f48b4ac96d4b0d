//! `/upstream/{lane}/{path}`: any path of the engine of a lane, as the engine has it.
//!
//! Such a path may show or change what all clients of the engine share, so that it needs a key with
//! `engine-admin`, or the admin API. It takes a slot of the lane like any other request and is
//! counted and logged, but no policy decides about it, and it loads its lane only if it asks to.

use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::response::Response;
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Uri, header};
use pointsman_domain::request_flow::{Action, Event};
use pointsman_domain::{
    Decision, Endpoint, LaneId, OnTimeout, Plan, SlotRequest, Step, Switching, Triggers,
};
use pointsman_openai::{CREDENTIALS, ErrorForm};
use tracing::Instrument as _;

use crate::attempt::EngineResponse;
use crate::error::RouteError;
use crate::failure::AttemptError;
use crate::metering::PathRequest;
use crate::pipeline::Pipeline;
use crate::request_tracker::{RequestTracker, request_span};
use crate::response::only;
use crate::stream::{InSpan, ResponseBody};
use crate::{guard, headers, limit_headers, paths, request_id, rights, upload};
use pointsman_access::Identity;

/// The methods of the routes.
pub(crate) const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";
const ROUTE: &str = "/upstream/{*path}";
/// The first segments of paths, below `/v1` or not, by which an engine is stopped, paused, or its
/// memory changed: the host would not know of it.
const REFUSED: [&str; 24] = [
    "sleep",
    "wake_up",
    "collective_rpc",
    "shutdown",
    "pause",
    "resume",
    "abort_requests",
    "load_lora_adapter",
    "unload_lora_adapter",
    "reset_prefix_cache",
    "reset_mm_cache",
    "reset_encoder_cache",
    "scale_elastic_ep",
    "update_weights",
    "init_weight_transfer_engine",
    "start_profile",
    "stop_profile",
    // llama.cpp and Ollama.
    "models/load",
    "models/unload",
    "api/pull",
    "api/push",
    "api/create",
    "api/copy",
    "api/delete",
];

/// Endpoints that the host has on some of its listeners only.
const OF_ENGINES: [Endpoint; 4] = [
    Endpoint::LlamaCompletion,
    Endpoint::LlamaInfill,
    Endpoint::LlamaEmbedding,
    Endpoint::LlamaApplyTemplate,
];
/// The first segments of paths that are not those of a model.
const STATE: [&str; 4] = ["slots", "props", "lora-adapters", "models"];

/// Who uses the routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// A client, who needs a key with `engine-admin`.
    Client,
    /// An operator, on the admin API.
    Operator,
}

/// Returns the routes.
pub(crate) fn routes(access: Access) -> Router<Arc<Pipeline>> {
    let serve = move |State(pipeline): State<Arc<Pipeline>>, request: Request| async move {
        let path = request.uri().path().to_owned();
        let rest = path.strip_prefix("/upstream/").unwrap_or_default();
        let (lane, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = format!("/{path}");
        self::serve(&pipeline, access, lane, &path, request).await
    };
    Router::new().route(ROUTE, only(METHODS, all(serve)))
}

/// Returns a route for all of [`METHODS`].
pub(crate) fn all<H, T>(handler: H) -> MethodRouter<Arc<Pipeline>>
where
    H: Handler<T, Arc<Pipeline>>,
    T: 'static,
{
    let handlers = get(handler.clone()).post(handler.clone()).put(handler.clone());
    handlers.patch(handler.clone()).delete(handler)
}

/// Serves a request for a path of a lane's engine.
pub(crate) async fn serve(
    pipeline: &Pipeline,
    access: Access,
    lane: &str,
    path: &str,
    request: Request,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let id = request_id::ensure(&mut parts);
    let span = request_span(&id, Endpoint::Other.label());
    let mut tracker = RequestTracker::new(pipeline, &id, Endpoint::Other, span.clone(), &parts);
    let (mut allowance, mut guards) = (None, None);
    let steps = async {
        let accepted = accept(pipeline, access, (lane, path), &parts, body, &mut tracker).await;
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // No effect on the flow once the request was accepted.
                let error = tracker.refuse(&pipeline.meter, error);
                (allowance, guards) = (tracker.allowance(), tracker.guard.header());
                return tracker.error_response(&error);
            }
        };
        (allowance, guards) = (tracker.allowance(), tracker.guard.header());
        match forward(pipeline, &mut tracker, accepted).await {
            Ok(response) => passed_on(response, tracker),
            Err(error) => tracker.error_response(&error),
        }
    };
    let mut response = steps.instrument(span).await;
    response.headers_mut().extend(guards.map(|guards| (headers::GUARD, guards)));
    if let Some(allowance) = allowance {
        limit_headers::set(response.headers_mut(), &allowance, ErrorForm::OpenAi);
    }
    request_id::set(response.headers_mut(), &id);
    response
}

/// A request that has the right to be sent.
struct Accepted {
    slot_request: SlotRequest,
    method: Method,
    /// With its query.
    path: String,
    headers: HeaderMap,
    body: Bytes,
    /// The memory of the body.
    _reservation: Arc<upload::Reservation>,
}

async fn accept(
    pipeline: &Pipeline,
    access: Access,
    (lane, path): (&str, &str),
    parts: &Parts,
    body: Body,
    tracker: &mut RequestTracker,
) -> Result<Accepted, RouteError> {
    let identity = identify(pipeline, access, parts)?;
    if access == Access::Client {
        tracker.identify(&identity);
    }
    check_path(lane, path)?;
    if access == Access::Client && is_refused(path) {
        return Err(RouteError::EnginePathRefused(path.to_owned()));
    }
    let view = pipeline.fleet.view();
    let unknown = || RouteError::UnknownLane(lane.to_owned());
    let id = view.topology.find(lane).ok_or_else(unknown)?;
    let info = view.topology.lane(id).ok_or_else(unknown)?;
    rights::check_engine_paths(&identity.rights, info)?;
    if info.is_peer {
        let hint = "ask its host, which has the engine".to_owned();
        let (model, endpoint) = (lane.to_owned(), Endpoint::Other);
        return Err(RouteError::EndpointNotSupported { model, endpoint, hint });
    }
    // What an engine's own paths do is not known, so that guards for any endpoint apply to them.
    let (is_generating, endpoint) = (generates(&parts.method, path), endpoint_of(path));
    let of_guards = Some(endpoint).filter(|endpoint| *endpoint != Endpoint::Other);
    let loads = parts.headers.get(headers::LOAD).is_some_and(|value| value == "true");
    let is_loaded = view.stat(id).is_some_and(|stat| stat.state.serving());
    if !is_loaded && !loads {
        return Err(RouteError::LaneNotLoaded(lane.to_owned()));
    }
    let tenant = identity.tenant.as_deref();
    let received = upload::receive_any(&pipeline.uploads, &parts.headers, body, tenant);
    let (mut body, reservation) = received.await?;
    tracker.set_topology(&view.topology);
    let guards = &pipeline.settings.guards;
    let constraint =
        guard::for_head(guards, &identity, &parts.headers, of_guards, body.len() as u64);
    tracker.guard.set(constraint.clone());
    if let Some(constraint) = constraint {
        guard::check_lane(&constraint, &view.topology, id)?;
        if is_generating {
            body = guard::limited_path(&constraint, endpoint, body)?;
        }
    }
    tracing::info!(lane, method = %parts.method, path, ?access, "engine path requested");
    let request = PathRequest {
        endpoint,
        generates: is_generating,
        body_bytes: body.len(),
        max_context: info.max_context,
    };
    tracker.admit_path(&pipeline.meter, request)?;
    let share = tracker.guard.limit_share(identity.queue_share());
    tracker.on(Event::Accepted { tenant, share });
    let switching = if loads { Switching::Allow } else { Switching::Never };
    let decision = Decision::Route(plan(pipeline, id, switching));
    let action = tracker.on(Event::Decided { decision, has_recovery: false });
    let Action::Acquire(slot_request) = action else {
        // Never: a plan with a lane leads to an attempt.
        return Err(RouteError::LaneNotLoaded(lane.to_owned()));
    };
    Ok(Accepted {
        slot_request,
        method: parts.method.clone(),
        path: with_query(path, &parts.uri),
        headers: for_engine(parts),
        body,
        _reservation: reservation,
    })
}

/// Returns who sends the request.
///
/// # Errors
/// If a client does not have the right, which clients of a host without keys never have.
fn identify(
    pipeline: &Pipeline,
    access: Access,
    parts: &Parts,
) -> Result<Arc<Identity>, RouteError> {
    match access {
        Access::Operator => Ok(Arc::default()),
        Access::Client => {
            let identity = rights::identify(&pipeline.keys, &parts.headers, &parts.extensions)?;
            if identity.rights.engine_admin {
                Ok(identity)
            } else {
                Err(RouteError::EngineAdminRequired)
            }
        }
    }
}

/// Checks that host and engine read a path in the same way. Encoded characters are refused, because
/// they may hide any of the others.
fn check_path(lane: &str, path: &str) -> Result<(), RouteError> {
    let mut segments = path.split('/').skip(1).peekable();
    let is_root = path == "/";
    let is_plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|byte| byte.is_ascii_graphic() && !b"%\\;".contains(&byte))
    };
    let is_valid = path.starts_with('/') && (is_root || segments.all(is_plain));
    if is_valid && !lane.contains('%') { Ok(()) } else { Err(RouteError::InvalidEnginePath) }
}

/// Returns true for a path that only operators may use.
fn is_refused(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    let path = path.trim_start_matches('/');
    let path = path.strip_prefix("v1/").unwrap_or(path);
    let begins = |known: &str| {
        path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    REFUSED.iter().any(|known| begins(known))
}

/// Returns the endpoint that a path is, with or without `/v1`, as far as that matters for what
/// counts.
fn endpoint_of(path: &str) -> Endpoint {
    let of_engines = OF_ENGINES.into_iter().find(|known| known.path() == Some(path));
    of_engines.or_else(|| paths::endpoint_at(path)).unwrap_or(Endpoint::Other)
}

/// Returns true for a path that shows or changes the engine, and does not run its model.
fn shows_state(path: &str) -> bool {
    let path = path.strip_prefix('/').unwrap_or(path);
    STATE.iter().any(|known| {
        path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Returns true if a request may run the model of the engine.
fn generates(method: &Method, path: &str) -> bool {
    *method == Method::POST && !shows_state(path)
}

fn plan(pipeline: &Pipeline, lane: LaneId, switching: Switching) -> Plan {
    Plan {
        steps: vec![Step { lane, edits: Vec::new(), context: 0 }],
        on: Triggers::default(),
        priority: 0,
        flow: None,
        max_wait: pipeline.settings.plan.max_wait,
        on_timeout: OnTimeout::FallBack,
        first_token: None,
        switching,
    }
}

fn with_query(path: &str, uri: &Uri) -> String {
    match paths::query_for_engine(uri) {
        query if query.is_empty() => path.to_owned(),
        query => format!("{path}?{query}"),
    }
}

fn for_engine(parts: &Parts) -> HeaderMap {
    let mut headers = headers::for_engine(&parts.headers);
    for name in &CREDENTIALS {
        headers.remove(name);
    }
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// Waits for the slot, and sends the request. Redirects are not followed.
async fn forward(
    pipeline: &Pipeline,
    tracker: &mut RequestTracker,
    request: Accepted,
) -> Result<EngineResponse, RouteError> {
    let lane = tracker.lane_name().to_owned();
    let abort = tracker.in_flight().abort().clone();
    let sent = {
        let sending = pin!(send(pipeline, tracker, request));
        abort.run_until_cancelled(sending).await
    };
    match sent {
        Some(Ok(response)) => Ok(response),
        Some(Err(error)) => {
            pipeline.metrics.attempted(&lane, error.label());
            tracker.on(error.event(|_| None));
            Err(RouteError::Attempt { lane, error })
        }
        None => {
            tracker.on(Event::Stopping);
            Err(tracker.aborted())
        }
    }
}

async fn send(
    pipeline: &Pipeline,
    tracker: &mut RequestTracker,
    request: Accepted,
) -> Result<EngineResponse, AttemptError> {
    let Accepted { slot_request, method, path, mut headers, body, _reservation } = request;
    tracker.record_attempt();
    let lease = tracker.acquire(&pipeline.fleet, slot_request).await?;
    let lane = lease.lane_name().to_owned();
    tracker.note_engine(&lease, None);
    if let Some(trace) = tracker.trace_headers() {
        trace.replace_in(&mut headers);
    }
    let Some((lease, timeout)) = tracker.grant(lease, false) else {
        // Never: a request that waits accepts a slot.
        return Err(AttemptError::Acquire(pointsman_domain::dispatch::AcquireError::Closing));
    };
    let response = tokio::time::timeout(timeout, lease.request(method, &path, headers, body)).await;
    let response = response.map_err(|_| AttemptError::FirstByteTimeout(timeout))??;
    let (head, body) = response.into_parts();
    pipeline.metrics.attempted(&lane, "ok");
    tracker.on(Event::FirstByte { status: head.status.as_u16() });
    Ok(EngineResponse {
        lane,
        status: head.status,
        headers: head.headers,
        watch: None,
        first: None,
        rest: Some(body),
        rewrite: None,
    })
}

/// Returns the client's response.
fn passed_on(response: EngineResponse, tracker: Box<RequestTracker>) -> Response {
    let mut headers = headers::for_client(&response.headers);
    headers.extend(headers::to_header_value(&response.lane).map(|lane| (headers::LANE, lane)));
    let (status, span) = (response.status, tracker.span().clone());
    let body = ResponseBody::new(response, tracker);
    let mut response = Response::new(Body::new(InSpan::new(span, body)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_can_be_read_in_two_ways_are_refused() {
        for (path, is_valid) in [
            ("/", true),
            ("/slots", true),
            ("/v1/models/a.b", true),
            ("/slots/0", true),
            ("", false),
            ("/a/../admin", false),
            ("/..", false),
            ("/./a", false),
            ("/a//b", false),
            ("//evil.example/a", false),
            ("/a%2fb", false),
            ("/%2e%2e/a", false),
            ("/%73leep", false),
            ("/a%0d%0aX: y", false),
            ("/a\\b", false),
            ("/sleep;x=1", false),
        ] {
            assert_eq!(check_path("lane", path).is_ok(), is_valid, "{path}");
        }
        assert!(check_path("a%2f..", "/slots").is_err());
    }

    #[test]
    fn paths_count_like_the_endpoints_that_they_are() {
        for (path, endpoint) in [
            ("/v1/chat/completions", Endpoint::ChatCompletions),
            ("/chat/completions", Endpoint::ChatCompletions),
            ("/v2/rerank", Endpoint::Rerank),
            ("/completion", Endpoint::LlamaCompletion),
            ("/embedding", Endpoint::LlamaEmbedding),
            ("/api/chat", Endpoint::OllamaChat),
            ("/slots/0", Endpoint::Other),
            ("/generate", Endpoint::Other),
        ] {
            assert_eq!(endpoint_of(path), endpoint, "{path}");
        }
        assert!(shows_state("/slots/0") && shows_state("/props") && !shows_state("/slotsx"));
    }

    #[test]
    fn what_stops_an_engine_or_changes_its_memory_is_for_operators() {
        for path in ["/sleep", "/Sleep/", "/v1/load_lora_adapter", "/wake_up", "/api/pull"] {
            assert!(is_refused(path), "{path}");
        }
        for path in ["/slots/0", "/sleeping", "/props", "/v1/models", "/models", "/lora-adapters"] {
            assert!(!is_refused(path), "{path}");
        }
    }
}
