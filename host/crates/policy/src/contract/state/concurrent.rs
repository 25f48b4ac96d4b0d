//! The state of a policy in a host: concurrent, and in real time.
//!
//! The entries are in memory. If the state is durable, changed keys are noted, and a thread of the
//! host saves what they have then: a counter that was increased many times is written once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use moka::Expiry;
use moka::sync::Cache;

use super::dirty::{Changed, Dirty};
use crate::contract::state::entry::{MAX_STATE_BYTES, StateError, weight};
use crate::contract::state_backing::{StateChanges, StateEntry, StateValue};

#[derive(Debug, Clone)]
struct Entry {
    value: Value,
    ttl: Option<Duration>,
    /// The end of `ttl` in milliseconds since 1970, for restarts.
    expires_ms: Option<u64>,
}

#[derive(Debug, Clone)]
enum Value {
    Bytes(Arc<[u8]>),
    Counter(Arc<Counter>),
}

#[derive(Debug, Default)]
struct Counter {
    value: AtomicI64,
    /// The key is marked as changed, so that it need not be marked again before it is saved.
    is_marked: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Concurrent {
    entries: Cache<String, Entry>,
    dirty: Arc<Dirty>,
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
        let dirty = Arc::<Dirty>::default();
        let marks = Arc::clone(&dirty);
        let entries = Cache::builder()
            .max_capacity(MAX_STATE_BYTES)
            .weigher(weigh)
            .expire_after(EntryTtl)
            .eviction_listener(move |key, _, cause| {
                if cause.was_evicted() {
                    marks.mark(&key);
                }
            })
            .build();
        Self { entries, dirty }
    }
}

impl Concurrent {
    /// Returns an independent state with the same entries. Values are shared until they are
    /// written. Iteration neither counts as a use of an entry nor delays its expiry.
    pub(super) fn copy(&self) -> Self {
        let (copy, now) = (Self::default(), now_ms());
        for (key, entry) in &self.entries {
            copy.entries.insert(String::clone(&key), entry.copy(now));
        }
        copy
    }

    /// Creates a state with entries, of which changes are not saved.
    pub(super) fn with_entries(entries: Vec<StateEntry>) -> Self {
        let (state, now) = (Self::default(), now_ms());
        for StateEntry { key, value, expires_ms } in entries {
            let ttl = expires_ms.map(|at| Duration::from_millis(at.saturating_sub(now)));
            let value = match value {
                StateValue::Bytes(bytes) => Value::Bytes(bytes.into()),
                StateValue::Counter(count) => Value::Counter(Arc::new(Counter {
                    value: AtomicI64::new(count),
                    is_marked: AtomicBool::new(false),
                })),
            };
            state.entries.insert(key, Entry { value, ttl, expires_ms });
        }
        state
    }

    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        Some(match self.entries.get(key)?.value {
            Value::Bytes(bytes) => bytes.to_vec(),
            Value::Counter(counter) => counter.get().to_le_bytes().to_vec(),
        })
    }

    pub(super) fn put(&self, key: String, value: &[u8], ttl_ms: u32) {
        let is_durable = self.dirty.is_on();
        let marked = is_durable.then(|| key.clone());
        self.entries.insert(key, Entry::new(Value::Bytes(value.into()), ttl_ms));
        if let Some(key) = marked {
            self.dirty.mark(&key);
        }
    }

    pub(super) fn delete(&self, key: &str) {
        self.entries.invalidate(key);
        self.dirty.mark(key);
    }

    pub(super) fn increment(&self, key: String, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        let new = || Entry::new(Value::Counter(Arc::default()), ttl_ms);
        let entry = self.entries.entry(key).or_insert_with(new);
        match &entry.value().value {
            Value::Counter(counter) => {
                // Wraps like the deterministic backend; guests see the wrapped value.
                let value = counter.value.fetch_add(by, Ordering::Relaxed).wrapping_add(by);
                // Released, so that who clears the mark reads this value or a later one.
                if self.dirty.is_on() && !counter.is_marked.swap(true, Ordering::AcqRel) {
                    self.dirty.mark(entry.key());
                }
                Ok(value)
            }
            Value::Bytes(_) => Err(StateError::NotACounter),
        }
    }

    /// Adds entries of an earlier process, and saves changes from now on. What was written before
    /// this call stays, and counters are added up.
    pub(super) fn restore(&self, entries: Vec<StateEntry>) {
        let now = now_ms();
        self.dirty.turn_on();
        self.entries.iter().for_each(|(key, _)| self.dirty.mark(&key));
        for StateEntry { key, value, expires_ms } in entries {
            let left = expires_ms.map(|at| at.saturating_sub(now));
            if left == Some(0) {
                self.dirty.mark(&key);
                continue;
            }
            let ttl = left.map(Duration::from_millis);
            let (value, count) = match value {
                StateValue::Bytes(bytes) => (Value::Bytes(bytes.into()), 0),
                StateValue::Counter(count) => (Value::Counter(Arc::default()), count),
            };
            let entry = self.entries.entry(key).or_insert(Entry { value, ttl, expires_ms });
            if let Value::Counter(counter) = &entry.value().value {
                counter.value.fetch_add(count, Ordering::Relaxed);
                if !entry.is_fresh() {
                    self.dirty.mark(entry.key());
                }
            }
        }
    }

    /// Returns what has changed since the last call; `None` if nothing has, or nothing is saved.
    pub(super) fn take_changes(&self) -> Option<StateChanges> {
        // Entries that have expired or exceed the limit are gone in what is saved too.
        self.entries.run_pending_tasks();
        let mut changes = StateChanges::default();
        match self.dirty.take() {
            Changed::Nothing => return None,
            Changed::Keys(keys) => {
                for key in keys {
                    match self.entries.get(&key) {
                        Some(entry) => changes.entries.push(entry.saved(key)),
                        None => changes.removed.push(key),
                    }
                }
            }
            Changed::All => {
                changes.is_whole = true;
                changes.entries = self.entries();
            }
        }
        Some(changes)
    }

    /// Notes that changes were not saved.
    pub(super) fn mark_again(&self, changes: &StateChanges) {
        if changes.is_whole {
            return self.dirty.mark_all();
        }
        let keys = changes.entries.iter().map(|entry| &entry.key).chain(&changes.removed);
        keys.for_each(|key| self.dirty.mark(key));
    }

    /// Returns true if changes are saved.
    pub(super) fn is_durable(&self) -> bool {
        self.dirty.is_on()
    }

    /// Returns all entries.
    pub(super) fn entries(&self) -> Vec<StateEntry> {
        self.entries.iter().map(|(key, entry)| entry.saved(String::clone(&key))).collect()
    }

    /// Removes all entries.
    pub(super) fn clear(&self) {
        // One by one: to the cache, an entry that is written meanwhile may be one of all.
        self.entries.iter().for_each(|(key, _)| self.entries.invalidate(&*key));
        self.dirty.mark_all();
    }

    /// Returns the weight of all entries, after pending evictions.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.weighted_size()
    }
}

impl Entry {
    /// Creates an entry; a time to live of 0 stands for no expiry.
    fn new(value: Value, ttl_ms: u32) -> Self {
        let ttl = (ttl_ms > 0).then(|| Duration::from_millis(ttl_ms.into()));
        let expires_ms = ttl.map(|_| now_ms().saturating_add(ttl_ms.into()));
        Self { value, ttl, expires_ms }
    }

    /// Returns an independent entry with the same value and the same expiry.
    fn copy(&self, now: u64) -> Self {
        let left = self.expires_ms.map(|at| Duration::from_millis(at.saturating_sub(now)));
        let value = match &self.value {
            Value::Bytes(bytes) => Value::Bytes(Arc::clone(bytes)),
            Value::Counter(counter) => Value::Counter(Arc::new(Counter {
                value: AtomicI64::new(counter.get()),
                is_marked: AtomicBool::new(false),
            })),
        };
        Self { value, ttl: left, expires_ms: self.expires_ms }
    }

    /// Returns what is saved of the entry, after which it is not marked any more.
    fn saved(&self, key: String) -> StateEntry {
        let value = match &self.value {
            Value::Bytes(bytes) => StateValue::Bytes(bytes.to_vec()),
            Value::Counter(counter) => {
                counter.is_marked.swap(false, Ordering::AcqRel);
                StateValue::Counter(counter.get())
            }
        };
        StateEntry { key, value, expires_ms: self.expires_ms }
    }
}

impl Counter {
    fn get(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
