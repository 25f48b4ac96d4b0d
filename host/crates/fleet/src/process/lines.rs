//! What an engine writes: into our log, to whoever reads its progress, and the last of it kept.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

/// How many of an engine's last lines are kept for messages about its failure.
pub(super) const LAST_LINES: usize = 20;
/// Longest line kept whole, in bytes; longer ones are cut into pieces.
pub(super) const LONGEST_LINE: usize = 4096;

/// The last lines that an engine wrote.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    pub(super) fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// The last line that says something.
    #[cfg(test)]
    pub(crate) fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).back().cloned()
    }

    /// The last `count` lines, oldest first; there may be fewer.
    pub(crate) fn tail(&self, count: usize) -> Vec<String> {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect()
    }
}

/// Carry an engine's lines into our log. Progress bars end their lines with a carriage return.
pub(super) async fn read_lines(
    lane: String,
    mut pipe: impl AsyncRead + Unpin,
    lines: LastLines,
    on_line: impl Fn(&str),
) {
    let mut chunk = vec![0; 8192];
    let mut line: Vec<u8> = Vec::new();
    let emit = |line: &mut Vec<u8>, is_bar: bool| {
        let shown = clean(&String::from_utf8_lossy(line));
        if !shown.is_empty() {
            // A progress bar writes itself anew dozens of times.
            match is_bar {
                true => tracing::debug!(target: "engine", lane, "{shown}"),
                false => tracing::info!(target: "engine", lane, "{shown}"),
            }
            lines.push(&shown);
            on_line(&shown);
        }
        line.clear();
    };
    while let Ok(count) = pipe.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        for byte in &chunk[..count] {
            if matches!(byte, b'\n' | b'\r') || line.len() == LONGEST_LINE {
                emit(&mut line, *byte == b'\r');
            }
            if !matches!(byte, b'\n' | b'\r') {
                line.push(*byte);
            }
        }
    }
    emit(&mut line, false);
}

/// A line without what would steer a terminal: colours and cursor movements (`ESC [ … letter`) go, other control characters
/// become blanks.
fn clean(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
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
            shown.push(if next.is_control() && next != '\t' { ' ' } else { next });
        }
    }
    shown.truncate(shown.trim_end().len());
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_go_and_other_control_characters_become_blanks() {
        assert_eq!(clean("\u{1b}[1;32mINFO\u{1b}[0m a\tb\u{7}c \u{1b}]"), "INFO a\tb c  ]");
        assert_eq!(clean("\u{1b}["), "");
        assert_eq!(clean("  two   \u{0}"), "  two");
    }
}
