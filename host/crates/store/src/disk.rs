//! The file of the store: its format, and transactions on it.
//!
//! ```text
//!   meta            "format" -> version
//!   NAME            key -> value
//!   NAME.entries    key -> number, owner, time of expiry, length of the value
//! ```
//!
//! A file may have more tables than a host opens: a host that knows fewer ignores them. So further
//! tables do not change the format version; only another meaning of a table does.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Arc;

use redb::backends::{FileBackend, InMemoryBackend};
use redb::{
    Database, ReadOnlyUntypedTable, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, StorageError, TableDefinition, TableError,
};

use crate::error::{OpenError, StoreError, database};
use crate::index::{Entry, Index};
use crate::namespace::Namespace;

/// The format version of the files that this host writes. A change needs a migration in [`open`].
const FORMAT: u64 = 1;

/// Memory for pages of the file.
const CACHE_BYTES: usize = 8 << 20;

/// Estimated bytes of a row of an ordered table.
const ROW_BYTES: u64 = 200;

/// A file is compacted if it is this much larger than what it has.
const MIN_WASTE: u64 = 16 << 20;

const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

type Bytes<'a> = TableDefinition<'a, &'static [u8], &'static [u8]>;
type Head = (u64, u64, u64, u32);
type Heads<'a> = TableDefinition<'a, &'static [u8], Head>;

/// A change of one entry.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) space: usize,
    pub(crate) number: u64,
    pub(crate) key: Arc<[u8]>,
    /// The new entry and its value; `None` to remove it.
    pub(crate) new: Option<(Entry, Arc<[u8]>)>,
}

/// Opens the file, or memory, and checks the format version.
pub(crate) fn open(path: Option<&Path>) -> Result<Database, OpenError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    let Some(path) = path else {
        let opened = builder.create_with_backend(InMemoryBackend::new());
        return check_format(opened.map_err(database)?, Path::new("memory"));
    };
    let mut options = OpenOptions::new();
    let file =
        pointsman_files::open_private_with(path, options.read(true).write(true).create(true))?;
    let opened = FileBackend::new(file)
        .map_err(redb::Error::from)
        .and_then(|backend| builder.create_with_backend(backend).map_err(redb::Error::from));
    match opened {
        Ok(opened) => check_format(opened, path),
        Err(redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch) => {
            Err(OpenError::InUse(path.to_owned()))
        }
        Err(error) if is_corrupt(&error) => {
            Err(OpenError::Corrupt { path: path.to_owned(), source: Box::new(error) })
        }
        Err(error) => Err(database(error).into()),
    }
}

/// Returns true if the file is not one of a store, or is broken.
fn is_corrupt(error: &redb::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) => true,
        redb::Error::Io(error) => matches!(error.kind(), InvalidData | UnexpectedEof),
        // All others, of which the database may have more in a later version, say nothing about
        // the file.
        _ => false,
    }
}

fn check_format(opened: Database, path: &Path) -> Result<Database, OpenError> {
    let found = read_format(&opened)?;
    match found {
        Some(FORMAT) => Ok(opened),
        None => {
            write_format(&opened)?;
            Ok(opened)
        }
        // A file of an earlier version is migrated here, once there is one.
        Some(found) => Err(OpenError::NewerFormat { path: path.to_owned(), found, known: FORMAT }),
    }
}

fn read_format(opened: &Database) -> Result<Option<u64>, StoreError> {
    let transaction = opened.begin_read().map_err(database)?;
    match transaction.open_table(META) {
        Ok(table) => Ok(table.get("format").map_err(database)?.map(|value| value.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(database(error)),
    }
}

fn write_format(opened: &Database) -> Result<(), StoreError> {
    let transaction = opened.begin_write().map_err(database)?;
    {
        let mut table = transaction.open_table(META).map_err(database)?;
        table.insert("format", FORMAT).map_err(database)?;
    }
    transaction.commit().map_err(database)
}

/// Compacts the file if much of it is unused.
pub(crate) fn compact(opened: &mut Database, path: &Path, used: u64) -> Result<(), StoreError> {
    let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let is_wasteful = |used: u64| size > used.saturating_mul(2).saturating_add(MIN_WASTE);
    let estimate = used.saturating_add(of_tables(opened, |table| table.len())? * ROW_BYTES);
    // The estimate is fast. What the tables have is read only if it may save the compaction: rows
    // may be larger.
    if is_wasteful(estimate)
        && is_wasteful(of_tables(opened, |table| Ok(table.stats()?.stored_bytes()))?)
    {
        opened.compact().map_err(database)?;
    }
    Ok(())
}

/// Returns the sum of a number of all tables.
fn of_tables(
    opened: &Database,
    number: impl Fn(&ReadOnlyUntypedTable) -> Result<u64, StorageError>,
) -> Result<u64, StoreError> {
    let transaction = opened.begin_read().map_err(database)?;
    let mut sum = 0_u64;
    for table in transaction.list_tables().map_err(database)? {
        let table = transaction.open_untyped_table(table).map_err(database)?;
        sum = sum.saturating_add(number(&table).map_err(database)?);
    }
    Ok(sum)
}

/// The number of the last change of a namespace, and the keys of entries that have to go.
type Loaded = (u64, Vec<Arc<[u8]>>);

/// Reads what a namespace has, oldest entries first.
pub(crate) fn load(opened: &Database, index: &mut Index, now: u64) -> Result<Loaded, StoreError> {
    let name = heads_name(index.limits());
    let transaction = opened.begin_read().map_err(database)?;
    let table = match transaction.open_table(heads(&name)) {
        Ok(table) => table,
        Err(TableError::TableDoesNotExist(_)) => return Ok((0, Vec::new())),
        Err(error) => return Err(database(error)),
    };
    let mut entries = Vec::new();
    for entry in table.iter().map_err(database)? {
        let (key, head) = entry.map_err(database)?;
        let (number, owner, expires, value) = head.value();
        entries.push((number, Entry { key: key.value().into(), owner, expires, value }));
    }
    entries.sort_unstable_by_key(|(number, _)| *number);
    let last = entries.last().map_or(0, |(number, _)| *number);
    let add = |(number, entry)| index.add(number, entry, now);
    Ok((last, entries.into_iter().flat_map(add).collect()))
}

/// Applies changes in one transaction, in their order.
pub(crate) fn apply(
    opened: &Database,
    spaces: &[Namespace],
    changes: &[Change],
) -> Result<(), StoreError> {
    let transaction = opened.begin_write().map_err(database)?;
    for (space, namespace) in spaces.iter().enumerate() {
        let mut of_space = changes.iter().filter(|change| change.space == space).peekable();
        if of_space.peek().is_none() {
            continue;
        }
        let name = heads_name(namespace);
        let mut heads = transaction.open_table(heads(&name)).map_err(database)?;
        let mut values = transaction.open_table(values(namespace)).map_err(database)?;
        for Change { key, new, number, .. } in of_space {
            let key: &[u8] = key;
            match new {
                Some((entry, value)) => {
                    let head = (*number, entry.owner, entry.expires, entry.value);
                    heads.insert(key, head).map_err(database)?;
                    values.insert(key, &**value).map_err(database)?;
                }
                None => {
                    heads.remove(key).map_err(database)?;
                    values.remove(key).map_err(database)?;
                }
            }
        }
    }
    transaction.commit().map_err(database)
}

/// Reads a value.
pub(crate) fn read(
    opened: &Database,
    namespace: &Namespace,
    key: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    let transaction = opened.begin_read().map_err(database)?;
    match transaction.open_table(values(namespace)) {
        Ok(table) => Ok(table.get(key).map_err(database)?.map(|value| value.value().to_vec())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(database(error)),
    }
}

fn values(namespace: &Namespace) -> Bytes<'static> {
    TableDefinition::new(namespace.name)
}

fn heads(name: &str) -> Heads<'_> {
    TableDefinition::new(name)
}

fn heads_name(namespace: &Namespace) -> String {
    format!("{}.entries", namespace.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_of_a_later_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let opened = open(Some(&path)).unwrap();
        let transaction = opened.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
        transaction.commit().unwrap();
        assert!(matches!(open(Some(&path)), Err(OpenError::InUse(_))));
        drop(opened);
        let error = open(Some(&path)).unwrap_err();
        assert_eq!(error.code(), "store_format_newer");
    }
}
