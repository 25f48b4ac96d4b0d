//! The requests that have ended most recently, for operators: a list in memory, whose number and
//! bytes are limited, and a channel for those who want to hear of each request as it ends.
//!
//! A request adds what its record would have anyway. What operators see of it is made when they
//! ask.

mod ended;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use pointsman_domain::Trace;
use pointsman_record::{Key, Redact};
use tokio::sync::broadcast;

pub(crate) use self::ended::{DecisionDetail, EndedFailure, EndedRequest};

/// Maximum bytes of all requests that are kept, approximately.
const MAX_KEPT_BYTES: usize = 16 << 20;
/// Maximum bytes of what a decision was based on; of larger ones, only the end is kept.
const MAX_DETAIL: usize = 1 << 20;
/// Requests that a receiver may be behind before it misses some.
const MAX_BEHIND: usize = 256;

/// The requests that have ended. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Decisions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Maximum number of requests.
    max: AtomicUsize,
    ring: Mutex<Ring>,
    ended: broadcast::Sender<Arc<EndedRequest>>,
    /// How texts are redacted without records; `None` if there are no random numbers for it, and
    /// details are not shown.
    redact: Option<Redact>,
    /// Host calls of policies are kept even if they are not recorded.
    has_host_calls: bool,
}

#[derive(Debug, Default)]
struct Ring {
    /// Oldest first.
    requests: VecDeque<Arc<EndedRequest>>,
    bytes: usize,
}

impl Decisions {
    /// Creates an empty list of at most `max` requests.
    pub(crate) fn new(max: usize) -> Self {
        Self::with_host_calls(max, false)
    }

    /// Creates the list for a request about which is only decided.
    pub(crate) fn for_preview() -> Self {
        Self::with_host_calls(1, true)
    }

    fn with_host_calls(max: usize, has_host_calls: bool) -> Self {
        let (ended, _) = broadcast::channel(MAX_BEHIND);
        let redact = Key::random().ok().map(Redact::standard);
        let (max, ring) = (AtomicUsize::new(max), Mutex::default());
        Self(Arc::new(Shared { max, ring, ended, redact, has_host_calls }))
    }

    /// Changes the maximum number; with 0, nothing is kept.
    pub(crate) fn set_max(&self, max: usize) {
        self.0.max.store(max, Ordering::Relaxed);
        let removed = self.0.ring.lock().shrink(max);
        drop(removed);
    }

    /// Returns true if requests are kept.
    pub(crate) fn is_on(&self) -> bool {
        self.0.max.load(Ordering::Relaxed) > 0
    }

    /// Returns the trace for the policy calls of a request that is not recorded.
    pub(crate) fn trace(&self) -> Trace {
        match (self.is_on(), self.0.has_host_calls) {
            (false, _) => Trace::off(),
            (true, false) => Trace::without_reads(),
            (true, true) => Trace::on(),
        }
    }

    /// Returns the redaction rules without records.
    pub(crate) fn redact(&self) -> Option<&Redact> {
        self.0.redact.as_ref()
    }

    /// Adds a request that has ended.
    pub(crate) fn push(&self, mut request: EndedRequest) {
        if request.detail.as_ref().is_some_and(|detail| detail.weight() > MAX_DETAIL) {
            request.detail = None;
        }
        let request = Arc::new(request);
        let removed = {
            let mut ring = self.0.ring.lock();
            ring.bytes += request.weight();
            ring.requests.push_back(Arc::clone(&request));
            ring.shrink(self.0.max.load(Ordering::Relaxed))
        };
        // Outside the lock: freeing a view of the fleet takes a while.
        drop(removed);
        if self.0.ended.receiver_count() > 0 {
            // Fails only without receivers.
            self.0.ended.send(request).ok();
        }
    }

    /// Returns a channel that gets each request that ends from now on, while requests are kept.
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Arc<EndedRequest>> {
        self.0.ended.subscribe()
    }

    /// Returns at most `limit` requests, newest first; only those that ended before the one with
    /// the id `before`, and none if that one is not kept.
    pub(crate) fn list(&self, limit: usize, before: Option<&str>) -> Vec<Arc<EndedRequest>> {
        let ring = self.0.ring.lock();
        let mut newest_first = ring.requests.iter().rev();
        if let Some(before) = before {
            newest_first.find(|request| request.id == before);
        }
        newest_first.take(limit).cloned().collect()
    }

    /// Returns the last request with this id.
    pub(crate) fn find(&self, id: &str) -> Option<Arc<EndedRequest>> {
        self.0.ring.lock().requests.iter().rev().find(|request| request.id == id).cloned()
    }

    /// Returns the only request of a list for a preview.
    pub(crate) fn last(&self) -> Option<Arc<EndedRequest>> {
        self.0.ring.lock().requests.back().cloned()
    }
}

impl Ring {
    /// Removes the oldest requests until the rest fits, and returns them.
    fn shrink(&mut self, max: usize) -> Vec<Arc<EndedRequest>> {
        let mut removed = Vec::new();
        while self.requests.len() > max || self.bytes > MAX_KEPT_BYTES {
            let Some(oldest) = self.requests.pop_front() else { break };
            self.bytes -= oldest.weight();
            removed.push(oldest);
        }
        removed
    }
}

#[cfg(test)]
mod tests;
