//! The state of a policy in a host: concurrent, and in real time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache;

use crate::contract::state::entry::{MAX_STATE_BYTES, StateError, weight};

#[derive(Debug, Clone)]
struct Entry {
    value: Value,
    ttl: Option<Duration>,
}

#[derive(Debug, Clone)]
enum Value {
    Bytes(Arc<[u8]>),
    Counter(Arc<AtomicI64>),
}

#[derive(Debug)]
pub(super) struct Concurrent {
    entries: Cache<String, Entry>,
}

/// Expires each entry after its own time to live.
struct EntryTtl;

impl Expiry<String, Entry> for EntryTtl {
    fn expire_after_create(
        &self,
        _key: &String,
        entry: &Entry,
        _created: Instant,
    ) -> Option<Duration> {
        entry.ttl
    }

    fn expire_after_update(
        &self,
        _: &String,
        entry: &Entry,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        entry.ttl
    }
}

impl Default for Concurrent {
    fn default() -> Self {
        let weigh = |key: &String, entry: &Entry| {
            let value = match &entry.value {
                Value::Bytes(bytes) => bytes.len(),
                Value::Counter(_) => size_of::<i64>(),
            };
            // Keys and values are far below 4 GiB.
            u32::try_from(weight(key, value)).unwrap_or(u32::MAX)
        };
        Self {
            entries: Cache::builder()
                .max_capacity(MAX_STATE_BYTES)
                .weigher(weigh)
                .expire_after(EntryTtl)
                .build(),
        }
    }
}

impl Concurrent {
    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        Some(match self.entries.get(key)?.value {
            Value::Bytes(bytes) => bytes.to_vec(),
            Value::Counter(counter) => counter.load(Ordering::Relaxed).to_le_bytes().to_vec(),
        })
    }

    pub(super) fn put(&self, key: String, value: &[u8], ttl_ms: u32) {
        self.entries.insert(key, Entry { value: Value::Bytes(value.into()), ttl: ttl(ttl_ms) });
    }

    pub(super) fn delete(&self, key: &str) {
        self.entries.invalidate(key);
    }

    pub(super) fn increment(&self, key: String, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        let new = || Entry { value: Value::Counter(Arc::default()), ttl: ttl(ttl_ms) };
        match self.entries.entry(key).or_insert_with(new).into_value().value {
            Value::Counter(counter) => {
                // Wraps like the deterministic backend; guests see the wrapped value.
                Ok(counter.fetch_add(by, Ordering::Relaxed).wrapping_add(by))
            }
            Value::Bytes(_) => Err(StateError::NotACounter),
        }
    }

    /// Returns the weight of all entries, after pending evictions.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.weighted_size()
    }
}

/// Converts a time to live; 0 stands for no expiry.
fn ttl(ms: u32) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms.into()))
}
