//! Whether the calls of a version are fast enough for threads that serve other requests as well.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Calls above this CPU time are slow.
const MAX_FAST: Duration = Duration::from_millis(1);
/// Calls above this CPU time are noticeable: several of them in a row are as long as a slow one.
const MAX_UNNOTICED: Duration = Duration::from_micros(250);
/// The time for which a version counts as slow after a slow call.
const MEMORY: Duration = Duration::from_secs(10);
/// Deadlines above this one are those of versions that may become slow without a warning.
pub(crate) const MAX_DEADLINE: Duration = Duration::from_millis(20);
/// First calls, after which a version is known well enough.
const FIRST_CALLS: u32 = 8;

/// The pace of a version. The counters are independent of each other, and a result that is late by
/// one call does no harm, so relaxed ordering suffices.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    calls: AtomicU32,
    /// In milliseconds of the version's clock.
    slow_until: AtomicU64,
    /// In milliseconds of the version's clock.
    noticeable_until: AtomicU64,
}

impl Pace {
    /// Counts a call that took this CPU time.
    pub(crate) fn record(&self, now: Duration, cpu_time: Duration) {
        if self.calls.load(Ordering::Relaxed) < FIRST_CALLS {
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
        self.record_part(now, cpu_time);
    }

    /// Records the time of a part of a call, such as the creation of an instance.
    pub(crate) fn record_part(&self, now: Duration, time: Duration) {
        if time > MAX_FAST {
            self.slow_until.store(millis(now + MEMORY), Ordering::Relaxed);
        }
        if time > MAX_UNNOTICED {
            self.noticeable_until.store(millis(now + MEMORY), Ordering::Relaxed);
        }
    }

    /// Returns whether the next call may be slow.
    pub(crate) fn may_be_slow(&self, now: Duration, deadline: Duration) -> bool {
        deadline > MAX_DEADLINE
            || self.calls.load(Ordering::Relaxed) < FIRST_CALLS
            || millis(now) < self.slow_until.load(Ordering::Relaxed)
    }

    /// Returns whether several calls like the latest ones in a row may be slow.
    pub(crate) fn is_noticeable(&self, now: Duration) -> bool {
        millis(now) < self.noticeable_until.load(Ordering::Relaxed)
    }
}

/// Converts to whole milliseconds, saturating at half a billion years.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_noticeable_until_they_get_faster() {
        let (pace, second) = (Pace::default(), Duration::from_secs(1));
        pace.record(second, MAX_UNNOTICED);
        assert!(!pace.is_noticeable(second));
        pace.record(second, MAX_UNNOTICED * 2);
        assert!(pace.is_noticeable(second) && !pace.is_noticeable(second + MEMORY));
    }

    #[test]
    fn version_is_fast_after_fast_calls_until_a_slow_one() {
        let pace = Pace::default();
        let (deadline, second) = (Duration::from_millis(5), Duration::from_secs(1));
        for _ in 0..FIRST_CALLS {
            assert!(pace.may_be_slow(second, deadline));
            pace.record(second, MAX_FAST);
        }
        assert!(!pace.may_be_slow(second, deadline));
        assert!(pace.may_be_slow(second, MAX_DEADLINE * 2));
        pace.record(second, MAX_FAST * 2);
        assert!(pace.may_be_slow(second, deadline));
        assert!(!pace.may_be_slow(second + MEMORY, deadline));
    }
}
