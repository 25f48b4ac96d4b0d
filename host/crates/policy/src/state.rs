//! The key-value state of a policy: shared by its versions and bounded by eviction.
//!
//! It has two backends with the same limits. The one of a host is concurrent and uses real time.
//! The one of a dry run uses a virtual clock, and its evictions only depend on the operations.

mod concurrent;
mod deterministic;

use serde::{Deserialize, Serialize};

use self::concurrent::Concurrent;
use self::deterministic::Deterministic;
use crate::clock::Clock;

/// Maximum weight of all entries of one policy, in bytes.
const MAX_STATE_BYTES: u64 = 1 << 20;
/// Maximum length of a key in bytes.
const MAX_KEY_BYTES: usize = 128;
/// Maximum length of a value in bytes.
const MAX_VALUE_BYTES: usize = 4096;
/// The weight of an entry beyond its key and value, which bounds the number of empty entries to
/// 10,000.
const ENTRY_OVERHEAD: usize = 100;

/// An error of writing to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StateError {
    TooLong,
    NotACounter,
}

/// The state of one policy.
#[derive(Debug)]
pub(crate) struct State(Backend);

#[derive(Debug)]
enum Backend {
    Concurrent(Concurrent),
    Deterministic(Deterministic),
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

    /// Returns a value; for a counter, its number as little-endian bytes.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        match &self.0 {
            Backend::Concurrent(entries) => entries.get(key),
            Backend::Deterministic(entries) => entries.get(key),
        }
    }

    pub(crate) fn put(&self, key: String, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        if key.len() > MAX_KEY_BYTES || value.len() > MAX_VALUE_BYTES {
            return Err(StateError::TooLong);
        }
        match &self.0 {
            Backend::Concurrent(entries) => entries.put(key, value, ttl_ms),
            Backend::Deterministic(entries) => entries.put(&key, value, ttl_ms),
        }
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) {
        match &self.0 {
            Backend::Concurrent(entries) => entries.delete(key),
            Backend::Deterministic(entries) => entries.delete(key),
        }
    }

    pub(crate) fn increment(&self, key: String, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        if key.len() > MAX_KEY_BYTES {
            return Err(StateError::TooLong);
        }
        match &self.0 {
            Backend::Concurrent(entries) => entries.increment(key, by, ttl_ms),
            Backend::Deterministic(entries) => entries.increment(&key, by, ttl_ms),
        }
    }
}

/// Returns the weight of an entry.
fn weight(key: &str, value: usize) -> u64 {
    (key.len() + value + ENTRY_OVERHEAD) as u64
}

#[cfg(test)]
mod tests;
