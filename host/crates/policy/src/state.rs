//! The small shared state of one policy: kept over its versions, bounded by eviction.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use moka::Expiry;
use moka::sync::Cache;

/// Bytes of keys and values of one policy.
const MOST_BYTES: u64 = 1 << 20;
/// Longest key.
const LONGEST_KEY: usize = 128;
/// Longest value.
const LONGEST_VALUE: usize = 4096;
/// What an entry weighs beyond its key and value, so that empty ones are bounded too: 10,000 of them fill the state.
const ENTRY_OVERHEAD: usize = 100;

/// Why a value was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateError {
    TooLong,
    NotACounter,
}

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

/// The entries of one policy.
#[derive(Debug)]
pub(crate) struct State {
    entries: Cache<String, Entry>,
}

struct OwnTtl;

impl Expiry<String, Entry> for OwnTtl {
    fn expire_after_create(&self, _key: &String, entry: &Entry, _created: Instant) -> Option<Duration> {
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

impl Default for State {
    fn default() -> Self {
        let weigh = |key: &String, entry: &Entry| {
            let value = match &entry.value {
                Value::Bytes(bytes) => bytes.len(),
                Value::Counter(_) => size_of::<i64>(),
            };
            u32::try_from(key.len() + value + ENTRY_OVERHEAD).unwrap_or(u32::MAX)
        };
        Self {
            entries: Cache::builder().max_capacity(MOST_BYTES).weigher(weigh).expire_after(OwnTtl).build(),
        }
    }
}

impl State {
    /// A counter reads as its value in little-endian bytes.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        Some(match self.entries.get(key)?.value {
            Value::Bytes(bytes) => bytes.to_vec(),
            Value::Counter(counter) => counter.load(Ordering::Relaxed).to_le_bytes().to_vec(),
        })
    }

    pub(crate) fn put(&self, key: String, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        if key.len() > LONGEST_KEY || value.len() > LONGEST_VALUE {
            return Err(StateError::TooLong);
        }
        self.entries.insert(key, Entry { value: Value::Bytes(value.into()), ttl: ttl(ttl_ms) });
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) {
        self.entries.invalidate(key);
    }

    pub(crate) fn increment(&self, key: String, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        if key.len() > LONGEST_KEY {
            return Err(StateError::TooLong);
        }
        let new = || Entry { value: Value::Counter(Arc::default()), ttl: ttl(ttl_ms) };
        match self.entries.entry(key).or_insert_with(new).into_value().value {
            Value::Counter(counter) => Ok(counter.fetch_add(by, Ordering::Relaxed).wrapping_add(by)),
            Value::Bytes(_) => Err(StateError::NotACounter),
        }
    }
}

fn ttl(ms: u32) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_counters_are_kept_apart() {
        let state = State::default();
        assert_eq!(state.get("a"), None);
        state.put("a".into(), b"one", 0).unwrap();
        assert_eq!(state.get("a").as_deref(), Some(b"one".as_slice()));
        assert_eq!(state.increment("a".into(), 1, 0), Err(StateError::NotACounter));
        assert_eq!((state.increment("n".into(), 5, 0), state.increment("n".into(), -2, 0)), (Ok(5), Ok(3)));
        assert_eq!(state.get("n"), Some(3i64.to_le_bytes().to_vec()));
        state.delete("a");
        assert_eq!(state.get("a"), None);
    }

    #[test]
    fn sizes_are_limited_and_a_flood_is_evicted() {
        let state = State::default();
        assert_eq!(state.put("k".repeat(129), b"", 0), Err(StateError::TooLong));
        assert_eq!(state.put("k".into(), &[0; 4097], 0), Err(StateError::TooLong));
        for number in 0..5000 {
            state.put(format!("key-{number}"), &[0; 1000], 0).unwrap();
        }
        state.entries.run_pending_tasks();
        assert!(state.entries.weighted_size() <= MOST_BYTES);
    }

    #[test]
    fn counting_is_atomic() {
        let state = State::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| assert!(state.increment("n".into(), 1, 0).is_ok())));
            }
        });
        assert_eq!(state.increment("n".into(), 0, 0), Ok(4000));
    }
}
