//! The phases of a shutdown, as the listeners see them.
//!
//! ```text
//!   retire    another host goes on: the listeners accept no connections, and each that is open is
//!             closed after its next response
//!   begin ──> requests in flight continue, new ones get 503; `/livez` and the like still respond
//!   drained   all requests that were in flight at `begin` have ended, and their responses are sent
//!   abort     requests that are left get an error
//!   cut       connections that are open now are closed, whatever they are doing
//!   close     the listeners close
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// The phases of a shutdown. A clone shares all of them.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    retire: CancellationToken,
    stop: CancellationToken,
    abort: CancellationToken,
    cut: CancellationToken,
    close: CancellationToken,
    requests: TaskTracker,
    predecessors: Arc<AtomicUsize>,
}

/// A host before this one that finishes its requests, until this is dropped.
#[derive(Debug)]
pub struct PredecessorGuard {
    predecessors: Arc<AtomicUsize>,
    /// `None` if the drain had begun before.
    _token: Option<TaskTrackerToken>,
}

impl Drop for PredecessorGuard {
    fn drop(&mut self) {
        self.predecessors.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drain {
    /// Leaves new connections to another host. Requests on open connections are served, and close
    /// them. The listeners end with the last connection.
    pub fn retire(&self) {
        self.retire.cancel();
    }

    /// Notes a host before this one that finishes its requests. The drain waits for it.
    pub fn hold_for_predecessor(&self) -> PredecessorGuard {
        self.predecessors.fetch_add(1, Ordering::Relaxed);
        PredecessorGuard { predecessors: Arc::clone(&self.predecessors), _token: self.register() }
    }

    /// Returns true while a host before this one finishes its requests.
    pub(crate) fn has_predecessor(&self) -> bool {
        self.predecessors.load(Ordering::Relaxed) > 0
    }

    /// Begins the drain: requests from now on are rejected, those in flight continue.
    pub fn begin(&self) {
        self.stop.cancel();
        self.requests.close();
    }

    /// Waits until the drain has begun and all requests that were in flight then have ended. The
    /// last bytes of their responses have been handed to the system.
    pub async fn drained(&self) {
        self.requests.wait().await;
    }

    /// Ends the requests that are left with an error.
    pub fn abort(&self) {
        self.abort.cancel();
    }

    /// Closes the connections that are open now.
    pub fn cut(&self) {
        self.cut.cancel();
    }

    /// Closes the listeners, and all connections.
    pub fn close(&self) {
        self.close.cancel();
    }

    /// Returns the token that is cancelled when another host goes on.
    pub fn retiring(&self) -> &CancellationToken {
        &self.retire
    }

    /// Returns true if connections are closed after their next response.
    pub(crate) fn closes_connections(&self) -> bool {
        self.stop.is_cancelled() || self.retire.is_cancelled()
    }

    /// Returns the token that is cancelled when the drain begins.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Returns the token that is cancelled when requests that are left get an error.
    pub(crate) fn aborting(&self) -> &CancellationToken {
        &self.abort
    }

    /// Returns the token that is cancelled when open connections are closed.
    pub(crate) fn cutting(&self) -> &CancellationToken {
        &self.cut
    }

    /// Returns the token that is cancelled when the listeners close.
    pub fn closing(&self) -> &CancellationToken {
        &self.close
    }

    /// Registers a request, for which the drain waits until the token is dropped. `None` if the
    /// drain has begun: a flood of new requests must not hold it up.
    pub(crate) fn register(&self) -> Option<TaskTrackerToken> {
        (!self.stop.is_cancelled()).then(|| self.requests.token())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn drain_waits_only_for_requests_from_before() {
        let drain = Drain::default();
        let request = drain.register();
        assert!(request.is_some() && drain.drained().now_or_never().is_none());
        drain.begin();
        assert!(drain.register().is_none());
        assert!(drain.drained().now_or_never().is_none());
        drop(request);
        assert!(drain.drained().now_or_never().is_some());
    }
}
