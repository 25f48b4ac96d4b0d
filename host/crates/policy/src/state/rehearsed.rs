//! The state of a policy in a rehearsal: by a clock in somebody's hand, and the same each time. When it is full, what was not
//! used for longest goes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{MOST_BYTES, StateError, weight};
use crate::clock::Clock;

#[derive(Debug)]
pub(super) struct Rehearsed {
    clock: Clock,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    entries: BTreeMap<Arc<str>, Entry>,
    /// The keys by when they were used: the first is the next to go.
    uses: BTreeMap<u64, Arc<str>>,
    /// The keys by when they expire.
    ends: BTreeSet<(Duration, Arc<str>)>,
    bytes: u64,
    /// Number of the last use.
    used: u64,
}

#[derive(Debug)]
struct Entry {
    value: Value,
    ends: Option<Duration>,
    used: u64,
}

#[derive(Debug)]
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

impl Rehearsed {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, entries: Mutex::default() }
    }

    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        Some(match &self.current().use_now(key)?.value {
            Value::Bytes(bytes) => bytes.clone(),
            Value::Counter(counter) => counter.to_le_bytes().to_vec(),
        })
    }

    pub(super) fn put(&self, key: &str, value: &[u8], ttl_ms: u32) {
        let ends = self.after(ttl_ms);
        let mut entries = self.current();
        entries.remove(key);
        entries.insert(key, Value::Bytes(value.to_vec()), ends);
    }

    pub(super) fn delete(&self, key: &str) {
        self.current().remove(key);
    }

    pub(super) fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        let ends = self.after(ttl_ms);
        let mut entries = self.current();
        match entries.use_now(key).map(|entry| &mut entry.value) {
            Some(Value::Counter(counter)) => {
                *counter = counter.wrapping_add(by);
                Ok(*counter)
            }
            Some(Value::Bytes(_)) => Err(StateError::NotACounter),
            None => {
                entries.insert(key, Value::Counter(by), ends);
                Ok(by)
            }
        }
    }

    /// When something ends that stands for so long from now; never, for 0.
    fn after(&self, ttl_ms: u32) -> Option<Duration> {
        (ttl_ms > 0).then(|| self.clock.now().saturating_add(Duration::from_millis(ttl_ms.into())))
    }

    /// The entries that have not expired.
    fn current(&self) -> MutexGuard<'_, Entries> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
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
        while let Some((ends, key)) = self.ends.first()
            && *ends <= now
        {
            let key = Arc::clone(key);
            self.remove(&key);
        }
    }

    fn use_now(&mut self, key: &str) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(key)?;
        let key = self.uses.remove(&entry.used)?;
        self.used += 1;
        entry.used = self.used;
        self.uses.insert(self.used, key);
        Some(entry)
    }

    /// Put in what is not there, and let go of what there is no more room for.
    fn insert(&mut self, key: &str, value: Value, ends: Option<Duration>) {
        let key: Arc<str> = key.into();
        self.used += 1;
        self.bytes += weight(&key, value.len());
        self.uses.insert(self.used, Arc::clone(&key));
        self.ends.extend(ends.map(|ends| (ends, Arc::clone(&key))));
        self.entries.insert(key, Entry { value, ends, used: self.used });
        while self.bytes > MOST_BYTES
            && let Some((_, oldest)) = self.uses.first_key_value()
        {
            let oldest = Arc::clone(oldest);
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &str) {
        let Some((key, entry)) = self.entries.remove_entry(key) else { return };
        self.bytes -= weight(&key, entry.value.len());
        self.uses.remove(&entry.used);
        if let Some(ends) = entry.ends {
            self.ends.remove(&(ends, key));
        }
    }
}
