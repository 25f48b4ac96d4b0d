//! A circuit breaker: it stops the use of something that keeps failing, and probes it again later.
//!
//! ```text
//!           too many failures            backoff over, one probe
//!   closed ───────────────────> open ───────────────────────────> half-open
//!     ▲                          ▲                                   │   │
//!     │                          └────── failure: backoff doubled ───┘   │
//!     └─────────────────────────────────────────── success ──────────────┘
//! ```
//!
//! Time is an argument, so a breaker works with any clock.

use std::time::Duration;

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerRules {
    /// Failures that open the breaker.
    pub failures: usize,
    /// The time within which these failures occur, whatever happens in between. `None` if they have
    /// to be consecutive; then any success closes the breaker, and not only that of a probe.
    pub window: Option<Duration>,
    /// The time until the first probe.
    pub initial_backoff: Duration,
    /// The maximum time until the next probe.
    pub max_backoff: Duration,
}

/// A circuit breaker. Times are relative to an arbitrary fixed instant.
#[derive(Debug, Clone)]
pub struct Breaker {
    rules: &'static BreakerRules,
    /// The times of the failures that count, while the breaker is closed.
    failures: Vec<Duration>,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    /// When the next probe is admitted. A probe without a result is replaced by another one then.
    until: Duration,
    backoff: Duration,
    /// True while a probe is running.
    probing: bool,
}

impl Breaker {
    /// Creates a closed breaker.
    pub fn new(rules: &'static BreakerRules) -> Self {
        Self { rules, failures: Vec::new(), open: None }
    }

    /// Records a failure. Returns true if it opened the breaker, or keeps it open after a probe.
    pub fn record_failure(&mut self, now: Duration) -> bool {
        let BreakerRules { failures, window, initial_backoff, max_backoff } = *self.rules;
        let backoff = match &self.open {
            Some(open) if open.probing => (open.backoff * 2).min(max_backoff),
            // Of something that started before the breaker opened.
            Some(_) => return false,
            None => {
                if let Some(window) = window {
                    self.failures.retain(|failure| *failure + window > now);
                }
                self.failures.push(now);
                if self.failures.len() < failures {
                    return false;
                }
                self.failures.clear();
                initial_backoff
            }
        };
        self.open = Some(Open { until: now + backoff, backoff, probing: false });
        true
    }

    /// Records a success. Returns true if it closed the breaker.
    pub fn record_success(&mut self) -> bool {
        if self.rules.window.is_none() {
            self.failures.clear();
        }
        let closes = self.open.is_some_and(|open| open.probing || self.rules.window.is_none());
        if closes {
            self.reset();
        }
        closes
    }

    /// Returns an error with the remaining time if the breaker admits nothing now.
    ///
    /// # Errors
    /// If the breaker is open, and its backoff is not over.
    pub fn check(&self, now: Duration) -> Result<(), Duration> {
        match &self.open {
            Some(open) if now < open.until => Err(open.until.saturating_sub(now)),
            Some(_) | None => Ok(()),
        }
    }

    /// Marks what was [admitted](Breaker::check) as the probe if the breaker is open.
    pub fn start_probe(&mut self, now: Duration) {
        if let Some(open) = self.open.as_mut().filter(|open| now >= open.until) {
            *open = Open { until: now + open.backoff, backoff: open.backoff, probing: true };
        }
    }

    /// Checks the breaker, and starts a probe if it is open. Returns whether it admits a use.
    pub fn admit(&mut self, now: Duration) -> bool {
        let is_admitted = self.check(now).is_ok();
        if is_admitted {
            self.start_probe(now);
        }
        is_admitted
    }

    /// Records that a probe ended without a verdict. The next one is admitted at once.
    pub fn abandon_probe(&mut self, now: Duration) {
        if let Some(open) = self.open.as_mut().filter(|open| open.probing) {
            open.probing = false;
            open.until = now;
        }
    }

    /// Returns whether the breaker is open or half-open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Closes the breaker, and forgets all failures.
    pub fn reset(&mut self) {
        self.failures.clear();
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSECUTIVE: BreakerRules = BreakerRules {
        failures: 5,
        window: None,
        initial_backoff: Duration::from_secs(5),
        max_backoff: Duration::from_secs(60),
    };
    const WINDOWED: BreakerRules = BreakerRules {
        failures: 3,
        window: Some(Duration::from_secs(10)),
        initial_backoff: Duration::from_secs(1),
        max_backoff: Duration::from_secs(60),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn opens_after_consecutive_failures_and_closes_after_a_success() {
        let mut breaker = Breaker::new(&CONSECUTIVE);
        (0..4).for_each(|_| assert!(!breaker.record_failure(at(0))));
        assert!(!breaker.record_success() && breaker.check(at(0)).is_ok());
        (0..4).for_each(|_| assert!(!breaker.record_failure(at(1))));
        assert!(breaker.record_failure(at(1)) && breaker.is_open());
        assert_eq!(breaker.check(at(2)), Err(at(4)));
        assert!(!breaker.record_failure(at(2)), "of a request that started before");
        assert_eq!(breaker.check(at(6)), Ok(()));
        breaker.start_probe(at(6));
        assert_eq!(breaker.check(at(6)), Err(at(5)), "only one request probes");
        assert!(breaker.record_failure(at(7)), "the probe fails");
        assert_eq!(breaker.check(at(16)), Err(at(1)));
        breaker.start_probe(at(17));
        assert_eq!(breaker.check(at(17)), Err(at(10)));
        breaker.abandon_probe(at(17));
        assert!(breaker.check(at(17)).is_ok());
        assert!(breaker.record_success() && !breaker.is_open() && breaker.check(at(18)).is_ok());
    }

    #[test]
    fn opens_after_failures_within_the_window() {
        let mut breaker = Breaker::new(&WINDOWED);
        assert!(!breaker.record_failure(at(0)));
        assert!(!breaker.record_success(), "does not forget the failure");
        assert!(!breaker.record_failure(at(9)) && !breaker.record_failure(at(11)));
        assert!(breaker.admit(at(12)));
        assert!(breaker.record_failure(at(12)));
        assert!(!breaker.admit(at(12)) && !breaker.record_failure(at(12)));
        assert!(!breaker.record_success() && breaker.is_open(), "of a call that started before");
    }

    #[test]
    fn half_open_breaker_admits_one_probe_that_decides() {
        let mut breaker = Breaker::new(&WINDOWED);
        assert!((0..3).any(|_| breaker.record_failure(at(0))));
        assert!(breaker.admit(at(1)) && !breaker.admit(at(1)));
        assert!(breaker.record_failure(at(1)), "the backoff doubles");
        assert!(!breaker.admit(at(2)) && breaker.admit(at(3)));
        assert!(breaker.record_success() && !breaker.is_open() && breaker.admit(at(3)));
    }

    #[test]
    fn half_open_breaker_admits_another_probe_if_the_first_is_lost() {
        let mut breaker = Breaker::new(&WINDOWED);
        assert!((0..3).any(|_| breaker.record_failure(at(0))));
        assert!(breaker.admit(at(1)) && !breaker.admit(at(1)) && breaker.admit(at(2)));
    }
}
