//! The clock of policy calls: the monotonic clock of the machine, or a virtual one.
//!
//! Code that affects the result of a call must not use any other clock. This is what lets a chain
//! run in virtual time: its breakers, its rate limits and the entries of its state follow the owner
//! of the clock, and the same inputs give the same outputs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A clock. Clones share the same time.
#[derive(Debug, Clone)]
pub(crate) enum Clock {
    /// Real time, relative to this instant.
    Wall(Instant),
    /// Virtual time in microseconds, advanced by [`Clock::set`].
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    /// Creates a clock of real time that starts at zero.
    pub(crate) fn wall() -> Self {
        Self::Wall(Instant::now())
    }

    /// Creates a virtual clock at zero.
    pub(crate) fn manual() -> Self {
        Self::Virtual(Arc::default())
    }

    pub(crate) fn now(&self) -> Duration {
        match self {
            Self::Wall(start) => start.elapsed(),
            Self::Virtual(micros) => Duration::from_micros(micros.load(Ordering::Relaxed)),
        }
    }

    /// Advances a virtual clock to `now`; an earlier time, and a clock of real time, stay as they
    /// are.
    pub(crate) fn set(&self, now: Duration) {
        if let Self::Virtual(micros) = self {
            // Saturates after 584,000 years.
            let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
            micros.fetch_max(now, Ordering::Relaxed);
        }
    }

    /// Returns whether this is a virtual clock.
    pub(crate) fn is_virtual(&self) -> bool {
        matches!(self, Self::Virtual(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_clock_only_advances() {
        let clock = Clock::manual();
        let copy = clock.clone();
        assert_eq!(copy.now(), Duration::ZERO);
        clock.set(Duration::from_micros(1500));
        clock.set(Duration::from_micros(700));
        assert_eq!(copy.now(), Duration::from_micros(1500));
        clock.set(Duration::MAX);
        assert_eq!(copy.now(), Duration::from_micros(u64::MAX));
    }

    #[test]
    fn wall_clock_cannot_be_set() {
        let clock = Clock::wall();
        clock.set(Duration::from_secs(3600));
        assert!(clock.now() < Duration::from_secs(3600));
    }
}
