//! What a connection of a client is doing, shared by its stream and by the requests on it.
//!
//! ```text
//!             head complete        last byte of the last response handed over        flushed
//!   idle ──────────────────> busy ────────────────────────────────────────> flushing ──> idle
//! ```
//!
//! A connection with HTTP/1 has one request at a time, one with HTTP/2 has several.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use futures_util::task::AtomicWaker;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::drain::Drain;
use crate::idle::{IdleConnections, IdleSeq};

const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// A request has ended, and its last bytes have not been handed to the system.
const FLUSHING: u8 = 2;

/// What a connection is doing.
#[derive(Debug)]
pub(crate) struct Activity {
    phase: AtomicU8,
    state: Mutex<State>,
    is_http2: AtomicBool,
    /// The connection is idle, and should give its buffers back.
    rests: AtomicBool,
    /// Wakes the task of an HTTP/2 connection, whose requests end on other tasks.
    connection: AtomicWaker,
    drain: Drain,
    idle: Arc<IdleConnections>,
    evict: CancellationToken,
    /// Cancelled with the first request.
    used: CancellationToken,
    /// Cancelled when an HTTP/2 connection was idle for too long.
    expired: CancellationToken,
}

#[derive(Debug)]
struct State {
    /// Its number among the idle connections, between requests and before the head of the first
    /// one is complete.
    idle: Option<IdleSeq>,
    /// Requests in progress.
    requests: usize,
    /// Requests that have ended since the last flush, for which a drain waits.
    flushing: Vec<TaskTrackerToken>,
}

impl Activity {
    /// Registers a new connection.
    pub(crate) fn new(drain: Drain, idle: Arc<IdleConnections>) -> Arc<Self> {
        let evict = CancellationToken::new();
        let state =
            State { idle: Some(idle.insert(&evict)), requests: 0, flushing: Vec::default() };
        Arc::new(Self {
            phase: AtomicU8::new(IDLE),
            state: Mutex::new(state),
            is_http2: AtomicBool::new(false),
            rests: AtomicBool::new(false),
            connection: AtomicWaker::new(),
            drain,
            idle,
            evict,
            used: CancellationToken::new(),
            expired: CancellationToken::new(),
        })
    }

    /// Notes a request, until the guard is dropped with the last data of its response. `None` if
    /// the connection is being closed because it was idle: the request must not begin.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<RequestGuard> {
        let mut state = self.state();
        if let Some(seq) = state.idle.take()
            && !self.idle.remove(seq)
        {
            return None;
        }
        state.requests += 1;
        // While flushing, the flush is still to come that ends the request before.
        if self.is_idle() {
            self.phase.store(BUSY, Ordering::Release);
        }
        drop(state);
        self.used.cancel();
        let token = self.drain.register();
        Some(RequestGuard { activity: Arc::clone(self), token, place: None })
    }

    /// Waits until the connection has to make room for another one.
    pub(crate) async fn evicted(&self) {
        self.evict.cancelled().await;
    }

    /// Waits for the first request.
    pub(crate) async fn used(&self) {
        self.used.cancelled().await;
    }

    /// Notes that the client speaks HTTP/2.
    pub(crate) fn set_http2(&self) {
        self.is_http2.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_http2(&self) -> bool {
        // Relaxed: set by the task of the connection before the first request.
        self.is_http2.load(Ordering::Relaxed)
    }

    /// Notes that an HTTP/1 connection is idle for a while.
    pub(crate) fn rest(&self) {
        // Relaxed, here and below: only the task of the connection uses it.
        self.rests.store(true, Ordering::Relaxed);
    }

    /// Returns true once after each [`rest`](Self::rest), if the connection is still idle.
    pub(crate) fn take_rest(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
            && self.rests.swap(false, Ordering::Relaxed)
            && self.is_idle()
    }

    /// Notes which task to wake when a request ends. Only needed for HTTP/2.
    pub(crate) fn register(&self, connection: &Waker) {
        if self.is_http2() {
            self.connection.register(connection);
        }
    }

    /// Notes that all bytes were written. Returns true if the connection has become idle by that.
    pub(crate) fn flushed(&self) -> bool {
        if self.phase.load(Ordering::Acquire) != FLUSHING {
            return false;
        }
        let mut state = self.state();
        state.flushing.clear();
        let becomes_idle = state.requests == 0;
        if becomes_idle {
            state.idle = Some(self.idle.insert(&self.evict));
        }
        self.phase.store(if becomes_idle { IDLE } else { BUSY }, Ordering::Release);
        becomes_idle
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.phase.load(Ordering::Acquire) == IDLE
    }

    /// Notes that an HTTP/2 connection was idle for too long. Returns false if that was noted
    /// before.
    pub(crate) fn expire(&self) -> bool {
        let is_first = !self.expired.is_cancelled();
        self.expired.cancel();
        is_first
    }

    /// Waits until an HTTP/2 connection must not begin further requests: it was idle for too long,
    /// the host stops, or another one goes on. A connection that is opened while the host stops
    /// gets one response.
    pub(crate) async fn retired(&self) {
        let stopped = async {
            tokio::select! {
                () = self.drain.stopping().cancelled() => {}
                () = self.drain.retiring().cancelled() => {}
            }
            self.used().await;
        };
        tokio::select! { () = self.expired.cancelled() => {}, () = stopped => {} }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every statement leaves a valid state behind, so a panic elsewhere does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        if let Some(seq) = self.state().idle {
            self.idle.remove(seq);
        }
    }
}

/// A request in progress. Dropped with the last data of its response, which hyper has then written
/// or copied into its own buffer.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    activity: Arc<Activity>,
    /// For a drain that waits; `None` if it had begun before the request.
    token: Option<TaskTrackerToken>,
    /// The place of a request whose connection has several.
    place: Option<OwnedSemaphorePermit>,
}

impl RequestGuard {
    /// Takes a place that the request keeps until it has ended. Returns false if none is free.
    pub(crate) fn take_place(&mut self, places: &Arc<Semaphore>) -> bool {
        self.place = Arc::clone(places).try_acquire_owned().ok();
        self.place.is_some()
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        // Saturates never: each guard has added one.
        state.requests = state.requests.saturating_sub(1);
        state.flushing.extend(self.token.take());
        self.activity.phase.store(FLUSHING, Ordering::Release);
        drop(state);
        self.activity.connection.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_is_busy_until_its_last_request_has_ended() {
        let drain = Drain::default();
        let idle = Arc::<IdleConnections>::default();
        let activity = Activity::new(drain.clone(), Arc::clone(&idle));
        let first = activity.begin().unwrap();
        let second = activity.begin().unwrap();
        drop(first);
        assert!(!activity.flushed() && !activity.is_idle() && !idle.evict_longest());
        drop(second);
        assert!(!activity.is_idle(), "the last bytes were not written");
        assert!(activity.flushed() && activity.is_idle());
        assert!(!activity.flushed(), "only once");
        assert!(idle.evict_longest() && activity.begin().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn only_used_connections_retire_when_the_host_stops() {
        let drain = Drain::default();
        let activity = Activity::new(drain.clone(), Arc::default());
        drain.begin();
        let retired = tokio::time::timeout(std::time::Duration::from_secs(9), activity.retired());
        assert!(retired.await.is_err());
        drop(activity.begin());
        activity.retired().await;
        let other = Activity::new(Drain::default(), Arc::default());
        assert!(other.expire() && !other.expire());
        other.retired().await;
    }
}
