//! Problems of policies.

use std::time::{SystemTime, UNIX_EPOCH};

/// The latest problem of a policy: a version that was not loaded, or that was rolled back.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub(crate) struct PolicyProblem {
    code: &'static str,
    message: String,
    since: SystemTime,
}

impl PolicyProblem {
    pub(crate) fn new(code: &'static str, message: String) -> Self {
        Self { code, message, since: SystemTime::now() }
    }

    /// The problem of a policy whose problem is not known, which cannot happen without an active
    /// version.
    pub(crate) fn unknown() -> Self {
        Self::new("unavailable", "no active version".to_owned())
    }

    pub(crate) fn code(&self) -> &'static str {
        self.code
    }

    /// Returns the time of the problem in milliseconds since the Unix epoch; a clock before 1970
    /// shows as zero.
    pub(crate) fn since_ms(&self) -> u64 {
        let since = self.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
