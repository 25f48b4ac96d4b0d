//! What comes after a failed try: the next planned step, or what the policies want instead.
//!
//! ```text
//!   planned   a ──failed──> b ──failed──> c
//!   with a policy that is asked after a failure and says "try x":
//!             a ──failed──> x ──failed──> b ──failed──> c
//! ```
//!
//! A failed try has sent nothing to the client, so nothing is ever tried again above 0 bytes.

use std::slice;
use std::time::Duration;

use pointsman_domain::{Failure, FallbackStep, Plan, Recovery, Step};

use crate::Gateway;
use crate::account::Accepted;
use crate::attempt::Failed;
use crate::error::RouteError;
use crate::serve::{Decided, facts};

/// Where a request is on its way through the lanes.
#[derive(Debug)]
pub(crate) struct Way<'a> {
    at: At<'a>,
    /// Planned steps that have not begun.
    ahead: slice::Iter<'a, Step>,
    /// Steps that may still begin. Asking the same lane once more is part of its step.
    tries_left: usize,
    asked_again: bool,
}

#[derive(Debug)]
enum At<'a> {
    Planned(&'a Step),
    /// Boxed, because it is rare and requests that wait are many.
    Wanted(Box<Step>),
}

impl<'a> Way<'a> {
    /// At the first step of a plan, of at most `most` tries; `None` if it has no step.
    pub(crate) fn new(plan: &'a Plan, most: usize) -> Option<Self> {
        let mut ahead = plan.steps.iter();
        let at = At::Planned(ahead.next()?);
        Some(Self { at, ahead, tries_left: most.saturating_sub(1), asked_again: false })
    }

    /// The step that is being tried.
    pub(crate) fn step(&self) -> &Step {
        match &self.at {
            At::Planned(step) => step,
            At::Wanted(step) => step,
        }
    }

    /// Does the plan have somewhere else to go?
    pub(crate) fn has_next(&self) -> bool {
        self.tries_left > 0 && !self.ahead.as_slice().is_empty()
    }

    /// Go on as planned, if that is what this failure is for.
    fn move_on(&mut self, plan: &Plan, failed: &Failed) -> bool {
        let wanted = self.has_next() && failed.trigger().is_some_and(|trigger| plan.moves_on(trigger));
        let next = if wanted { self.ahead.next() } else { None };
        next.map(|step| self.turn_to(At::Planned(step))).is_some()
    }

    /// Ask the same lane once more, if it has not heard of the request.
    fn ask_again(&mut self, failed: &Failed) -> bool {
        failed.never_arrived() && !std::mem::replace(&mut self.asked_again, true)
    }

    fn turn_to(&mut self, at: At<'a>) {
        self.at = at;
        self.tries_left = self.tries_left.saturating_sub(1);
    }
}

/// After a failed try that began at the age of `begun`: turn to what comes next.
///
/// # Errors
/// With what the client is told, if nothing does.
pub(crate) fn after(
    gateway: &Gateway,
    decided: &Decided,
    accepted: &mut Accepted,
    way: &mut Way<'_>,
    failed: Failed,
    begun: Duration,
) -> Result<(), RouteError> {
    let lane = decided.fleet.topology.name(way.step().lane);
    match ask(gateway, decided, accepted, way, &failed, begun) {
        Recovery::GiveUp(rejection) => {
            tracing::info!(request = decided.id, lane, "try failed, and a policy gives up: {failed}");
            Err(RouteError::Rejected { by: decided.by.clone(), rejection })
        }
        Recovery::Retry(FallbackStep { lane: next, edits }) => {
            let next_lane = decided.fleet.topology.name(next);
            tracing::info!(
                request = decided.id,
                lane,
                next = next_lane,
                "try failed, and a policy wants another one: {failed}"
            );
            way.turn_to(At::Wanted(Box::new(Step { lane: next, edits })));
            Ok(())
        }
        Recovery::Planned => {
            let in_time = accepted.age() < gateway.settings.deadline;
            let moves_on = in_time && way.move_on(&decided.plan, &failed);
            tracing::info!(request = decided.id, lane, moves_on, "try failed: {failed}");
            if moves_on || (in_time && way.ask_again(&failed)) {
                Ok(())
            } else {
                Err(RouteError::Failed { lane: lane.to_owned(), failed })
            }
        }
    }
}

/// Ask whoever decided about the request what to do now, if it has an opinion on that.
fn ask(
    gateway: &Gateway,
    decided: &Decided,
    accepted: &mut Accepted,
    way: &Way<'_>,
    failed: &Failed,
    begun: Duration,
) -> Recovery {
    if !decided.advisor.recovers() || failed.trigger().is_none() {
        return Recovery::Planned;
    }
    let age = accepted.age();
    let tries_left = if age < gateway.settings.deadline { way.tries_left } else { 0 };
    let failure = Failure {
        lane: way.step().lane,
        what: failed.result(),
        status: failed.status(),
        sent_bytes: 0,
        elapsed: age.saturating_sub(begun),
        tries_left: u32::try_from(tries_left).unwrap_or(u32::MAX),
    };
    let fleet = gateway.fleet.view();
    let facts = facts(&decided.request, accepted);
    let mut trace = accepted.trace();
    let recovery = decided.advisor.recover(&facts, &fleet, &failure, &mut trace);
    accepted.consulted(trace);
    let Recovery::Retry(wanted) = &recovery else { return recovery };
    let able = fleet.stat(wanted.lane).is_some_and(|stat| stat.state.able_to_serve());
    if able && tries_left > 0 {
        return recovery;
    }
    let why = if able { "no try is left" } else { "it cannot serve" };
    let lane = fleet.topology.name(wanted.lane);
    tracing::info!(request = decided.id, lane, "a policy wants a try that is not made: {why}");
    Recovery::Planned
}
