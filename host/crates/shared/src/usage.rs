//! When an entry is refreshed: often while it is in use, and rarely after that.

/// An entry that was used within this time is refreshed in each round.
const HOT_MS: u64 = 1_000;
/// An entry that was used within this time is refreshed once a second, and then no more until it is
/// used again.
const WARM_MS: u64 = 60_000;
/// How often an entry is refreshed that is not in use.
const WARM_INTERVAL_MS: u64 = 1_000;

/// The time of this host: monotonic, and since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// Milliseconds since the replicator was started.
    pub(crate) mono: u64,
    /// Milliseconds since 1970.
    pub(crate) wall: u64,
}

/// When an entry was used and refreshed.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    touched: u64,
    /// When the store was last asked; `None` if it never was.
    asked: Option<u64>,
    /// The entry is in the list of those that may have to be refreshed.
    pub(crate) is_listed: bool,
}

impl Usage {
    pub(crate) fn touch(&mut self, now: Now) {
        self.touched = now.mono;
    }

    pub(crate) fn touched(&self) -> u64 {
        self.touched
    }

    /// Notes that the store is asked, if it is time for that.
    pub(crate) fn take_due(&mut self, now: Now) -> bool {
        let is_hot = now.mono.saturating_sub(self.touched) < HOT_MS;
        let is_due = self.asked.is_none_or(|asked| now.mono >= asked + WARM_INTERVAL_MS);
        let is_due = is_hot || is_due;
        if is_due {
            self.asked = Some(now.mono);
        }
        is_due
    }

    /// Returns true while the entry is refreshed without being used.
    pub(crate) fn is_warm(&self, now: Now) -> bool {
        self.asked.is_none() || now.mono.saturating_sub(self.touched) < WARM_MS
    }
}
