//! Time between attempts to connect.

use std::time::Duration;

const MIN: Duration = Duration::from_millis(100);
const MAX: Duration = Duration::from_secs(5);

/// Doubles the time after each failure, and spreads the attempts of several hosts.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns the time until the next attempt. `random` is between 0 and `u64::MAX`.
    pub(crate) fn next(&mut self, random: u64) -> Duration {
        let longest = MIN.saturating_mul(1 << self.failures.min(10)).min(MAX);
        self.failures = self.failures.saturating_add(1);
        // From a half to the whole. 32 bits are enough of the random number, and exact in f64.
        let part = f64::from(u32::try_from(random >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX);
        longest.mul_f64(0.5 + part / 2.0)
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_its_maximum_and_begins_again() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(u64::MAX), MIN);
        assert_eq!(backoff.next(0), MIN);
        for _ in 0..40 {
            backoff.next(0);
        }
        assert_eq!(backoff.next(u64::MAX), MAX);
        backoff.reset();
        assert_eq!(backoff.next(0), MIN / 2);
    }
}
