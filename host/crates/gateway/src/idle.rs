//! How many connections may be open, and the idle ones, of which the longest idle one makes room
//! for a new one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// Interval at which a new connection looks for an idle one to take the place of, while all are
/// busy.
const EVICT_INTERVAL: Duration = Duration::from_millis(50);

/// The places of connections, which one or more listeners share.
#[derive(Debug)]
pub(crate) struct ConnectionPool {
    permits: Arc<Semaphore>,
    /// Places of requests on connections that have several.
    requests: Arc<Semaphore>,
    idle: Arc<IdleConnections>,
}

impl ConnectionPool {
    /// Creates a pool for at most this many connections.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let places = || Arc::new(Semaphore::new(max));
        Arc::new(Self { permits: places(), requests: places(), idle: Arc::default() })
    }

    /// Returns the places of requests on connections with HTTP/2: as many as of connections, so
    /// that HTTP/2 does not multiply the requests that clients can have in flight.
    pub(crate) fn requests(&self) -> &Arc<Semaphore> {
        &self.requests
    }

    /// Returns the idle connections of all listeners.
    pub(crate) fn idle(&self) -> &Arc<IdleConnections> {
        &self.idle
    }

    /// Waits for the place of a connection. The longest idle connection makes room if none is free.
    pub(crate) async fn make_room(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Some(permit);
        }
        loop {
            self.idle.evict_longest();
            let acquired = Arc::clone(&self.permits).acquire_owned();
            if let Ok(permit) = tokio::time::timeout(EVICT_INTERVAL, acquired).await {
                // The semaphore is never closed.
                return permit.ok();
            }
        }
    }
}

/// The order in which connections became idle; earlier ones have smaller numbers.
pub(crate) type IdleSeq = u64;

/// The idle connections of a pool, in the order in which they became idle.
#[derive(Debug, Default)]
pub(crate) struct IdleConnections(Mutex<Idle>);

#[derive(Debug, Default)]
struct Idle {
    last: IdleSeq,
    connections: BTreeMap<IdleSeq, CancellationToken>,
}

impl IdleConnections {
    /// Adds a connection, whose token is cancelled when it has to make room.
    pub(crate) fn insert(&self, evict: &CancellationToken) -> IdleSeq {
        let mut idle = self.lock();
        idle.last += 1;
        let seq = idle.last;
        idle.connections.insert(seq, evict.clone());
        seq
    }

    /// Removes a connection. Returns false if it is being closed.
    pub(crate) fn remove(&self, seq: IdleSeq) -> bool {
        self.lock().connections.remove(&seq).is_some()
    }

    /// Closes the connection that has been idle for the longest time. Returns false if none is.
    pub(crate) fn evict_longest(&self) -> bool {
        let longest = self.lock().connections.pop_first();
        longest.is_some_and(|(_, evict)| {
            evict.cancel();
            true
        })
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        // Every statement leaves a valid state behind, so a panic elsewhere does no harm.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_idle_connection_is_evicted() {
        let idle = IdleConnections::default();
        let tokens = [CancellationToken::new(), CancellationToken::new()];
        let first = idle.insert(&tokens[0]);
        idle.insert(&tokens[1]);
        assert!(idle.remove(first), "a request begins");
        let again = idle.insert(&tokens[0]);
        assert!(idle.evict_longest());
        assert_eq!(tokens.each_ref().map(CancellationToken::is_cancelled), [false, true]);
        assert!(idle.evict_longest() && !idle.evict_longest());
        assert!(!idle.remove(again), "it is being closed");
    }
}
