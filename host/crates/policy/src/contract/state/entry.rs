//! Entries of a state: their weight, and the errors of writing them. The same for both backends.

use serde::{Deserialize, Serialize};

/// Maximum weight of all entries of one policy, in bytes.
pub(crate) const MAX_STATE_BYTES: u64 = 1 << 20;
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

/// Returns the weight of an entry.
pub(crate) fn weight(key: &str, value: usize) -> u64 {
    (key.len() + value + ENTRY_OVERHEAD) as u64
}
