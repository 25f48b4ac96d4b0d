//! Log lines of a policy, collected for tools that show them to its author.

use parking_lot::Mutex;
use serde::Serialize;

/// Maximum number of collected lines; further lines are dropped.
const MAX_LINES: usize = 1000;

/// Prefix of the log lines in which instrumented code reports what it executed.
const MARK_PREFIX: &str = "pointsman-coverage ";
/// Maximum number of collected marks; further ones are dropped.
const MAX_MARKS: usize = 10_000;

/// A log line of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LogLine {
    /// The severity: `trace`, `debug`, `info`, `warn` or `error`.
    pub level: &'static str,
    /// The text, without control characters.
    pub message: String,
}

/// What a policy has logged.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogCapture {
    pub(crate) lines: Vec<LogLine>,
    /// What instrumented code reported of itself.
    pub(crate) marks: Vec<String>,
}

/// The first log lines of all instances of a version, in order.
#[derive(Debug, Default)]
pub(crate) struct CapturedLog {
    lines: Mutex<Vec<LogLine>>,
    marks: Mutex<Vec<String>>,
}

impl CapturedLog {
    /// Collects a report of instrumented code apart from the lines. Returns false if the message is
    /// something else.
    pub(crate) fn take_mark(&self, message: &str) -> bool {
        let Some(mark) = message.strip_prefix(MARK_PREFIX) else { return false };
        let mut marks = self.marks.lock();
        if marks.len() < MAX_MARKS {
            marks.push(mark.to_owned());
        }
        true
    }

    pub(crate) fn push(&self, level: &'static str, message: String) {
        let mut lines = self.lines.lock();
        if lines.len() < MAX_LINES {
            lines.push(LogLine { level, message });
        }
    }

    /// Returns the lines so far.
    pub(crate) fn lines(&self) -> Vec<LogLine> {
        self.lines.lock().clone()
    }

    /// Returns the lines and the reports of instrumented code so far.
    pub(crate) fn log_capture(&self) -> LogCapture {
        LogCapture { lines: self.lines(), marks: self.marks.lock().clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_bounded_and_apart_from_lines() {
        let log = CapturedLog::default();
        for number in 0..MAX_MARKS + 10 {
            assert!(log.take_mark(&format!("{MARK_PREFIX}{number}")));
        }
        for line in ["pointsman-coverage", "hello"] {
            assert!(!log.take_mark(line));
            log.push("info", line.to_owned());
        }
        let logged = log.log_capture();
        assert_eq!((logged.lines.len(), logged.marks.len()), (2, MAX_MARKS));
        assert_eq!((&*logged.marks[0], &*logged.marks[MAX_MARKS - 1]), ("0", "9999"));
    }
}
