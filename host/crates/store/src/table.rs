//! Tables: namespaces with keys and values of one type.

use std::fmt;
use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StoreError;
use crate::namespace::now_ms;
use crate::store::Store;

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

impl Store {
    /// Returns the table of a namespace; `None` if the store was opened without it.
    pub fn table<K, V>(&self, name: &str) -> Option<Table<K, V>>
    where
        K: AsRef<[u8]>,
        V: Serialize + DeserializeOwned,
    {
        Some(Table { store: self.clone(), space: self.space(name)?, types: PhantomData })
    }
}
