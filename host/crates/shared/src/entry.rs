//! What is known of a key.

/// A key and what this host knows of its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: EntryValue,
    /// When the entry expires, in milliseconds since 1970; `None` if it does not.
    pub expires_ms: Option<u64>,
}

/// The value of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryValue {
    /// The total of a counter.
    Counter(i64),
    /// What was written last.
    Bytes(Vec<u8>),
}
