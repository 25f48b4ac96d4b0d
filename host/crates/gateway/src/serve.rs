//! The way of a request. **Every step is one line of [`decide`] or [`carry_out`]**; what a step does is in the module of
//! its name.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::Response;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use pointsman_domain::{
    AttemptCursor, Decision, Endpoint, Facts, FleetView, Merged, NoLane, Plan, RequestView as _,
};
use pointsman_openai::{Head, Request};

use crate::account::Accepted;
use crate::attempt::{self, Answer};
use crate::error::{RETRY_LOST_ENGINE, RouteError};
use crate::recording::{self, Recording};
use crate::recover;
use crate::wait::WaitingBody;
use crate::{Decider, Gateway, request_id, stream};

/// What is to be done with a request, and what its answer says about that.
#[derive(Debug)]
pub(crate) struct Decided {
    /// Id of the request.
    pub(crate) id: String,
    /// The policies that decided, or `built-in`.
    pub(crate) by: String,
    /// Whoever is asked again when a try has failed, and hears how the request ended.
    pub(crate) advisor: Decider,
    /// Their reason.
    pub(crate) why: Option<String>,
    /// The request, edited.
    pub(crate) request: Request,
    /// The lanes to try.
    pub(crate) plan: Plan,
    /// The lanes as they were at that moment.
    pub(crate) fleet: Arc<FleetView>,
}

/// Decide about one request: facts, advice, plan, edits.
async fn decide(
    gateway: &Gateway,
    endpoint: Endpoint,
    parts: Parts,
    body: axum::body::Body,
    accepted: &mut Accepted,
) -> Result<Decided, RouteError> {
    let tenant = gateway.keys.tenant(&parts.headers)?;
    let body = read(&parts.headers, body, gateway.settings.max_body).await?;
    let id = request_id::of(&parts);
    let headers = detached(&parts.headers);
    let request = Request::parse(endpoint, body, Head { id, tenant, headers })?;

    let fleet = gateway.fleet.view();
    known_model(&request, &fleet)?;
    let advisor = gateway.advisor.load_full();
    let facts = facts(&request, accepted);
    let recorder = gateway.recorder.as_ref();
    let mut trace = recording::trace(recorder, request.id());
    let merged = advisor.advise(&facts, &fleet, &mut trace);
    let decision = Plan::from_advice(&merged, &fleet, &gateway.settings.plan);
    let recording = Recording::of(
        recorder,
        trace,
        &request,
        &facts,
        (&fleet, advisor.chain()),
        (&merged, &decision),
    );
    accepted.decided(&advisor, &request, &fleet, recording);
    let plan = plan(decision, &merged, &fleet)?;
    Ok(Decided {
        id: request.id().to_owned(),
        by: by(&merged),
        advisor,
        why: merged.why(),
        request: apply(&request, &merged.edits),
        plan,
        fleet,
    })
}

/// Carry out what was decided: try the lanes of the plan until one answers, within one deadline.
async fn carry_out(
    gateway: &Gateway,
    decided: &Decided,
    accepted: &mut Accepted,
) -> Result<Answer, RouteError> {
    let Some(mut cursor) = AttemptCursor::new(&decided.plan, gateway.settings.plan.max_steps)
    else {
        return Err(RouteError::NoLane { reason: NoLane::AllDown, retry_in: RETRY_LOST_ENGINE });
    };
    loop {
        let begun = accepted.age();
        let left = gateway.settings.deadline.saturating_sub(begun);
        accepted.tries(cursor.step().lane, decided.fleet.topology.name(cursor.step().lane));
        let failed = match attempt::attempt(gateway, decided, accepted, &cursor, left).await {
            Ok(answer) => return Ok(answer),
            Err(failed) => failed,
        };
        accepted.try_failed(failed.result(), failed.status());
        recover::after(gateway, decided, accepted, &mut cursor, failed, begun)?;
    }
}

/// The same, until the host has no more time for it.
async fn carry_out_or_stop(
    gateway: &Gateway,
    decided: &Decided,
    accepted: &mut Accepted,
) -> Result<Answer, RouteError> {
    let carried_out = gateway.cut.run_until_cancelled(carry_out(gateway, decided, accepted)).await;
    carried_out.unwrap_or(Err(RouteError::Stopping))
}

/// What became of a request that was carried out.
#[derive(Debug)]
pub(crate) struct CarriedOut {
    pub(crate) result: Result<Answer, RouteError>,
    pub(crate) decided: Decided,
    pub(crate) accepted: Accepted,
}

/// Answer one request, whatever happens to it.
pub(crate) async fn answer(
    gateway: Arc<Gateway>,
    endpoint: Endpoint,
    request: axum::extract::Request,
) -> Response {
    let mut accepted = Accepted::new(Arc::clone(&gateway.metrics), endpoint.label());
    let (mut parts, body) = request.into_parts();
    let id = request_id::ensure(&mut parts);
    // Boxed, here and in `attempt`: what a state of the way does not need, a request that waits does not have.
    let mut response = match Box::pin(decide(&gateway, endpoint, parts, body, &mut accepted)).await
    {
        Ok(decided) => Box::pin(answer_decided(gateway, decided, accepted)).await,
        Err(error) => {
            accepted.failed(error.result());
            error.into_response(&id)
        }
    };
    request_id::set(response.headers_mut(), &id);
    response
}

/// A client that streams gets signs of life while it waits for long; any other one gets the answer when it is there.
async fn answer_decided(
    gateway: Arc<Gateway>,
    decided: Decided,
    mut accepted: Accepted,
) -> Response {
    let interval: Duration = gateway.settings.keep_alive;
    if interval.is_zero() || !decided.request.streaming() {
        let result = carry_out_or_stop(&gateway, &decided, &mut accepted).await;
        return answered(&gateway, CarriedOut { result, decided, accepted });
    }
    let of = Arc::clone(&gateway);
    let (by, why) = (decided.by.clone(), decided.why.clone());
    let mut work = Box::pin(async move {
        let result = carry_out_or_stop(&of, &decided, &mut accepted).await;
        CarriedOut { result, decided, accepted }
    });
    match tokio::time::timeout(interval, work.as_mut()).await {
        Ok(done) => answered(&gateway, done),
        Err(_) => WaitingBody::new(gateway, work, interval).into_response(&by, why.as_deref()),
    }
}

fn answered(gateway: &Gateway, done: CarriedOut) -> Response {
    let CarriedOut { result, decided, mut accepted } = done;
    match result {
        Ok(answer) => stream::back(gateway, answer, &decided, accepted),
        Err(error) => {
            accepted.failed(error.result());
            error.into_response(&decided.id)
        }
    }
}

fn by(merged: &Merged) -> String {
    let by: Vec<String> = merged.by.iter().map(ToString::to_string).collect();
    if by.is_empty() { "built-in".to_owned() } else { by.join(", ") }
}

/// The whole body, if it is JSON and not too large.
async fn read(
    headers: &HeaderMap,
    body: axum::body::Body,
    most: usize,
) -> Result<Bytes, RouteError> {
    let given = headers.get(http::header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("?"));
    let essence = given.unwrap_or("").split(';').next().unwrap_or("").trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(RouteError::ContentType(given.map(str::to_owned)));
    }
    match Limited::new(body, most).collect().await {
        Ok(collected) => Ok(detached_body(collected.to_bytes())),
        Err(error) if error.is::<LengthLimitError>() => Err(RouteError::BodyTooLarge { most }),
        Err(error) => Err(RouteError::BodyBroken(error.to_string())),
    }
}

/// Bodies up to this size are copied out of the connection's buffer.
const SMALL_BODY: usize = 16 << 10;

/// Body and headers are slices of the connection's read buffer, and would keep all of it while a request waits.
fn detached_body(body: Bytes) -> Bytes {
    if body.len() <= SMALL_BODY { Bytes::copy_from_slice(&body) } else { body }
}

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

fn known_model(request: &Request, fleet: &FleetView) -> Result<(), RouteError> {
    let model = request.model();
    if fleet.topology.candidates(model).is_empty() {
        let available = fleet.topology.models().into_iter().map(str::to_owned).collect();
        return Err(RouteError::UnknownModel { model: model.to_owned(), available });
    }
    Ok(())
}

/// What the policies get to know now: the tries so far are the ones that failed.
pub(crate) fn facts(request: &Request, accepted: &Accepted) -> Facts {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Facts {
        request: Arc::new(request.clone()),
        now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        seed: Facts::seed(request.id()),
        age: accepted.age(),
        attempt: accepted.tried(),
    }
}

fn plan(decision: Decision, merged: &Merged, fleet: &FleetView) -> Result<Plan, RouteError> {
    match decision {
        Decision::Route(plan) => Ok(plan),
        Decision::Reject(policy, rejection) => {
            Err(RouteError::Rejected { by: policy.to_string(), rejection })
        }
        Decision::NoLane(reason) => {
            Err(RouteError::NoLane { reason, retry_in: retry_in(merged, fleet) })
        }
    }
}

/// When the first lane that would do is expected to serve again.
fn retry_in(merged: &Merged, fleet: &FleetView) -> Duration {
    let ready =
        merged.candidates.iter().filter_map(|lane| fleet.stat(*lane)).map(|stat| stat.ready_in_ms);
    let soonest = ready.filter(|ready_in| *ready_in > 0).min();
    soonest.map_or(RETRY_LOST_ENGINE, |ready_in| Duration::from_millis(ready_in.into()))
}

/// The request with these edits. Refused ones were counted when the policy gave them; here they are only told.
pub(crate) fn apply(request: &Request, edits: &[pointsman_domain::Edit]) -> Request {
    if edits.is_empty() {
        return request.clone();
    }
    let (edited, refused) = request.apply(edits);
    for (edit, reason) in refused {
        tracing::warn!(request = request.id(), edit = edit.kind(), reason, "an edit was dropped");
    }
    edited
}
