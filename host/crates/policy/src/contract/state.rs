//! The key-value state of a policy: shared by its versions and bounded by eviction.
//!
//! It has three backends with the same limits for keys and values. The one of a host is concurrent
//! and uses real time. The one of a dry run uses a virtual clock, and its evictions only depend on
//! the operations. One that several hosts share is elsewhere.

mod concurrent;
mod deterministic;
mod dirty;
pub(crate) mod entry;

use std::sync::Arc;

use self::concurrent::Concurrent;
use self::deterministic::Deterministic;
use crate::clock::Clock;
use crate::contract::shared_state::SharedState;
use crate::contract::state::entry::StateError;
use crate::contract::state_backing::{StateChanges, StateEntry};

/// Maximum length of a key in bytes.
const MAX_KEY_BYTES: usize = 128;
/// Maximum length of a value in bytes.
const MAX_VALUE_BYTES: usize = 4096;

/// The state of one policy.
#[derive(Debug)]
pub(crate) struct State(Backend);

#[derive(Debug)]
enum Backend {
    Concurrent(Concurrent),
    Deterministic(Deterministic),
    Shared(Arc<dyn SharedState>),
}

impl Default for State {
    fn default() -> Self {
        Self(Backend::Concurrent(Concurrent::default()))
    }
}

impl State {
    /// Creates a deterministic state whose entries expire by `clock`.
    pub(crate) fn deterministic(clock: Clock) -> Self {
        Self(Backend::Deterministic(Deterministic::new(clock)))
    }

    /// Creates a state that several hosts share.
    pub(crate) fn shared(state: Arc<dyn SharedState>) -> Self {
        Self(Backend::Shared(state))
    }

    /// Returns a state with the same entries, which is independent of this one and not durable.
    pub(crate) fn copy(&self) -> Self {
        Self(match &self.0 {
            Backend::Concurrent(entries) => Backend::Concurrent(entries.copy()),
            Backend::Deterministic(entries) => Backend::Deterministic(entries.copy()),
            Backend::Shared(state) => {
                Backend::Concurrent(Concurrent::with_entries(state.entries()))
            }
        })
    }

    /// Returns a value; for a counter, its number as little-endian bytes.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        match &self.0 {
            Backend::Concurrent(entries) => entries.get(key),
            Backend::Deterministic(entries) => entries.get(key),
            Backend::Shared(state) => state.get(key),
        }
    }

    pub(crate) fn put(&self, key: String, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        if key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES {
            return Err(StateError::TooLong);
        }
        match &self.0 {
            Backend::Concurrent(entries) => entries.put(key, value, ttl_ms),
            Backend::Deterministic(entries) => entries.put(&key, value, ttl_ms),
            Backend::Shared(state) => state.put(&key, value, ttl_ms),
        }
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) {
        match &self.0 {
            Backend::Concurrent(entries) => entries.delete(key),
            Backend::Deterministic(entries) => entries.delete(key),
            Backend::Shared(state) => state.delete(key),
        }
    }

    pub(crate) fn increment(&self, key: String, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        if key.len() > MAX_KEY_BYTES {
            return Err(StateError::TooLong);
        }
        match &self.0 {
            Backend::Concurrent(entries) => entries.increment(key, by, ttl_ms),
            Backend::Deterministic(entries) => entries.increment(&key, by, ttl_ms),
            Backend::Shared(state) => {
                state.increment(&key, by, ttl_ms).ok_or(StateError::NotACounter)
            }
        }
    }
}

/// What is durable: the state of a host, once it was restored. That of a dry run is not, and a
/// shared one outlives the host without its help.
impl State {
    /// Adds entries of an earlier process, and saves changes from now on.
    pub(crate) fn restore(&self, entries: Vec<StateEntry>) {
        match &self.0 {
            Backend::Concurrent(own) => own.restore(entries),
            Backend::Deterministic(_) | Backend::Shared(_) => {}
        }
    }

    /// Returns true if other hosts share it.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.0, Backend::Shared(_))
    }

    /// Returns true if changes are saved.
    pub(crate) fn is_durable(&self) -> bool {
        match &self.0 {
            Backend::Concurrent(entries) => entries.is_durable(),
            Backend::Deterministic(_) => false,
            Backend::Shared(_) => true,
        }
    }

    /// Returns what has changed since the last call, without the name of the policy; `None` if
    /// nothing has, or nothing is saved.
    pub(crate) fn take_changes(&self) -> Option<StateChanges> {
        match &self.0 {
            Backend::Concurrent(entries) => entries.take_changes(),
            Backend::Deterministic(_) | Backend::Shared(_) => None,
        }
    }

    /// Notes that changes were not saved.
    pub(crate) fn mark_again(&self, changes: &StateChanges) {
        match &self.0 {
            Backend::Concurrent(entries) => entries.mark_again(changes),
            Backend::Deterministic(_) | Backend::Shared(_) => {}
        }
    }

    /// Returns all entries.
    pub(crate) fn entries(&self) -> Vec<StateEntry> {
        match &self.0 {
            Backend::Concurrent(entries) => entries.entries(),
            Backend::Deterministic(_) => Vec::new(),
            Backend::Shared(state) => state.entries(),
        }
    }

    /// Removes all entries.
    pub(crate) fn clear(&self) {
        match &self.0 {
            Backend::Concurrent(entries) => entries.clear(),
            Backend::Deterministic(_) => {}
            Backend::Shared(state) => {
                state.entries().iter().for_each(|entry| state.delete(&entry.key));
            }
        }
    }
}

#[cfg(test)]
mod tests;
