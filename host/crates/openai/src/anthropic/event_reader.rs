//! Reading the data of server-sent events, wherever the stream is cut into chunks.

use memchr::memchr2;

/// Maximum size of the data of one event.
const MAX_EVENT_BYTES: usize = 8 << 20;

/// The reader of one stream.
#[derive(Debug, Default)]
pub(super) struct EventReader {
    /// The incomplete line at the end.
    line: Vec<u8>,
    /// The data of the event whose end has not arrived.
    data: Vec<u8>,
    /// A line feed that comes next belongs to the carriage return before it.
    after_return: bool,
}

/// The data of an event is too long.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl EventReader {
    /// Takes a chunk, and calls `read` with the data of each event that is complete.
    ///
    /// # Errors
    /// If an event is too long.
    pub(super) fn chunk(
        &mut self,
        mut chunk: &[u8],
        mut read: impl FnMut(&[u8]),
    ) -> Result<(), TooLong> {
        if std::mem::take(&mut self.after_return) {
            chunk = chunk.strip_prefix(b"\n").unwrap_or(chunk);
        }
        while let Some(at) = memchr2(b'\n', b'\r', chunk) {
            self.line.extend_from_slice(&chunk[..at]);
            let ending = chunk[at];
            chunk = &chunk[at + 1..];
            if ending == b'\r' {
                self.after_return = chunk.is_empty();
                chunk = chunk.strip_prefix(b"\n").unwrap_or(chunk);
            }
            self.end_line(&mut read)?;
        }
        self.line.extend_from_slice(chunk);
        if self.line.len() > MAX_EVENT_BYTES { Err(TooLong) } else { Ok(()) }
    }

    /// Calls `read` with the data of the last event, which may lack its end.
    pub(super) fn finish(&mut self, mut read: impl FnMut(&[u8])) {
        if self.end_line(&mut read).is_ok() {
            self.end_event(&mut read);
        }
    }

    fn end_line(&mut self, read: &mut impl FnMut(&[u8])) -> Result<(), TooLong> {
        let mut line = std::mem::take(&mut self.line);
        if line.is_empty() {
            self.end_event(read);
        } else if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
        }
        // Keep the memory for the next line.
        line.clear();
        self.line = line;
        if self.data.len() > MAX_EVENT_BYTES { Err(TooLong) } else { Ok(()) }
    }

    fn end_event(&mut self, read: &mut impl FnMut(&[u8])) {
        if !self.data.is_empty() {
            read(&self.data);
            self.data.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(stream: &[u8], size: usize) -> Vec<String> {
        let mut reader = EventReader::default();
        let mut events = Vec::new();
        let mut note = |data: &[u8]| events.push(String::from_utf8_lossy(data).into_owned());
        for chunk in stream.chunks(size) {
            reader.chunk(chunk, &mut note).unwrap();
        }
        reader.finish(&mut note);
        events
    }

    #[test]
    fn events_are_read_in_all_line_endings_and_chunks() {
        let stream = ": comment\n\nevent: x\ndata: 1\nid: 7\n\ndata:2\ndata: 3\n\n\ndata: [DONE]";
        for ending in ["\n", "\r\n", "\r"] {
            let stream = stream.replace('\n', ending);
            for size in [1, 2, 3, 7, 100] {
                assert_eq!(
                    read(stream.as_bytes(), size),
                    ["1", "2\n3", "[DONE]"],
                    "{ending:?} {size}"
                );
            }
        }
    }

    #[test]
    fn long_events_are_refused() {
        let mut reader = EventReader::default();
        let part = vec![b'x'; MAX_EVENT_BYTES / 2 + 1];
        assert_eq!(reader.chunk(&part, |_| {}), Ok(()));
        assert_eq!(reader.chunk(&part, |_| {}), Err(TooLong));
        let mut reader = EventReader::default();
        let line = [b"data: ".as_slice(), &part, b"\n"].concat();
        assert_eq!(reader.chunk(&line, |_| {}), Ok(()));
        assert_eq!(reader.chunk(&line, |_| {}), Err(TooLong));
    }
}
