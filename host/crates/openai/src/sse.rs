//! Watching a stream of server-sent events on its way through.
//!
//! Bytes are forwarded as they come, whatever the boundaries of chunks; the watcher looks at complete lines as they pass.
//! It interferes in one case: vLLM, when its core dies, sends an error event *and then* `[DONE]` (seen with 0.32.0). What
//! follows an error event is held back, so that a broken stream never looks complete.
//!
//! ```text
//!             data: {…}                 data: [DONE]
//!   open ───────────────> open ────────────────────────> done
//!     │ data: {"error":…}
//!     └───────────> failed ──blank line──> muted: nothing more is forwarded
//! ```

use std::sync::LazyLock;

use bytes::Bytes;
use memchr::memchr;
use memchr::memmem::Finder;
use serde::Deserialize;

use crate::usage::{self, Usage};

/// Longest line that is looked at; longer ones pass unseen.
const LONGEST_LINE: usize = 1 << 20;

/// How a stream ended, as far as it has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// With `[DONE]`, or at least with a `finish_reason`.
    Complete,
    /// With an error event.
    Failed,
    /// In the middle.
    Unfinished {
        /// Inside an event, so that whatever comes next would become part of it.
        mid_frame: bool,
    },
}

/// Watches one stream.
#[derive(Debug, Default)]
pub struct StreamWatch {
    /// The unfinished last line, where it began in an earlier chunk.
    partial: Vec<u8>,
    /// A line is unfinished.
    mid_line: bool,
    /// An event has lines and no blank line yet.
    mid_frame: bool,
    done: bool,
    finished: bool,
    failed: bool,
    muted: bool,
    events: u64,
    usage: Option<Usage>,
}

impl StreamWatch {
    /// Look at a chunk, and say what of it goes on: all of it, but for what follows an error event.
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
            if self.partial.len() + rest.len() <= LONGEST_LINE {
                self.partial.extend_from_slice(rest);
            }
        }
        chunk
    }

    /// How the stream stands: how it ended, if it ends here.
    pub fn end(&self) -> StreamEnd {
        if self.failed {
            StreamEnd::Failed
        } else if self.done || (self.finished && !self.mid_line) {
            StreamEnd::Complete
        } else {
            StreamEnd::Unfinished { mid_frame: self.mid_frame || self.mid_line }
        }
    }

    /// Events with data so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The last `usage` that was seen.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// One whole line with its line end.
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
        // vLLM, asked for the usage, has a `null` of it in every chunk but the last.
        if usage::is_in(data) || ERROR.find(data).is_some() {
            self.look_closer(data);
        }
    }

    /// The words were found; whether they are fields of the event itself, only parsing tells.
    fn look_closer(&mut self, data: &[u8]) {
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
