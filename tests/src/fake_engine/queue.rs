//! Who is served, and who waits: no more at once than the engine takes, and by priority if it is told so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

#[derive(Debug)]
struct Inner {
    limit: usize,
    running: usize,
    held: bool,
    next: u64,
    waiting: BTreeMap<(i64, u64), oneshot::Sender<()>>,
}

impl Inner {
    fn advance(&mut self) {
        while !self.held && self.running < self.limit {
            let Some((_, waiter)) = self.waiting.pop_first() else { return };
            self.running += usize::from(waiter.send(()).is_ok());
        }
    }
}

/// The queue.
#[derive(Debug)]
pub(super) struct Queue(Mutex<Inner>);

/// A place among those who are served.
#[derive(Debug)]
pub(super) struct Permit(Arc<Queue>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A place among those who wait.
struct Waiter {
    queue: Arc<Queue>,
    key: (i64, u64),
    called: oneshot::Receiver<()>,
    served: bool,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.served {
            return;
        }
        let left = self.queue.inner().waiting.remove(&self.key).is_some();
        if !left && self.called.try_recv().is_ok() {
            self.queue.leave();
        }
    }
}

impl Queue {
    pub(super) fn new(limit: Option<usize>) -> Arc<Self> {
        let limit = limit.unwrap_or(usize::MAX);
        let inner = Inner { limit, running: 0, held: false, next: 0, waiting: BTreeMap::new() };
        Arc::new(Self(Mutex::new(inner)))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self) {
        let mut inner = self.inner();
        inner.running -= 1;
        inner.advance();
    }

    /// Wait for a place; the lowest priority comes first.
    pub(super) async fn admit(self: Arc<Self>, priority: i64) -> Permit {
        let (call, called) = oneshot::channel();
        let key = {
            let mut inner = self.inner();
            let key = (priority, inner.next);
            inner.next += 1;
            inner.waiting.insert(key, call);
            inner.advance();
            key
        };
        let mut waiter = Waiter { queue: Arc::clone(&self), key, called, served: false };
        let _called = (&mut waiter.called).await;
        waiter.served = true;
        Permit(self)
    }

    /// Let nobody in, or let them in again.
    pub(super) fn hold(&self, held: bool) {
        let mut inner = self.inner();
        inner.held = held;
        inner.advance();
    }

    /// How many are served, and how many wait.
    pub(super) fn counts(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.running, inner.waiting.len())
    }
}
