//! The queue of the engine: it limits the number of concurrent completions, and orders the waiting
//! ones by priority.

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

/// A queue with a limited number of permits.
#[derive(Debug)]
pub(super) struct Queue(Mutex<Inner>);

/// A permit to generate a completion, which is returned when dropped.
#[derive(Debug)]
pub(super) struct QueuePermit(Arc<Queue>);

impl Drop for QueuePermit {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// An entry of the queue, which is removed when dropped.
struct Waiter {
    queue: Arc<Queue>,
    key: (i64, u64),
    granted: oneshot::Receiver<()>,
    served: bool,
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if self.served {
            return;
        }
        let was_waiting = self.queue.inner().waiting.remove(&self.key).is_some();
        if !was_waiting && self.granted.try_recv().is_ok() {
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

    /// Waits for a permit. The lowest number has the highest priority.
    pub(super) async fn admit(self: Arc<Self>, priority: i64) -> QueuePermit {
        let (grant, granted) = oneshot::channel();
        let key = {
            let mut inner = self.inner();
            let key = (priority, inner.next);
            inner.next += 1;
            inner.waiting.insert(key, grant);
            inner.advance();
            key
        };
        let mut waiter = Waiter { queue: Arc::clone(&self), key, granted, served: false };
        // The sender is dropped only together with the queue.
        (&mut waiter.granted).await.ok();
        waiter.served = true;
        QueuePermit(self)
    }

    /// Stops or resumes granting permits.
    pub(super) fn hold(&self, held: bool) {
        let mut inner = self.inner();
        inner.held = held;
        inner.advance();
    }

    /// Returns the numbers of running and of waiting completions.
    pub(super) fn counts(&self) -> (usize, usize) {
        let inner = self.inner();
        (inner.running, inner.waiting.len())
    }
}
