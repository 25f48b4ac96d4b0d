//! The way of a request through the lanes of its plan: what it wants of the lane that is being tried, and what comes after a
//! failed try.
//!
//! ```text
//!   planned   a ──failed──> b ──failed──> c
//!   with a policy that is asked after a failure and says "try x":
//!             a ──failed──> x ──failed──> b ──failed──> c
//! ```
//!
//! A failed try has sent nothing to the client, so nothing is ever tried again above 0 bytes.

use std::borrow::Borrow;
use std::time::Duration;

use crate::advice::{FallbackStep, Rejection, Switching, Trigger};
use crate::dispatch::{AcquireError, Enqueue, FlowId, Ticket};
use crate::fleet_view::{FleetView, LaneId};
use crate::outcome::Recovery;
use crate::plan::{Plan, Step};

/// A request's wish for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRequest<'a> {
    /// Of this lane.
    pub lane: LaneId,
    /// Higher goes first.
    pub priority: i32,
    /// Whose turn it is among equals.
    pub flow: &'a str,
    /// Longest wait.
    pub max_wait: Duration,
    /// May lanes be loaded or exchanged for it.
    pub switching: Switching,
    /// It has somewhere else to go.
    pub has_fallback: bool,
}

impl SlotRequest<'_> {
    /// What the dispatcher is told at this time.
    pub fn arrival(&self, ticket: Ticket, now: Duration) -> Enqueue {
        Enqueue {
            ticket,
            lane: self.lane,
            priority: self.priority,
            flow: FlowId::of(self.flow),
            deadline: now.saturating_add(self.max_wait),
            switching: self.switching,
            has_fallback: self.has_fallback,
        }
    }
}

/// Why a try failed, as far as it matters for what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureClass {
    /// The event that it is for the plan; `None` where no other lane may help.
    pub trigger: Option<Trigger>,
    /// The request never reached an engine, because that was gone already: the lane can be asked once more, and waits for its
    /// engine to come back.
    pub safe_to_resend: bool,
}

impl From<&AcquireError> for FailureClass {
    fn from(refusal: &AcquireError) -> Self {
        let trigger = match refusal {
            AcquireError::TimedOut { .. } | AcquireError::TooLate { .. } => {
                Some(Trigger::QueueTimeout)
            }
            AcquireError::QueueFull { .. } => Some(Trigger::Overloaded),
            AcquireError::NotServing { .. }
            | AcquireError::NotLoaded
            | AcquireError::LoadFailed { .. }
            | AcquireError::Faulty { .. }
            | AcquireError::UnknownLane => Some(Trigger::EngineRestart),
            AcquireError::Closing => None,
        };
        Self {
            trigger,
            safe_to_resend: matches!(refusal, AcquireError::NotServing { reason: None, .. }),
        }
    }
}

/// What comes after a failed try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextAction {
    /// The step that the way has turned to.
    Attempt,
    /// The client gets this answer.
    Reject(Rejection),
    /// The client gets the failure.
    Fail,
}

/// Where a request is on its way through the lanes of a plan.
#[derive(Debug)]
pub struct AttemptCursor<P> {
    plan: P,
    /// How many planned steps have begun; at least one.
    begun: usize,
    /// A step that a policy wanted instead. Boxed, because it is rare and requests that wait are many.
    wanted: Option<Box<Step>>,
    /// Steps that may still begin. Asking the same lane once more is part of its step.
    attempts_left: usize,
    asked_again: bool,
}

impl<P: Borrow<Plan>> AttemptCursor<P> {
    /// At the first step of a plan, of at most `most` tries; `None` if it has no step.
    pub fn new(plan: P, most: usize) -> Option<Self> {
        let has_step = !plan.borrow().steps.is_empty();
        let attempts_left = most.saturating_sub(1);
        has_step.then(|| Self { plan, begun: 1, wanted: None, attempts_left, asked_again: false })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.plan.borrow()
    }

    /// The step that is being tried.
    pub fn step(&self) -> &Step {
        self.wanted.as_deref().unwrap_or_else(|| &self.plan().steps[self.begun - 1])
    }

    /// Steps that may still begin.
    pub fn attempts_left(&self) -> usize {
        self.attempts_left
    }

    /// Does the plan have somewhere else to go?
    pub fn has_next(&self) -> bool {
        self.attempts_left > 0 && self.begun < self.plan().steps.len()
    }

    /// What the request wants of the lane that is being tried, with so much time left for all of it.
    pub fn slot_request<'a>(&'a self, tenant: Option<&'a str>, left: Duration) -> SlotRequest<'a> {
        let plan = self.plan();
        // Somewhere else to go is something only for a request that goes there when it has to wait, or its lane is down.
        let leaves = plan.moves_on(Trigger::QueueTimeout) && plan.moves_on(Trigger::EngineRestart);
        SlotRequest {
            lane: self.step().lane,
            priority: plan.priority,
            flow: plan.flow.as_deref().or(tenant).unwrap_or(""),
            max_wait: plan.max_wait.min(left),
            switching: plan.switching,
            has_fallback: self.has_next() && leaves,
        }
    }

    /// Why a step that a policy wants after a failed try is not tried; `None` if it is.
    pub fn objection(
        &self,
        wanted: &FallbackStep,
        fleet: &FleetView,
        in_time: bool,
    ) -> Option<&'static str> {
        let able = fleet.stat(wanted.lane).is_some_and(|stat| stat.state.able_to_serve());
        match able {
            false => Some("it cannot serve"),
            true if self.attempts_left == 0 || !in_time => Some("no try is left"),
            true => None,
        }
    }

    /// After a failed try: turn to what comes next. `in_time` says that the request may take longer still; what a policy wants
    /// has no [`AttemptCursor::objection`] against it.
    pub fn after(&mut self, failed: FailureClass, recovery: Recovery, in_time: bool) -> NextAction {
        match recovery {
            Recovery::GiveUp(rejection) => NextAction::Reject(rejection),
            Recovery::Retry(FallbackStep { lane, edits }) => {
                self.turn();
                self.wanted = Some(Box::new(Step { lane, edits }));
                NextAction::Attempt
            }
            Recovery::Planned if in_time && self.has_next() && self.leaves_after(failed) => {
                self.turn();
                self.begun += 1;
                NextAction::Attempt
            }
            // Ask the same lane once more, if it has not heard of the request.
            Recovery::Planned if in_time && failed.safe_to_resend && !self.asked_again => {
                self.asked_again = true;
                NextAction::Attempt
            }
            Recovery::Planned => NextAction::Fail,
        }
    }

    fn leaves_after(&self, failed: FailureClass) -> bool {
        failed.trigger.is_some_and(|trigger| self.plan().moves_on(trigger))
    }

    fn turn(&mut self) {
        self.wanted = None;
        self.attempts_left = self.attempts_left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::{OnTimeout, Triggers};

    const BUSY: FailureClass =
        FailureClass { trigger: Some(Trigger::QueueTimeout), safe_to_resend: false };
    const GONE: FailureClass =
        FailureClass { trigger: Some(Trigger::ConnectError), safe_to_resend: true };

    fn plan(lanes: &[u32]) -> Plan {
        Plan {
            steps: lanes
                .iter()
                .map(|lane| Step { lane: LaneId(*lane), edits: Vec::new() })
                .collect(),
            on: Triggers::ALL,
            priority: 3,
            flow: None,
            max_wait: Duration::from_secs(60),
            on_timeout: OnTimeout::FallBack,
            first_token: None,
            switching: Switching::Allow,
        }
    }

    fn retry(lane: u32) -> Recovery {
        Recovery::Retry(FallbackStep { lane: LaneId(lane), edits: Vec::new() })
    }

    #[test]
    fn what_a_policy_wants_comes_between_and_the_plan_goes_on_behind_it() {
        let plan = plan(&[0, 1]);
        let mut cursor = AttemptCursor::new(&plan, 8).unwrap();
        assert_eq!((cursor.step().lane, cursor.has_next()), (LaneId(0), true));
        assert_eq!(
            (cursor.after(BUSY, retry(7), true), cursor.step().lane),
            (NextAction::Attempt, LaneId(7))
        );
        assert_eq!(
            (cursor.after(BUSY, Recovery::Planned, true), cursor.step().lane),
            (NextAction::Attempt, LaneId(1))
        );
        assert!(!cursor.has_next());
        assert_eq!(cursor.after(BUSY, Recovery::Planned, true), NextAction::Fail);
    }

    #[test]
    fn tries_are_limited_and_a_lane_that_heard_nothing_is_asked_once_more() {
        let plan = plan(&[0, 1, 2]);
        let mut cursor = AttemptCursor::new(&plan, 2).unwrap();
        assert_eq!(
            (cursor.after(BUSY, Recovery::Planned, true), cursor.attempts_left()),
            (NextAction::Attempt, 0)
        );
        assert_eq!(
            (cursor.after(GONE, Recovery::Planned, true), cursor.step().lane),
            (NextAction::Attempt, LaneId(1))
        );
        assert_eq!(cursor.after(GONE, Recovery::Planned, true), NextAction::Fail);
        assert_eq!(
            AttemptCursor::new(&plan, 8).unwrap().after(GONE, Recovery::Planned, false),
            NextAction::Fail,
            "too late"
        );
    }

    #[test]
    fn wishes_of_policies_may_not_be_possible() {
        let plan = plan(&[0]);
        let cursor = AttemptCursor::new(&plan, 1).unwrap();
        let view = crate::FleetView {
            topology: crate::Topology::new(1, Vec::new()).into(),
            stats: Vec::new(),
        };
        let step = FallbackStep { lane: LaneId(0), edits: Vec::new() };
        assert_eq!(cursor.objection(&step, &view, true), Some("it cannot serve"));
        assert!(AttemptCursor::new(&self::plan(&[]), 8).is_none());
    }

    #[test]
    fn the_plan_and_the_tenant_say_whose_turn_it_is() {
        let plan = plan(&[0, 1]);
        let cursor = AttemptCursor::new(&plan, 8).unwrap();
        let wanted = cursor.slot_request(Some("acme"), Duration::from_secs(9));
        assert_eq!(
            (wanted.flow, wanted.max_wait.as_secs(), wanted.has_fallback),
            ("acme", 9, true)
        );
        let arrival = wanted.arrival(Ticket(1), Duration::from_secs(1));
        assert_eq!((arrival.flow, arrival.deadline.as_secs()), (FlowId::of("acme"), 10));
        assert_ne!(FlowId::of("acme"), FlowId::of(""));
    }
}
