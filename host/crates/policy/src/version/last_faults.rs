//! The last failed calls of a version, for its author.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::Serialize;

use pointsman_spec::Hook;

use crate::version::call_error::CallError;

/// Maximum number of different faults that are kept.
const MAX_FAULTS: usize = 8;
/// Maximum length of a message without a report, in bytes; a longer one is cut.
const MAX_MESSAGE_BYTES: usize = 512;

/// Failed calls of a version with the same hook, kind, message and location.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultRecord {
    /// The time of the last of them, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The number of calls.
    pub count: u64,
    /// The hook.
    pub hook: &'static str,
    /// The kind of the error, as in the metrics; `error` if the policy returned it.
    pub kind: &'static str,
    /// The message.
    pub message: String,
    /// The source file, if the SDK of the policy reported it.
    pub file: Option<String>,
    /// The line in the file, from 1.
    pub line: Option<u32>,
    /// Frames of the stack, innermost first.
    pub stack: Vec<String>,
}

impl FaultRecord {
    fn new(hook: Hook, error: &CallError) -> Self {
        let report = error.report();
        let message = match report {
            Some(report) => report.message.clone(),
            None => cut(&error.to_string()),
        };
        Self {
            at_ms: 0,
            count: 1,
            hook: hook.name(),
            kind: error.kind(),
            message,
            file: report.and_then(|report| report.file.clone()),
            line: report.and_then(|report| report.line),
            stack: report.map(|report| report.stack.clone()).unwrap_or_default(),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        let key = |fault: &Self| (fault.hook, fault.kind, fault.line);
        key(self) == key(other) && self.message == other.message && self.file == other.file
    }
}

/// The last faults, each with the time of its last call by the clock of the version; the latest
/// first.
#[derive(Debug, Default)]
pub(crate) struct LastFaults(Mutex<VecDeque<(Duration, FaultRecord)>>);

impl LastFaults {
    /// Adds a failed call. Returns whether it differs from those that are kept.
    pub(crate) fn add(&self, now: Duration, hook: Hook, error: &CallError) -> bool {
        let mut fault = FaultRecord::new(hook, error);
        let mut faults = self.0.lock();
        let known = faults.iter().position(|(_, known)| known.is_same(&fault));
        if let Some((_, known)) = known.and_then(|index| faults.remove(index)) {
            // Saturates: a count is shown and never computed with.
            fault.count = known.count.saturating_add(1);
        }
        faults.push_front((now, fault));
        faults.truncate(MAX_FAULTS);
        known.is_none()
    }

    /// Returns the faults, the latest first. `now` is the time of the clock of the version.
    pub(crate) fn list(&self, now: Duration) -> Vec<FaultRecord> {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let faults = self.0.lock();
        let dated = faults.iter().map(|(at, fault)| {
            let age = now.saturating_sub(*at);
            let at = epoch.saturating_sub(age).as_millis();
            FaultRecord { at_ms: u64::try_from(at).unwrap_or(u64::MAX), ..fault.clone() }
        });
        dated.collect()
    }
}

/// Returns the beginning of a message. Control characters could drive the terminal that shows it.
fn cut(message: &str) -> String {
    let cut = pointsman_domain::char_slice(message, 0, MAX_MESSAGE_BYTES);
    cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::types::PolicyError;

    fn error(message: &str) -> CallError {
        CallError::Policy(PolicyError::Other(message.to_owned()))
    }

    #[test]
    fn equal_faults_are_counted_and_the_last_ones_kept() {
        let faults = LastFaults::default();
        let second = Duration::from_secs(1);
        assert!(faults.add(second, Hook::Request, &error("a")));
        assert!(faults.add(2 * second, Hook::Tick, &error("a")));
        assert!(!faults.add(3 * second, Hook::Request, &error("a")));
        let listed = faults.list(4 * second);
        let shown: Vec<_> = listed.iter().map(|fault| (fault.hook, fault.count)).collect();
        assert_eq!(shown, [("on-request", 2), ("on-tick", 1)]);
        assert_eq!(listed[0].at_ms - listed[1].at_ms, 1000);
        for index in 0..20 {
            faults.add(5 * second, Hook::Request, &error(&index.to_string()));
        }
        let listed = faults.list(5 * second);
        assert_eq!((listed.len(), listed[0].message.as_str()), (MAX_FAULTS, "19"));
        faults.add(6 * second, Hook::Request, &error(&"\u{1b}x".repeat(1000)));
        let message = &faults.list(6 * second)[0].message;
        assert!(message.len() <= MAX_MESSAGE_BYTES && !message.contains(char::is_control));
    }
}
