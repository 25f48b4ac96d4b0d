//! Observing a stream of server-sent events while it is forwarded.
//!
//! Bytes are forwarded as they arrive, independent of chunk boundaries; the observer parses
//! complete lines as they pass. The observer interferes in one case: when vLLM's core dies, vLLM
//! sends an error event *and then* `[DONE]` (observed with 0.32.0). Whatever follows an error event
//! is held back, so that a broken stream never looks complete.
//!
//! ```text
//!             data: {…}                 data: [DONE]
//!   open ───────────────────> open ────────────────────────> done
//!     │ data: {"error":…}
//!     └───────────> failed ──blank line──> muted: nothing is forwarded
//! ```
//!
//! Comment lines (`: …`) are not part of a response: llama.cpp sends them while it reads a prompt.

mod event;
mod rewrite;

use bytes::Bytes;
use memchr::memchr2;

use self::event::Ended;
pub use self::rewrite::StreamRewrite;
use crate::endpoint::StreamKind;
use crate::usage::Usage;

/// Maximum length of a line that is parsed; longer lines are forwarded without being parsed.
const MAX_LINE_BYTES: usize = 1 << 20;

/// How a stream ended, as observed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamEnd {
    /// With `[DONE]`, or at least with a `finish_reason` of every choice or the event that has the
    /// whole response.
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
    /// True if the incomplete line is a comment.
    in_comment: bool,
    /// True if the incomplete line has data.
    in_data: bool,
    /// True if any line was neither blank nor a comment.
    has_fields: bool,
    /// True if the last byte was a carriage return: a line feed that follows belongs to it.
    after_return: bool,
    /// True if the last event is not yet terminated by a blank line.
    mid_frame: bool,
    done: bool,
    ended: Ended,
    failed: bool,
    muted: bool,
    /// The fields of the current event say that it is an error.
    is_error_event: bool,
    /// They say that it is the last one of a choice.
    is_last_event: bool,
    /// The data of the error event.
    error: Option<Vec<u8>>,
    events: u64,
    content_events: u64,
    content_bytes: u64,
    usage: Option<Usage>,
}

impl StreamWatch {
    /// Creates the observer of a stream of this kind, whose response has this many choices.
    pub fn new(kind: StreamKind, choices: u32) -> Self {
        Self { kind, ended: Ended::new(choices), ..Self::default() }
    }

    /// Observes a chunk and returns the part to forward: all of it, except what follows an error
    /// event.
    pub fn chunk(&mut self, chunk: Bytes) -> Bytes {
        let mut at = 0;
        if std::mem::take(&mut self.after_return) && chunk.first() == Some(&b'\n') {
            at = 1;
        }
        if self.muted {
            // The line feed ends the error event too.
            return chunk.slice(..at);
        }
        while let Some(found) = memchr2(b'\n', b'\r', &chunk[at..]) {
            let end = at + found;
            self.line_part(&chunk[at..end]);
            self.line_end();
            at = end + 1;
            if chunk[end] == b'\r' {
                match chunk.get(at) {
                    Some(b'\n') => at += 1,
                    Some(_) => {}
                    None => self.after_return = true,
                }
            }
            if self.failed && !self.mid_frame {
                self.muted = true;
                return chunk.slice(..at);
            }
        }
        if at < chunk.len() {
            self.line_part(&chunk[at..]);
        }
        chunk
    }

    /// Observes the end of the body, at which an incomplete last line counts as a line if it is
    /// whole. Returns how the stream ended.
    pub fn end_of_body(&mut self) -> StreamEnd {
        if self.mid_line && event::is_whole(&self.partial) {
            self.line_end();
        }
        self.end()
    }

    /// Returns how the stream ended, if it breaks off here.
    pub fn end(&self) -> StreamEnd {
        if self.failed {
            StreamEnd::Failed
        } else if self.done || (self.ended.is_complete() && !self.mid_line) {
            StreamEnd::Complete
        } else {
            StreamEnd::Unfinished { mid_frame: self.mid_frame || self.mid_line }
        }
    }

    /// Returns the number of events with data so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// Returns the number of events so far that have some text of the response: at most as many as
    /// the response has tokens.
    pub fn content_events(&self) -> u64 {
        self.content_events
    }

    /// Returns the number of bytes so far in lines with data: by these an engine shows that it
    /// makes progress, and not by names and ids of events or by comments.
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Returns true if the stream has begun for the client: with an event that has data, or with a
    /// line that is too long to be observed.
    pub fn has_begun(&self) -> bool {
        self.events > 0 || self.done || self.failed || self.partial.len() >= MAX_LINE_BYTES
    }

    /// Returns true if nothing but whole comments and blank lines has been observed.
    pub fn is_silent(&self) -> bool {
        !self.has_fields && !self.mid_line
    }

    /// Returns true if nothing but comments, of which the last one may be incomplete, and blank
    /// lines has been observed.
    pub fn has_only_comments(&self) -> bool {
        !self.has_fields
    }

    /// Returns true if the response is over, whatever the engine still sends: after `[DONE]`, the
    /// event that has the whole response, or an error event. Nothing may be appended to it.
    pub fn is_over(&self) -> bool {
        self.failed || self.done || (self.ended.has_whole_response() && !self.mid_line)
    }

    /// Returns true if nothing more is forwarded, because an error event has ended the stream.
    pub fn is_muted(&self) -> bool {
        self.muted
    }

    /// Returns the data of the error event that has failed the stream.
    pub fn error(&self) -> Option<&[u8]> {
        self.error.as_deref()
    }

    /// Returns the last `usage` that was observed.
    pub fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Observes a part of a line, without its ending.
    fn line_part(&mut self, part: &[u8]) {
        let Some(first) = part.first() else { return };
        if !self.mid_line {
            self.mid_line = true;
            self.in_comment = *first == b':';
        }
        if self.in_comment {
            return;
        }
        self.has_fields = true;
        let before = self.partial.len();
        let rest = MAX_LINE_BYTES.saturating_sub(before);
        // A longer line is incomplete here, and is not parsed.
        self.partial.extend_from_slice(&part[..part.len().min(rest)]);
        if self.in_data {
            self.content_bytes += part.len() as u64;
        } else if event::has_data(&self.partial) {
            self.in_data = true;
            // The name of the field may have arrived in parts.
            self.content_bytes += (before + part.len()) as u64;
        }
    }

    /// Observes the end of a line.
    fn line_end(&mut self) {
        if !std::mem::take(&mut self.mid_line) {
            self.mid_frame = false;
            (self.is_error_event, self.is_last_event) = (false, false);
            return;
        }
        self.mid_frame = true;
        self.in_data = false;
        if std::mem::take(&mut self.in_comment) {
            return;
        }
        let line = std::mem::take(&mut self.partial);
        self.line(&line);
        self.partial = line;
        self.partial.clear();
    }

    /// Observes one complete line that is neither blank nor a comment.
    fn line(&mut self, line: &[u8]) {
        let is_long = line.len() >= MAX_LINE_BYTES;
        let line = event::without_mark(line);
        if let Some(name) = line.strip_prefix(b"event:") {
            let name = name.trim_ascii();
            self.is_error_event = name == b"error";
            let mut last_events = self.kind.last_events().iter();
            self.is_last_event = last_events.any(|last| last.as_bytes() == name);
        }
        // Earlier builds of llama.cpp report errors in a field of their own.
        let error = line.strip_prefix(b"error:");
        let Some(data) = line.strip_prefix(b"data:").or(error) else { return };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            self.done = true;
            return;
        }
        self.events += 1;
        if is_long {
            // The image itself is that long.
            if self.is_last_event || event::is_last(self.kind, data) {
                self.ended.note_next();
            }
            return;
        }
        let seen = event::read(self.kind, data, &mut self.ended);
        self.content_events += u64::from(event::has_content(data));
        self.usage = seen.usage.or(self.usage);
        if seen.is_error || self.is_error_event || error.is_some() {
            self.failed = true;
            self.error.get_or_insert_with(|| data.to_owned());
        }
    }
}

#[cfg(test)]
mod tests;
