//! Serves one request: the decision, its execution, and the response.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::HeaderName;
use http::request::Parts;
use pointsman_domain::Endpoint;
use pointsman_domain::request_flow::Event;
use pointsman_openai::{EndpointShape, ErrorForm};
use tracing::Instrument as _;

use crate::count_tokens;
use crate::decision::{Accepted, Incoming, RoutingDecision, accept, decide};
use crate::execute::{ExecutionResult, execute_or_abort};
use crate::idempotency::Failed;
use crate::pipeline::Pipeline;
use crate::request_tracker::{RequestTracker, request_span};
use crate::responses::TurnSlot;
use crate::wait::WaitingBody;
use crate::{headers, limit_headers, request_id, response, stream};

const ANTHROPIC_ID: HeaderName = HeaderName::from_static("request-id");

/// A request that has arrived.
pub(crate) struct Arrived {
    pub(crate) id: String,
    pub(crate) parts: Parts,
    pub(crate) body: Incoming,
    /// Is set if the response fails after its head.
    pub(crate) failed: Option<Failed>,
}

/// Serves one request. Every failure becomes an error response.
pub(crate) fn serve(
    pipeline: Arc<Pipeline>,
    endpoint: Endpoint,
    arrived: Arrived,
) -> impl Future<Output = Response> + Send {
    // What an `async fn` gets takes space as long as it runs, also when it was moved elsewhere.
    let Arrived { id, parts, body, failed } = arrived;
    let span = request_span(&id, endpoint.label());
    let mut tracker = RequestTracker::new(&pipeline, &id, endpoint, span.clone(), &parts);
    tracker.set_failed_flag(failed);
    let turn = parts.extensions.get::<TurnSlot>().cloned();
    let steps = async move {
        let allowance;
        let mut guards = None;
        // Boxed, here and in `attempt`, so that a queued request does not carry the states of all
        // other steps with it.
        let accepted = Box::pin(accept(&pipeline, endpoint, &id, parts, body, &mut tracker)).await;
        let mut response = 'response: {
            let accepted = match accepted {
                Ok(Accepted::Load(load)) => match tracker.admit(&pipeline.meter, None) {
                    Ok(_) => {
                        allowance = tracker.allowance();
                        break 'response answered(tracker, response::json(load.to_json()));
                    }
                    Err(refusal) => Err(refusal.into()),
                },
                Ok(Accepted::Request(request, fleet)) => {
                    match count_tokens::estimate(&request, &fleet) {
                        Some(response) => match tracker.admit(&pipeline.meter, Some(&request)) {
                            Ok(_) => {
                                allowance = tracker.allowance();
                                break 'response answered(tracker, response);
                            }
                            Err(refusal) => Err(refusal.into()),
                        },
                        None => Ok((request, fleet)),
                    }
                }
                Err(error) => Err(error),
            };
            let decided = Box::pin(decide(&pipeline, accepted, turn, &mut tracker)).await;
            allowance = tracker.allowance();
            guards = tracker.guard.header();
            match decided {
                Ok(decision) => respond(pipeline, decision, tracker).await,
                Err(error) => tracker.error_response(&error),
            }
        };
        request_id::set(response.headers_mut(), &id);
        let form = EndpointShape::for_endpoint(endpoint).errors;
        response.headers_mut().extend(guards.map(|guards| (headers::GUARD, guards)));
        if let Some(allowance) = allowance {
            limit_headers::set(response.headers_mut(), &allowance, form);
        }
        if form == ErrorForm::Anthropic {
            // The name that Anthropic's libraries read.
            request_id::set_as(ANTHROPIC_ID, response.headers_mut(), &id);
        }
        response
    };
    steps.instrument(span)
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
    let interval: Duration = pipeline.settings.keep_alive;
    // Lines of JSON have no comments, and Ollama's clients wait as long as a load takes.
    let has_comments = tracker.error_form() != ErrorForm::Ollama;
    // A proxy that sends the request has nothing to send to the client yet.
    let is_proxied = tracker.proxy.is_some();
    let sends_comments =
        has_comments && !is_proxied && !interval.is_zero() && decision.request.streaming();
    let waiting =
        sends_comments.then(|| (tracker.span().clone(), Arc::clone(&decision.attribution)));
    let mut execution = Box::pin(async move {
        let result = execute_or_abort(&pipeline, &decision, &mut tracker).await;
        ExecutionResult { result, decision, tracker }
    });
    let Some((span, attribution)) = waiting else {
        return stream::into_response(execution.await);
    };
    match tokio::time::timeout(interval, execution.as_mut()).await {
        Ok(done) => stream::into_response(done),
        Err(_) => WaitingBody::new(execution, interval).into_response(span, &attribution),
    }
}
