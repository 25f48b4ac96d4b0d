//! Whether the store is available, for metrics and the log.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The store counts as unavailable if no round has succeeded for this time.
const DOWN_AFTER_MS: u64 = 1_000;

/// The state of a replicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// A round has succeeded within the last second.
    pub is_up: bool,
    /// Time since the last round that succeeded, or since the start.
    pub age: Duration,
    /// Duration of the last round that succeeded.
    pub round_trip: Duration,
    /// Number of rounds that succeeded.
    pub rounds: u64,
    /// Number of rounds and attempts to connect that failed.
    pub failures: u64,
    /// Number of entries with changes that the store has not confirmed.
    pub pending: usize,
    /// Number of changed entries that were given up, because there were too many.
    pub dropped: u64,
    /// Since when the store has been available, or unavailable; `None` until one of both is known.
    pub since: Option<SystemTime>,
    /// Number of processes that use the store with the same prefix, as far as is known; `None`
    /// until the store has told it.
    pub replicas: Option<u32>,
}

/// What the thread notes.
#[derive(Debug, Default)]
pub(crate) struct StatusCell {
    last_success: AtomicU64,
    round_trip_us: AtomicU64,
    rounds: AtomicU64,
    failures: AtomicU64,
    is_up: AtomicBool,
    is_known: AtomicBool,
    /// When the store has become available or unavailable, in milliseconds since 1970; 0 before.
    changed: AtomicU64,
    /// Zero until it is known: this process is one of them.
    replicas: AtomicU32,
}

/// What is to be logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Up,
    Down,
}

impl StatusCell {
    /// Notes a round that succeeded. `now` is in milliseconds since the start.
    pub(crate) fn succeeded(&self, now: u64, took: Duration) -> Option<Change> {
        self.last_success.store(now, Ordering::Relaxed);
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.round_trip_us.store(took, Ordering::Relaxed);
        self.rounds.fetch_add(1, Ordering::Relaxed);
        self.is_known.store(true, Ordering::Relaxed);
        let was_up = self.is_up.swap(true, Ordering::Relaxed);
        (!was_up).then(|| self.changed(Change::Up))
    }

    /// Notes a failure; the store is down if there was no success for a while.
    pub(crate) fn failed(&self, now: u64) -> Option<Change> {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let age = now.saturating_sub(self.last_success.load(Ordering::Relaxed));
        if age < DOWN_AFTER_MS {
            return None;
        }
        let was_up = self.is_up.swap(false, Ordering::Relaxed);
        let is_first = !self.is_known.swap(true, Ordering::Relaxed);
        (was_up || is_first).then(|| self.changed(Change::Down))
    }

    /// Notes the time of a change.
    fn changed(&self, change: Change) -> Change {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.changed.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        change
    }

    /// Notes how many processes use the store.
    pub(crate) fn counted_replicas(&self, replicas: u32) {
        self.replicas.store(replicas, Ordering::Relaxed);
    }

    pub(crate) fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    pub(crate) fn status(&self, now: u64, pending: usize, dropped: u64) -> Status {
        let age = now.saturating_sub(self.last_success.load(Ordering::Relaxed));
        let changed = self.changed.load(Ordering::Relaxed);
        Status {
            is_up: self.is_up.load(Ordering::Relaxed) && age < DOWN_AFTER_MS + DOWN_AFTER_MS,
            age: Duration::from_millis(age),
            round_trip: Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed)),
            rounds: self.rounds(),
            failures: self.failures.load(Ordering::Relaxed),
            pending,
            dropped,
            since: (changed > 0).then_some(UNIX_EPOCH + Duration::from_millis(changed)),
            replicas: Some(self.replicas.load(Ordering::Relaxed)).filter(|replicas| *replicas > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_for_each_change() {
        let (cell, took) = (StatusCell::default(), Duration::from_millis(1));
        assert_eq!(cell.status(400, 0, 0).since, None);
        assert_eq!((cell.failed(500), cell.failed(1_500)), (None, Some(Change::Down)));
        let down_since = cell.status(2_500, 0, 0).since;
        assert!(down_since.is_some_and(|since| since <= SystemTime::now()), "{down_since:?}");
        assert_eq!(cell.failed(2_500), None);
        assert!(!cell.status(2_500, 0, 0).is_up);
        assert_eq!(cell.succeeded(3_000, took), Some(Change::Up));
        assert_eq!((cell.succeeded(3_050, took), cell.failed(3_100)), (None, None));
        assert!(cell.status(3_100, 0, 0).is_up);
        assert_eq!((cell.failed(4_100), cell.failed(4_200)), (Some(Change::Down), None));
    }
}
