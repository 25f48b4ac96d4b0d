//! Points in time, as the caller gives them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A point in time, on two clocks: limits per minute use one that is never set, and the periods of
/// budgets use that of the calendar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moment {
    /// Time since the start of the process.
    pub running: Duration,
    /// Milliseconds since 1970, in UTC.
    pub unix_ms: u64,
}

impl Moment {
    /// Returns the moment on the clocks of this machine; `running` is the time since the start.
    pub fn now(running: Duration) -> Self {
        // A clock before 1970 gives 0.
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { running, unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX) }
    }
}
