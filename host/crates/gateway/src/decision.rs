//! From the bytes of a request to the routing decision: identity, facts, advice, plan, edits.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header;
use http::request::Parts;
use pointsman_access::{Identity, Rights};
use pointsman_domain::request_flow::{Action, End, ErrorAnswer, Event};
use pointsman_domain::{
    Advised, Decision, DroppedEdit, Edit, Endpoint, Facts, FleetView, LaneId, Merged, NoLaneReason,
    Plan, RequestView as _, Serving, SlotRequest,
};
use pointsman_fleet::{Fleet, LaneStatus};
use pointsman_openai::{Head, Hold, LoadRequest, ModelNames, Request};
use tracing::Span;

use crate::attribution::{Attribution, joined};
use crate::error::{DownLane, RouteError};
use crate::failure::RETRY_LOST_ENGINE;
use crate::forwarded::Forwarded;
use crate::large_thread;
use crate::models::{endpoint_not_supported, unknown_model};
use crate::pipeline::Pipeline;
use crate::policy_threads::LARGE_BODY;
use crate::recording::{self, Recording};
use crate::request_tracker::{Observed, RequestTracker};
use crate::responses::TurnSlot;
use crate::settings::{AdvisorHandle, ListenerSettings};
use crate::upload::{Received, Reservation};
use crate::{guard, headers, paths, proxying, responses, rights, upload};

/// Large bodies that are parsed at a time. Bounds threads and memory; parsing is CPU work.
pub(crate) const MAX_PARSERS: usize = 2;

/// The body of a request that arrives.
pub(crate) enum Incoming {
    /// It has not been received.
    Body(axum::body::Body),
    /// It was received before, and decoded.
    Received(Received, Arc<Reservation>),
    /// The request is refused for a reason that is known before its body.
    Failed(RouteError),
}

/// The routing decision about a request, with everything that its execution needs. The plan itself
/// is in the flow of the request.
#[derive(Debug)]
pub(crate) struct RoutingDecision {
    /// The policies that took part in the decision.
    pub(crate) attribution: Arc<Attribution>,
    /// The lanes that the filters of all policies left.
    pub(crate) lanes_left: Arc<[LaneId]>,
    /// Is consulted again after a failed attempt, and receives the outcome.
    pub(crate) advisor: AdvisorHandle,
    /// The request with the policies' edits.
    pub(crate) request: Request,
    /// The slot that the first attempt needs.
    pub(crate) slot_request: SlotRequest,
    /// The turn of a conversation that the host keeps.
    pub(crate) turn: Option<TurnSlot>,
}

/// A valid request.
pub(crate) enum Accepted {
    /// A request that is sent to an engine, with the snapshot of the fleet that the decision is
    /// based on.
    Request(Request, Arc<FleetView>),
    /// A request to load or unload a model, which the host answers itself.
    Load(LoadRequest),
}

/// Decides about one request that was accepted or refused. **Every step is one line**; the tracker
/// learns the result.
pub(crate) async fn decide(
    pipeline: &Pipeline,
    accepted: Result<(Request, Arc<FleetView>), RouteError>,
    turn: Option<TurnSlot>,
    tracker: &mut RequestTracker,
) -> Result<RoutingDecision, RouteError> {
    let admitted = accepted.and_then(|(request, fleet)| {
        let allowance = tracker.admit(&pipeline.meter, Some(&request))?;
        Ok((request.with_allowance(allowance), fleet))
    });
    let admitted = admitted.map_err(|error| tracker.refuse(&pipeline.meter, error));
    let (request, fleet) = admitted?;
    let share = tracker.forwarded().limit_share(tracker.metering.queue_share());
    let share = tracker.guard.limit_share(share);
    tracker.on(Event::Accepted { tenant: request.tenant(), share });
    let advisor = pipeline.advisor.load_full();
    let facts = facts(&request, tracker);
    let recorder = pipeline.recorder.as_ref();
    let trace = recording::trace(recorder, &pipeline.decisions, &facts);
    let begun = tracker.age();
    let advised = pipeline.policy_threads.advise(&advisor, &facts, &fleet, trace).await;
    if advisor.chain().is_some() {
        tracker.note_policy_call("advise", begun);
    }
    let (Advised { merged, edited, watch }, trace) = advised;
    let merged = Arc::new(merged);
    let edited = edited.and_then(Request::from_view);
    let edited = edited.unwrap_or_else(|| apply(&request, &merged.edits));
    let edited = guard::enforced(edited);
    let decision = match &edited {
        Ok(_) => Plan::from_advice(&merged, &fleet, &pipeline.settings.plan),
        Err(_) => Decision::NoLane(NoLaneReason::Guarded),
    };
    let attribution = Arc::new(Attribution::new(&merged, &decision));
    tracker.span().record("policy", attribution.policies.as_str());
    tracker.set_attribution(&attribution);
    let recording = Recording::new(
        recorder,
        trace,
        &request,
        &facts,
        (&fleet, advisor.chain()),
        (&merged, &decision),
    );
    let observed = Observed { notes: advisor.kept_notes(&merged), recording, watch };
    tracker.set_decision(&advisor, &request, &fleet.topology, observed);
    let decided = Event::Decided { decision, has_recovery: advisor.has_recovery() };
    let action = tracker.on(decided);
    let edited = edited?;
    let slot_request = slot_request(action, &merged, &fleet, &pipeline.fleet);
    let slot_request = slot_request.map_err(|error| match error {
        RouteError::NoLane { .. }
            if tracker.forwarded().keeps_back(&fleet.topology, edited.model()) =>
        {
            RouteError::LoopDetected
        }
        error => error,
    })?;
    let lanes_left = merged.lanes.iter().map(|(lane, _)| *lane).collect();
    Ok(RoutingDecision { attribution, lanes_left, advisor, request: edited, slot_request, turn })
}

/// Returns a valid request for a model that a lane serves.
pub(crate) async fn accept(
    pipeline: &Pipeline,
    endpoint: Endpoint,
    id: &str,
    parts: Parts,
    body: Incoming,
    tracker: &mut RequestTracker,
) -> Result<Accepted, RouteError> {
    let identity = rights::identify(&pipeline.keys, &parts.headers, &parts.extensions)?;
    tracker.set_forwarded(Forwarded::read(&identity, &parts.headers, pipeline.fleet.host_id()));
    let identity = tracker.forwarded().identity(identity);
    accept_from(pipeline, endpoint, (id, &identity), parts, body, tracker).await
}

/// Does the same as [`accept`] for a request of which it is known who has sent it.
pub(crate) async fn accept_from(
    pipeline: &Pipeline,
    endpoint: Endpoint,
    (id, identity): (&str, &Arc<Identity>),
    parts: Parts,
    body: Incoming,
    tracker: &mut RequestTracker,
) -> Result<Accepted, RouteError> {
    tracker.identify(identity);
    let tenant = identity.tenant.clone();
    tracker.span().record("tenant", tenant.as_deref());
    rights::check_endpoint(&identity.rights, endpoint)?;
    let (received, reservation) = match body {
        Incoming::Body(body) => {
            let (uploads, headers) = (&pipeline.uploads, &parts.headers);
            let kind = upload::body_kind(endpoint, headers);
            upload::receive(uploads, kind, headers, body, tenant.as_deref()).await?
        }
        Incoming::Received(received, reservation) => (received, reservation),
        Incoming::Failed(error) => return Err(error),
    };
    let (mut body, form) = match received {
        Received::Json(body) => (body, None),
        Received::Form(form) => (form.json(), Some(Arc::new(form))),
    };
    let turn = parts.extensions.get::<TurnSlot>();
    // The memory of earlier turns.
    let mut earlier = Reservation::new(&pipeline.uploads.memory, tenant.as_deref());
    if let Some(turn) = turn {
        let client = (&**identity, tracker.forwarded());
        body = Box::pin(turn.begin(pipeline, body, client, &mut earlier)).await?;
    }
    let mut headers = headers::detached(&parts.headers);
    if headers.remove(header::CONTENT_ENCODING).is_some() {
        // The body has been decoded.
        headers.remove(header::CONTENT_LENGTH);
    }
    let head = Head {
        id: id.to_owned(),
        draw: tracker.draw(id),
        tenant,
        key: identity.key,
        key_name: Some(identity.name.clone()).filter(|name| !name.is_empty()),
        key_group: identity.group.clone(),
        arrived: Some(Instant::now()),
        headers,
        response_id: turn.and_then(TurnSlot::turn).map(|turn| turn.id.clone()),
        query: paths::query_for_engine(&parts.uri),
        hold: Some(Hold::new(Arc::new((reservation, earlier)))),
        form,
        hashed_model: tracker.forwarded().model.clone(),
        ..Head::default()
    };
    let listener = parts.extensions.get::<Arc<ListenerSettings>>().cloned().unwrap_or_default();
    let (request, load) = parse(pipeline, endpoint, body, head, Arc::clone(&listener)).await?;
    tracker.in_flight().set_model(request.model());
    let constraint = pipeline.settings.guards.for_request(&request);
    tracker.guard.set(constraint.clone());
    let request = request.with_constraint(constraint);
    let fleet = rights::restricted(fleet_view(&pipeline.fleet, &request), &identity.rights);
    let fleet = tracker.forwarded().restricted(guard::restricted(fleet, &request));
    let fleet = proxying::restricted(fleet, &parts.extensions, &request)?;
    let fleet = responses::bound(fleet, turn, (endpoint, request.model()))?;
    check_model(&request, &fleet, &listener, (&identity.rights, tracker.forwarded()))?;
    check_translation(&request, &fleet)?;
    if let Some(turn) = turn {
        turn.accepted(&pipeline.responses)?;
    }
    // Only recorded if a lane serves the model, and as the lane spells it: other names are the
    // client's and may be long.
    tracker.span().record("model", fleet.topology.resolved(request.model()));
    Ok(load.map_or(Accepted::Request(request, fleet), Accepted::Load))
}

/// Parses a request, and hashes its prompt if it is large.
async fn parse(
    pipeline: &Pipeline,
    endpoint: Endpoint,
    body: Bytes,
    head: Head,
    listener: Arc<ListenerSettings>,
) -> Result<(Request, Option<LoadRequest>), RouteError> {
    let fleet = pipeline.fleet.view();
    let read = move |body, head| -> Result<_, RouteError> {
        // Clients of one engine name no model, and a host with one lane is not different to them.
        let only = match fleet.topology.lanes() {
            [lane] => Some(lane.name.as_str()),
            _ => None,
        };
        let default = listener.default_model.as_deref().or(only);
        let names = ModelNames { default, targets: &listener.models };
        let request = Request::parse_with_names(endpoint, body, head, names)?;
        let load = LoadRequest::from_request(&request);
        Ok((request.without_operator_fields()?, load))
    };
    if body.len() <= LARGE_BODY {
        return read(body, head);
    }
    let permit = pipeline.parsers.acquire(head.tenant.as_deref()).await;
    let hasher = pipeline.fleet.prefix_index().hasher().clone();
    let span = Span::current();
    let parse = move || {
        let parsed = span.in_scope(|| {
            let (request, load) = read(body, head)?;
            // The fleet view needs them.
            request.prompt_hashes(&hasher);
            Ok((request, load))
        });
        drop(permit);
        parsed
    };
    large_thread::run(parse).await
}

/// Returns the fleet view for a request, with the estimates of its cached tokens.
pub(crate) fn fleet_view(fleet: &Fleet, request: &Request) -> Arc<FleetView> {
    let index = fleet.prefix_index();
    let prompt = request.prompt_hashes(index.hasher());
    index.annotate(&fleet.view(), request.model(), prompt, request.info().prompt_tokens)
}

/// Returns the slot that the first attempt needs.
fn slot_request(
    action: Action,
    merged: &Merged,
    view: &FleetView,
    fleet: &Fleet,
) -> Result<SlotRequest, RouteError> {
    let no_lane = |reason, retry_in| {
        let filtering = match reason {
            NoLaneReason::FilteredOut => joined(merged.filtering()),
            NoLaneReason::UnknownModel | NoLaneReason::AllDown | NoLaneReason::Guarded => {
                String::new()
            }
        };
        let lanes = down_lanes(merged, view, fleet);
        RouteError::NoLane { reason, filtering, lanes, retry_in }
    };
    match action {
        Action::Acquire(slot_request) => Ok(slot_request),
        Action::End(End { answer: Some(ErrorAnswer::Rejected { policy, rejection }), .. }) => {
            let policy = policy.map(|policy| policy.to_string()).unwrap_or_default();
            Err(RouteError::Rejected { policy, rejection })
        }
        Action::End(End { answer: Some(ErrorAnswer::NoLane(reason)), .. }) => {
            Err(no_lane(reason, retry_in(merged, view)))
        }
        // Never: a decision leads to an attempt or to one of these ends.
        Action::Wait
        | Action::Advise
        | Action::Send { .. }
        | Action::Recover(_)
        | Action::Respond
        | Action::End(_) => Err(no_lane(NoLaneReason::AllDown, RETRY_LOST_ENGINE)),
    }
}

/// Returns the lanes that could serve the request if they were not down.
fn down_lanes(merged: &Merged, view: &FleetView, fleet: &Fleet) -> Vec<DownLane> {
    let statuses = fleet.status();
    let down = merged.lanes.iter().filter_map(|(lane, _)| view.stat(*lane));
    down.filter(|stat| !stat.state.can_serve())
        .map(|stat| DownLane {
            name: view.topology.name(stat.id).to_owned(),
            problem: LaneStatus::find(&statuses, stat.id).and_then(|status| status.problem.clone()),
            retry_in: Duration::from_millis(stat.ready_in_ms.into()),
        })
        .collect()
}

/// Checks that a request which all lanes would have to translate can be translated: no lane is
/// loaded for one that cannot. Large requests are checked later, on a thread of their own.
fn check_translation(request: &Request, fleet: &FleetView) -> Result<(), RouteError> {
    let (topology, endpoint) = (&fleet.topology, request.endpoint());
    let is_translated = |lane| topology.serving(lane, endpoint) == Serving::Translated;
    let mut lanes = topology.candidates_for(request.model(), endpoint);
    if request.body().len() <= LARGE_BODY && lanes.all(is_translated) {
        request.translated()?;
    }
    Ok(())
}

/// Checks that a lane serves the model, and that one of these can serve the endpoint: no lane is
/// loaded for a request that its engine cannot serve.
fn check_model(
    request: &Request,
    fleet: &FleetView,
    listener: &ListenerSettings,
    (rights, forwarded): (&Rights, &Forwarded),
) -> Result<(), RouteError> {
    let (model, topology) = (request.model(), &fleet.topology);
    if topology.candidates(model).is_empty() {
        return Err(unknown_model(topology, listener, rights, model));
    }
    let written = request.response_model();
    if !rights::allows_model(rights, topology, listener, written, model) {
        return Err(RouteError::ModelNotAllowed { model: written.to_owned() });
    }
    // The host can count tokens itself, for engines that serve the messages.
    let endpoint = match request.endpoint() {
        Endpoint::CountTokens => Endpoint::Messages,
        endpoint => endpoint,
    };
    if topology.candidates_for(model, endpoint).next().is_none() {
        if let Some(refused) = guard::no_lane(topology, request, endpoint) {
            return Err(refused.into());
        }
        if forwarded.keeps_back(topology, model) {
            return Err(RouteError::LoopDetected);
        }
        let refused = rights::lane_not_allowed(topology, model, endpoint);
        let unsupported = || endpoint_not_supported(topology, listener, rights, model, endpoint);
        return Err(refused.unwrap_or_else(unsupported));
    }
    Ok(())
}

/// Returns the facts for the policies. The attempts so far are those that have failed.
pub(crate) fn facts(request: &Request, tracker: &RequestTracker) -> Facts {
    // A clock before 1970 gives 0, and one beyond the year 500 million saturates.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = tracker.age();
    Facts {
        request: Arc::new(request.clone()),
        now_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        seed: tracker.seed(request.id()),
        age,
        attempt: tracker.flow().attempt_count(),
        time_left: Some(tracker.flow().time_left(age)),
        lanes_left: None,
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
pub(crate) fn apply(request: &Request, edits: &[Edit]) -> Request {
    if edits.is_empty() {
        return request.clone();
    }
    let (edited, dropped) = request.apply(edits);
    for DroppedEdit { index, reason } in dropped {
        tracing::warn!(edit = edits[index].kind(), reason, "edit of a policy was dropped");
    }
    edited
}
