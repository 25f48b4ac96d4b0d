//! The execution of a plan: its current attempt and the earlier ones.

use std::time::Duration;

use crate::attempts::{AttemptCursor, FailureClass, NextAction};
use crate::outcome::{Attempt, AttemptResult, FailureReport, Recovery};
use crate::plan::Plan;

/// The plan of a request, and its execution so far.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) cursor: AttemptCursor,
    pub(super) attempt: Attempt,
    /// The attempts before the current one. Empty for most requests, and not allocated then.
    pub(super) earlier: Vec<Attempt>,
    /// True if an attempt was made on another lane than the attempt before it.
    pub(super) has_changed_lane: bool,
    /// True if the advisor that decided handles failed attempts.
    pub(super) has_recovery: bool,
}

impl Route {
    /// Begins the first attempt; `None` if the plan has no steps.
    pub(super) fn new(
        plan: Plan,
        max_attempts: usize,
        has_recovery: bool,
        age: Duration,
    ) -> Option<Self> {
        let cursor = AttemptCursor::new(plan, max_attempts)?;
        let attempt = Attempt::new(cursor.step().lane, age);
        Some(Self { cursor, attempt, earlier: Vec::new(), has_changed_lane: false, has_recovery })
    }

    /// Moves to the next attempt after a failed one, if there is one.
    pub(super) fn advance(
        &mut self,
        class: FailureClass,
        recovery: Recovery,
        in_time: bool,
        age: Duration,
    ) -> NextAction {
        let next = self.cursor.after(class, recovery, in_time);
        if next == NextAction::Attempt {
            let lane = self.cursor.step().lane;
            // A second attempt on the same lane is not a fallback.
            self.has_changed_lane |= self.attempt.lane != lane;
            self.earlier.push(std::mem::replace(&mut self.attempt, Attempt::new(lane, age)));
        }
        next
    }

    /// Ends the wait for a slot, whether a slot was granted or not.
    pub(super) fn leave_queue(&mut self, age: Duration) {
        self.attempt.queue = age.saturating_sub(self.attempt.begun);
    }

    pub(super) fn end_attempt(&mut self, result: AttemptResult, age: Duration) {
        self.attempt.result = result;
        self.attempt.took = age.saturating_sub(self.attempt.begun);
    }

    /// Returns the report on the current attempt, which has failed, for the policies.
    pub(super) fn failure_report(&self, in_time: bool) -> FailureReport {
        let attempts_left = if in_time { self.cursor.attempts_left() } else { 0 };
        FailureReport {
            lane: self.attempt.lane,
            what: self.attempt.result,
            status: self.attempt.status,
            sent_bytes: 0,
            elapsed: self.attempt.took,
            attempts_left: u32::try_from(attempts_left).unwrap_or(u32::MAX),
        }
    }

    /// Returns true if the engine responded that the request is invalid.
    pub(super) fn is_client_error(&self) -> bool {
        (400..500).contains(&self.attempt.status)
    }
}
