//! The last lines of the engines' output, for operators. They outlive the engine that wrote them,
//! and are limited in number and size.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::failures::without_secrets;

/// Maximum number of lines kept of a lane.
const MAX_LINES: usize = 1000;
/// Maximum size of the lines kept of a lane, in bytes.
const MAX_BYTES: usize = 64 << 10;

/// A line of an engine's output, without secrets and without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineLogLine {
    /// Number of the line since the host started; consecutive for a lane.
    pub number: u64,
    /// When the engine wrote the line.
    pub time: SystemTime,
    /// The line.
    pub text: Arc<str>,
}

/// The last lines of the engines of one lane. Clones share the lines.
#[derive(Debug, Clone)]
pub struct EngineLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    kept: Mutex<Kept>,
    /// The number of lines so far.
    written: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<EngineLogLine>,
    bytes: usize,
    written: u64,
}

impl Default for EngineLog {
    fn default() -> Self {
        Self(Arc::new(Shared { kept: Mutex::default(), written: watch::channel(0).0 }))
    }
}

impl EngineLog {
    /// Adds a line, and forgets the oldest ones beyond the limits.
    pub(crate) fn push(&self, line: &str) {
        let text: Arc<str> = without_secrets(line).into();
        let mut kept = self.0.kept.lock();
        kept.written += 1;
        kept.bytes += text.len();
        let line = EngineLogLine { number: kept.written, time: SystemTime::now(), text };
        kept.lines.push_back(line);
        while kept.lines.len() > MAX_LINES || kept.bytes > MAX_BYTES {
            let Some(oldest) = kept.lines.pop_front() else { break };
            kept.bytes -= oldest.text.len();
        }
        // Within the lock, so that the numbers only rise.
        self.0.written.send_replace(kept.written);
    }

    /// Returns up to `count` last lines, oldest first.
    pub fn last(&self, count: usize) -> Vec<EngineLogLine> {
        let kept = self.0.kept.lock();
        // Fewer lines than `count` may be kept.
        kept.lines.iter().skip(kept.lines.len().saturating_sub(count)).cloned().collect()
    }

    /// Waits for lines after the one with this number, and returns those that are kept, oldest
    /// first; none once the lane has been removed.
    pub async fn after(&self, number: u64) -> Vec<EngineLogLine> {
        let mut written = self.0.written.subscribe();
        // Never fails: the sender lives as long as this log.
        written.wait_for(|written| *written > number).await.ok();
        let kept = self.0.kept.lock();
        kept.lines.iter().filter(|line| line.number > number).cloned().collect()
    }
}

/// The logs of all lanes, by name. Clones share the logs.
#[derive(Debug, Clone, Default)]
pub(crate) struct EngineLogs(Arc<Mutex<BTreeMap<String, EngineLog>>>);

impl EngineLogs {
    /// Returns the log of a lane; a new one if the lane had none.
    pub(crate) fn get(&self, lane: &str) -> EngineLog {
        let mut logs = self.0.lock();
        if let Some(log) = logs.get(lane) {
            return log.clone();
        }
        logs.entry(lane.to_owned()).or_default().clone()
    }

    /// Forgets the log of a lane that has been removed.
    pub(crate) fn remove(&self, lane: &str) {
        if let Some(log) = self.0.lock().remove(lane) {
            // Ends the waits of its readers.
            log.0.written.send_replace(u64::MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: &[EngineLogLine]) -> Vec<&str> {
        lines.iter().map(|line| &*line.text).collect()
    }

    #[tokio::test]
    async fn lines_are_limited_and_followed() {
        let logs = EngineLogs::default();
        let log = logs.get("a");
        (1..=MAX_LINES + 5).for_each(|number| log.push(&number.to_string()));
        let all = log.last(usize::MAX);
        assert_eq!((all.len(), &*all[0].text, all[0].number), (MAX_LINES, "6", 6));
        assert_eq!(texts(&log.last(2)), ["1004", "1005"]);
        let last = all.last().unwrap().number;
        assert_eq!(texts(&log.after(last - 1).await), ["1005"]);
        let (after, ()) = tokio::join!(log.after(last), async { log.push("next") });
        assert_eq!(texts(&after), ["next"]);
        logs.remove("a");
        assert!(log.after(last + 1).await.is_empty());
    }

    #[test]
    fn size_is_limited_and_secrets_are_hidden() {
        let log = EngineLog::default();
        (0..200).for_each(|_| log.push(&"x".repeat(4096)));
        assert_eq!(log.last(usize::MAX).len(), MAX_BYTES / 4096);
        log.push("key hf_abcdefghijklmnopqrstuvwxyz");
        assert_eq!(texts(&log.last(1)), ["key ***"]);
    }
}
