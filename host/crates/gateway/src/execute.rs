//! Executes a decision: feeds what happens to a request to its flow, and carries out the effects,
//! until an engine responds or the request fails.

use std::pin::pin;
use std::sync::Arc;

use pointsman_domain::request_flow::{Action, Declined, End, EngineFailure, ErrorAnswer, Event};
use pointsman_domain::{Facts, FailureReport, PolicyRef, Recovery, Rejection, SlotRequest};

use crate::attempt::{self, EngineResponse};
use crate::decision::{RoutingDecision, facts, fleet_view};
use crate::error::RouteError;
use crate::failure::AttemptError;
use crate::pipeline::Pipeline;
use crate::request_tracker::RequestTracker;
use crate::responses::TurnSlot;
use crate::{guard, rights};

/// The result of executing a decision, with the state that the response needs.
#[derive(Debug)]
pub(crate) struct ExecutionResult {
    pub(crate) result: Result<EngineResponse, RouteError>,
    pub(crate) decision: RoutingDecision,
    pub(crate) tracker: Box<RequestTracker>,
}

/// Executes a decision until the operator cancels the request, or the host aborts what is left at
/// the end of its drain timeout.
pub(crate) async fn execute_or_abort(
    pipeline: &Pipeline,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
) -> Result<EngineResponse, RouteError> {
    let abort = tracker.in_flight().abort().clone();
    // Pinned here, because a future that is moved is copied as a whole, and this one has kilobytes.
    let result = {
        let execution = pin!(execute(pipeline, decision, tracker));
        abort.run_until_cancelled(execution).await
    };
    match result {
        Some(result) => result,
        None => {
            tracker.on(Event::Stopping);
            Err(tracker.aborted())
        }
    }
}

/// Attempts the lanes of the plan until one responds. What follows a failed attempt is boxed: few
/// requests need it, and each that waits would have space for it.
async fn execute(
    pipeline: &Pipeline,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
) -> Result<EngineResponse, RouteError> {
    let mut slot_request = decision.slot_request;
    let mut earlier = None;
    loop {
        let (fleet, names) = (&pipeline.fleet, pipeline.settings.response_model);
        let request = &decision.request;
        match attempt::attempt(fleet, request, tracker, slot_request, names).await {
            Ok((response, None)) => {
                pipeline.metrics.attempted(&response.lane, "ok");
                return Ok(responding(decision, response));
            }
            Ok((response, Some(reason))) => {
                let declined = decline(pipeline, decision, tracker, &response, reason);
                match Box::pin(declined).await? {
                    Some(next) => slot_request = next,
                    None => return Ok(responding(decision, response)),
                }
            }
            Err(error) => {
                let recovered = recover(pipeline, decision, tracker, error, &mut earlier);
                slot_request = Box::pin(recovered).await?;
            }
        }
    }
}

/// Notes which lane responds: the next turn of the conversation goes to it too.
fn responding(decision: &RoutingDecision, response: EngineResponse) -> EngineResponse {
    if let Some(turn) = &decision.turn {
        turn.set_lane(&response.lane);
    }
    response
}

/// Returns the slot that the attempt after a failed one needs. `earlier` is the error of the last
/// attempt that was made: those that a proxy cannot make do not hide it.
///
/// # Errors
/// If there is no further attempt; the error is the one for the client.
async fn recover(
    pipeline: &Pipeline,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
    error: AttemptError,
    earlier: &mut Option<RouteError>,
) -> Result<SlotRequest, RouteError> {
    let lane = tracker.lane_name().to_owned();
    pipeline.metrics.attempted(&lane, error.label());
    let event = error.event(|status| tracker.fallback_trigger(status));
    let action = tracker.on(event);
    let action = next_action(pipeline, decision, tracker, action).await;
    let next_lane = matches!(action, Action::Acquire(_)).then(|| tracker.lane_name());
    let is_unmade = matches!(error, AttemptError::NotProxied);
    tracing::info!(result = error.result().label(), next_lane, error = %error, "attempt failed");
    match action {
        Action::Acquire(slot_request) => {
            if !is_unmade {
                *earlier = Some(RouteError::Attempt { lane, error });
            }
            Ok(slot_request)
        }
        Action::End(End { answer: Some(ErrorAnswer::Rejected { policy, rejection }), .. }) => {
            Err(rejected(decision, policy, rejection))
        }
        Action::End(_)
        | Action::Wait
        | Action::Advise
        | Action::Send { .. }
        | Action::Recover(_)
        | Action::Respond => {
            let earlier = earlier.take().filter(|_| is_unmade);
            Err(earlier.unwrap_or(RouteError::Attempt { lane, error }))
        }
    }
}

/// Returns the slot that the attempt on another lane needs, after an engine declined the request;
/// `None` if no attempt follows, so that the engine's response is the client's.
///
/// # Errors
/// If a policy rejects the request.
async fn decline(
    pipeline: &Pipeline,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
    response: &EngineResponse,
    reason: Declined,
) -> Result<Option<SlotRequest>, RouteError> {
    let status = response.status.as_u16();
    let action = tracker.on(Event::Failed(EngineFailure::Declined { status, reason }));
    match next_action(pipeline, decision, tracker, action).await {
        Action::Acquire(slot_request) => {
            pipeline.metrics.attempted(&response.lane, "declined");
            let next_lane = tracker.lane_name();
            tracing::info!(status, next_lane, ?reason, "engine declined the request");
            Ok(Some(slot_request))
        }
        Action::End(End { answer: Some(ErrorAnswer::Rejected { policy, rejection }), .. }) => {
            pipeline.metrics.attempted(&response.lane, "declined");
            Err(rejected(decision, policy, rejection))
        }
        Action::Respond
        | Action::End(_)
        | Action::Wait
        | Action::Advise
        | Action::Send { .. }
        | Action::Recover(_) => {
            pipeline.metrics.attempted(&response.lane, "ok");
            tracker.first_byte(response.status, &decision.request);
            Ok(None)
        }
    }
}

/// Returns the error for a request that is rejected after a failed attempt. It names the policy
/// that decided so, and all policies only if the advisor names none.
fn rejected(
    decision: &RoutingDecision,
    policy: Option<PolicyRef>,
    rejection: Rejection,
) -> RouteError {
    let policy = match policy {
        Some(policy) => policy.to_string(),
        None => decision.attribution.policies.clone(),
    };
    RouteError::Rejected { policy, rejection }
}

/// Returns the action that follows a failed attempt, after the policies were asked if they have to
/// be.
async fn next_action(
    pipeline: &Pipeline,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
    action: Action,
) -> Action {
    match action {
        Action::Recover(report) => consult(pipeline, decision, tracker, report).await,
        action => action,
    }
}

/// Asks the advisor that decided about the request what follows a failed attempt.
async fn consult(
    pipeline: &Pipeline,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
    report: FailureReport,
) -> Action {
    let fleet = fleet_view(&pipeline.fleet, &decision.request);
    let fleet = rights::restricted(fleet, &tracker.metering.identity().rights);
    let fleet = guard::restricted(fleet, &decision.request);
    let mut fleet = tracker.forwarded().restricted(fleet);
    if let Some(proxy) = &tracker.proxy {
        fleet = proxy.restricted(fleet);
    }
    if let Some(turn) = decision.turn.as_ref().and_then(TurnSlot::remote) {
        fleet = turn.restricted(&fleet);
    }
    let lanes_left = Some(Arc::clone(&decision.lanes_left));
    let facts = Facts { lanes_left, ..facts(&decision.request, tracker) };
    let trace = tracker.trace();
    let (threads, begun) = (&pipeline.policy_threads, tracker.age());
    let (recovered, trace) =
        threads.recover(&decision.advisor, &facts, &fleet, report, trace).await;
    tracker.note_policy_call("on-failure", begun);
    tracker.add_policy_calls(trace);
    let requested_lane = match &recovered.recovery {
        Recovery::Retry(step) => fleet.topology.name(step.lane),
        Recovery::Planned | Recovery::GiveUp(_) => "",
    };
    let endpoint = decision.request.endpoint();
    let effects = tracker.handle(Event::Recovered { recovered, fleet: &fleet, endpoint });
    if let Some(reason) = effects.ignored_retry {
        tracing::info!(requested_lane, reason, "retry requested by a policy was ignored");
    }
    effects.action
}
