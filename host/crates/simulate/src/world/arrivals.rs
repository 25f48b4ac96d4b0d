//! The requests that arrive: those of the traffic, and those that follow a response.

use std::cmp::Reverse;
use std::time::Duration;

use super::World;
use crate::traffic::SimRequest;

/// A request that follows another one of the same client. Ordered by arrival time, then by the
/// order in which the requests became known.
pub(super) struct FollowUp(Duration, u64, SimRequest);

impl FollowUp {
    fn key(&self) -> (Duration, u64) {
        (self.0, self.1)
    }
}

impl PartialEq for FollowUp {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for FollowUp {}

impl PartialOrd for FollowUp {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for FollowUp {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl World<'_> {
    pub(super) fn next_arrival(&self) -> Option<Duration> {
        let independent = self.next_request.as_ref().map(|request| request.at);
        let follow_up = self.follow_ups.peek().map(|Reverse(follow_up)| follow_up.0);
        independent.into_iter().chain(follow_up).min()
    }

    /// Returns the next request that arrives now.
    pub(super) fn pop_arrival(&mut self) -> Option<SimRequest> {
        let follow_up = self.follow_ups.peek().map(|Reverse(follow_up)| follow_up.0);
        let independent = self.next_request.as_ref().map(|request| request.at);
        if self.next_arrival().is_none_or(|at| at > self.now) {
            return None;
        }
        // At the same time, independent requests come first.
        let is_independent = independent
            .is_some_and(|independent| follow_up.is_none_or(|follow_up| independent <= follow_up));
        if is_independent {
            let next = self.traffic.next();
            std::mem::replace(&mut self.next_request, next)
        } else {
            self.follow_ups.pop().map(|Reverse(FollowUp(_, _, request))| request)
        }
    }

    pub(super) fn schedule_follow_up(&mut self, request: SimRequest) {
        self.follow_up_sequence += 1;
        let at = request.at.max(self.now);
        self.follow_ups.push(Reverse(FollowUp(at, self.follow_up_sequence, request)));
    }
}
