//! Namespaces, and their limits.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::StoreError;

/// A namespace of the store, and its limits. The oldest entries are removed for new ones.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Name of the table in the file.
    pub name: &'static str,
    /// Maximum number of entries.
    pub max_entries: usize,
    /// Maximum number of bytes of all keys and values.
    pub max_bytes: u64,
    /// Maximum number of bytes of the keys and values of one owner.
    pub max_owner_bytes: u64,
    /// Maximum length of a value in bytes.
    pub max_value: usize,
    /// Maximum age of an entry.
    pub max_age: Duration,
}

/// A loss of writes, for the log.
#[derive(Debug)]
pub struct Loss<'a> {
    /// Number of writes that are lost.
    pub writes: u64,
    /// The cause.
    pub error: &'a StoreError,
}

/// How a store is opened.
pub struct Options {
    /// The file; `None` to keep everything in memory.
    pub path: Option<PathBuf>,
    /// The namespaces.
    pub namespaces: Vec<Namespace>,
    /// Is called for every transaction that is lost, on the thread that writes.
    pub on_loss: Box<dyn Fn(Loss<'_>) + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("path", &self.path)
            .field("namespaces", &self.namespaces)
            .finish_non_exhaustive()
    }
}

/// Returns the milliseconds since 1970; 0 with a clock before that.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
