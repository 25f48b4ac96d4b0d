//! States of policies that several hosts share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_policy::{SharedState, StateEntry, StateSharing, StateValue};
use pointsman_shared::{EntryValue, Namespace, Replicator};

/// Maximum size of the state of a policy in memory, with the overhead of its entries, as of one
/// that is not shared.
const MAX_STATE_BYTES: usize = 1 << 20;
/// How long the start waits for what the store has of all policies.
const START_LIMIT: Duration = Duration::from_secs(2);
/// How long the load of a policy waits for that later.
const LOAD_LIMIT: Duration = Duration::from_millis(500);

/// Opens the states of policies in a store.
#[derive(Debug)]
pub(super) struct SharedPolicies {
    replicator: Replicator,
    started: Instant,
}

impl SharedPolicies {
    pub(super) fn new(replicator: Replicator) -> Self {
        Self { replicator, started: Instant::now() }
    }
}

impl StateSharing for SharedPolicies {
    fn open(&self, policy: &str) -> Arc<dyn SharedState> {
        let namespace = self.replicator.namespace(&format!("policy:{policy}"), MAX_STATE_BYTES);
        let left = START_LIMIT.saturating_sub(self.started.elapsed());
        if !namespace.wait_loaded(left.max(LOAD_LIMIT)) {
            tracing::warn!(
                event = "shared_state_not_loaded",
                policy,
                "the shared state of the policy begins with what this host adds; the rest follows \
                 when the store is available"
            );
        }
        Arc::new(SharedPolicy(namespace))
    }
}

/// The state of a policy: counters and values, of which a key has one or the other.
#[derive(Debug)]
struct SharedPolicy(Namespace);

impl SharedState for SharedPolicy {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        if let Some(value) = self.0.get(key) {
            return Some(value.to_vec());
        }
        // A counter of 0 and none are the same: it may be one that another host has removed.
        let total = self.0.total(key);
        (total != 0).then(|| total.to_le_bytes().to_vec())
    }

    fn put(&self, key: &str, value: &[u8], ttl_ms: u32) {
        if self.0.is_counter(key) {
            self.0.reset(key);
        }
        self.0.put(key, value, ttl(ttl_ms));
    }

    fn delete(&self, key: &str) {
        let (is_value, is_counter) = (self.0.is_value(key), self.0.is_counter(key));
        // What this host does not know may be either.
        if is_value || !is_counter {
            self.0.remove(key);
        }
        if is_counter || !is_value {
            self.0.reset(key);
        }
    }

    fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Option<i64> {
        (!self.0.is_value(key)).then(|| self.0.add(key, by, ttl(ttl_ms)))
    }

    fn entries(&self) -> Vec<StateEntry> {
        let entry = |entry: pointsman_shared::Entry| {
            let value = match entry.value {
                EntryValue::Counter(total) => StateValue::Counter(total),
                EntryValue::Bytes(bytes) => StateValue::Bytes(bytes),
            };
            StateEntry { key: entry.key, value, expires_ms: entry.expires_ms }
        };
        self.0.entries().into_iter().map(entry).collect()
    }
}

fn ttl(ttl_ms: u32) -> Option<Duration> {
    (ttl_ms > 0).then(|| Duration::from_millis(ttl_ms.into()))
}
