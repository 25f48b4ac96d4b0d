//! A lane's circuit breaker. After several consecutive failures, requests that have a fallback use
//! it instead of this lane.
//!
//! ```text
//!   Closed ──5 consecutive failures──> Open ──backoff──> HalfOpen ──success──> Closed
//!                                    ▲                     │
//!                                    └──failure────────────┘ (backoff doubled)
//! ```
//!
//! Only failures of the engine count: no connection, a 5xx status, no response. Errors and
//! disconnects of the client never count.

use std::time::Duration;

const FAILURE_THRESHOLD: u32 = 5;
const INITIAL_BACKOFF: Duration = Duration::from_secs(5);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Breaker {
    failures: u32,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    /// When the next request may probe whether the lane works again.
    until: Duration,
    backoff: Duration,
    /// True while a probing request is in flight.
    probing: bool,
}

impl Breaker {
    /// Records the result of a request. Returns true if it opened the breaker.
    pub(super) fn on_result(&mut self, failed: bool, now: Duration) -> bool {
        if !failed {
            *self = Self::default();
            return false;
        }
        self.failures = self.failures.saturating_add(1);
        match &mut self.open {
            Some(open) if open.probing => {
                let backoff = (open.backoff * 2).min(MAX_BACKOFF);
                *open = Open { until: now + backoff, backoff, probing: false };
                true
            }
            Some(_) => false,
            None if self.failures >= FAILURE_THRESHOLD => {
                self.open = Some(Open {
                    until: now + INITIAL_BACKOFF,
                    backoff: INITIAL_BACKOFF,
                    probing: false,
                });
                true
            }
            None => false,
        }
    }

    /// Returns an error with the remaining time if a request with a fallback may not use the lane.
    /// One request per backoff may, as a probe.
    pub(super) fn check(&self, now: Duration) -> Result<(), Duration> {
        match &self.open {
            Some(open) if now < open.until => {
                // At least one second: the value becomes a `Retry-After` header in whole seconds.
                Err(open.until.saturating_sub(now).max(Duration::from_secs(1)))
            }
            _ => Ok(()),
        }
    }

    /// Marks an admitted request as the probe if the breaker is open.
    pub(super) fn start_probe(&mut self, now: Duration) {
        if let Some(open) = self.open.as_mut().filter(|open| now >= open.until) {
            *open = Open { until: now + open.backoff, backoff: open.backoff, probing: true };
        }
    }

    /// Records that a request ended without a verdict on the engine, because its client
    /// disconnected. The next request may probe at once.
    pub(super) fn abandon_probe(&mut self, now: Duration) {
        if let Some(open) = self.open.as_mut().filter(|open| open.probing) {
            open.probing = false;
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
    fn opens_after_consecutive_failures_and_closes_after_a_success() {
        let mut breaker = Breaker::default();
        (0..4).for_each(|_| assert!(!breaker.on_result(true, at(0))));
        assert!(!breaker.on_result(false, at(0)) && breaker.check(at(0)).is_ok());
        (0..4).for_each(|_| assert!(!breaker.on_result(true, at(1))));
        assert!(breaker.on_result(true, at(1)) && breaker.is_open());
        assert_eq!(breaker.check(at(2)), Err(at(4)));
        assert!(
            !breaker.on_result(true, at(2)),
            "an in-flight request does not reopen the breaker"
        );
        assert_eq!(breaker.check(at(6)), Ok(()));
        breaker.start_probe(at(6));
        assert_eq!(breaker.check(at(6)), Err(at(5)), "only one request probes");
        assert!(breaker.on_result(true, at(7)), "the probe fails");
        assert_eq!(breaker.check(at(16)), Err(at(1)));
        breaker.start_probe(at(17));
        assert_eq!(breaker.check(at(17)), Err(at(10)));
        breaker.abandon_probe(at(17));
        assert!(breaker.check(at(17)).is_ok());
        assert!(
            !breaker.on_result(false, at(18))
                && !breaker.is_open()
                && breaker.check(at(18)).is_ok()
        );
    }
}
