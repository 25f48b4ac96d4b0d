//! Ordered tables: rows in the order of their keys, read and changed in transactions.
//!
//! They are for what is added up and read as a whole. They are not in the index of the store, and
//! take no memory: their user limits them.

use std::fmt;
use std::ops::ControlFlow;

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _,
    TableDefinition, TableError, WriteTransaction,
};

use crate::error::{StoreError, database};
use crate::store::Store;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// A row: its key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// A transaction on ordered tables: it is in the file with all of its changes, or with none.
pub struct Transaction {
    inner: WriteTransaction,
}

/// An ordered table in a transaction.
pub struct OrderedTable<'t> {
    inner: redb::Table<'t, &'static [u8], &'static [u8]>,
}

impl Transaction {
    /// Opens a table, which is created if there is none. The name must not be that of a namespace.
    ///
    /// # Errors
    /// If the file cannot be used.
    pub fn table(&self, name: &'static str) -> Result<OrderedTable<'_>, StoreError> {
        let inner = self.inner.open_table(Definition::new(name)).map_err(database)?;
        Ok(OrderedTable { inner })
    }
}

impl OrderedTable<'_> {
    /// Returns a value.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.inner.get(key).map_err(database)?.map(|value| value.value().to_vec()))
    }

    /// Sets a value.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.inner.insert(key, value).map_err(database).map(drop)
    }

    /// Removes a row, if there is one.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn remove(&mut self, key: &[u8]) -> Result<(), StoreError> {
        self.inner.remove(key).map_err(database).map(drop)
    }

    /// Returns the number of rows. Takes the same time for any number of them.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn len(&self) -> Result<u64, StoreError> {
        self.inner.len().map_err(database)
    }

    /// Returns true if there are no rows.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn is_empty(&self) -> Result<bool, StoreError> {
        Ok(self.len()? == 0)
    }

    /// Returns the first rows with keys from `from` up to `to`, but not `to` itself.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn first(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let rows = self.inner.range(from..to).map_err(database)?.take(limit);
        let row = |row: Result<(redb::AccessGuard<'_, _>, redb::AccessGuard<'_, _>), _>| {
            let (key, value): (redb::AccessGuard<'_, &[u8]>, redb::AccessGuard<'_, &[u8]>) =
                row.map_err(database)?;
            Ok((key.value().to_vec(), value.value().to_vec()))
        };
        rows.map(row).collect()
    }
}

impl Store {
    /// Changes ordered tables in one transaction, and waits until it is on the disk. Nothing
    /// changes if `change` fails. Blocks.
    ///
    /// # Errors
    /// That of `change`, or if the file cannot be written. After the latter the transaction may be
    /// in the file nevertheless, and the file is opened again some seconds later.
    pub fn update<T, E: From<StoreError>>(
        &self,
        change: impl FnOnce(&Transaction) -> Result<T, E>,
    ) -> Result<T, E> {
        let shared = self.shared();
        let opened = shared.usable()?;
        let run = || {
            let inner = opened.begin_write().map_err(database)?;
            let transaction = Transaction { inner };
            let result = change(&transaction)?;
            transaction.inner.commit().map_err(database)?;
            Ok(result)
        };
        let result = run();
        // A transaction that is dropped is aborted. It is not known here whether `change` or the
        // disk has failed, and opening the file again harms nothing.
        if result.is_err() {
            shared.failed(&opened);
        }
        result
    }

    /// Calls `visit` for the rows of an ordered table with keys from `from` up to `to`, but not
    /// `to` itself, in their order: for those that it has now, whatever is written meanwhile.
    /// Neither the rows nor a lock are held. Blocks.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn scan(
        &self,
        name: &'static str,
        (from, to): (&[u8], &[u8]),
        visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let opened = self.shared().usable()?;
        scan(&opened, name, (from, to), visit)
    }
}

fn scan(
    opened: &Database,
    name: &'static str,
    (from, to): (&[u8], &[u8]),
    mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let transaction = opened.begin_read().map_err(database)?;
    let table = match transaction.open_table(Definition::new(name)) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(database(error)),
    };
    if from >= to {
        return Ok(());
    }
    for row in table.range(from..to).map_err(database)? {
        let (key, value) = row.map_err(database)?;
        if visit(key.value(), value.value()).is_break() {
            break;
        }
    }
    Ok(())
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}

impl fmt::Debug for OrderedTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrderedTable").finish_non_exhaustive()
    }
}
