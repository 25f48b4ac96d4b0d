//! The bodies of a request and of its response, which note what the client has sent and taken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;

use crate::activity::RequestGuard;
use crate::unsent::Unsent;

/// What is read and discarded of an upload that got its response early: bytes, and time.
pub(crate) const MAX_DISCARDED: usize = 64 << 20;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of a request, which notes when all of it was read.
pub(crate) struct RequestBody {
    /// `None` once it was left unread.
    body: Option<Incoming>,
    unread: Arc<AtomicBool>,
    rest: Option<UnreadBody>,
}

/// What is left of the body of a request when all else of the request was dropped.
pub(crate) type UnreadBody = Arc<Mutex<Option<Incoming>>>;

impl RequestBody {
    /// `unread` becomes false when all of the body was read; `rest` gets what is not read.
    pub(crate) fn new(body: Incoming, unread: Arc<AtomicBool>, rest: Option<UnreadBody>) -> Self {
        Self { body: Some(body), unread, rest }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        if frame.is_none() || body.is_end_stream() {
            // Relaxed: the flag guards no other memory.
            self.unread.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Incoming::size_hint).unwrap_or_default()
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(rest) = &self.rest
            && self.unread.load(Ordering::Relaxed)
        {
            *rest.lock() = self.body.take();
        }
    }
}

/// Reads and discards the rest of a body, within limits of size and time. Returns true if all of it
/// was read.
pub(crate) async fn discard(mut body: Incoming) -> bool {
    let mut left = MAX_DISCARDED;
    let discard = async {
        while left > 0 {
            match body.frame().await {
                None => return true,
                Some(Err(_)) => return false,
                Some(Ok(frame)) => {
                    left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                }
            }
        }
        false
    };
    tokio::time::timeout(DISCARD_TIMEOUT, discard).await.unwrap_or(false)
}

/// The body of a response, with which the request ends. With HTTP/2 it only ends when the client
/// has taken it, so that a stream that the client does not read can be reset until then.
pub(crate) struct GuardedBody {
    body: Body,
    guard: Arc<RequestGuard>,
    /// `None` with HTTP/1.
    unsent: Option<Arc<Unsent>>,
}

impl GuardedBody {
    /// Guards a body. Called by the task of the stream.
    pub(crate) fn new(body: Body, guard: RequestGuard) -> Self {
        let unsent = Unsent::of_stream();
        Self { body, guard: Arc::new(guard), unsent }
    }
}

impl http_body::Body for GuardedBody {
    type Data = GuardedData;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<GuardedData>, axum::Error>>> {
        let Self { body, guard, unsent } = &mut *self;
        let Some(unsent) = unsent else {
            let frame = ready!(Pin::new(body).poll_frame(cx));
            let data = |bytes| GuardedData { bytes, of_stream: None };
            return Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(data))));
        };
        // One piece at a time: while a part of it waits for the client, hyper asks for the next
        // piece, and learns in time that the client has taken too long.
        if let Err(error) = ready!(unsent.poll_taken(cx)) {
            return Poll::Ready(Some(Err(axum::Error::new(error))));
        }
        let frame = ready!(Pin::new(body).poll_frame(cx));
        let data = |bytes: Bytes| {
            unsent.add(bytes.len());
            GuardedData { bytes, of_stream: Some((Arc::clone(unsent), Arc::clone(guard))) }
        };
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(data))))
    }

    fn is_end_stream(&self) -> bool {
        let is_taken = self.unsent.as_ref().is_none_or(|unsent| unsent.is_empty());
        self.body.is_end_stream() && is_taken
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A piece of a response, which notes how much of it was written. With HTTP/2, the request is in
/// progress until all pieces were written or discarded.
pub(crate) struct GuardedData {
    bytes: Bytes,
    of_stream: Option<(Arc<Unsent>, Arc<RequestGuard>)>,
}

impl Buf for GuardedData {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some((unsent, _)) = &self.of_stream {
            unsent.taken(count);
        }
    }
}

impl Drop for GuardedData {
    fn drop(&mut self) {
        if let Some((unsent, _)) = &self.of_stream
            && !self.bytes.is_empty()
        {
            unsent.taken(self.bytes.len());
        }
    }
}
