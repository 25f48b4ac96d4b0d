//! Changes of the events of a stream while it is forwarded: the name of the model, and the usage
//! that the host has asked for and the client has not.
//!
//! An event is held until the blank line that ends it, and passed on whole. Comments pass at once.
//!
//! ```text
//!   {"choices":[{"delta":…}],"model":"served"}    the value of `model` is replaced
//!   {"choices":[…],"usage":null}                  the member `usage` is removed
//!   {"choices":[{"finish_reason":"stop"}]}        waits for the next event, and gets the members
//!   {"choices":[],"usage":{…},"timings":{…}}      that engines move to this event, which is hidden
//! ```
//!
//! With the option `include_usage`, vLLM sends its `system_fingerprint` and llama.cpp its `timings`
//! in the event with the usage, and else in the last one of a choice.

mod payload;

use std::sync::LazyLock;

use bytes::{Bytes, BytesMut};
use memchr::memchr2;
use memchr::memmem::Finder;
use serde_json::Value;

use self::payload::{Payload, Pending};
use super::event::has_finish_reason;

/// Maximum size of an event that is held; a longer one is forwarded as it is.
const MAX_EVENT_BYTES: usize = super::MAX_LINE_BYTES;

/// What is to be changed, and the event that has begun.
#[derive(Debug)]
pub struct StreamRewrite {
    /// The literal of the name for the client; `None` if the engine uses the same.
    model: Option<String>,
    /// An event has named the model, and so decided whether the name is replaced.
    is_decided: bool,
    hides_usage: bool,
    /// The event of which the end has not arrived.
    held: Vec<u8>,
    /// Where the last line of the held event begins.
    line_at: usize,
    /// The event is too long: it has been forwarded so far.
    is_long: bool,
    /// The last line of such an event has some text.
    has_text: bool,
    /// The last event of a choice, which waits for the event with the usage.
    pending: Option<Pending>,
    /// What a line feed belongs to that comes next.
    after_return: AfterReturn,
}

/// What a line feed belongs to that follows a carriage return at the end of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AfterReturn {
    /// There was no carriage return.
    Itself,
    /// A line that is held.
    Held,
    /// A line that was forwarded.
    Forwarded,
    /// An event that waits.
    Pending,
    /// An event that was hidden.
    Hidden,
}

impl StreamRewrite {
    /// Returns the changes of a stream of chunks: `model` is the name for the client, unless the
    /// engine is known to use the same, and `hides_usage` says that the client has not asked for
    /// the usage. `None` if nothing has to be changed.
    pub fn new(model: Option<&str>, hides_usage: bool) -> Option<Self> {
        (model.is_some() || hides_usage).then(|| Self {
            model: model.map(|model| Value::from(model).to_string()),
            is_decided: false,
            hides_usage,
            held: Vec::new(),
            line_at: 0,
            is_long: false,
            has_text: false,
            pending: None,
            after_return: AfterReturn::Itself,
        })
    }

    /// Takes a chunk of the stream, and returns what is passed on instead.
    pub fn chunk(&mut self, chunk: Bytes) -> Bytes {
        let is_done = self.model.is_none() && !self.hides_usage;
        if is_done && self.held.is_empty() && self.pending.is_none() {
            return chunk;
        }
        let mut out = BytesMut::with_capacity(self.held.len() + chunk.len());
        let mut at = self.line_feed(&chunk, &mut out);
        while let Some(found) = memchr2(b'\n', b'\r', &chunk[at..]) {
            let mut end = at + found + 1;
            let is_last_return = chunk[end - 1] == b'\r' && end == chunk.len();
            end += usize::from(chunk[end - 1] == b'\r' && chunk.get(end) == Some(&b'\n'));
            self.has_text |= found > 0;
            self.hold(&chunk[at..end], &mut out);
            let owner = self.line(&mut out);
            if is_last_return {
                self.after_return = owner;
            }
            at = end;
        }
        self.has_text |= at < chunk.len();
        self.hold(&chunk[at..], &mut out);
        out.freeze()
    }

    /// Returns what is still held when the stream ends or breaks off.
    pub fn finish(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held);
        let mut out = BytesMut::new();
        // An event without its end is one if it is whole.
        if super::event::is_whole(held.trim_ascii_end()) {
            self.event(&held, &mut out);
        } else {
            self.release(&mut out);
            out.extend_from_slice(&held);
        }
        self.release(&mut out);
        out.freeze()
    }

    /// Passes on a line feed that ends the line before. Returns where the next line begins.
    fn line_feed(&mut self, chunk: &[u8], out: &mut BytesMut) -> usize {
        if chunk.is_empty() {
            return 0;
        }
        let owner = std::mem::replace(&mut self.after_return, AfterReturn::Itself);
        if owner == AfterReturn::Itself || chunk[0] != b'\n' {
            return 0;
        }
        match owner {
            AfterReturn::Held => {
                self.hold(b"\n", out);
                self.line_at = self.held.len();
            }
            AfterReturn::Pending => {
                if let Some(pending) = &mut self.pending {
                    pending.extend(b"\n");
                }
            }
            AfterReturn::Forwarded => out.extend_from_slice(b"\n"),
            AfterReturn::Hidden | AfterReturn::Itself => {}
        }
        1
    }

    /// Holds a part of the event, or forwards it if the event is too long.
    fn hold(&mut self, part: &[u8], out: &mut BytesMut) {
        if !self.is_long && self.held.len() + part.len() <= MAX_EVENT_BYTES {
            self.held.extend_from_slice(part);
            return;
        }
        self.is_long = true;
        self.line_at = 0;
        self.release(out);
        out.extend_from_slice(&std::mem::take(&mut self.held));
        out.extend_from_slice(part);
    }

    /// Handles the end of a line. Returns to what a line feed that follows belongs.
    fn line(&mut self, out: &mut BytesMut) -> AfterReturn {
        let is_blank = !std::mem::take(&mut self.has_text);
        if self.is_long {
            self.is_long = !is_blank;
            return AfterReturn::Forwarded;
        }
        let line_at = std::mem::replace(&mut self.line_at, self.held.len());
        if is_blank {
            self.line_at = 0;
            let event = std::mem::take(&mut self.held);
            return self.event(&event, out);
        }
        if line_at == 0 && self.held.first() == Some(&b':') {
            self.line_at = 0;
            out.extend_from_slice(&self.held);
            self.held.clear();
            return AfterReturn::Forwarded;
        }
        AfterReturn::Held
    }

    /// Forwards an event, with the changes that it needs. Returns to what a line feed that follows
    /// belongs.
    fn event(&mut self, raw: &[u8], out: &mut BytesMut) -> AfterReturn {
        if self.model.is_none() && is_plain(raw) {
            self.release(out);
            out.extend_from_slice(raw);
            return AfterReturn::Forwarded;
        }
        let Some(event) = Payload::read(raw) else {
            // A blank line, fields without data, `[DONE]`, or data that is not an object.
            let is_blank = raw.trim_ascii().is_empty();
            // Without a limit, an engine could fill the memory with blank lines.
            if let Some(pending) = &mut self.pending
                && is_blank
                && pending.bytes().len() + raw.len() <= MAX_EVENT_BYTES
            {
                pending.extend(raw);
                return AfterReturn::Pending;
            }
            self.release(out);
            out.extend_from_slice(raw);
            return AfterReturn::Forwarded;
        };
        if self.hides_usage && event.is_usage_only() {
            if let Some(mut pending) = self.pending.take() {
                pending.add_members_of(&event);
                out.extend_from_slice(pending.bytes());
            }
            return AfterReturn::Hidden;
        }
        self.release(out);
        if event.is_error() {
            out.extend_from_slice(raw);
            return AfterReturn::Forwarded;
        }
        // The first event that names the model decides.
        let model = self.model.as_ref().filter(|_| !self.is_decided);
        if let Some(is_equal) = model.and_then(|model| event.model_is(model)) {
            self.is_decided = true;
            if is_equal {
                self.model = None;
            }
        }
        let changed = event.changed(self.model.as_deref(), self.hides_usage);
        if self.hides_usage && event.has_finish_reason() {
            self.pending = Some(changed);
            return AfterReturn::Pending;
        }
        out.extend_from_slice(changed.bytes());
        AfterReturn::Forwarded
    }

    /// Forwards the event that waits.
    fn release(&mut self, out: &mut BytesMut) {
        if let Some(pending) = self.pending.take() {
            out.extend_from_slice(pending.bytes());
        }
    }
}

/// Returns true if an event has data that ends no choice and has no member `usage`, as nearly all
/// of a stream. A key may be written with escapes: such an event is read.
fn is_plain(raw: &[u8]) -> bool {
    static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage\""));
    static ESCAPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\\u"));
    raw.starts_with(b"data: {")
        && USAGE.find(raw).is_none()
        && !has_finish_reason(raw)
        && ESCAPE.find(raw).is_none()
}

#[cfg(test)]
mod tests;
