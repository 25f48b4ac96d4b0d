//! What hosts count and know together, in the store that they share: limits of keys, requests with
//! an idempotency key, and who keeps a response.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pointsman_access::{SharedCounter, SharedCounters};
use pointsman_gateway::{SharedCall, SharedStore, StoreAway};
use pointsman_shared::{Direct, Namespace, Replicator};

/// The namespace of limits, and the memory for it: some hundred thousand counters.
const LIMITS: &str = "limits";
const LIMITS_BYTES: usize = 64 << 20;
/// Rounds after which the store has been asked for a counter: one may have begun before.
const ROUNDS: u64 = 2;

/// Returns the counters of limits.
pub(crate) fn counters(replicator: &Replicator) -> Arc<dyn SharedCounters> {
    let namespace = replicator.namespace(LIMITS, LIMITS_BYTES);
    Arc::new(LimitCounters { namespace, replicator: replicator.clone() })
}

#[derive(Debug)]
struct LimitCounters {
    namespace: Namespace,
    replicator: Replicator,
}

struct LimitCounter {
    namespace: Namespace,
    replicator: Replicator,
    key: String,
    lifetime: Duration,
    /// Rounds that had succeeded when the counter was opened.
    rounds: u64,
    is_known: AtomicBool,
}

impl SharedCounters for LimitCounters {
    fn open(&self, name: &str, lifetime: Duration) -> Arc<dyn SharedCounter> {
        let (namespace, key) = (self.namespace.clone(), name.to_owned());
        // So that the next round asks for it.
        namespace.total(&key);
        Arc::new(LimitCounter {
            namespace,
            key,
            lifetime,
            rounds: self.replicator.rounds(),
            replicator: self.replicator.clone(),
            is_known: AtomicBool::new(false),
        })
    }
}

impl SharedCounter for LimitCounter {
    fn add(&self, delta: i64) {
        self.namespace.add(&self.key, delta, Some(self.lifetime));
    }

    fn total(&self) -> Option<i64> {
        // Relaxed: nothing else is read because of it.
        if !self.is_known.load(Ordering::Relaxed) {
            if self.replicator.rounds() < self.rounds + ROUNDS {
                return None;
            }
            self.is_known.store(true, Ordering::Relaxed);
        }
        Some(self.namespace.total(&self.key))
    }
}

impl fmt::Debug for LimitCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitCounter").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Returns the name by which clients learn which host has what they ask for: the one that it has in
/// its fleet. Without one, that of the machine, and where the host listens, as several hosts may
/// run on a machine.
pub(crate) fn name_of_host(name: &str, address: &str) -> String {
    if !name.is_empty() {
        return name.to_owned();
    }
    let system = rustix::system::uname();
    format!("{}/{address}", system.nodename().to_string_lossy())
}

/// What hosts know together of requests.
#[derive(Debug)]
pub(crate) struct RequestStore(pub(crate) Direct);

impl SharedStore for RequestStore {
    fn claim<'a>(
        &'a self,
        key: &'a str,
        value: Vec<u8>,
        ttl: Duration,
    ) -> SharedCall<'a, Option<Vec<u8>>> {
        Box::pin(async move { self.0.claim(key, &value, ttl).await.map_err(away) })
    }

    fn replace<'a>(
        &'a self,
        key: &'a str,
        old: Vec<u8>,
        new: Option<(Vec<u8>, Duration)>,
    ) -> SharedCall<'a, bool> {
        Box::pin(async move {
            let new = new.as_ref().map(|(new, ttl)| (&**new, *ttl));
            self.0.replace(key, &old, new).await.map_err(away)
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> SharedCall<'a, Option<Vec<u8>>> {
        Box::pin(async move { self.0.get(key).await.map_err(away) })
    }
}

fn away(error: pointsman_shared::DirectError) -> StoreAway {
    // The state of the store is logged by the replicator, once.
    tracing::debug!(event = "shared_call_failed", %error, "call of the shared store failed");
    StoreAway
}
