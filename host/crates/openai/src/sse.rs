//! Observing a stream of server-sent events while it is forwarded.
//!
//! Bytes are forwarded as they arrive, independent of chunk boundaries; the observer parses
//! complete lines as they pass. The observer interferes in one case: when vLLM's core dies, vLLM
//! sends an error event *and then* `[DONE]` (observed with 0.32.0). Whatever follows an error event
//! is held back, so that a broken stream never looks complete.
//!
//! ```text
//!             data: {…}                 data: [DONE]
//!   open ───────────────> open ────────────────────────> done
//!     │ data: {"error":…}
//!     └───────────> failed ──blank line──> muted: nothing is forwarded
//! ```

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memchr;
use memchr::memmem::Finder;
use serde::Deserialize;

use crate::usage::{self, Usage};

/// Maximum length of a line that is parsed; longer lines are forwarded without being parsed.
const MAX_LINE_BYTES: usize = 1 << 20;

/// How a stream ended, as observed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// With `[DONE]`, or at least with a `finish_reason`.
    Complete,
    /// With an error event.
    Failed,
    /// With neither; the stream broke off.
    Unfinished {
        /// True if the stream ended within an event, so that anything sent next would become part
        /// of that event.
        mid_frame: bool,
    },
}

/// The observer of one stream.
#[derive(Debug, Default)]
pub struct StreamWatch {
    /// Start of an incomplete line, carried over from earlier chunks.
    partial: Vec<u8>,
    /// True if the last line is incomplete.
    mid_line: bool,
    /// True if the last event is not yet terminated by a blank line.
    mid_frame: bool,
    done: bool,
    finished: bool,
    failed: bool,
    muted: bool,
    events: u64,
    usage: Option<Usage>,
}

impl StreamWatch {
    /// Observes a chunk and returns the part to forward: all of it, except what follows an error
    /// event.
    pub fn chunk(&mut self, chunk: Bytes) -> Bytes {
        if self.muted {
            return Bytes::new();
        }
        let mut rest: &[u8] = &chunk;
        while let Some(end) = memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end + 1);
            rest = after;
            if self.partial.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole);
            }
            self.mid_line = false;
            if self.failed && !self.mid_frame {
                self.muted = true;
                return chunk.slice(..chunk.len() - rest.len());
            }
        }
        if !rest.is_empty() {
            self.mid_line = true;
            // Beyond the limit the line is incomplete in `partial`, so it does not parse and is
            // ignored.
            if self.partial.len() + rest.len() <= MAX_LINE_BYTES {
                self.partial.extend_from_slice(rest);
            }
        }
        chunk
    }

    /// Returns how the stream ended, if it ends here.
    pub fn end(&self) -> StreamEnd {
        if self.failed {
            StreamEnd::Failed
        } else if self.done || (self.finished && !self.mid_line) {
            StreamEnd::Complete
        } else {
            StreamEnd::Unfinished { mid_frame: self.mid_frame || self.mid_line }
        }
    }

    /// Returns the number of events with data so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Returns the last `usage` that was observed.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Observes one complete line, including its line ending.
    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        if line.is_empty() {
            self.mid_frame = false;
            return;
        }
        self.mid_frame = true;
        let Some(data) = line.strip_prefix(b"data:") else { return };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        self.events += 1;
        static FINISH: LazyLock<Finder<'static>> =
            LazyLock::new(|| Finder::new(b"\"finish_reason\":"));
        static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\":"));
        if let Some(at) = FINISH.find(data) {
            self.finished |=
                data[at + FINISH.needle().len()..].trim_ascii_start().starts_with(b"\"");
        }
        // If usage is requested, vLLM sends `"usage":null` in every chunk but the last.
        if usage::is_in(data) || ERROR.find(data).is_some() {
            self.parse_event(data);
        }
    }

    /// Parses an event that contains one of the keys, which may also belong to a nested object.
    fn parse_event(&mut self, data: &[u8]) {
        #[derive(Deserialize)]
        struct Event {
            #[serde(default)]
            error: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            usage: Option<Usage>,
        }
        if let Ok(event) = serde_json::from_slice::<Event>(data) {
            self.failed |= event.error.is_some();
            self.usage = event.usage.or(self.usage);
        }
    }
}

#[cfg(test)]
mod tests;
