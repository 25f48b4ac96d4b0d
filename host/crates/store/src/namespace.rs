//! Namespaces: their limits, and their typed tables.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StoreError;
use crate::store::Store;

/// A namespace of the store, and its limits. The oldest entries are removed for new ones.
#[derive(Debug, Clone)]
pub struct Namespace {
    /// Name of the table in the file.
    pub name: &'static str,
    /// Maximum number of entries.
    pub max_entries: usize,
    /// Maximum number of bytes of all keys and values.
    pub max_bytes: u64,
    /// Maximum number of bytes of the keys and values of one owner.
    pub max_owner_bytes: u64,
    /// Maximum length of a value in bytes.
    pub max_value: usize,
    /// Maximum age of an entry.
    pub max_age: Duration,
}

/// A loss of writes, for the log.
#[derive(Debug)]
pub struct Loss<'a> {
    /// Number of writes that are lost.
    pub writes: u64,
    /// The cause.
    pub error: &'a StoreError,
}

/// How a store is opened.
pub struct Options {
    /// The file; `None` to keep everything in memory.
    pub path: Option<PathBuf>,
    /// The namespaces.
    pub namespaces: Vec<Namespace>,
    /// Is called for every transaction that is lost, on the thread that writes.
    pub on_loss: Box<dyn Fn(Loss<'_>) + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("path", &self.path)
            .field("namespaces", &self.namespaces)
            .finish_non_exhaustive()
    }
}

/// A namespace with keys and values of one type. Values are stored as JSON.
pub struct Table<K, V> {
    store: Store,
    space: usize,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for Table<K, V> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), space: self.space, types: PhantomData }
    }
}

impl<K, V> fmt::Debug for Table<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("space", &self.space).finish_non_exhaustive()
    }
}

impl<K: AsRef<[u8]>, V: Serialize + DeserializeOwned> Table<K, V> {
    pub(crate) fn new(store: Store, space: usize) -> Self {
        Self { store, space, types: PhantomData }
    }

    /// Stores a value for an owner, without waiting for the disk. A later [`Table::get`] returns
    /// it.
    ///
    /// # Errors
    /// If the value is too large, or too much is waiting to be written.
    pub fn put(&self, key: &K, owner: u64, value: &V) -> Result<(), StoreError> {
        let value = serde_json::to_vec(value)?;
        self.store.put(self.space, key.as_ref(), owner, value, now_ms())
    }

    /// Returns a value; `None` if there is none, or if it is too old. May read from the disk.
    ///
    /// # Errors
    /// If the disk cannot be read.
    pub fn get(&self, key: &K) -> Result<Option<V>, StoreError> {
        let value = self.store.get(self.space, key.as_ref(), now_ms())?;
        Ok(value.map(|value| serde_json::from_slice(&value)).transpose()?)
    }

    /// Removes a value, without waiting for the disk. Returns true if there was one.
    pub fn remove(&self, key: &K) -> bool {
        self.store.remove(self.space, key.as_ref(), now_ms())
    }
}

/// Returns the milliseconds since 1970; 0 with a clock before that.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
