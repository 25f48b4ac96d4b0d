//! Progress of a request through the steps of its plan: the slot that the current step needs, and
//! what follows a failed attempt.
//!
//! ```text
//!   planned   a ──failed──> b ──failed──> c
//!   a policy's `on-failure` hook inserts x:
//!             a ──failed──> x ──failed──> b ──failed──> c
//! ```
//!
//! A failed attempt has sent nothing to the client, so a request is never retried above 0 bytes.

use std::time::Duration;

use crate::advice::{FallbackStep, Rejection, Switching, Trigger};
use crate::dispatch::{AcquireError, Enqueue, FlowId, Ticket};
use crate::endpoint::Endpoint;
use crate::fleet_view::{FleetView, LaneId};
use crate::outcome::Recovery;
use crate::plan::{Plan, Step};

/// What the host grants to the requests of a key in the queues, whatever policies advise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueShare {
    /// The tenant's share of slots, turns and queue places, relative to those of other tenants.
    pub weight: u32,
    /// The lowest and the highest priority; others are moved into this range.
    pub priority: (i32, i32),
}

impl QueueShare {
    fn clamp(&self, priority: i32) -> i32 {
        let (min, max) = self.priority;
        // Not `i32::clamp`, which panics if the range is empty.
        priority.max(min).min(max)
    }
}

impl Default for QueueShare {
    /// Returns the share of all requests of a host without keys.
    fn default() -> Self {
        Self { weight: 1, priority: (i32::MIN, i32::MAX) }
    }
}

/// A request for a slot of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotRequest {
    /// The lane.
    pub lane: LaneId,
    /// Priority; higher is served first.
    pub priority: i32,
    /// Flow for fair sharing among requests of the same priority.
    pub flow: FlowId,
    /// The flow's share, relative to those of other flows.
    pub weight: u32,
    /// Maximum wait.
    pub max_wait: Duration,
    /// Whether lanes may be loaded or switched for the request.
    pub switching: Switching,
    /// True if the request can fall back to another lane.
    pub has_fallback: bool,
    /// True if the engine has the request already: it gets a slot of a ready lane at once, even if
    /// all are in use.
    pub has_begun: bool,
}

impl SlotRequest {
    /// Converts the request into the dispatcher's event, with a deadline `max_wait` from `now`.
    pub fn arrival(&self, ticket: Ticket, now: Duration) -> Enqueue {
        Enqueue {
            ticket,
            lane: self.lane,
            priority: self.priority,
            flow: self.flow,
            weight: self.weight,
            deadline: now.saturating_add(self.max_wait),
            switching: self.switching,
            has_fallback: self.has_fallback,
            has_begun: self.has_begun,
        }
    }
}

/// The class of a failed attempt: all that the choice of the next action depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailureClass {
    /// Fallback trigger of the plan; `None` if no other lane can help.
    pub trigger: Option<Trigger>,
    /// True if the request did not reach an engine because the engine was already gone. The same
    /// lane can then be attempted once more, where the request waits for the engine to come back.
    pub safe_to_resend: bool,
    /// The engine's maximum sequence length, which the request exceeds; 0 if the engine did not
    /// say it. Only a step with a longer context can help then.
    pub exceeded_context: Option<u32>,
}

impl From<&AcquireError> for FailureClass {
    fn from(error: &AcquireError) -> Self {
        let trigger = match error {
            AcquireError::TimedOut { .. } | AcquireError::DeadlineTooEarly { .. } => {
                Some(Trigger::QueueTimeout)
            }
            AcquireError::QueueFull { .. } => Some(Trigger::Overloaded),
            AcquireError::NotServing { .. }
            | AcquireError::NotLoaded
            | AcquireError::LoadFailed { .. }
            | AcquireError::CircuitOpen { .. }
            | AcquireError::UnknownLane
            | AcquireError::Paused(_)
            | AcquireError::LaneRemoved => Some(Trigger::EngineRestart),
            AcquireError::Closing => None,
        };
        Self {
            trigger,
            safe_to_resend: matches!(error, AcquireError::NotServing { reason: None, .. }),
            exceeded_context: None,
        }
    }
}

/// What to do after a failed attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextAction {
    /// Attempt the step that the cursor now points to.
    Attempt,
    /// Send this rejection to the client.
    Reject(Rejection),
    /// Report the failure to the client.
    Fail,
}

/// A cursor over the steps of a plan. Tracks the current step and the attempts left.
#[derive(Debug)]
pub struct AttemptCursor {
    plan: Plan,
    /// Number of planned steps that were started; at least one.
    started: usize,
    /// Step inserted by a policy, which takes precedence over the planned one. Boxed because such
    /// steps are rare and waiting requests are many.
    inserted: Option<Box<Step>>,
    /// Steps that may still be started. Retrying the same lane is part of its step.
    attempts_left: usize,
    lane_retried: bool,
}

impl AttemptCursor {
    /// Creates a cursor at the first step of `plan`, limited to `max_attempts` steps. Returns
    /// `None` if the plan has no steps.
    pub fn new(plan: Plan, max_attempts: usize) -> Option<Self> {
        let has_step = !plan.steps.is_empty();
        // The first attempt is always made, even with a limit of 0.
        let attempts_left = max_attempts.saturating_sub(1);
        has_step.then_some(Self {
            plan,
            started: 1,
            inserted: None,
            attempts_left,
            lane_retried: false,
        })
    }

    /// Returns the plan being executed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Returns the step being attempted.
    pub fn step(&self) -> &Step {
        self.inserted.as_deref().unwrap_or_else(|| &self.plan.steps[self.started - 1])
    }

    /// Returns the number of steps that may still be started.
    pub fn attempts_left(&self) -> usize {
        self.attempts_left
    }

    /// Returns true if the plan has another step that may be attempted.
    pub fn has_next(&self) -> bool {
        self.attempts_left > 0 && self.started < self.plan.steps.len()
    }

    /// Returns the planned lanes that follow if the engine of the current one cannot be reached and
    /// no policy says otherwise, as far as they get the same request.
    pub fn next_lanes(&self) -> impl Iterator<Item = LaneId> {
        let falls_back = self.plan.triggers_fallback(Trigger::ConnectError);
        let left = if falls_back { self.attempts_left } else { 0 };
        let steps = self.plan.steps[self.started..].iter().take(left);
        steps.filter(|step| step.edits == self.step().edits).map(|step| step.lane)
    }

    /// Returns the request for a slot of the current lane. `tenant` is the flow unless the plan
    /// names another one. That one has the tenant's share as well: policies order a key's requests
    /// within what the host grants it. `left` is the time left for the whole request and caps the
    /// wait.
    pub fn slot_request(
        &self,
        (tenant, share): (FlowId, QueueShare),
        left: Duration,
    ) -> SlotRequest {
        let plan = &self.plan;
        // A fallback only matters to the dispatcher if the request uses it both when it would have
        // to wait and when its lane is down.
        let falls_back = plan.triggers_fallback(Trigger::QueueTimeout)
            && plan.triggers_fallback(Trigger::EngineRestart);
        SlotRequest {
            lane: self.step().lane,
            priority: share.clamp(plan.priority),
            flow: plan.flow.as_deref().map_or(tenant, FlowId::from_name),
            weight: share.weight,
            max_wait: plan.max_wait.min(left),
            switching: plan.switching,
            has_fallback: self.has_next() && falls_back,
            has_begun: false,
        }
    }

    /// Returns why a step requested by a policy after a failed attempt cannot be attempted; `None`
    /// if it can.
    pub fn objection(
        &self,
        step: &FallbackStep,
        (fleet, endpoint): (&FleetView, Endpoint),
        in_time: bool,
    ) -> Option<&'static str> {
        let able = fleet.stat(step.lane).is_some_and(|stat| stat.state.can_serve());
        match able {
            false => Some("the lane is down or unknown"),
            true if !fleet.topology.can_serve(step.lane, endpoint) => {
                Some("the lane does not serve the endpoint")
            }
            true if self.attempts_left == 0 || !in_time => Some("no attempts left"),
            true => None,
        }
    }

    /// Moves the cursor after a failed attempt and returns the next action. `in_time` is true if
    /// the request has time left. The caller has checked a policy's step with
    /// [`AttemptCursor::objection`].
    pub fn after(&mut self, failed: FailureClass, recovery: Recovery, in_time: bool) -> NextAction {
        match recovery {
            Recovery::GiveUp(rejection) => NextAction::Reject(rejection),
            Recovery::Retry(FallbackStep { lane, edits }) => {
                self.count_step();
                self.inserted = Some(Box::new(Step { lane, edits, context: 0 }));
                NextAction::Attempt
            }
            Recovery::Planned if !in_time => NextAction::Fail,
            Recovery::Planned => match self.next_step(failed) {
                Some(next) => {
                    self.count_step();
                    self.started = next + 1;
                    NextAction::Attempt
                }
                // Retry the same lane once if the request did not reach it.
                None if failed.safe_to_resend && !self.lane_retried => {
                    self.lane_retried = true;
                    NextAction::Attempt
                }
                None => NextAction::Fail,
            },
        }
    }

    /// Returns the index of the planned step that follows a failed attempt, if there is one.
    fn next_step(&self, failed: FailureClass) -> Option<usize> {
        if !self.has_next() {
            return None;
        }
        let Some(exceeded) = failed.exceeded_context else {
            let trigger = failed.trigger?;
            return self.plan.triggers_fallback(trigger).then_some(self.started);
        };
        // A plan that does not continue after an engine's error does not do so after this one.
        if !self.plan.triggers_fallback(Trigger::ServerError) {
            return None;
        }
        let exceeded = if exceeded > 0 { exceeded } else { self.step().context };
        let is_longer = |index: &usize| self.plan.steps[*index].context > exceeded;
        // Of an unknown length, none is known to be longer.
        (self.started..self.plan.steps.len()).find(is_longer).filter(|_| exceeded > 0)
    }

    fn count_step(&mut self) {
        self.inserted = None;
        self.attempts_left = self.attempts_left.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::advice::{OnTimeout, Triggers};

    const NO_TRIGGER: FailureClass =
        FailureClass { trigger: None, safe_to_resend: false, exceeded_context: None };
    const BUSY: FailureClass = FailureClass { trigger: Some(Trigger::QueueTimeout), ..NO_TRIGGER };
    const GONE: FailureClass =
        FailureClass { trigger: Some(Trigger::ConnectError), safe_to_resend: true, ..NO_TRIGGER };

    fn plan(lanes: &[u32]) -> Plan {
        Plan {
            steps: lanes
                .iter()
                .map(|lane| Step { lane: LaneId(*lane), edits: Vec::new(), context: 0 })
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
    fn next_lanes_are_those_that_a_lost_connection_leads_to_with_the_same_request() {
        let edited = |lane: u32| Step {
            lane: LaneId(lane),
            edits: vec![crate::advice::Edit::CapOutputTokens(1)],
            context: 0,
        };
        let mut plan = plan(&[0, 1, 2, 3]);
        plan.steps[2] = edited(2);
        let lanes = |cursor: &AttemptCursor| cursor.next_lanes().collect::<Vec<_>>();
        let mut cursor = AttemptCursor::new(plan.clone(), 8).unwrap();
        assert_eq!(lanes(&cursor), [LaneId(1), LaneId(3)]);
        cursor.after(GONE, Recovery::Planned, true);
        assert_eq!(lanes(&cursor), [LaneId(3)]);
        assert_eq!(lanes(&AttemptCursor::new(plan.clone(), 2).unwrap()), [LaneId(1)]);
        plan.on = Triggers::NONE;
        assert_eq!(lanes(&AttemptCursor::new(plan, 8).unwrap()), []);
    }

    #[test]
    fn policy_step_is_inserted_before_the_remaining_plan() {
        let plan = plan(&[0, 1]);
        let mut cursor = AttemptCursor::new(plan.clone(), 8).unwrap();
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
    fn attempts_are_limited_and_an_unreached_lane_is_retried_once() {
        let plan = plan(&[0, 1, 2]);
        let mut cursor = AttemptCursor::new(plan.clone(), 2).unwrap();
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
            AttemptCursor::new(plan, 8).unwrap().after(GONE, Recovery::Planned, false),
            NextAction::Fail,
            "too late"
        );
    }

    #[test]
    fn request_that_is_too_long_continues_at_a_longer_context() {
        let contexts = |all: &[u32]| {
            let mut plan = plan(&[0, 1, 2, 3]);
            for (step, context) in plan.steps.iter_mut().zip(all) {
                step.context = *context;
            }
            plan
        };
        let too_long = |exceeded| FailureClass { exceeded_context: Some(exceeded), ..NO_TRIGGER };
        for (plan, exceeded, expected) in [
            (contexts(&[1000, 1000, 0, 4000]), 0, Some(3)),
            (contexts(&[1000, 2000, 0, 4000]), 0, Some(1)),
            // What the engine says counts.
            (contexts(&[1000, 2000, 0, 4000]), 2000, Some(3)),
            (contexts(&[0, 2000, 0, 4000]), 1000, Some(1)),
            (contexts(&[0, 2000, 0, 4000]), 0, None),
            (contexts(&[4000, 2000, 0, 4000]), 0, None),
            (Plan { on: Triggers::NONE, ..contexts(&[1000, 2000]) }, 0, None),
        ] {
            let mut cursor = AttemptCursor::new(plan, 8).unwrap();
            let next = cursor.after(too_long(exceeded), Recovery::Planned, true);
            let lane = (next == NextAction::Attempt).then(|| cursor.step().lane.0);
            assert_eq!(lane, expected, "{cursor:?}");
        }
    }

    #[test]
    fn policy_step_on_a_down_lane_is_rejected() {
        let plan = plan(&[0]);
        let cursor = AttemptCursor::new(plan, 1).unwrap();
        let topology = crate::Topology::new(1, Vec::new()).into();
        let view = crate::FleetView::new(topology, Vec::new());
        let step = FallbackStep { lane: LaneId(0), edits: Vec::new() };
        assert!(cursor.objection(&step, (&view, Endpoint::ChatCompletions), true).is_some());
        assert!(AttemptCursor::new(self::plan(&[]), 8).is_none());
    }

    #[test]
    fn flow_defaults_to_the_tenant() {
        let plan = plan(&[0, 1]);
        let cursor = AttemptCursor::new(plan.clone(), 8).unwrap();
        let acme = FlowId::from_name("acme");
        let tenant = (acme, QueueShare { weight: 3, ..QueueShare::default() });
        let request = cursor.slot_request(tenant, Duration::from_secs(9));
        assert_eq!(
            (request.flow, request.weight, request.max_wait.as_secs(), request.has_fallback),
            (acme, 3, 9, true)
        );
        let named = AttemptCursor::new(Plan { flow: Some("batch".into()), ..plan }, 8).unwrap();
        let request = named.slot_request(tenant, Duration::from_secs(9));
        assert_eq!((request.flow, request.weight), (FlowId::from_name("batch"), 3));
        let request = cursor.slot_request(tenant, Duration::from_secs(9));
        let enqueue = request.arrival(Ticket(1), Duration::from_secs(1));
        assert_eq!((enqueue.flow, enqueue.deadline.as_secs()), (acme, 10));
        assert_ne!(FlowId::from_name("acme"), FlowId::from_name(""));
    }
}
