//! The circuit breaker of one hook: it stops calls to a policy that keeps failing, and probes it
//! again later.
//!
//! ```text
//!             3 faults in 10 s                pause over, one probe call
//!   closed ────────────────────> open ────────────────────────────────────> half-open
//!     ▲                            ▲                                          │   │
//!     │                            └───────────── fault: pause doubled ───────┘   │
//!     └──────────────────────────────────────── success ──────────────────────────┘
//! ```

use std::time::Duration;

/// Faults within [`WINDOW`] that open the breaker.
const MAX_FAULTS: usize = 3;
const WINDOW: Duration = Duration::from_secs(10);
const INITIAL_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// The state of a breaker. Times are relative to an arbitrary fixed instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Breaker {
    Closed { faults: Vec<Duration> },
    Open { until: Duration, pause: Duration },
    HalfOpen { since: Duration, pause: Duration },
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed { faults: Vec::new() }
    }
}

impl Breaker {
    /// Returns whether the policy may be called now. A half-open breaker admits one call, and
    /// another one after the pause if no result of the first one was recorded.
    pub(crate) fn admits(&mut self, now: Duration) -> bool {
        match *self {
            Self::Closed { .. } => true,
            Self::Open { until, pause } if now >= until => {
                *self = Self::HalfOpen { since: now, pause };
                true
            }
            Self::HalfOpen { since, pause } if now >= since + pause => {
                *self = Self::HalfOpen { since: now, pause };
                true
            }
            Self::Open { .. } | Self::HalfOpen { .. } => false,
        }
    }

    /// Records a call without a fault.
    pub(crate) fn record_success(&mut self) {
        if matches!(self, Self::HalfOpen { .. }) {
            *self = Self::default();
        }
    }

    /// Records a fault. Returns true if this fault opened the breaker.
    pub(crate) fn record_fault(&mut self, now: Duration) -> bool {
        match self {
            Self::Closed { faults } => {
                faults.retain(|fault| *fault + WINDOW > now);
                faults.push(now);
                if faults.len() < MAX_FAULTS {
                    return false;
                }
                *self = Self::Open { until: now + INITIAL_PAUSE, pause: INITIAL_PAUSE };
            }
            Self::HalfOpen { pause, .. } => {
                let pause = (*pause * 2).min(MAX_PAUSE);
                *self = Self::Open { until: now + pause, pause };
            }
            // A call that started before the breaker opened.
            Self::Open { .. } => return false,
        }
        true
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn opens_after_three_faults_in_ten_seconds() {
        let mut breaker = Breaker::default();
        assert!(
            !breaker.record_fault(at(0))
                && !breaker.record_fault(at(9))
                && !breaker.record_fault(at(11))
        );
        assert!(breaker.admits(at(12)));
        assert!(breaker.record_fault(at(12)));
        assert!(!breaker.admits(at(12)) && !breaker.record_fault(at(12)));
    }

    #[test]
    fn half_open_breaker_admits_one_call_that_decides() {
        let mut breaker = Breaker::default();
        assert!((0..3).any(|_| breaker.record_fault(at(0))));
        assert!(breaker.admits(at(1)) && !breaker.admits(at(1)));
        assert!(breaker.record_fault(at(1)), "the pause doubles");
        assert!(!breaker.admits(at(2)) && breaker.admits(at(3)));
        breaker.record_success();
        assert!(breaker.is_closed() && breaker.admits(at(3)));
    }

    #[test]
    fn half_open_breaker_admits_another_call_if_the_first_is_lost() {
        let mut breaker = Breaker::default();
        assert!((0..3).any(|_| breaker.record_fault(at(0))));
        assert!(breaker.admits(at(1)) && !breaker.admits(at(1)) && breaker.admits(at(2)));
    }
}
