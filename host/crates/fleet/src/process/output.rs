//! The output of an engine: forwarded to the host's log and to the reader of its load progress,
//! with the last lines kept for failure messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::Instant;

/// Number of lines kept for failure messages.
pub(super) const MAX_TAIL_LINES: usize = 20;
/// Maximum length of a line in bytes; longer lines are split.
pub(super) const MAX_LINE: usize = 4096;

/// An output stream of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The last lines of an engine's output. Clones share the same lines.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogTail(Arc<Mutex<VecDeque<String>>>);

impl LogTail {
    pub(super) fn push(&self, line: &str) {
        let mut lines = self.0.lock();
        if lines.len() == MAX_TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// Returns the last line; empty lines are never kept.
    #[cfg(test)]
    pub(crate) fn last(&self) -> Option<String> {
        self.0.lock().back().cloned()
    }

    /// Returns up to `count` last lines, oldest first.
    pub(crate) fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.0.lock();
        // Fewer lines than `count` may have been written.
        lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect()
    }
}

/// Bytes that are read at a time.
const CHUNK: usize = 8192;
/// Lines that an engine may write at once. vLLM writes some hundreds while it loads.
const BURST_LINES: f64 = 2000.0;
/// Lines per second that an engine may write all the time.
const LINES_PER_SECOND: f64 = 200.0;
/// Pause between reads of an engine that writes more, which is slowed down to about a megabyte per
/// second by this. Its output has to be read at some rate, or it would block.
const PAUSE: Duration = Duration::from_millis(8);
/// The interval between reports of lines that were left out.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Limits how many lines of an engine reach the log.
#[derive(Debug)]
struct LineBudget {
    left: f64,
    updated: Instant,
    /// Lines that were left out since the last report.
    lost: u64,
    reported: Instant,
}

impl LineBudget {
    fn new() -> Self {
        let now = Instant::now();
        Self { left: BURST_LINES, updated: now, lost: 0, reported: now }
    }

    /// Returns true if a line may be written.
    fn take(&mut self) -> bool {
        if self.left < 1.0 {
            let now = Instant::now();
            let earned = now.duration_since(self.updated).as_secs_f64() * LINES_PER_SECOND;
            (self.left, self.updated) = ((self.left + earned).min(BURST_LINES), now);
        }
        let may = self.left >= 1.0;
        self.left -= f64::from(u8::from(may));
        may
    }

    fn lose(&mut self, lines: u64) {
        if self.lost == 0 {
            self.reported = Instant::now();
        }
        self.lost += lines;
    }

    /// Reports the lines that were left out, at intervals or at the end.
    fn report(&mut self, lane: &str, stream: &str, is_end: bool) {
        if self.lost > 0 && (is_end || self.reported.elapsed() >= REPORT_INTERVAL) {
            let lines = std::mem::take(&mut self.lost);
            tracing::warn!(
                event = "engine_output_dropped",
                lane,
                stream,
                lines,
                "engine writes too much; left lines of its output out"
            );
            self.reported = Instant::now();
        }
    }
}

/// Forwards the lines of an engine's output stream to the log, until the stream ends. A carriage
/// return ends a line too, as in progress bars. Of an engine that writes too much, lines are left
/// out, counted and reported; the last ones are kept in `tail` nevertheless.
pub(super) async fn read_lines(
    lane: String,
    stream: Stream,
    mut pipe: impl AsyncRead + Unpin,
    tail: LogTail,
    on_line: impl Fn(&str),
) {
    let stream = stream.name();
    let mut chunk = vec![0; CHUNK];
    let mut line: Vec<u8> = Vec::new();
    let mut budget = LineBudget::new();
    let emit = |line: &mut Vec<u8>, is_progress_bar: bool| {
        let text = sanitize(&String::from_utf8_lossy(line));
        if !text.is_empty() {
            // A progress bar is redrawn dozens of times.
            match is_progress_bar {
                true => tracing::debug!(target: "engine", lane, stream, "{text}"),
                false => tracing::info!(target: "engine", lane, stream, "{text}"),
            }
            tail.push(&text);
            on_line(&text);
        }
        line.clear();
    };
    while let Ok(count) = pipe.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        let mut left_out = None;
        for (at, byte) in chunk[..count].iter().enumerate() {
            let is_end = matches!(byte, b'\n' | b'\r');
            if is_end || line.len() == MAX_LINE {
                if !budget.take() {
                    left_out = Some(&chunk[at..count]);
                    break;
                }
                emit(&mut line, *byte == b'\r');
            }
            if !is_end {
                line.push(*byte);
            }
        }
        if let Some(rest) = left_out {
            leave_out(rest, &mut line, &mut budget, &tail);
            budget.report(&lane, stream, false);
            tokio::time::sleep(PAUSE).await;
        }
    }
    emit(&mut line, false);
    budget.report(&lane, stream, true);
}

/// Leaves out the lines that end in `rest`. The first of them begins in `line`, which afterwards
/// has the beginning of the next one.
fn leave_out(rest: &[u8], line: &mut Vec<u8>, budget: &mut LineBudget, tail: &LogTail) {
    let is_end = |byte: &u8| matches!(byte, b'\n' | b'\r');
    let ends = rest.iter().filter(|byte| is_end(byte)).count();
    budget.lose(u64::try_from(ends).unwrap_or(u64::MAX).max(1));
    let begin = rest.iter().rposition(is_end).map_or(rest.len(), |end| end + 1);
    let lost = String::from_utf8_lossy(&rest[..begin]);
    for text in lost.lines().rev().take(MAX_TAIL_LINES).collect::<Vec<&str>>().iter().rev() {
        let text = sanitize(text);
        if !text.is_empty() {
            tail.push(&text);
        }
    }
    line.clear();
    line.extend_from_slice(&rest[begin..]);
}

/// Removes what would control a terminal from a line: strips colours and cursor movements
/// (`ESC [ … letter`), and replaces other control characters with spaces.
fn sanitize(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line.chars().peekable();
    while let Some(next) = rest.next() {
        if next == '\u{1b}' && rest.next_if_eq(&'[').is_some() {
            // Parameters, then one final byte from @ to ~ (ECMA-48, section 5.4).
            for parameter in rest.by_ref() {
                if ('@'..='~').contains(&parameter) {
                    break;
                }
            }
        } else {
            text.push(if next.is_control() && next != '\t' { ' ' } else { next });
        }
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sanitize_strips_escape_sequences_and_replaces_control_characters() {
        assert_eq!(sanitize("\u{1b}[1;32mINFO\u{1b}[0m a\tb\u{7}c \u{1b}]"), "INFO a\tb c  ]");
        assert_eq!(sanitize("\u{1b}["), "");
        assert_eq!(sanitize("  two   \u{0}"), "  two");
    }

    /// Reads this output, and returns the number of lines that were passed on, and the tail.
    async fn read(output: Vec<u8>) -> (usize, LogTail, Duration) {
        let begun = Instant::now();
        let (tail, lines) = (LogTail::default(), std::sync::atomic::AtomicUsize::new(0));
        let count = |_: &str| {
            lines.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        };
        read_lines("a".to_owned(), Stream::Stdout, &output[..], tail.clone(), count).await;
        (lines.into_inner(), tail, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn flood_of_lines_is_limited() {
        let mut flood = b"y\n".repeat(1_000_000);
        flood.extend_from_slice(b"error: the cause\nlast line");
        let (passed, tail, took) = read(flood).await;
        let allowed = BURST_LINES + LINES_PER_SECOND * took.as_secs_f64();
        assert!(passed as f64 <= allowed + 2.0, "{passed} lines in {took:?}");
        assert!(passed >= BURST_LINES as usize);
        // The rate of reading: about a megabyte per second.
        assert!(took >= Duration::from_secs(1), "{took:?}");
        assert_eq!(tail.tail(2), ["error: the cause", "last line"]);
    }

    #[tokio::test(start_paused = true)]
    async fn usual_output_is_passed_on_completely() {
        let (passed, tail, took) = read(b"line\n".repeat(1500)).await;
        assert_eq!((passed, tail.last().as_deref(), took), (1500, Some("line"), Duration::ZERO));
    }
}
