//! The events of streams: those of the engine, and those for the client.

use bytes::Bytes;
use serde_json::Value;

use super::builder::Builder;
use crate::translate::Translate;

/// Maximum number of bytes of one event, and of a body that is not a stream.
const MAX_BYTES: usize = 64 << 20;

/// Splits a stream of server-sent events into events, independent of chunk boundaries.
#[derive(Debug, Default)]
pub struct EventBuffer {
    bytes: Vec<u8>,
    /// Bytes of which is known that no event ends in them.
    scanned: usize,
}

impl EventBuffer {
    /// Adds a chunk of the stream.
    pub fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
    }

    /// Returns the number of bytes that are held.
    pub fn held(&self) -> usize {
        self.bytes.len()
    }

    /// Takes what is held, whether or not it is an event.
    pub fn take_rest(&mut self) -> Vec<u8> {
        self.scanned = 0;
        std::mem::take(&mut self.bytes)
    }

    /// Returns the next event with the blank line that ends it.
    pub fn next_event(&mut self) -> Option<Vec<u8>> {
        let end = self.end_of_event()?;
        let rest = self.bytes.split_off(end);
        self.scanned = 0;
        Some(std::mem::replace(&mut self.bytes, rest))
    }

    fn end_of_event(&mut self) -> Option<usize> {
        let mut at = self.scanned;
        while let Some(found) = memchr::memchr(b'\n', &self.bytes[at..]) {
            let line = at + found + 1;
            match self.bytes.get(line..) {
                Some([b'\n', ..]) => return Some(line + 1),
                Some([b'\r', b'\n', ..]) => return Some(line + 2),
                // The line that follows is not here yet.
                Some([] | [b'\r']) | None => {
                    self.scanned = at + found;
                    return None;
                }
                Some(_) => at = line,
            }
        }
        self.scanned = self.bytes.len();
        None
    }

    /// Returns the data of an event, without the names of the fields; empty for a comment.
    pub fn data(event: &[u8]) -> Vec<u8> {
        let lines = event.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        let data = lines.filter_map(|line| line.strip_prefix(b"data:")).map(<[u8]>::trim_ascii);
        data.collect::<Vec<_>>().join(&b'\n')
    }
}

/// Translates a response to a chat request, whether or not it is a stream.
#[derive(Debug)]
pub(super) struct ResponseTranslation {
    builder: Builder,
    streaming: bool,
    held: EventBuffer,
    is_over: bool,
}

impl ResponseTranslation {
    pub(super) fn new(builder: Builder, streaming: bool) -> Self {
        Self { builder, streaming, held: EventBuffer::default(), is_over: false }
    }

    /// Takes one event of the engine.
    fn event(&mut self, event: &[u8]) {
        let data = EventBuffer::data(event);
        if data.is_empty() || self.is_over {
            return;
        }
        if data == b"[DONE]" {
            self.builder.finish();
            self.is_over = true;
            return;
        }
        let Ok(chunk) = serde_json::from_slice::<Value>(&data) else {
            // The client must not take what follows for the whole response.
            return self.fail("an event of the engine is not JSON");
        };
        match chunk.get("error").filter(|error| !error.is_null()) {
            Some(error) => {
                self.builder.fail(error);
                self.is_over = true;
            }
            None => self.builder.chunk(&chunk),
        }
    }

    fn fail(&mut self, message: &str) {
        self.builder.fail(&message.into());
        self.is_over = true;
    }

    fn written(&mut self) -> Bytes {
        let mut text = String::new();
        for event in self.builder.take_events() {
            let name = event.get("type").and_then(Value::as_str).unwrap_or_default();
            text.push_str(&format!("event: {name}\ndata: {event}\n\n"));
        }
        text.into()
    }
}

impl Translate for ResponseTranslation {
    fn chunk(&mut self, chunk: &[u8]) -> Bytes {
        if self.held.held() + chunk.len() > MAX_BYTES {
            // Never complete: what is missing is not made up.
            return Bytes::new();
        }
        self.held.push(chunk);
        if !self.streaming {
            return Bytes::new();
        }
        while let Some(event) = self.held.next_event() {
            self.event(&event);
        }
        self.written()
    }

    fn finish(&mut self, is_complete: bool) -> Bytes {
        let rest = self.held.take_rest();
        if self.streaming {
            if is_complete && !self.is_over {
                // The last event may lack the blank line, and an engine may not have streamed.
                match serde_json::from_slice::<Value>(&rest) {
                    Ok(completion) => self.builder.chunk(&completion),
                    Err(_) => self.event(&rest),
                }
                if !self.is_over {
                    self.builder.finish();
                    self.is_over = true;
                }
            }
            return self.written();
        }
        if std::mem::replace(&mut self.is_over, true) {
            return Bytes::new();
        }
        match serde_json::from_slice::<Value>(&rest) {
            Ok(completion) if completion.get("choices").is_some_and(Value::is_array) => {
                self.builder.chunk(&completion);
                self.builder.finish();
            }
            Ok(_) | Err(_) => self.fail("the engine's response is not a chat completion"),
        }
        self.builder.response().to_string().into()
    }

    fn content_type(&self) -> &'static str {
        if self.streaming { "text/event-stream; charset=utf-8" } else { "application/json" }
    }
}
