//! The state of a policy in a dry run: in virtual time, and deterministic. When it is full, the
//! least recently used entries are evicted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::clock::Clock;
use crate::contract::state::entry::{MAX_STATE_BYTES, StateError, weight};

#[derive(Debug)]
pub(super) struct Deterministic {
    clock: Clock,
    entries: Mutex<Entries>,
}

#[derive(Debug, Clone, Default)]
struct Entries {
    entries: BTreeMap<Arc<str>, Entry>,
    /// The keys in the order of their last use: the first one is evicted next.
    uses: BTreeMap<u64, Arc<str>>,
    /// The keys in the order of their expiry.
    expiries: BTreeSet<(Duration, Arc<str>)>,
    bytes: u64,
    /// The sequence number of the last use.
    last_use: u64,
}

#[derive(Debug, Clone)]
struct Entry {
    value: Value,
    expires: Option<Duration>,
    last_use: u64,
}

#[derive(Debug, Clone)]
enum Value {
    Bytes(Vec<u8>),
    Counter(i64),
}

impl Value {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Counter(_) => size_of::<i64>(),
        }
    }
}

impl Deterministic {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, entries: Mutex::default() }
    }

    /// Returns an independent state with the same entries and the same clock.
    pub(super) fn copy(&self) -> Self {
        let entries = Mutex::new(self.current().clone());
        Self { clock: self.clock.clone(), entries }
    }

    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        Some(match &self.current().touch(key)?.value {
            Value::Bytes(bytes) => bytes.clone(),
            Value::Counter(counter) => counter.to_le_bytes().to_vec(),
        })
    }

    pub(super) fn put(&self, key: &str, value: &[u8], ttl_ms: u32) {
        let expires = self.expiry(ttl_ms);
        let mut entries = self.current();
        entries.remove(key);
        entries.insert(key, Value::Bytes(value.to_vec()), expires);
    }

    pub(super) fn delete(&self, key: &str) {
        self.current().remove(key);
    }

    pub(super) fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        let expires = self.expiry(ttl_ms);
        let mut entries = self.current();
        match entries.touch(key).map(|entry| &mut entry.value) {
            Some(Value::Counter(counter)) => {
                *counter = counter.wrapping_add(by);
                Ok(*counter)
            }
            Some(Value::Bytes(_)) => Err(StateError::NotACounter),
            None => {
                entries.insert(key, Value::Counter(by), expires);
                Ok(by)
            }
        }
    }

    /// Returns the time at which an entry that is written now expires; never, for 0.
    fn expiry(&self, ttl_ms: u32) -> Option<Duration> {
        (ttl_ms > 0).then(|| self.clock.now().saturating_add(Duration::from_millis(ttl_ms.into())))
    }

    /// Locks the entries, without those that have expired.
    fn current(&self) -> MutexGuard<'_, Entries> {
        let mut entries = self.entries.lock();
        entries.expire(self.clock.now());
        entries
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> u64 {
        self.current().bytes
    }
}

impl Entries {
    fn expire(&mut self, now: Duration) {
        while let Some((expires, key)) = self.expiries.first()
            && *expires <= now
        {
            let key = Arc::clone(key);
            self.remove(&key);
        }
    }

    /// Returns an entry, and marks it as used now.
    fn touch(&mut self, key: &str) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(key)?;
        let key = self.uses.remove(&entry.last_use)?;
        self.last_use += 1;
        entry.last_use = self.last_use;
        self.uses.insert(self.last_use, key);
        Some(entry)
    }

    /// Inserts an entry that does not exist, and evicts others while the limit is exceeded.
    fn insert(&mut self, key: &str, value: Value, expires: Option<Duration>) {
        let key: Arc<str> = key.into();
        self.last_use += 1;
        self.bytes += weight(&key, value.len());
        self.uses.insert(self.last_use, Arc::clone(&key));
        self.expiries.extend(expires.map(|expires| (expires, Arc::clone(&key))));
        self.entries.insert(key, Entry { value, expires, last_use: self.last_use });
        while self.bytes > MAX_STATE_BYTES
            && let Some((_, oldest)) = self.uses.first_key_value()
        {
            let oldest = Arc::clone(oldest);
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &str) {
        let Some((key, entry)) = self.entries.remove_entry(key) else { return };
        self.bytes -= weight(&key, entry.value.len());
        self.uses.remove(&entry.last_use);
        if let Some(expires) = entry.expires {
            self.expiries.remove(&(expires, key));
        }
    }
}
