//! Log lines of a policy, collected for tools that show them to its author.

use parking_lot::Mutex;
use serde::Serialize;

/// Maximum number of collected lines; further lines are dropped.
const MAX_LINES: usize = 1000;

/// A log line of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// The severity: `trace`, `debug`, `info`, `warn` or `error`.
    pub level: &'static str,
    /// The text, without control characters.
    pub message: String,
}

/// The first log lines of all instances of a version, in order.
#[derive(Debug, Default)]
pub(crate) struct CapturedLog(Mutex<Vec<LogLine>>);

impl CapturedLog {
    pub(crate) fn push(&self, level: &'static str, message: String) {
        let mut lines = self.0.lock();
        if lines.len() < MAX_LINES {
            lines.push(LogLine { level, message });
        }
    }

    /// Returns the lines so far.
    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.0.lock().clone()
    }
}
