//! The life of one request, as a state machine without I/O.
//!
//! ```text
//!   Arrived ──accepted──> Deciding ──plan──> Queued ──granted──> Sent ──first byte──> Responding
//!      │                     │                ▲  │ denied         │ failed              │
//!      │                     │   next attempt │  ▼                │                     │
//!      │                     │               Recovering <─────────┘                     │
//!      │ refused, served     │ rejected, no   │ gives up                     completed, │
//!      ▼                     ▼ lane           ▼                                 failed  ▼
//!    Ended <───────────────────────────────────────────────────────────────────────── Ended
//!      from every state: the client is gone, the host stops
//! ```
//!
//! The gateway drives it with sockets, the simulator in virtual time: both carry out the
//! [`Action`] that an [`Event`] returns, and feed its result as the next event. A request gets one
//! answer and has one [`End`], gives back every ticket and lease, and is never sent again after the
//! first byte of a response.
//!
//! Times are ages: time since the arrival of the request.

mod deadline;
mod events;
mod failure;
mod route;

use std::time::Duration;

pub use self::deadline::Deadline;
pub use self::events::{Action, Effects, End, ErrorAnswer, Event, LeaseEnd, Release};
pub use self::failure::{Declined, EngineFailure};
use self::route::Route;
use crate::advice::Edit;
use crate::attempts::{FailureClass, NextAction, QueueShare};
use crate::dispatch::{AcquireError, FlowId};
use crate::endpoint::Endpoint;
use crate::fleet_view::{FleetView, LaneId};
use crate::outcome::{
    Attempt, AttemptResult, Outcome, OutcomeSubject, Recovered, Recovery, RequestResult,
    TokenCounts,
};
use crate::plan::{Decision, NoLaneReason, PlanLimits};

/// The position of a request in its flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Arrived,
    Deciding,
    Queued,
    Sent,
    Recovering(FailedAttempt),
    Responding,
    Ended,
}

/// An attempt that has failed, until it is known what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FailedAttempt {
    class: FailureClass,
    /// How the lease ends if another attempt follows, if the engine's response is kept until then.
    /// Without another attempt, the response is the client's.
    kept: Option<LeaseEnd>,
}

/// The flow of one request.
#[derive(Debug)]
pub struct RequestFlow {
    state: State,
    deadline: Deadline,
    max_attempts: usize,
    /// The flow for fair sharing, unless the plan names another one.
    tenant: FlowId,
    share: QueueShare,
    /// The plan and its execution; `Some` from [`State::Queued`] on.
    route: Option<Route>,
    ttft: Option<Duration>,
    usage: Option<TokenCounts>,
    /// The result for policies, and the age at the end.
    ended: Option<(AttemptResult, Duration)>,
}

impl RequestFlow {
    /// Creates the flow of a request that arrives now.
    pub fn new(deadline: Deadline, limits: &PlanLimits) -> Self {
        Self {
            state: State::Arrived,
            deadline,
            max_attempts: limits.max_steps,
            tenant: FlowId::default(),
            share: QueueShare::default(),
            route: None,
            ttft: None,
            usage: None,
            ended: None,
        }
    }

    /// Returns the lane of the current attempt, or of the last one.
    pub fn lane(&self) -> Option<LaneId> {
        self.route.as_ref().map(|route| route.attempt.lane)
    }

    /// Returns the edits of the current step, in addition to those of the whole request.
    pub fn step_edits(&self) -> &[Edit] {
        self.route.as_ref().map_or(&[], |route| &route.cursor.step().edits)
    }

    /// Returns the lanes of the plan that get the same request if the current one is unreachable.
    pub fn next_lanes(&self) -> impl Iterator<Item = LaneId> {
        self.route.iter().flat_map(|route| route.cursor.next_lanes())
    }

    /// Returns the number of attempts so far.
    pub fn attempt_count(&self) -> u32 {
        u32::try_from(self.attempts().count()).unwrap_or(u32::MAX)
    }

    /// Returns the attempts so far, in order.
    pub fn attempts(&self) -> impl Iterator<Item = &Attempt> {
        self.route.iter().flat_map(|route| route.earlier.iter().chain([&route.attempt]))
    }

    /// Returns the age at the first byte of the response.
    pub fn ttft(&self) -> Option<Duration> {
        self.ttft
    }

    /// Returns the age at the end; `None` before it.
    pub fn total(&self) -> Option<Duration> {
        self.ended.map(|(_, total)| total)
    }

    /// Returns the token counts that the engine reported.
    pub fn usage(&self) -> Option<TokenCounts> {
        self.usage
    }

    /// Returns the outcome for policies and records. There is none before the end, and none without
    /// an attempt: it would say nothing about the lanes.
    pub fn outcome(&self, subject: OutcomeSubject) -> Option<Outcome> {
        let (ended, total) = self.ended?;
        let lane = self.lane()?;
        let usage = self.usage.unwrap_or_default();
        Some(Outcome {
            request_id: subject.request_id,
            tenant: subject.tenant,
            model: subject.model,
            lane,
            topology: subject.topology,
            ended,
            tries: self.attempt_count(),
            queue: self.attempts().map(|attempt| attempt.queue).sum(),
            ttft: self.ttft.unwrap_or_default(),
            total,
            // An engine that reports no prompt tokens leaves the host's estimate in place.
            prompt_tokens: match usage.prompt {
                0 => subject.prompt_tokens,
                counted => counted,
            },
            cached_tokens: usage.cached,
            output_tokens: usage.output,
            attempts: self.attempts().copied().collect(),
            notes: subject.notes,
        })
    }

    /// Handles an event at this age of the request.
    pub fn on(&mut self, event: Event<'_>, age: Duration) -> Effects {
        match event {
            Event::Accepted { tenant, share } => self.accepted(tenant, share),
            Event::Refused => self.refused(age),
            Event::Served => self.served(age),
            Event::Decided { decision, has_recovery } => self.decided(decision, has_recovery, age),
            Event::Granted { first_byte_timeout, is_streaming } => {
                self.granted(first_byte_timeout, is_streaming, age)
            }
            Event::Denied(error) => self.denied(error, age),
            Event::FirstByte { status } => self.first_byte(status, age),
            Event::Failed(failure) => self.engine_failed(failure, age),
            Event::Completed => self.completed(age),
            Event::Usage(usage) => {
                if self.state != State::Ended {
                    self.usage = Some(usage);
                }
                Effects::default()
            }
            Event::Recovered { recovered, fleet, endpoint } => {
                self.recovered(recovered, (fleet, endpoint), age)
            }
            Event::Stopping => self.stopping(age),
            Event::ClientGone => {
                let (result, last) = (RequestResult::ClientGone, AttemptResult::ClientGone);
                self.abandon(End { result, last, answer: None }, age)
            }
        }
    }

    fn accepted(&mut self, tenant: Option<&str>, share: QueueShare) -> Effects {
        if self.state != State::Arrived {
            return Effects::default();
        }
        (self.tenant, self.share) = (FlowId::from_name(tenant.unwrap_or("")), share);
        self.state = State::Deciding;
        Action::Advise.into()
    }

    fn refused(&mut self, age: Duration) -> Effects {
        if self.state != State::Arrived {
            return Effects::default();
        }
        self.end(fail(ErrorAnswer::Refused), age)
    }

    fn served(&mut self, age: Duration) -> Effects {
        if self.state != State::Arrived {
            return Effects::default();
        }
        let (result, last) = (RequestResult::Answered, AttemptResult::Ok);
        self.end(End { result, last, answer: None }, age)
    }

    /// Begins the first attempt of a plan, or ends the request without any.
    fn decided(&mut self, decision: Decision, has_recovery: bool, age: Duration) -> Effects {
        if self.state != State::Deciding {
            return Effects::default();
        }
        let plan = match decision {
            Decision::Route(plan) => plan,
            Decision::Reject(policy, rejection) => {
                let answer = ErrorAnswer::Rejected { policy: Some(policy), rejection };
                return self.end(End { result: RequestResult::Rejected, ..fail(answer) }, age);
            }
            Decision::NoLane(reason) => return self.end(fail(ErrorAnswer::NoLane(reason)), age),
        };
        self.route = Route::new(plan, self.max_attempts, has_recovery, age);
        if self.route.is_none() {
            return self.end(fail(ErrorAnswer::NoLane(NoLaneReason::AllDown)), age);
        }
        self.enqueue(age)
    }

    /// Begins the wait for a slot of the current step.
    fn enqueue(&mut self, age: Duration) -> Effects {
        let Some(route) = &self.route else { return Effects::default() };
        self.state = State::Queued;
        let left = self.deadline.left(age);
        Action::Acquire(route.cursor.slot_request((self.tenant, self.share), left)).into()
    }

    fn granted(&mut self, lane_limit: Duration, is_streaming: bool, age: Duration) -> Effects {
        let (State::Queued, Some(route)) = (self.state, &mut self.route) else {
            // The grant crossed the end of the wait.
            return Effects::from(Action::Wait).releasing(Release::Unused);
        };
        route.leave_queue(age);
        self.state = State::Sent;
        // The plan and the lane limit the time to the first token, which can only be observed in a
        // stream: any other response is computed before its first byte.
        let left = self.deadline.left(age);
        let first_token = route.cursor.plan().first_token.unwrap_or(lane_limit);
        let timeout = if is_streaming { first_token.min(left) } else { left };
        Action::Send { timeout }.into()
    }

    fn denied(&mut self, error: &AcquireError, age: Duration) -> Effects {
        let (State::Queued, Some(route)) = (self.state, &mut self.route) else {
            return Effects::default();
        };
        route.leave_queue(age);
        let class = FailureClass::from(error);
        route.end_attempt(class.trigger.map_or(AttemptResult::Other, AttemptResult::from), age);
        self.attempt_failed(FailedAttempt { class, kept: None }, age)
    }

    fn first_byte(&mut self, status: u16, age: Duration) -> Effects {
        let (State::Sent, Some(route)) = (self.state, &mut self.route) else {
            return Effects::default();
        };
        route.attempt.status = status;
        self.ttft = Some(age);
        self.state = State::Responding;
        Action::Respond.into()
    }

    /// Before the first byte, the attempt has failed; after it, the request.
    fn engine_failed(&mut self, failure: EngineFailure, age: Duration) -> Effects {
        let Some(route) = &mut self.route else { return Effects::default() };
        let severed = failure.is_severed();
        match self.state {
            State::Sent => {
                route.attempt.status = failure.status();
                route.end_attempt(failure.result(), age);
                let end = LeaseEnd { failed: failure.blames_engine(), severed };
                let class = failure.class();
                if let EngineFailure::Declined { .. } = failure {
                    return self.attempt_failed(FailedAttempt { class, kept: Some(end) }, age);
                }
                self.attempt_failed(FailedAttempt { class, kept: None }, age)
                    .releasing(Release::Lease(end))
            }
            State::Responding => {
                let is_client_error = route.is_client_error();
                let is_refusal = is_client_error && failure == EngineFailure::NotAStream;
                let last = if is_refusal { AttemptResult::Other } else { failure.result() };
                // A failure that follows from an invalid request is not the engine's.
                let failed = failure.blames_engine() && !is_client_error;
                self.end(End { result: RequestResult::Error, last, answer: None }, age)
                    .releasing(Release::Lease(LeaseEnd { failed, severed }))
            }
            State::Arrived
            | State::Deciding
            | State::Queued
            | State::Recovering(_)
            | State::Ended => Effects::default(),
        }
    }

    /// Asks the policies what follows a failed attempt, or continues with the plan.
    fn attempt_failed(&mut self, failed: FailedAttempt, age: Duration) -> Effects {
        let Some(route) = &self.route else { return Effects::default() };
        self.state = State::Recovering(failed);
        // Without a trigger policies have nothing to decide.
        if route.has_recovery && failed.class.trigger.is_some() {
            return Action::Recover(route.failure_report(self.deadline.is_in_time(age))).into();
        }
        self.next_attempt(failed, Recovered::default(), age)
    }

    fn recovered(
        &mut self,
        recovered: Recovered,
        (fleet, endpoint): (&FleetView, Endpoint),
        age: Duration,
    ) -> Effects {
        let (State::Recovering(failed), Some(route)) = (self.state, &self.route) else {
            return Effects::default();
        };
        let in_time = self.deadline.is_in_time(age);
        let ignored_retry = match &recovered.recovery {
            Recovery::Retry(step) => route.cursor.objection(step, (fleet, endpoint), in_time),
            Recovery::Planned | Recovery::GiveUp(_) => None,
        };
        let recovered = if ignored_retry.is_some() { Recovered::default() } else { recovered };
        Effects { ignored_retry, ..self.next_attempt(failed, recovered, age) }
    }

    fn next_attempt(
        &mut self,
        failed: FailedAttempt,
        Recovered { recovery, by }: Recovered,
        age: Duration,
    ) -> Effects {
        let Some(route) = &mut self.route else { return Effects::default() };
        let last = route.attempt.result;
        let FailedAttempt { class, kept } = failed;
        let effects = match route.advance(class, recovery, self.deadline.is_in_time(age), age) {
            NextAction::Attempt => self.enqueue(age),
            NextAction::Reject(rejection) => {
                let answer = ErrorAnswer::Rejected { policy: by, rejection };
                self.end(End { result: RequestResult::Rejected, ..fail(answer) }, age)
            }
            NextAction::Fail if kept.is_some() => {
                self.ttft = Some(age);
                self.state = State::Responding;
                return Action::Respond.into();
            }
            NextAction::Fail => self.end(End { last, ..fail(ErrorAnswer::Failed) }, age),
        };
        Effects { release: kept.map(Release::Lease), ..effects }
    }

    /// The whole response was passed on. It may be an error that no other lane would avoid.
    fn completed(&mut self, age: Duration) -> Effects {
        let (State::Responding, Some(route)) = (self.state, &self.route) else {
            return Effects::default();
        };
        let (result, last) = match route.attempt.status {
            200..300 if route.has_changed_lane => (RequestResult::FellBack, AttemptResult::Ok),
            200..300 => (RequestResult::Answered, AttemptResult::Ok),
            400..500 => (RequestResult::Error, AttemptResult::Other),
            _ => (RequestResult::Error, AttemptResult::ServerError),
        };
        let failed = last == AttemptResult::ServerError;
        self.end(End { result, last, answer: None }, age)
            .releasing(Release::Lease(LeaseEnd { failed, severed: false }))
    }

    fn stopping(&mut self, age: Duration) -> Effects {
        match self.state {
            State::Responding => self.engine_failed(EngineFailure::Aborted, age),
            State::Arrived
            | State::Deciding
            | State::Queued
            | State::Sent
            | State::Recovering(_)
            | State::Ended => self.abandon(fail(ErrorAnswer::Stopping), age),
        }
    }

    /// Ends the request in the middle of its flow, and gives back what it holds.
    fn abandon(&mut self, end: End, age: Duration) -> Effects {
        let release = match self.state {
            State::Ended => return Effects::default(),
            State::Queued => {
                if let Some(route) = &mut self.route {
                    route.leave_queue(age);
                }
                Some(Release::Ticket)
            }
            State::Sent | State::Responding => Some(Release::Lease(LeaseEnd::default())),
            State::Recovering(FailedAttempt { kept, .. }) => kept.map(Release::Lease),
            State::Arrived | State::Deciding => None,
        };
        Effects { release, ..self.end(end, age) }
    }

    fn end(&mut self, end: End, age: Duration) -> Effects {
        // An attempt that has failed keeps its own result.
        if let Some(route) = &mut self.route
            && !matches!(self.state, State::Recovering(_))
        {
            route.end_attempt(end.last, age);
        }
        self.state = State::Ended;
        self.ended = Some((end.last, age));
        Action::End(end).into()
    }
}

/// Returns the end of a request of which nothing was sent to the client.
fn fail(answer: ErrorAnswer) -> End {
    End { result: RequestResult::Error, last: AttemptResult::Other, answer: Some(answer) }
}

#[cfg(test)]
mod tests;
