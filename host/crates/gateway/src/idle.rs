//! The idle connections of a listener, of which the longest idle one makes room for a new one.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The order in which connections became idle; earlier ones have smaller numbers.
type IdleSeq = u64;

/// The idle connections of a listener, in the order in which they became idle.
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
