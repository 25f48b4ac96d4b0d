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

use std::borrow::Cow;
use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memchr;
use memchr::memmem::Finder;
use serde::Deserialize;

use crate::endpoint::StreamKind;
use crate::usage::{self, Timings, Usage};

/// Maximum length of a line that is parsed; longer lines are forwarded without being parsed.
const MAX_LINE_BYTES: usize = 1 << 20;

/// How a stream ended, as observed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// With `[DONE]`, or at least with a `finish_reason` or the event that has the whole response.
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
    kind: StreamKind,
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

/// The types of events that end a stream of the kind [`StreamKind::Events`].
const RESPONSE_COMPLETED: &str = "response.completed";
const RESPONSE_INCOMPLETE: &str = "response.incomplete";
const RESPONSE_FAILED: &str = "response.failed";
const ERROR_EVENT: &str = "error";

impl StreamWatch {
    /// Creates the observer of a stream of this kind.
    pub fn new(kind: StreamKind) -> Self {
        Self { kind, ..Self::default() }
    }

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
        match self.kind {
            StreamKind::Chunks => self.chunk_event(data),
            StreamKind::Events => self.typed_event(data),
        }
    }

    /// Observes the data of an event of the kind [`StreamKind::Chunks`].
    fn chunk_event(&mut self, data: &[u8]) {
        static FINISH: LazyLock<Finder<'static>> =
            LazyLock::new(|| Finder::new(b"\"finish_reason\":"));
        static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\":"));
        let finishes = FINISH.find(data).is_some_and(|at| {
            data[at + FINISH.needle().len()..].trim_ascii_start().starts_with(b"\"")
        });
        self.finished |= finishes;
        // If usage is requested, vLLM sends `"usage":null` in every chunk but the last. If it is
        // not, llama.cpp's last chunk still has its timings.
        if finishes || usage::is_in(data) || ERROR.find(data).is_some() {
            self.parse_event(data);
        }
    }

    /// Observes the data of an event of the kind [`StreamKind::Events`].
    fn typed_event(&mut self, data: &[u8]) {
        #[derive(Deserialize)]
        struct Event<'a> {
            #[serde(borrow, rename = "type")]
            kind: Cow<'a, str>,
            #[serde(default)]
            response: Option<Response>,
        }
        #[derive(Deserialize)]
        struct Response {
            #[serde(default)]
            usage: Option<Usage>,
        }
        // Most events are deltas of a text, which do not have these words as whole strings.
        static LAST: LazyLock<[Finder<'static>; 4]> = LazyLock::new(|| {
            [
                Finder::new(b"\"response.completed\""),
                Finder::new(b"\"response.incomplete\""),
                Finder::new(b"\"response.failed\""),
                Finder::new(b"\"error\""),
            ]
        });
        if !LAST.iter().any(|word| word.find(data).is_some()) {
            return;
        }
        let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else { return };
        match &*event.kind {
            RESPONSE_COMPLETED | RESPONSE_INCOMPLETE => self.finished = true,
            RESPONSE_FAILED | ERROR_EVENT => self.failed = true,
            _ => return,
        }
        self.usage = event.response.and_then(|response| response.usage).or(self.usage);
    }

    /// Parses an event that contains one of the keys, which may also belong to a nested object.
    fn parse_event(&mut self, data: &[u8]) {
        #[derive(Deserialize)]
        struct Event {
            #[serde(default)]
            error: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            usage: Option<Usage>,
            #[serde(default)]
            timings: Option<Timings>,
        }
        if let Ok(event) = serde_json::from_slice::<Event>(data) {
            self.failed |= event.error.is_some();
            let timings = event.timings.and_then(Timings::usage);
            self.usage = event.usage.or(timings).or(self.usage);
        }
    }
}

#[cfg(test)]
mod tests;
