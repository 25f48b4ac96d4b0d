//! What the path of a call takes for the time: that of the machine, or one that somebody moves on.
//!
//! Nothing that decides what becomes of a call may look at any other clock. That is what lets a chain run in virtual time: its
//! breakers, its limits and the entries of its state follow whoever owns the clock, and the same inputs give the same outputs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A clock. Its copies show the same time.
#[derive(Debug, Clone)]
pub(crate) enum Clock {
    /// Time since it was made.
    Wall(Instant),
    /// Microseconds, moved on by [`Clock::set`].
    Virtual(Arc<AtomicU64>),
}

impl Clock {
    /// One that goes by itself.
    pub(crate) fn wall() -> Self {
        Self::Wall(Instant::now())
    }

    /// One that stands still at zero.
    pub(crate) fn standing() -> Self {
        Self::Virtual(Arc::default())
    }

    pub(crate) fn now(&self) -> Duration {
        match self {
            Self::Wall(begun) => begun.elapsed(),
            Self::Virtual(micros) => Duration::from_micros(micros.load(Ordering::Relaxed)),
        }
    }

    /// Move a clock on that does not go by itself. It never goes back.
    pub(crate) fn set(&self, now: Duration) {
        if let Self::Virtual(micros) = self {
            let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
            micros.fetch_max(now, Ordering::Relaxed);
        }
    }

    /// Does whoever owns it have the time in hand?
    pub(crate) fn is_virtual(&self) -> bool {
        matches!(self, Self::Virtual(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_clock_goes_on_when_it_is_moved_and_never_back() {
        let clock = Clock::standing();
        let copy = clock.clone();
        assert_eq!(copy.now(), Duration::ZERO);
        clock.set(Duration::from_micros(1500));
        clock.set(Duration::from_micros(700));
        assert_eq!(copy.now(), Duration::from_micros(1500));
        clock.set(Duration::MAX);
        assert_eq!(copy.now(), Duration::from_micros(u64::MAX));
    }

    #[test]
    fn a_clock_on_the_wall_cannot_be_moved() {
        let clock = Clock::wall();
        clock.set(Duration::from_secs(3600));
        assert!(clock.now() < Duration::from_secs(3600));
    }
}
