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
use crate::dispatch::{Arrival, FlowId, Refusal, Ticket};
use crate::fleet_view::{FleetView, LaneId};
use crate::outcome::Recovery;
use crate::plan::{Plan, Step};

/// A request's wish for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
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

impl Wanted<'_> {
    /// What the dispatcher is told at this time.
    pub fn arrival(&self, ticket: Ticket, now: Duration) -> Arrival {
        Arrival {
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
pub struct Failing {
    /// The event that it is for the plan; `None` where no other lane may help.
    pub trigger: Option<Trigger>,
    /// The request never reached an engine, because that was gone already: the lane can be asked once more, and waits for its
    /// engine to come back.
    pub never_arrived: bool,
}

impl From<&Refusal> for Failing {
    fn from(refusal: &Refusal) -> Self {
        let trigger = match refusal {
            Refusal::TimedOut { .. } | Refusal::TooLate { .. } => Some(Trigger::QueueTimeout),
            Refusal::QueueFull { .. } => Some(Trigger::Overloaded),
            Refusal::NotServing { .. }
            | Refusal::NotLoaded
            | Refusal::LoadFailed { .. }
            | Refusal::Faulty { .. }
            | Refusal::UnknownLane => Some(Trigger::EngineRestart),
            Refusal::Closing => None,
        };
        Self { trigger, never_arrived: matches!(refusal, Refusal::NotServing { reason: None, .. }) }
    }
}

/// What comes after a failed try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The step that the way has turned to.
    Try,
    /// The client gets this answer.
    GiveUp(Rejection),
    /// The client gets the failure.
    Fail,
}

/// Where a request is on its way through the lanes of a plan.
#[derive(Debug)]
pub struct Way<P> {
    plan: P,
    /// How many planned steps have begun; at least one.
    begun: usize,
    /// A step that a policy wanted instead. Boxed, because it is rare and requests that wait are many.
    wanted: Option<Box<Step>>,
    /// Steps that may still begin. Asking the same lane once more is part of its step.
    tries_left: usize,
    asked_again: bool,
}

impl<P: Borrow<Plan>> Way<P> {
    /// At the first step of a plan, of at most `most` tries; `None` if it has no step.
    pub fn new(plan: P, most: usize) -> Option<Self> {
        let has_step = !plan.borrow().steps.is_empty();
        let tries_left = most.saturating_sub(1);
        has_step.then(|| Self { plan, begun: 1, wanted: None, tries_left, asked_again: false })
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
    pub fn tries_left(&self) -> usize {
        self.tries_left
    }

    /// Does the plan have somewhere else to go?
    pub fn has_next(&self) -> bool {
        self.tries_left > 0 && self.begun < self.plan().steps.len()
    }

    /// What the request wants of the lane that is being tried, with so much time left for all of it.
    pub fn wanted<'a>(&'a self, tenant: Option<&'a str>, left: Duration) -> Wanted<'a> {
        let plan = self.plan();
        // Somewhere else to go is something only for a request that goes there when it has to wait, or its lane is down.
        let leaves = plan.moves_on(Trigger::QueueTimeout) && plan.moves_on(Trigger::EngineRestart);
        Wanted {
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
            true if self.tries_left == 0 || !in_time => Some("no try is left"),
            true => None,
        }
    }

    /// After a failed try: turn to what comes next. `in_time` says that the request may take longer still; what a policy wants
    /// has no [`Way::objection`] against it.
    pub fn after(&mut self, failed: Failing, recovery: Recovery, in_time: bool) -> Next {
        match recovery {
            Recovery::GiveUp(rejection) => Next::GiveUp(rejection),
            Recovery::Retry(FallbackStep { lane, edits }) => {
                self.turn();
                self.wanted = Some(Box::new(Step { lane, edits }));
                Next::Try
            }
            Recovery::Planned if in_time && self.has_next() && self.leaves_after(failed) => {
                self.turn();
                self.begun += 1;
                Next::Try
            }
            // Ask the same lane once more, if it has not heard of the request.
            Recovery::Planned if in_time && failed.never_arrived && !self.asked_again => {
                self.asked_again = true;
                Next::Try
            }
            Recovery::Planned => Next::Fail,
        }
    }

    fn leaves_after(&self, failed: Failing) -> bool {
        failed.trigger.is_some_and(|trigger| self.plan().moves_on(trigger))
    }

    fn turn(&mut self) {
        self.wanted = None;
        self.tries_left = self.tries_left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::{OnTimeout, Triggers};

    const BUSY: Failing = Failing { trigger: Some(Trigger::QueueTimeout), never_arrived: false };
    const GONE: Failing = Failing { trigger: Some(Trigger::ConnectError), never_arrived: true };

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
        let mut way = Way::new(&plan, 8).unwrap();
        assert_eq!((way.step().lane, way.has_next()), (LaneId(0), true));
        assert_eq!((way.after(BUSY, retry(7), true), way.step().lane), (Next::Try, LaneId(7)));
        assert_eq!(
            (way.after(BUSY, Recovery::Planned, true), way.step().lane),
            (Next::Try, LaneId(1))
        );
        assert!(!way.has_next());
        assert_eq!(way.after(BUSY, Recovery::Planned, true), Next::Fail);
    }

    #[test]
    fn tries_are_limited_and_a_lane_that_heard_nothing_is_asked_once_more() {
        let plan = plan(&[0, 1, 2]);
        let mut way = Way::new(&plan, 2).unwrap();
        assert_eq!((way.after(BUSY, Recovery::Planned, true), way.tries_left()), (Next::Try, 0));
        assert_eq!(
            (way.after(GONE, Recovery::Planned, true), way.step().lane),
            (Next::Try, LaneId(1))
        );
        assert_eq!(way.after(GONE, Recovery::Planned, true), Next::Fail);
        assert_eq!(
            Way::new(&plan, 8).unwrap().after(GONE, Recovery::Planned, false),
            Next::Fail,
            "too late"
        );
    }

    #[test]
    fn wishes_of_policies_may_not_be_possible() {
        let plan = plan(&[0]);
        let way = Way::new(&plan, 1).unwrap();
        let view = crate::FleetView {
            topology: crate::Topology::new(1, Vec::new()).into(),
            stats: Vec::new(),
        };
        let step = FallbackStep { lane: LaneId(0), edits: Vec::new() };
        assert_eq!(way.objection(&step, &view, true), Some("it cannot serve"));
        assert!(Way::new(&self::plan(&[]), 8).is_none());
    }

    #[test]
    fn the_plan_and_the_tenant_say_whose_turn_it_is() {
        let plan = plan(&[0, 1]);
        let way = Way::new(&plan, 8).unwrap();
        let wanted = way.wanted(Some("acme"), Duration::from_secs(9));
        assert_eq!(
            (wanted.flow, wanted.max_wait.as_secs(), wanted.has_fallback),
            ("acme", 9, true)
        );
        let arrival = wanted.arrival(Ticket(1), Duration::from_secs(1));
        assert_eq!((arrival.flow, arrival.deadline.as_secs()), (FlowId::of("acme"), 10));
        assert_ne!(FlowId::of("acme"), FlowId::of(""));
    }
}
