//! Where the states of policies are kept over restarts.

use std::error::Error;
use std::fmt;

/// A value in the state of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateValue {
    /// What the policy has stored.
    Bytes(Vec<u8>),
    /// A counter.
    Counter(i64),
}

/// An entry in the state of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: StateValue,
    /// When the entry expires, in milliseconds since 1970; `None` if it does not.
    pub expires_ms: Option<u64>,
}

impl StateEntry {
    /// Returns the bytes of key and value.
    pub fn size(&self) -> usize {
        self.key.len()
            + match &self.value {
                StateValue::Bytes(bytes) => bytes.len(),
                StateValue::Counter(_) => size_of::<i64>(),
            }
    }
}

/// What has changed in the state of a policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StateChanges {
    /// The policy.
    pub policy: String,
    /// `entries` is the whole state: all others are removed.
    pub is_whole: bool,
    /// Entries that are new or have another value.
    pub entries: Vec<StateEntry>,
    /// Keys without an entry.
    pub removed: Vec<String>,
}

/// States of policies cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StateBackingError(#[from] pub Box<dyn Error + Send + Sync>);

/// Where the states of policies are kept over restarts. Its functions may block; no call of a
/// policy waits for them.
pub trait StateBacking: fmt::Debug + Send + Sync {
    /// Returns the state of a policy. Entries may have expired.
    ///
    /// # Errors
    /// If it cannot be read.
    fn load(&self, policy: &str) -> Result<Vec<StateEntry>, StateBackingError>;

    /// Writes changes: all of them, or none.
    ///
    /// # Errors
    /// If they cannot be written. They may be written nevertheless.
    fn save(&self, changes: &[StateChanges]) -> Result<(), StateBackingError>;

    /// Returns the names of the policies that have a state.
    ///
    /// # Errors
    /// If they cannot be read.
    fn policies(&self) -> Result<Vec<String>, StateBackingError>;
}
