//! What follows a failed attempt: the policies that decided are consulted, and the request's
//! [`AttemptCursor`] moves to the next step.

use std::time::Duration;

use pointsman_domain::{AttemptCursor, FailureReport, NextAction, Recovery};

use crate::Gateway;
use crate::attempt::AttemptError;
use crate::error::RouteError;
use crate::request_tracker::RequestTracker;
use crate::serve::{RoutingDecision, facts};

/// Moves the cursor to the next step after a failed attempt, which began at the age `begun`.
///
/// # Errors
/// If there is no next step; the error is the one for the client.
pub(crate) fn recover(
    gateway: &Gateway,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
    cursor: &mut AttemptCursor,
    error: AttemptError,
    begun: Duration,
) -> Result<(), RouteError> {
    let lane = decision.fleet.topology.name(cursor.step().lane);
    let recovery = consult(gateway, decision, tracker, cursor, &error, begun);
    let in_time = tracker.age() < gateway.settings.deadline;
    let next = cursor.after(error.class(), recovery, in_time);
    let next_lane =
        (next == NextAction::Attempt).then(|| decision.fleet.topology.name(cursor.step().lane));
    tracing::info!(result = error.result().label(), next_lane, error = %error, "attempt failed");
    match next {
        NextAction::Attempt => Ok(()),
        NextAction::Reject(rejection) => {
            Err(RouteError::Rejected { policy: decision.policies.clone(), rejection })
        }
        NextAction::Fail => Err(RouteError::Attempt { lane: lane.to_owned(), error }),
    }
}

/// Asks the advisor that decided about the request what to do next, if it handles failures.
fn consult(
    gateway: &Gateway,
    decision: &RoutingDecision,
    tracker: &mut RequestTracker,
    cursor: &AttemptCursor,
    error: &AttemptError,
    begun: Duration,
) -> Recovery {
    // Without a trigger no other lane may help, so there is nothing to decide.
    if !decision.advisor.has_recovery() || error.trigger().is_none() {
        return Recovery::Planned;
    }
    let age = tracker.age();
    let in_time = age < gateway.settings.deadline;
    let attempts_left = if in_time { cursor.attempts_left() } else { 0 };
    let failure = FailureReport {
        lane: cursor.step().lane,
        what: error.result(),
        status: error.status(),
        sent_bytes: 0,
        elapsed: age.saturating_sub(begun),
        attempts_left: u32::try_from(attempts_left).unwrap_or(u32::MAX),
    };
    let fleet = gateway.fleet.view();
    let facts = facts(&decision.request, tracker);
    let mut trace = tracker.trace();
    let recovery = decision.advisor.recover(&facts, &fleet, &failure, &mut trace);
    tracker.add_policy_calls(trace);
    let Recovery::Retry(step) = &recovery else { return recovery };
    let Some(reason) = cursor.objection(step, &fleet, in_time) else { return recovery };
    let requested_lane = fleet.topology.name(step.lane);
    tracing::info!(requested_lane, reason, "retry requested by a policy was ignored");
    Recovery::Planned
}
