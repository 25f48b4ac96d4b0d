//! Hybrid timestamps: the order of writes of several replicas.

use std::sync::atomic::{AtomicU64, Ordering};

/// The time of a write, which is unique: milliseconds since 1970, and the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp {
    pub(crate) ms: u64,
    pub(crate) replica: u64,
}

impl Stamp {
    /// Length of the text, whose order is that of the stamps.
    pub(crate) const LEN: usize = 32;

    pub(crate) fn to_text(self) -> String {
        format!("{:016x}{:016x}", self.ms, self.replica)
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok().filter(|text| text.len() == Self::LEN)?;
        let number = |part: &str| u64::from_str_radix(part, 16).ok();
        Some(Self { ms: number(text.get(..16)?)?, replica: number(text.get(16..)?)? })
    }
}

/// The clock of a replica, which is never behind a stamp that it has made or seen.
#[derive(Debug)]
pub(crate) struct StampClock {
    replica: u64,
    last_ms: AtomicU64,
}

impl StampClock {
    pub(crate) fn new(replica: u64) -> Self {
        Self { replica, last_ms: AtomicU64::new(0) }
    }

    /// Returns the stamp of a write now.
    pub(crate) fn next(&self, wall_ms: u64) -> Stamp {
        let later = |last: u64| Some(wall_ms.max(last.saturating_add(1)));
        // The function always returns a value, so that both results are the previous one.
        let last = self
            .last_ms
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, later)
            .unwrap_or_else(|last| last);
        Stamp { ms: wall_ms.max(last.saturating_add(1)), replica: self.replica }
    }

    /// Takes a stamp of another replica into account.
    pub(crate) fn observe(&self, stamp: Stamp) {
        self.last_ms.fetch_max(stamp.ms, Ordering::Relaxed);
    }
}
