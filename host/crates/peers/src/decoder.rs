//! Turns the bytes of a stream into events.

use crate::event::Event;
use crate::limits::MAX_EVENT_BYTES;
use crate::wire_error::WireError;

/// Decodes server-sent events from pieces of any size. Keeps at most [`MAX_EVENT_BYTES`] of a line
/// and of an event.
#[derive(Debug, Default)]
pub struct EventDecoder {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// The name of the event whose end has not come; longer ones are unknown in any case.
    name: String,
    data: Vec<u8>,
}

impl EventDecoder {
    /// Takes the next bytes, and calls `take` with each event that they complete.
    ///
    /// # Errors
    /// At the first event that is not valid; the decoder must not be used any more.
    pub fn push(&mut self, mut bytes: &[u8], mut take: impl FnMut(Event)) -> Result<(), WireError> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (rest, following) = (&bytes[..end], &bytes[end + 1..]);
            bytes = following;
            let event = if self.line.is_empty() {
                self.end_line(rest)?
            } else {
                self.keep(rest)?;
                let line = std::mem::take(&mut self.line);
                self.end_line(&line)?
            };
            event.into_iter().for_each(&mut take);
        }
        self.keep(bytes)
    }

    /// Keeps the beginning of a line.
    fn keep(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        if self.line.len() + bytes.len() > MAX_EVENT_BYTES {
            return Err(WireError::TooLarge);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// Takes a line without its end. Returns the event that it completes.
    fn end_line(&mut self, line: &[u8]) -> Result<Option<Event>, WireError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            return if data.is_empty() { Ok(None) } else { Event::parse(&name, &data) };
        }
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"event" => self.name = String::from_utf8_lossy(&value[..value.len().min(32)]).into(),
            b"data" => {
                if self.data.len() + value.len() >= MAX_EVENT_BYTES {
                    return Err(WireError::TooLarge);
                }
                if !self.data.is_empty() {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            // Comments, and fields that events do not use.
            _ => {}
        }
        Ok(None)
    }
}
