//! Ordered tables from outside: transactions, order, restarts, broken files and full disks.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use common::{FULL_DISK, run_on_a_full_disk};
use pointsman_store::{Namespace, OpenError, Options, Row, Store, StoreError, Table};

const TABLE: &str = "sums";

fn try_open(path: Option<&Path>) -> Result<Store, OpenError> {
    let namespace = Namespace {
        name: "things",
        max_entries: 100,
        max_bytes: 1 << 20,
        max_owner_bytes: 1 << 19,
        max_value: 10_000,
        max_age: Duration::from_secs(3600),
    };
    Store::open(Options {
        path: path.map(Path::to_owned),
        namespaces: vec![namespace],
        on_loss: Box::new(|_| {}),
    })
}

fn put(store: &Store, rows: &[(&[u8], &[u8])]) -> Result<(), StoreError> {
    store.update(|transaction| {
        let mut table = transaction.table(TABLE)?;
        rows.iter().try_for_each(|(key, value)| table.put(key, value))
    })
}

fn all(store: &Store, from: &[u8], to: &[u8]) -> Vec<Row> {
    let mut rows = Vec::new();
    let visit = |key: &[u8], value: &[u8]| {
        rows.push((key.to_vec(), value.to_vec()));
        ControlFlow::Continue(())
    };
    store.scan(TABLE, (from, to), visit).unwrap();
    rows
}

#[test]
fn rows_are_read_in_the_order_of_their_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    {
        let store = try_open(Some(&path)).unwrap();
        assert_eq!(all(&store, &[], &[255]), []);
        put(&store, &[(b"c", b"3"), (b"a", b"1"), (b"b", b"2")]).unwrap();
        store.update(|transaction| transaction.table(TABLE)?.remove(b"c")).unwrap();
    }
    let store = try_open(Some(&path)).unwrap();
    let rows = [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"2".to_vec())];
    assert_eq!(all(&store, &[], &[255]), rows);
    assert_eq!(all(&store, b"a", b"b"), rows[..1]);
    assert_eq!(all(&store, b"b", b"a"), []);
    let found = store.update(|transaction| {
        let table = transaction.table(TABLE)?;
        Ok::<_, StoreError>((table.first(b"", b"z", 1)?, table.len()?, table.get(b"c")?))
    });
    assert_eq!(found.unwrap(), (rows[..1].to_vec(), 2, None));
}

#[test]
fn failed_change_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = try_open(Some(&dir.path().join("store"))).unwrap();
    put(&store, &[(b"a", b"1")]).unwrap();
    let result: Result<(), StoreError> = store.update(|transaction| {
        transaction.table(TABLE)?.put(b"a", b"2")?;
        Err(StoreError::Busy)
    });
    assert!(matches!(result, Err(StoreError::Busy)));
    put(&store, &[(b"b", b"1")]).unwrap();
    assert_eq!(all(&store, b"a", b"b"), [(b"a".to_vec(), b"1".to_vec())]);
}

/// A file as hosts wrote it before there were ordered tables.
#[test]
fn file_of_an_earlier_host_is_used() {
    use redb::{Database, TableDefinition};
    type Head = (u64, u64, u64, u32);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    {
        let earlier = Database::create(&path).unwrap();
        let write = earlier.begin_write().unwrap();
        let meta = TableDefinition::<&str, u64>::new("meta");
        write.open_table(meta).unwrap().insert("format", 1).unwrap();
        let values = TableDefinition::<&[u8], &[u8]>::new("things");
        write.open_table(values).unwrap().insert(&b"k"[..], &b"[1,2]"[..]).unwrap();
        let heads = TableDefinition::<&[u8], Head>::new("things.entries");
        let head = (1, 7, u64::MAX, 5);
        write.open_table(heads).unwrap().insert(&b"k"[..], head).unwrap();
        write.commit().unwrap();
    }
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let store = try_open(Some(&path)).unwrap();
    let table: Table<String, Vec<u64>> = store.table("things").unwrap();
    assert_eq!(table.get(&"k".to_owned()).unwrap(), Some(vec![1, 2]));
    put(&store, &[(b"a", b"1")]).unwrap();
    assert_eq!(all(&store, b"", b"b").len(), 1);
}

#[test]
fn broken_files_are_told_from_unusable_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    let mut file = options.open(&path).unwrap();
    std::io::Write::write_all(&mut file, &[b'x'; 5000]).unwrap();
    assert_eq!(try_open(Some(&path)).unwrap_err().code(), "store_corrupt");
    std::fs::remove_file(&path).unwrap();
    {
        let store = try_open(Some(&path)).unwrap();
        put(&store, &[(b"a", &[1; 100_000])]).unwrap();
    }
    let length = std::fs::metadata(&path).unwrap().len();
    options.open(&path).unwrap().set_len(length / 3).unwrap();
    assert_eq!(try_open(Some(&path)).unwrap_err().code(), "store_corrupt");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(try_open(Some(&path)).unwrap_err().code(), "store_unavailable");
}

/// Not a test of its own: the child of the next one, whose files must not grow.
#[test]
fn child_fills_the_disk() {
    let Ok(path) = std::env::var(FULL_DISK) else { return };
    let store = try_open(Some(Path::new(&path))).unwrap();
    for number in 0..10_000_u64 {
        if put(&store, &[(&number.to_be_bytes(), &[7; 10_000])]).is_err() {
            // The file is opened again, and a row that needs no space can be written.
            put(&store, &[(b"b", b"1")]).unwrap();
            return println!("failed after {number} rows");
        }
    }
}

#[test]
fn full_disk_keeps_what_was_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    drop(put(&try_open(Some(&path)).unwrap(), &[(b"a", b"1")]));
    let output = run_on_a_full_disk(&path);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let written = text.split("failed after ").nth(1).and_then(|text| text.split(' ').next());
    let written: usize = written.unwrap_or_else(|| panic!("{output:?}")).parse().unwrap();
    let store = try_open(Some(&path)).unwrap();
    let rows = all(&store, b"", &[255]);
    let intact = rows.iter().filter(|(_, value)| **value == [7; 10_000]).count();
    // The transaction that failed may be in the file, but never a part of it.
    assert!((written..=written + 1).contains(&intact), "{written} {intact}");
    for key in [b"a", b"b"] {
        assert!(rows.iter().any(|(found, value)| found == key && value == b"1"));
    }
}
