//! The parts of an engine's configuration that drivers share.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use pointsman_domain::dispatch::Backoff;

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CommandLine {
    /// Program and arguments; the placeholders `{port}`, `{host}` and `{lane}` are replaced.
    pub command: Vec<String>,
    /// Variables to add to the host's environment; placeholders are replaced in their values.
    pub env: Vec<(String, String)>,
}

/// How an engine frees its memory for other lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UnloadMode {
    /// The engine is stopped, and started again for the next load.
    #[default]
    Restart,
    /// The engine sleeps at level 1, with its weights in the host's memory.
    SleepLevel1,
    /// The engine sleeps at level 2, and reads its weights from the disk to wake up.
    SleepLevel2,
}

/// How the host runs an engine process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Working directory; the host's if `None`.
    pub directory: Option<PathBuf>,
    /// Port; if `None`, a free one is chosen at each start.
    pub port: Option<u16>,
    /// The engine is ready only if one of its own processes listens on the port. False for an
    /// engine in a container, whose processes are not the host's descendants.
    pub check_listener: bool,
    /// Maximum time from the start of the process until the engine is ready.
    pub start_timeout: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub stop_grace: Duration,
    /// Delays between starts after failures.
    pub backoff: Backoff,
}

/// Which lane of another host a lane is, and how many requests may wait there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerLaneSpec {
    /// The valid URL below which the paths of the host are.
    pub(crate) url: String,
    /// That host's key for this one.
    pub(crate) key: Option<Secret>,
    /// PEM of certificates to trust in addition to the system's.
    pub(crate) ca: Option<Vec<u8>>,
    /// The name of the lane there.
    pub(crate) lane: String,
    /// Maximum number of requests that wait there; `None` for as many as are served there.
    pub(crate) queue_there: Option<u32>,
}

impl PeerLaneSpec {
    /// Returns the maximum number of requests that are there at a time.
    pub(crate) fn slots(&self, slots_there: u32) -> u32 {
        // A lane without any slot could not be used.
        slots_there.saturating_add(self.queue_there.unwrap_or(slots_there)).max(1)
    }
}

/// The backoff of an external engine, which the host does not start.
pub(crate) const NO_BACK_OFF: Backoff = Backoff {
    first: Duration::ZERO,
    most: Duration::ZERO,
    reset_after: Duration::ZERO,
    max_failures: 0,
    retry_failed_after: Duration::ZERO,
};

/// A secret text, which debug output does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Returns the text, which must not be logged.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(format!("{:?}", Some(Secret::new("key".into()))), "Some(Secret(…))");
    }
}
