//! The schedule of the policies' background hooks: batches of outcomes, and ticks.
//!
//! A host checks at a fixed interval whether a hook is due. Here only those checks happen that find
//! something to do.

use std::time::Duration;

use pointsman_domain::Outcome;

/// The interval of the host's checks.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The number of outcomes that are reported without waiting for the next check.
const MAX_BATCH: usize = 256;

/// Outcomes that have not been reported, and the time of the last check.
#[derive(Debug, Default)]
pub(super) struct OutcomeQueue {
    pending: Vec<Outcome>,
    /// When the pending outcomes are to be reported.
    due: Option<Duration>,
    last_check: Duration,
}

impl OutcomeQueue {
    /// Adds an outcome.
    pub(super) fn push(&mut self, outcome: Outcome, now: Duration) {
        self.pending.push(outcome);
        let due = if self.pending.len() >= MAX_BATCH { now } else { self.check_after(now) };
        self.due = Some(self.due.map_or(due, |before| before.min(due)));
    }

    /// Returns the time of the next check that reports outcomes or runs the tick due at `tick`.
    pub(super) fn next_check(&self, tick: Option<Duration>) -> Option<Duration> {
        let tick = tick.map(|tick| self.check_at_or_after(tick));
        self.due.into_iter().chain(tick).min()
    }

    /// Records a check at `now`, and returns the pending outcomes.
    pub(super) fn take(&mut self, now: Duration) -> Vec<Outcome> {
        self.last_check = now;
        self.due = None;
        std::mem::take(&mut self.pending)
    }

    /// Returns the time of the first check after `time`.
    fn check_after(&self, time: Duration) -> Duration {
        let elapsed = time.saturating_sub(self.last_check).as_micros();
        self.nth_check(elapsed / CHECK_INTERVAL.as_micros() + 1)
    }

    /// Returns the time of the first check that is not before `time`.
    fn check_at_or_after(&self, time: Duration) -> Duration {
        let elapsed = time.saturating_sub(self.last_check).as_micros();
        self.nth_check(elapsed.div_ceil(CHECK_INTERVAL.as_micros()).max(1))
    }

    fn nth_check(&self, intervals: u128) -> Duration {
        let intervals = u32::try_from(intervals).unwrap_or(u32::MAX);
        self.last_check.saturating_add(CHECK_INTERVAL * intervals)
    }
}
