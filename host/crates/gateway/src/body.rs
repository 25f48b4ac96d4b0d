//! The bodies of a request and of its response, which note what the client has sent and taken.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::{Buf, Bytes};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use crate::activity::RequestGuard;
use crate::unsent::Unsent;

/// The body of a request, which notes when all of it was read.
pub(crate) struct RequestBody {
    body: Incoming,
    unread: Arc<AtomicBool>,
}

impl RequestBody {
    /// `unread` becomes false when all of the body was read.
    pub(crate) fn new(body: Incoming, unread: Arc<AtomicBool>) -> Self {
        Self { body, unread }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            // Relaxed: the flag guards no other memory.
            self.unread.store(false, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
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
