//! A lane's circuit breaker: when too many of its requests fail in a row, those that have somewhere else to go do so.
//!
//! ```text
//!   Closed ──5 failures in a row──> Open ──pause──> HalfOpen ──success──> Closed
//!                                    ▲                  │
//!                                    └──failure─────────┘ (pause doubled)
//! ```
//!
//! What counts is what the engine is to blame for: no connection, 5xx, silence. A client's mistake or departure never does.

use std::time::Duration;

const FAILURES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Breaker {
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    /// When the next request may try whether the lane works again.
    until: Duration,
    pause: Duration,
    /// One is trying.
    trying: bool,
}

impl Breaker {
    /// A request of the lane ended. Returns true if this opened the breaker.
    pub(super) fn ended(&mut self, failed: bool, now: Duration) -> bool {
        if !failed {
            *self = Self::default();
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        match &mut self.open {
            Some(open) if open.trying => {
                let pause = (open.pause * 2).min(LONGEST_PAUSE);
                *open = Open { until: now + pause, pause, trying: false };
                true
            }
            Some(_) => false,
            None if self.failures >= FAILURES => {
                self.open =
                    Some(Open { until: now + FIRST_PAUSE, pause: FIRST_PAUSE, trying: false });
                true
            }
            None => false,
        }
    }

    /// May a request that has somewhere else to go use the lane? One for each pause may. If not: how long that lasts.
    pub(super) fn admits(&self, now: Duration) -> Result<(), Duration> {
        match &self.open {
            Some(open) if now < open.until => {
                Err(open.until.saturating_sub(now).max(Duration::from_secs(1)))
            }
            _ => Ok(()),
        }
    }

    /// A request that it admits uses the lane, or waits for it.
    pub(super) fn tries(&mut self, now: Duration) {
        if let Some(open) = self.open.as_mut().filter(|open| now >= open.until) {
            *open = Open { until: now + open.pause, pause: open.pause, trying: true };
        }
    }

    /// A request ended without telling anything: its client left.
    pub(super) fn untold(&mut self, now: Duration) {
        if let Some(open) = self.open.as_mut().filter(|open| open.trying) {
            open.trying = false;
            open.until = now;
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_after_a_success() {
        let mut breaker = Breaker::default();
        (0..4).for_each(|_| assert!(!breaker.ended(true, at(0))));
        assert!(!breaker.ended(false, at(0)) && breaker.admits(at(0)).is_ok());
        (0..4).for_each(|_| assert!(!breaker.ended(true, at(1))));
        assert!(breaker.ended(true, at(1)) && breaker.is_open());
        assert_eq!(breaker.admits(at(2)), Err(at(4)));
        assert!(!breaker.ended(true, at(2)), "one that was under way tells nothing new");
        assert_eq!(breaker.admits(at(6)), Ok(()));
        breaker.tries(at(6));
        assert_eq!(breaker.admits(at(6)), Err(at(5)), "one tries");
        assert!(breaker.ended(true, at(7)), "and fails");
        assert_eq!(breaker.admits(at(16)), Err(at(1)));
        breaker.tries(at(17));
        assert_eq!(breaker.admits(at(17)), Err(at(10)));
        breaker.untold(at(17));
        assert!(breaker.admits(at(17)).is_ok());
        assert!(
            !breaker.ended(false, at(18)) && !breaker.is_open() && breaker.admits(at(18)).is_ok()
        );
    }
}
