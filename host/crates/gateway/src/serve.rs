//! The pipeline of a request. **Every step is one line of [`decide`] or [`execute`]**; the steps
//! themselves are in the modules of their names.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use pointsman_domain::{
    AttemptCursor, Decision, Endpoint, Facts, FleetView, Merged, NoLaneReason, Plan,
    RequestView as _,
};
use pointsman_openai::{Head, Request};
use tracing::Instrument as _;

use crate::attempt::{self, EngineResponse};
use crate::error::{RETRY_LOST_ENGINE, RouteError};
use crate::recording::{self, Recording};
use crate::recover;
use crate::request_tracker::{RequestTracker, request_span};
use crate::wait::WaitingBody;
use crate::{AdvisorHandle, Gateway, request_id, stream};

/// Bodies up to this size are copied out of the connection's read buffer.
const SMALL_BODY: usize = 16 << 10;

/// The routing decision about a request, with everything that its execution needs.
#[derive(Debug)]
pub(crate) struct RoutingDecision {
    /// The policies that took part in the decision, or `built-in`.
    pub(crate) policies: String,
    /// Is consulted again after a failed attempt, and receives the outcome.
    pub(crate) advisor: AdvisorHandle,
    /// The policies' reason.
    pub(crate) reason: Option<String>,
    /// The request with the policies' edits.
    pub(crate) request: Request,
    /// The lanes to attempt.
    pub(crate) plan: Plan,
    /// The snapshot of the fleet that the decision is based on.
    pub(crate) fleet: Arc<FleetView>,
}

/// Decides about one request: facts, advice, plan, edits.
async fn decide(
    gateway: &Gateway,
    endpoint: Endpoint,
    id: &str,
    parts: Parts,
    body: axum::body::Body,
    tracker: &mut RequestTracker,
) -> Result<RoutingDecision, RouteError> {
    let tenant = gateway.keys.tenant(&parts.headers)?;
    tracker.span().record("tenant", tenant.as_deref());
    let body = read(&parts.headers, body, gateway.settings.max_body).await?;
    let head = Head { id: id.to_owned(), tenant, headers: detached(&parts.headers) };
    let request = Request::parse(endpoint, body, head)?;

    let fleet = gateway.fleet.view();
    check_model(&request, &fleet)?;
    // Only recorded if a lane serves the model: other names are the client's and may be long.
    tracker.span().record("model", request.model());
    let advisor = gateway.advisor.load_full();
    let facts = facts(&request, tracker);
    let recorder = gateway.recorder.as_ref();
    let mut trace = recording::trace(recorder, request.id());
    let merged = advisor.advise(&facts, &fleet, &mut trace);
    let decision = Plan::from_advice(&merged, &fleet, &gateway.settings.plan);
    let policies = policies(&merged);
    tracker.span().record("policy", policies.as_str());
    let recording = Recording::new(
        recorder,
        trace,
        &request,
        &facts,
        (&fleet, advisor.chain()),
        (&merged, &decision),
    );
    tracker.set_decision(&advisor, &request, &fleet, recording);
    let plan = plan(decision, &merged, &fleet)?;
    Ok(RoutingDecision {
        policies,
        advisor,
        reason: merged.why(),
        request: apply(&request, &merged.edits),
        plan,
        fleet,
    })
}

/// Executes a decision: attempts the lanes of its plan until one responds or the deadline expires.
async fn execute(
    gateway: &Gateway,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
) -> Result<EngineResponse, RouteError> {
    let Some(mut cursor) = AttemptCursor::new(decision.plan.clone(), gateway.settings.plan.max_steps)
    else {
        return Err(RouteError::NoLane {
            reason: NoLaneReason::AllDown,
            retry_in: RETRY_LOST_ENGINE,
        });
    };
    loop {
        let begun = tracker.age();
        // Saturating, because a policy may ask for an attempt after the deadline.
        let left = gateway.settings.deadline.saturating_sub(begun);
        let lane = cursor.step().lane;
        tracker.begin_attempt(lane, decision.fleet.topology.name(lane));
        let error = match attempt::attempt(gateway, decision, tracker, &cursor, left).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        tracker.fail_attempt(error.result(), error.status());
        recover::recover(gateway, decision, tracker, &mut cursor, error, begun)?;
    }
}

/// Runs [`execute`] until the host aborts what is left at the end of its drain timeout.
async fn execute_or_abort(
    gateway: &Gateway,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
) -> Result<EngineResponse, RouteError> {
    let result = gateway.abort.run_until_cancelled(execute(gateway, decision, tracker)).await;
    result.unwrap_or(Err(RouteError::Stopping))
}

/// The result of executing a decision, with the state that the response needs.
#[derive(Debug)]
pub(crate) struct ExecutionResult {
    pub(crate) result: Result<EngineResponse, RouteError>,
    pub(crate) decision: RoutingDecision,
    pub(crate) tracker: RequestTracker,
}

/// Serves one request. Every failure becomes an error response.
pub(crate) async fn serve(
    gateway: Arc<Gateway>,
    endpoint: Endpoint,
    request: axum::extract::Request,
) -> Response {
    let (mut parts, body) = request.into_parts();
    let id = request_id::ensure(&mut parts);
    let span = request_span(&id, endpoint.label());
    let metrics = Arc::clone(&gateway.metrics);
    let mut tracker = RequestTracker::new(metrics, endpoint.label(), span.clone());
    // Boxed, here and in `attempt`, so that a queued request does not carry the states of all
    // other steps with it.
    let pipeline = async {
        match Box::pin(decide(&gateway, endpoint, &id, parts, body, &mut tracker)).await {
            Ok(decision) => Box::pin(respond(gateway, decision, tracker)).await,
            Err(error) => error.into_response(&mut tracker),
        }
    };
    let mut response = pipeline.instrument(span).await;
    request_id::set(response.headers_mut(), &id);
    response
}

/// Executes a decision and returns the response. A client that streams gets keep-alive comments
/// while the wait is long; any other client gets nothing until the engine responds.
async fn respond(
    gateway: Arc<Gateway>,
    decision: RoutingDecision,
    mut tracker: RequestTracker,
) -> Response {
    let interval: Duration = gateway.settings.keep_alive;
    if interval.is_zero() || !decision.request.streaming() {
        let result = execute_or_abort(&gateway, &decision, &mut tracker).await;
        return into_response(&gateway, ExecutionResult { result, decision, tracker });
    }
    let span = tracker.span().clone();
    let shared = Arc::clone(&gateway);
    let (policies, reason) = (decision.policies.clone(), decision.reason.clone());
    let mut execution = Box::pin(async move {
        let result = execute_or_abort(&shared, &decision, &mut tracker).await;
        ExecutionResult { result, decision, tracker }
    });
    match tokio::time::timeout(interval, execution.as_mut()).await {
        Ok(done) => into_response(&gateway, done),
        Err(_) => WaitingBody::new(gateway, execution, interval).into_response(
            span,
            &policies,
            reason.as_deref(),
        ),
    }
}

fn into_response(gateway: &Gateway, done: ExecutionResult) -> Response {
    let ExecutionResult { result, decision, mut tracker } = done;
    match result {
        Ok(response) => stream::into_response(gateway, response, &decision, tracker),
        Err(error) => error.into_response(&mut tracker),
    }
}

fn policies(merged: &Merged) -> String {
    let policies: Vec<String> = merged.by.iter().map(ToString::to_string).collect();
    if policies.is_empty() { "built-in".to_owned() } else { policies.join(", ") }
}

/// Reads the whole body, which has to be JSON of at most `max` bytes.
async fn read(
    headers: &HeaderMap,
    body: axum::body::Body,
    max: usize,
) -> Result<Bytes, RouteError> {
    let given = headers.get(http::header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let essence = given.unwrap_or("").split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(RouteError::ContentType(given.map(str::to_owned)));
    }
    match Limited::new(body, max).collect().await {
        Ok(collected) => Ok(detached_body(collected.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(RouteError::BodyTooLarge { max }),
        Err(error) => Err(RouteError::IncompleteBody(error)),
    }
}

/// Copies a small body. Body and headers are slices of the connection's read buffer, and would
/// keep all of it alive while the request is queued.
fn detached_body(body: Bytes) -> Bytes {
    if body.len() <= SMALL_BODY { Bytes::copy_from_slice(&body) } else { body }
}

/// Copies the headers, for the same reason as [`detached_body`].
fn detached(headers: &HeaderMap) -> HeaderMap {
    let copy = |(name, value): (&HeaderName, &HeaderValue)| {
        let mut copy = HeaderValue::from_bytes(value.as_bytes()).ok()?;
        copy.set_sensitive(value.is_sensitive());
        Some((HeaderName::from_bytes(name.as_str().as_bytes()).ok()?, copy))
    };
    let mut detached = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter_map(copy) {
        detached.append(name, value);
    }
    detached
}

/// Checks that a lane serves the model.
fn check_model(request: &Request, fleet: &FleetView) -> Result<(), RouteError> {
    let model = request.model();
    if fleet.topology.candidates(model).is_empty() {
        let available = fleet.topology.models().into_iter().map(str::to_owned).collect();
        return Err(RouteError::UnknownModel { model: model.to_owned(), available });
    }
    Ok(())
}

/// Returns the facts for the policies. The attempts so far are those that have failed.
pub(crate) fn facts(request: &Request, tracker: &RequestTracker) -> Facts {
    // A clock before 1970 gives 0, and one beyond the year 500 million saturates.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Facts {
        request: Arc::new(request.clone()),
        now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        seed: Facts::seed(request.id()),
        age: tracker.age(),
        attempt: tracker.attempts(),
    }
}

fn plan(decision: Decision, merged: &Merged, fleet: &FleetView) -> Result<Plan, RouteError> {
    match decision {
        Decision::Route(plan) => Ok(plan),
        Decision::Reject(policy, rejection) => {
            Err(RouteError::Rejected { policy: policy.to_string(), rejection })
        }
        Decision::NoLane(reason) => {
            Err(RouteError::NoLane { reason, retry_in: retry_in(merged, fleet) })
        }
    }
}

/// Returns when the first candidate lane is expected to serve again.
fn retry_in(merged: &Merged, fleet: &FleetView) -> Duration {
    let ready =
        merged.candidates.iter().filter_map(|lane| fleet.stat(*lane)).map(|stat| stat.ready_in_ms);
    let soonest = ready.filter(|ready_in| *ready_in > 0).min();
    soonest.map_or(RETRY_LOST_ENGINE, |ready_in| Duration::from_millis(ready_in.into()))
}

/// Returns the request with these edits. Edits that cannot be applied are dropped and logged;
/// they were counted when the policy returned them.
pub(crate) fn apply(request: &Request, edits: &[pointsman_domain::Edit]) -> Request {
    if edits.is_empty() {
        return request.clone();
    }
    let (edited, dropped) = request.apply(edits);
    for (edit, reason) in dropped {
        tracing::warn!(edit = edit.kind(), reason, "edit of a policy was dropped");
    }
    edited
}
