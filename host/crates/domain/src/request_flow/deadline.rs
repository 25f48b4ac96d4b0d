//! The deadline of a request.

use std::time::Duration;

use super::RequestFlow;

/// The age at which the first byte of the response must have arrived, over all attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Duration);

impl Deadline {
    /// Creates a deadline at this age.
    pub fn new(age: Duration) -> Self {
        Self(age)
    }

    /// Returns the time left, which is zero from the deadline on.
    pub fn left(self, age: Duration) -> Duration {
        self.0.saturating_sub(age)
    }

    /// Returns true until the deadline.
    pub fn is_in_time(self, age: Duration) -> bool {
        age < self.0
    }
}

impl RequestFlow {
    /// Makes the deadline an earlier one.
    pub fn limit_deadline(&mut self, age: Duration) {
        self.deadline = Deadline(self.deadline.0.min(age));
    }

    /// Returns the time until the host gives up on the request, at this age of it.
    pub fn time_left(&self, age: Duration) -> Duration {
        self.deadline.left(age)
    }
}
