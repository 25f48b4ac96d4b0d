//! What comes after a failed try: the policies that decided are asked, and the request turns to the next step of its
//! [`AttemptCursor`].

use std::time::Duration;

use pointsman_domain::{AttemptCursor, FailureReport, NextAction, Plan, Recovery};

use crate::Gateway;
use crate::account::Accepted;
use crate::attempt::Failed;
use crate::error::RouteError;
use crate::serve::{Decided, facts};

/// After a failed try that began at the age of `begun`: turn to what comes next.
///
/// # Errors
/// With what the client is told, if nothing does.
pub(crate) fn after(
    gateway: &Gateway,
    decided: &Decided,
    accepted: &mut Accepted,
    cursor: &mut AttemptCursor<&Plan>,
    failed: Failed,
    begun: Duration,
) -> Result<(), RouteError> {
    let lane = decided.fleet.topology.name(cursor.step().lane);
    let recovery = ask(gateway, decided, accepted, cursor, &failed, begun);
    let in_time = accepted.age() < gateway.settings.deadline;
    let next = cursor.after(failed.failing(), recovery, in_time);
    let turns_to =
        (next == NextAction::Attempt).then(|| decided.fleet.topology.name(cursor.step().lane));
    tracing::info!(request = decided.id, lane, next = turns_to, "try failed: {failed}");
    match next {
        NextAction::Attempt => Ok(()),
        NextAction::Reject(rejection) => {
            Err(RouteError::Rejected { by: decided.by.clone(), rejection })
        }
        NextAction::Fail => Err(RouteError::Failed { lane: lane.to_owned(), failed }),
    }
}

/// Ask whoever decided about the request what to do now, if it has an opinion on that.
fn ask(
    gateway: &Gateway,
    decided: &Decided,
    accepted: &mut Accepted,
    cursor: &AttemptCursor<&Plan>,
    failed: &Failed,
    begun: Duration,
) -> Recovery {
    if !decided.advisor.recovers() || failed.trigger().is_none() {
        return Recovery::Planned;
    }
    let age = accepted.age();
    let in_time = age < gateway.settings.deadline;
    let attempts_left = if in_time { cursor.attempts_left() } else { 0 };
    let failure = FailureReport {
        lane: cursor.step().lane,
        what: failed.result(),
        status: failed.status(),
        sent_bytes: 0,
        elapsed: age.saturating_sub(begun),
        attempts_left: u32::try_from(attempts_left).unwrap_or(u32::MAX),
    };
    let fleet = gateway.fleet.view();
    let facts = facts(&decided.request, accepted);
    let mut trace = accepted.trace();
    let recovery = decided.advisor.recover(&facts, &fleet, &failure, &mut trace);
    accepted.consulted(trace);
    let Recovery::Retry(wanted) = &recovery else { return recovery };
    let Some(why) = cursor.objection(wanted, &fleet, in_time) else { return recovery };
    let lane = fleet.topology.name(wanted.lane);
    tracing::info!(request = decided.id, lane, "a policy wants a try that is not made: {why}");
    Recovery::Planned
}
