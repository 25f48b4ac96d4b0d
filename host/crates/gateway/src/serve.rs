//! Serves one request: the decision, its execution, and the response.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::HeaderName;
use http::request::Parts;
use pointsman_domain::Endpoint;
use pointsman_domain::request_flow::Event;
use pointsman_openai::{EndpointShape, ErrorForm};
use tracing::Instrument as _;

use crate::count_tokens;
use crate::decision::{Accepted, Incoming, RoutingDecision, accept, body_kind, decide};
use crate::error::RouteError;
use crate::execute::{ExecutionResult, execute_or_abort};
use crate::idempotency::{Begun, Failed, Fingerprint};
use crate::pipeline::Pipeline;
use crate::request_tracker::{RequestTracker, request_span};
use crate::responses::{self, TurnSlot};
use crate::settings::ListenerSettings;
use crate::upload::{self, Received, Reservation};
use crate::wait::WaitingBody;
use crate::{paths, request_id, response, stream};

const ANTHROPIC_ID: HeaderName = HeaderName::from_static("request-id");

/// Serves one request. Every failure becomes an error response.
pub(crate) async fn serve(
    pipeline: Arc<Pipeline>,
    endpoint: Endpoint,
    request: axum::extract::Request,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let id = request_id::ensure(&mut parts);
    match pipeline.idempotency.key(&parts.headers) {
        Ok(None) => execute(pipeline, endpoint, id, parts, Incoming::Body(body), None).await,
        Ok(Some(key)) => {
            let key = key.to_owned();
            Box::pin(serve_once(pipeline, endpoint, id, parts, body, &key)).await
        }
        Err(error) => execute(pipeline, endpoint, id, parts, Incoming::Failed(error), None).await,
    }
}

/// Serves a request with an idempotency key: only the first one with the key is executed.
async fn serve_once(
    pipeline: Arc<Pipeline>,
    endpoint: Endpoint,
    id: String,
    parts: Parts,
    body: Body,
    key: &str,
) -> Response {
    let begun = begin(&pipeline, endpoint, &parts, body, key).await;
    let (begun, body, reservation) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            return execute(pipeline, endpoint, id, parts, Incoming::Failed(error), None).await;
        }
    };
    let incoming = Incoming::Received(body, reservation);
    match begun {
        Begun::Joined(joined) => {
            // The original has the same body.
            drop(incoming);
            let span = request_span(&id, endpoint.label());
            span.in_scope(|| tracing::info!(event = "request_joined", "retry joined its original"));
            joined.response().await
        }
        Begun::Untracked => execute(pipeline, endpoint, id, parts, incoming, None).await,
        Begun::First(first) => {
            let failed = Some(Arc::clone(&first.failed));
            let work = execute(Arc::clone(&pipeline), endpoint, id, parts, incoming, failed);
            pipeline.idempotency.run(first, work).await
        }
    }
}

/// Receives the body of a request, and looks for the original of a retry.
async fn begin(
    pipeline: &Pipeline,
    endpoint: Endpoint,
    parts: &Parts,
    body: Body,
    key: &str,
) -> Result<(Begun, Received, Arc<Reservation>), RouteError> {
    let identity = pipeline.keys.identity(&parts.headers)?;
    let tenant = identity.tenant.as_deref();
    let (uploads, headers) = (&pipeline.uploads, &parts.headers);
    let kind = body_kind(endpoint, headers);
    let (body, reservation) = upload::receive(uploads, kind, headers, body, tenant).await?;
    if let Received::Json(json) = &body
        && endpoint == Endpoint::Responses
        && responses::is_background(json)
    {
        // It goes on without its client as it is, and has an id by which it is found.
        return Ok((Begun::Untracked, body, reservation));
    }
    let listener = parts.extensions.get::<Arc<ListenerSettings>>();
    let model = listener.and_then(|listener| listener.default_model.as_deref());
    let context = format!("{}\n{}", model.unwrap_or_default(), paths::query_for_engine(&parts.uri));
    let fingerprint = Fingerprint::new(key, &identity, endpoint.label(), &context, &body).await?;
    let begun = pipeline.idempotency.begin(fingerprint, tenant)?;
    Ok((begun, body, reservation))
}

/// Executes one request. `failed` is set if its response fails after its head.
async fn execute(
    pipeline: Arc<Pipeline>,
    endpoint: Endpoint,
    id: String,
    parts: Parts,
    incoming: Incoming,
    failed: Option<Failed>,
) -> Response {
    let span = request_span(&id, endpoint.label());
    let metrics = Arc::clone(&pipeline.metrics);
    let mut tracker = RequestTracker::new(metrics, endpoint, span.clone(), &pipeline.settings);
    tracker.set_failed_flag(failed);
    // Boxed, here and in `attempt`, so that a queued request does not carry the states of all
    // other steps with it.
    let turn = parts.extensions.get::<TurnSlot>().cloned();
    let (wrapped, stored) = (turn.clone(), Arc::clone(&pipeline.responses));
    let steps = async {
        let accepted = Box::pin(accept(&pipeline, endpoint, &id, parts, incoming, &span)).await;
        let accepted = match accepted {
            Ok(Accepted::Load(load)) => {
                return answered(tracker, response::json(load.to_json()));
            }
            Ok(Accepted::Request(request, fleet)) => {
                match count_tokens::estimate(&request, &fleet) {
                    Some(response) => return answered(tracker, response),
                    None => Ok((request, fleet)),
                }
            }
            Err(error) => Err(error),
        };
        match Box::pin(decide(&pipeline, accepted, turn, &mut tracker)).await {
            Ok(decision) => Box::pin(respond(pipeline, decision, tracker)).await,
            Err(error) => tracker.error_response(&error),
        }
    };
    let mut response = steps.instrument(span.clone()).await;
    if let Some(turn) = wrapped.filter(|_| response.status().is_success()) {
        // Here, so that a retry with an idempotency key gets the same bytes.
        response = responses::wrap(response, turn, stored);
    }
    request_id::set(response.headers_mut(), &id);
    if EndpointShape::for_endpoint(endpoint).errors == ErrorForm::Anthropic {
        // The name that Anthropic's libraries read.
        request_id::set_as(ANTHROPIC_ID, response.headers_mut(), &id);
    }
    response
}

/// Ends a request that the host has answered itself.
fn answered(mut tracker: Box<RequestTracker>, response: Response) -> Response {
    tracker.on(Event::Served);
    tracker.report(None);
    response
}

/// Executes a decision and returns the response. A client that streams gets keep-alive comments
/// while the wait is long; any other client gets nothing until the engine responds.
async fn respond(
    pipeline: Arc<Pipeline>,
    decision: RoutingDecision,
    mut tracker: Box<RequestTracker>,
) -> Response {
    let abort = pipeline.abort.clone();
    let interval: Duration = pipeline.settings.keep_alive;
    // Lines of JSON have no comments, and Ollama's clients wait as long as a load takes.
    let has_comments = tracker.error_form() != ErrorForm::Ollama;
    if interval.is_zero() || !decision.request.streaming() || !has_comments {
        let result = execute_or_abort(&pipeline, &decision, &mut tracker).await;
        return stream::into_response(abort, ExecutionResult { result, decision, tracker });
    }
    let span = tracker.span().clone();
    let (policies, reason) = (decision.policies.clone(), decision.reason.clone());
    let mut execution = Box::pin(async move {
        let result = execute_or_abort(&pipeline, &decision, &mut tracker).await;
        ExecutionResult { result, decision, tracker }
    });
    match tokio::time::timeout(interval, execution.as_mut()).await {
        Ok(done) => stream::into_response(abort, done),
        Err(_) => WaitingBody::new(abort, execution, interval).into_response(
            span,
            &policies,
            reason.as_deref(),
        ),
    }
}
