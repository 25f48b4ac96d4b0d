//! One execution of a request, whose response several clients may read.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use http::StatusCode;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use pointsman_access::{Identity, Rights};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::buffer::{Buffer, End, Head, Next};
use super::memory::Charge;

/// Set if a response fails after its head.
pub(crate) type Failed = Arc<AtomicBool>;

/// One execution of a request.
pub(super) struct Execution {
    /// The hash of the request.
    content: [u8; 32],
    /// Who sent it, with the rights by which it is served.
    identity: Arc<Identity>,
    /// The digest of what the guards demand of it.
    guards: u64,
    failed: Failed,
    buffer: Mutex<Buffer>,
    /// Notified when readers come, go, or take something that the execution may wait for.
    readers_changed: watch::Sender<()>,
    cancel: CancellationToken,
}

/// The result of joining an execution.
pub(super) enum Join {
    /// The number of the reader, which has to leave in the end.
    Joined(u64),
    /// The execution is over and was not kept, or is cancelled because no client reads it.
    Gone,
    /// Other clients read a response that is too long to be joined.
    InUse,
}

impl Execution {
    pub(super) fn new(
        content: [u8; 32],
        (identity, guards): (Arc<Identity>, u64),
        charge: Charge,
    ) -> Arc<Self> {
        Arc::new(Self {
            content,
            identity,
            guards,
            failed: Failed::default(),
            buffer: Mutex::new(Buffer::new(charge)),
            readers_changed: watch::Sender::new(()),
            cancel: CancellationToken::new(),
        })
    }

    pub(super) fn failed(&self) -> Failed {
        Arc::clone(&self.failed)
    }

    /// Returns true if the request has this content.
    pub(super) fn has_content(&self, content: &[u8; 32]) -> bool {
        self.content == *content
    }

    /// Returns true if a client with these rights may have what serves the request: the key may
    /// have fewer of them since it began, and other guards may apply.
    pub(super) fn is_allowed(&self, rights: &Rights, guards: u64) -> bool {
        rights.covers(&self.identity.rights) && self.guards == guards
    }

    /// Adds a reader from the beginning of the response.
    pub(super) fn join(&self) -> Join {
        let mut buffer = self.buffer.lock();
        match (buffer.is_joinable(), buffer.end()) {
            (true, None | Some(End::Complete)) => {
                let reader = buffer.add_reader();
                drop(buffer);
                self.readers_changed.send_replace(());
                Join::Joined(reader)
            }
            (_, Some(_)) => Join::Gone,
            (false, None) if buffer.has_readers() => Join::InUse,
            (false, None) => {
                // Its client is gone, and the retry begins anew.
                self.cancel.cancel();
                Join::Gone
            }
        }
    }

    /// Removes a reader.
    pub(super) fn leave(&self, reader: u64) {
        self.buffer.lock().remove_reader(reader);
        self.readers_changed.send_replace(());
    }

    /// Executes the request, and passes its response on to the readers.
    pub(super) async fn drive(&self, work: impl Future<Output = Response>) {
        let (parts, mut body) = Box::pin(work).await.into_parts();
        let head = Head {
            status: parts.status,
            headers: parts.headers,
            length: body.size_hint().exact(),
            engine_length: parts.extensions.get().copied(),
        };
        self.update(|buffer| buffer.set_head(head));
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return self.end(End::Broken) };
            // Trailers of engines have no meaning for clients.
            if let Ok(data) = frame.into_data() {
                self.push(data).await;
            }
        }
        self.end(End::Complete);
    }

    /// Waits until no client has read the response for the grace time, or the retry of a response
    /// that cannot be joined begins anew. Then the execution has ended.
    pub(super) async fn abandoned(&self, grace: Duration, stop: &CancellationToken) {
        let mut changed = self.readers_changed.subscribe();
        loop {
            changed.borrow_and_update();
            let is_read = self.buffer.lock().has_readers();
            let left = async {
                match is_read {
                    true => pending().await,
                    // Retries come within seconds, and none if the host stops.
                    false => drop(tokio::time::timeout(grace, stop.cancelled()).await),
                }
            };
            tokio::select! {
                () = left => {}
                () = self.cancel.cancelled() => {}
                _ = changed.changed() => continue,
            }
            if self.buffer.lock().end_unless_read() {
                return;
            }
        }
    }

    /// Ends the execution, if it has not ended.
    pub(super) fn end(&self, end: End) {
        self.update(|buffer| buffer.set_end(end));
    }

    /// Returns the size of the response if it is to be kept for retries.
    pub(super) fn kept_size(&self) -> Option<usize> {
        let buffer = self.buffer.lock();
        let is_whole = buffer.is_joinable() && buffer.end() == Some(End::Complete);
        // Relaxed: set by the task that has ended the execution.
        let has_failed = self.failed.load(Ordering::Relaxed);
        let status = buffer.head()?.status;
        (is_whole && !has_failed && !may_be_cured(status)).then(|| buffer.bytes())
    }

    /// Returns the rights by which the request is served.
    pub(super) fn rights(&self) -> &Rights {
        &self.identity.rights
    }

    /// Returns the whole response; `None` if it is not complete, or not all of it is held.
    pub(super) fn whole(&self) -> Option<(Head, Bytes)> {
        self.buffer.lock().whole()
    }

    /// Gives back the memory of a running execution: what is kept is limited otherwise.
    pub(super) fn release_charge(&self) {
        self.buffer.lock().release_charge();
    }

    /// Returns the head of the response once it is known; `None` if the execution has ended without
    /// one.
    pub(super) fn poll_head(&self, reader: u64, cx: &Context<'_>) -> Poll<Option<Head>> {
        self.buffer.lock().poll_head(reader, cx)
    }

    /// Returns what a reader gets next.
    pub(super) fn poll_next(&self, reader: u64, cx: &Context<'_>) -> Poll<Next> {
        let mut buffer = self.buffer.lock();
        let next = buffer.poll_next(reader, cx);
        let may_wait = !buffer.is_joinable();
        drop(buffer);
        if may_wait && next.is_ready() {
            self.readers_changed.send_replace(());
        }
        next
    }

    /// Changes the buffer and wakes all readers.
    fn update<T>(&self, change: impl FnOnce(&mut Buffer) -> T) -> T {
        let mut buffer = self.buffer.lock();
        let result = change(&mut buffer);
        let wakers = buffer.take_wakers();
        drop(buffer);
        wakers.into_iter().for_each(Waker::wake);
        result
    }

    /// Adds a chunk, once there is space for it.
    async fn push(&self, data: Bytes) {
        let mut changed = self.readers_changed.subscribe();
        let mut left = Some(data);
        loop {
            changed.borrow_and_update();
            left = left.and_then(|data| self.update(|buffer| buffer.push(data)));
            if left.is_none() {
                return;
            }
            // Never fails: the sender is in `self`.
            changed.changed().await.ok();
        }
    }
}

/// Returns whether a retry may get another response: of overloaded, failing or changed lanes.
fn may_be_cured(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::FORBIDDEN
                | StatusCode::NOT_FOUND
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::CONFLICT
                | StatusCode::TOO_EARLY
                | StatusCode::TOO_MANY_REQUESTS
        )
}
