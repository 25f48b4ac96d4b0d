//! What one process wants another one to write.

use serde::{Deserialize, Serialize};

use crate::error::StoreError;

/// A change of an entry that another process wants to be written. Keys and values are bytes as
/// characters up to U+00FF.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignChange {
    /// The namespace.
    pub namespace: String,
    /// The key.
    pub key: String,
    /// The owner and the value; `None` to remove the entry.
    pub new: Option<(u64, String)>,
}

/// The process that has the file of a store that was given up.
pub trait StoreSuccessor: Send + Sync {
    /// Passes a change on.
    fn write(&self, change: ForeignChange);

    /// Returns a value, with its key and itself as characters. Blocks.
    ///
    /// # Errors
    /// If the other process does not answer, or cannot read it.
    fn read(&self, namespace: &str, key: String) -> Result<Option<String>, StoreError>;
}

/// Returns bytes as characters.
pub(crate) fn to_text(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

/// Returns characters as bytes; `None` if they are others.
pub(crate) fn to_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|character| u8::try_from(character).ok()).collect()
}
