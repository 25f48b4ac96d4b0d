//! States of policies that several hosts share.

use std::fmt;
use std::sync::Arc;

use crate::contract::state_backing::StateEntry;

/// The state of a policy that several hosts share. Its functions do not wait for anything: what
/// they return is what this host knows.
///
/// The lengths of keys and values have been checked.
pub trait SharedState: fmt::Debug + Send + Sync {
    /// Returns a value; for a counter, its number as little-endian bytes.
    fn get(&self, key: &str) -> Option<Vec<u8>>;

    /// Stores a value. `ttl_ms` is its time to live in milliseconds; 0 for none.
    fn put(&self, key: &str, value: &[u8], ttl_ms: u32);

    /// Removes a value or a counter.
    fn delete(&self, key: &str);

    /// Adds to a counter and returns its total; `None` if the key has a value that was stored.
    /// `ttl_ms` is the time to live of a counter that begins with this.
    fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Option<i64>;

    /// Returns the entries that this host knows.
    fn entries(&self) -> Vec<StateEntry>;
}

/// Opens states that several hosts share.
pub trait StateSharing: fmt::Debug + Send + Sync {
    /// Returns the state of a policy, with what other hosts have written if that can be read within
    /// seconds. Blocks.
    fn open(&self, policy: &str) -> Arc<dyn SharedState>;
}
