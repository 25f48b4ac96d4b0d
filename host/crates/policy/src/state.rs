//! The small shared state of one policy: kept over its versions, bounded by eviction.
//!
//! It has two forms with the same limits. A host's is read and written by many threads at once, and goes by the wall clock.
//! That of a rehearsal goes by a clock in somebody's hand, and what it evicts depends on nothing but what was done to it.

mod rehearsed;
mod shared;

use serde::{Deserialize, Serialize};

use self::rehearsed::Rehearsed;
use self::shared::Shared;
use crate::clock::Clock;

/// Bytes of keys and values of one policy.
const MOST_BYTES: u64 = 1 << 20;
/// Longest key.
const LONGEST_KEY: usize = 128;
/// Longest value.
const LONGEST_VALUE: usize = 4096;
/// What an entry weighs beyond its key and value, so that empty ones are bounded too: 10,000 of them fill the state.
const ENTRY_OVERHEAD: usize = 100;

/// Why a value was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum StateError {
    TooLong,
    NotACounter,
}

/// The entries of one policy.
#[derive(Debug)]
pub(crate) struct State(Form);

#[derive(Debug)]
enum Form {
    Shared(Shared),
    Rehearsed(Rehearsed),
}

impl Default for State {
    fn default() -> Self {
        Self(Form::Shared(Shared::default()))
    }
}

impl State {
    /// One whose entries expire by that clock.
    pub(crate) fn rehearsed(clock: Clock) -> Self {
        Self(Form::Rehearsed(Rehearsed::new(clock)))
    }

    /// A counter reads as its value in little-endian bytes.
    pub(crate) fn get(&self, key: &str) -> Option<Vec<u8>> {
        match &self.0 {
            Form::Shared(entries) => entries.get(key),
            Form::Rehearsed(entries) => entries.get(key),
        }
    }

    pub(crate) fn put(&self, key: String, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        if key.len() > LONGEST_KEY || value.len() > LONGEST_VALUE {
            return Err(StateError::TooLong);
        }
        match &self.0 {
            Form::Shared(entries) => entries.put(key, value, ttl_ms),
            Form::Rehearsed(entries) => entries.put(&key, value, ttl_ms),
        }
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) {
        match &self.0 {
            Form::Shared(entries) => entries.delete(key),
            Form::Rehearsed(entries) => entries.delete(key),
        }
    }

    pub(crate) fn increment(&self, key: String, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        if key.len() > LONGEST_KEY {
            return Err(StateError::TooLong);
        }
        match &self.0 {
            Form::Shared(entries) => entries.increment(key, by, ttl_ms),
            Form::Rehearsed(entries) => entries.increment(&key, by, ttl_ms),
        }
    }
}

/// What an entry weighs.
fn weight(key: &str, value: usize) -> u64 {
    (key.len() + value + ENTRY_OVERHEAD) as u64
}

#[cfg(test)]
mod tests;
