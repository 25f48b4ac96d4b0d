//! This process, as one of those that share the store.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::stamp::StampClock;
use crate::usage::Now;

/// The identity and the clocks of a process. A process that is started again is another replica.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) id: u64,
    pub(crate) stamps: StampClock,
    next_name: AtomicU64,
    started: Instant,
}

impl Replica {
    pub(crate) fn new() -> Self {
        Self::with_id(random())
    }

    pub(crate) fn with_id(id: u64) -> Self {
        Self {
            id,
            stamps: StampClock::new(id),
            next_name: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    pub(crate) fn now(&self) -> Now {
        let ms =
            |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { mono: ms(self.started.elapsed()), wall: ms(wall) }
    }

    /// Returns a name that no replica has ever used.
    pub(crate) fn unique_name(&self) -> Arc<str> {
        let number = self.next_name.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}.{number:x}", self.id).into()
    }
}

/// Returns a random number, which differs between processes.
pub(crate) fn random() -> u64 {
    RandomState::new().hash_one(0)
}
