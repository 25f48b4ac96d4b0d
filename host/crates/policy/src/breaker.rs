//! Takes a policy that keeps failing out of service, and tries it again later.
//!
//! ```text
//!             3 faults in 10 s                pause over, one call through
//!   closed ────────────────────> open ────────────────────────────────────> half-open
//!     ▲                            ▲                                          │   │
//!     │                            └───────────── fault: pause doubled ───────┘   │
//!     └────────────────────────────────────────── good ───────────────────────────┘
//! ```

use std::time::Duration;

const FAULTS: usize = 3;
const WINDOW: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The state of one policy's breaker. Times are since any fixed moment.
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
    /// May the policy be called now? A half-open breaker lets one call through at a time, and another if that got lost.
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

    pub(crate) fn good(&mut self) {
        if matches!(self, Self::HalfOpen { .. }) {
            *self = Self::default();
        }
    }

    /// A call failed. True if that took the policy out of service.
    pub(crate) fn fault(&mut self, now: Duration) -> bool {
        match self {
            Self::Closed { faults } => {
                faults.retain(|fault| *fault + WINDOW > now);
                faults.push(now);
                if faults.len() < FAULTS {
                    return false;
                }
                *self = Self::Open { until: now + FIRST_PAUSE, pause: FIRST_PAUSE };
            }
            Self::HalfOpen { pause, .. } => {
                let pause = (*pause * 2).min(LONGEST_PAUSE);
                *self = Self::Open { until: now + pause, pause };
            }
            // A call that had begun before the breaker opened.
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
    fn three_faults_in_ten_seconds_open_it() {
        let mut breaker = Breaker::default();
        assert!(!breaker.fault(at(0)) && !breaker.fault(at(9)) && !breaker.fault(at(11)));
        assert!(breaker.admits(at(12)));
        assert!(breaker.fault(at(12)));
        assert!(!breaker.admits(at(12)) && !breaker.fault(at(12)));
    }

    #[test]
    fn one_call_is_let_through_and_decides() {
        let mut breaker = Breaker::default();
        assert!((0..3).any(|_| breaker.fault(at(0))));
        assert!(breaker.admits(at(1)) && !breaker.admits(at(1)));
        assert!(breaker.fault(at(1)), "the second pause is twice the first");
        assert!(!breaker.admits(at(2)) && breaker.admits(at(3)));
        breaker.good();
        assert!(breaker.is_closed() && breaker.admits(at(3)));
    }

    #[test]
    fn a_lost_trial_does_not_keep_it_half_open_for_ever() {
        let mut breaker = Breaker::default();
        assert!((0..3).any(|_| breaker.fault(at(0))));
        assert!(breaker.admits(at(1)) && !breaker.admits(at(1)) && breaker.admits(at(2)));
    }
}
