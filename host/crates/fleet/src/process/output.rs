//! The output of an engine: forwarded to the host's log and to the reader of its load progress,
//! with the last lines kept for failure messages.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt};

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

/// Forwards the lines of an engine's output stream to the log, until the stream ends. A carriage
/// return ends a line too, as in progress bars.
pub(super) async fn read_lines(
    lane: String,
    stream: Stream,
    mut pipe: impl AsyncRead + Unpin,
    tail: LogTail,
    on_line: impl Fn(&str),
) {
    let stream = stream.name();
    let mut chunk = vec![0; 8192];
    let mut line: Vec<u8> = Vec::new();
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
        for byte in &chunk[..count] {
            if matches!(byte, b'\n' | b'\r') || line.len() == MAX_LINE {
                emit(&mut line, *byte == b'\r');
            }
            if !matches!(byte, b'\n' | b'\r') {
                line.push(*byte);
            }
        }
    }
    emit(&mut line, false);
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
}
