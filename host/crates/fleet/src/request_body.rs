//! The body of a request to an engine: bytes in memory, or segments of memory and of files, which
//! are read while they are sent.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;

/// Bytes of a file that are read at a time. The next ones are read when the connection has taken
/// these, so that a request holds no more of a file.
const READ_SIZE: u64 = 128 << 10;

/// A part of a body.
#[derive(Debug, Clone)]
pub enum Segment {
    /// Bytes in memory.
    Memory(Bytes),
    /// A range of a file, which must not be changed while there are bodies with it.
    File(Arc<File>, Range<u64>),
}

impl Segment {
    fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, range) => range.end.saturating_sub(range.start),
        }
    }
}

/// The body of a request to an engine. A clone begins at the first byte, so that the same body can
/// be sent again.
#[derive(Debug)]
pub struct RequestBody {
    segments: Arc<[Segment]>,
    /// The segment that is sent next.
    index: usize,
    /// Bytes of that segment that were sent.
    sent: u64,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// Bytes that have not been sent.
    left: u64,
}

impl RequestBody {
    /// Creates a body of these segments.
    pub fn new(segments: impl Into<Arc<[Segment]>>) -> Self {
        let segments = segments.into();
        let left = segments.iter().map(Segment::size).sum();
        Self { segments, index: 0, sent: 0, reading: None, left }
    }
}

impl From<Bytes> for RequestBody {
    fn from(bytes: Bytes) -> Self {
        Self::new([Segment::Memory(bytes)])
    }
}

impl Clone for RequestBody {
    fn clone(&self) -> Self {
        Self::new(Arc::clone(&self.segments))
    }
}

/// Reads bytes of a file.
fn read(file: &File, at: u64, size: u64) -> io::Result<Bytes> {
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut buffer, at)?;
    Ok(buffer.into())
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = &mut *self;
        loop {
            if let Some(reading) = &mut this.reading {
                let read = ready!(Pin::new(reading).poll(cx));
                this.reading = None;
                let data = read.map_err(io::Error::other).flatten();
                if let Ok(data) = &data {
                    this.sent += data.len() as u64;
                    this.left = this.left.saturating_sub(data.len() as u64);
                }
                return Poll::Ready(Some(data.map(Frame::data)));
            }
            match this.segments.get(this.index) {
                None => return Poll::Ready(None),
                Some(Segment::Memory(bytes)) => {
                    this.index += 1;
                    this.left = this.left.saturating_sub(bytes.len() as u64);
                    if !bytes.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
                    }
                }
                Some(segment @ Segment::File(file, range)) => {
                    let size = segment.size().saturating_sub(this.sent).min(READ_SIZE);
                    if size == 0 {
                        (this.index, this.sent) = (this.index + 1, 0);
                        continue;
                    }
                    let (file, at) = (Arc::clone(file), range.start + this.sent);
                    // A disk may take its time, for which other requests must not wait.
                    let reading = tokio::task::spawn_blocking(move || read(&file, at, size));
                    this.reading = Some(reading);
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn segments_are_sent_in_order_and_again() {
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..300_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        file.write_all(&content).unwrap();
        let file = Arc::new(file);
        let body = RequestBody::new([
            Segment::Memory("head".into()),
            Segment::File(Arc::clone(&file), 5..1_000_000),
            Segment::Memory(Bytes::new()),
            Segment::File(file, 7..7),
            Segment::Memory("tail".into()),
        ]);
        let expected = [b"head", &content[5..1_000_000], b"tail"].concat();
        assert_eq!(body.size_hint().exact(), Some(expected.len() as u64));
        let mut begun = body.clone();
        for _ in 0..3 {
            begun.frame().await.unwrap().unwrap();
        }
        for body in [begun.clone(), body] {
            assert_eq!(body.collect().await.unwrap().to_bytes(), expected);
        }
        assert!(!begun.is_end_stream());
        assert!(RequestBody::from(Bytes::new()).is_end_stream());
    }

    #[tokio::test]
    async fn file_that_is_too_short_is_an_error() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let body = RequestBody::new([Segment::File(file, 0..10)]);
        let error = body.collect().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
