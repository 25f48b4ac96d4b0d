//! The store from outside: restarts, crashes, two hosts, and bounds.

#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{FULL_DISK, run_on_a_full_disk};
use pointsman_store::{Namespace, OpenError, Options, Store, StoreError, Table};

/// Makes the test binary the child that is killed.
const CHILD: &str = "POINTSMAN_STORE_TEST_CHILD";

fn namespace() -> Namespace {
    Namespace {
        name: "things",
        max_entries: 100,
        max_bytes: 1 << 20,
        max_owner_bytes: 1 << 19,
        max_value: 10_000,
        max_age: Duration::from_secs(3600),
    }
}

fn try_open(path: Option<&Path>, namespace: Namespace) -> Result<Store, OpenError> {
    Store::open(Options {
        path: path.map(PathBuf::from),
        namespaces: vec![namespace],
        on_loss: Box::new(|loss| eprintln!("lost {}: {}", loss.writes, loss.error)),
    })
}

fn open(path: Option<&Path>) -> (Store, Table<String, Vec<u64>>) {
    let store = try_open(path, namespace()).unwrap();
    let table = store.table("things").unwrap();
    (store, table)
}

fn key(number: u64) -> String {
    format!("key-{number}")
}

#[test]
fn values_are_kept_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    {
        let (_store, table) = open(Some(&path));
        table.put(&key(1), 7, &vec![1, 2]).unwrap();
        table.put(&key(2), 7, &vec![2]).unwrap();
        assert_eq!(table.get(&key(1)).unwrap(), Some(vec![1, 2]));
        assert!(table.remove(&key(2)) && !table.remove(&key(2)));
        assert_eq!(table.get(&key(2)).unwrap(), None);
    }
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (store, table) = open(Some(&path));
    assert_eq!(table.get(&key(1)).unwrap(), Some(vec![1, 2]));
    assert_eq!(table.get(&key(2)).unwrap(), None);
    assert_eq!(store.lost(), 0);
}

#[test]
fn second_host_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (store, table) = open(Some(&path));
    table.put(&key(1), 0, &vec![1]).unwrap();
    let error = try_open(Some(&path), namespace()).unwrap_err();
    assert_eq!(error.code(), "store_in_use");
    store.flush();
    assert_eq!(table.get(&key(1)).unwrap(), Some(vec![1]));
}

#[test]
fn oldest_entries_go_and_long_values_are_refused() {
    let (store, table) = open(None);
    for number in 0..150 {
        table.put(&key(number), 0, &vec![number]).unwrap();
    }
    store.flush();
    let found = (0..150).filter(|number| table.get(&key(*number)).unwrap().is_some());
    assert_eq!(found.collect::<Vec<_>>(), (50..150).collect::<Vec<_>>());
    let error = table.put(&key(1), 0, &vec![u64::MAX; 1000]).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { max: 10_000, .. }));
}

#[test]
fn smaller_limits_and_age_apply_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    {
        let (_store, table) = open(Some(&path));
        (0..10).for_each(|number| table.put(&key(number), 0, &vec![number]).unwrap());
    }
    let fewer = Namespace { max_entries: 3, ..namespace() };
    let store = try_open(Some(&path), fewer).unwrap();
    let table: Table<String, Vec<u64>> = store.table("things").unwrap();
    let found = (0..10).filter(|number| table.get(&key(*number)).unwrap().is_some());
    assert_eq!(found.collect::<Vec<_>>(), [7, 8, 9]);
    drop((table, store));
    let short = Namespace { max_age: Duration::ZERO, ..namespace() };
    let store = try_open(Some(&path), short).unwrap();
    let table: Table<String, Vec<u64>> = store.table("things").unwrap();
    table.put(&key(20), 0, &vec![20]).unwrap();
    assert_eq!(table.get(&key(20)).unwrap(), None);
}

/// Not a test of its own: the child of the next one, whose files must not grow.
#[test]
fn child_fills_the_disk() {
    let Ok(path) = std::env::var(FULL_DISK) else { return };
    let large = Namespace { max_entries: 20_000, max_bytes: 1 << 28, ..namespace() };
    let large = Namespace { max_owner_bytes: 1 << 28, ..large };
    let store = try_open(Some(Path::new(&path)), large).unwrap();
    let table: Table<String, Vec<u64>> = store.table("things").unwrap();
    for number in 1..20_000 {
        table.put(&key(number), 0, &vec![number; 1000]).unwrap();
        store.flush();
        if store.lost() > 0 {
            // What is lost is not found, and neither is it an error of the next write.
            assert!(!matches!(table.get(&key(number)), Ok(Some(_))));
            table.put(&key(0), 0, &vec![0]).unwrap();
            return println!("lost");
        }
    }
}

#[test]
fn full_disk_loses_new_entries_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    {
        let (_store, table) = open(Some(&path));
        table.put(&key(1_000_000), 0, &vec![7]).unwrap();
    }
    let output = run_on_a_full_disk(&path);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("lost"), "{output:?}");
    // What was written before is still there.
    let large = Namespace { max_entries: 20_000, max_bytes: 1 << 28, ..namespace() };
    let store = try_open(Some(&path), Namespace { max_owner_bytes: 1 << 28, ..large }).unwrap();
    let table: Table<String, Vec<u64>> = store.table("things").unwrap();
    assert_eq!(table.get(&key(1_000_000)).unwrap(), Some(vec![7]));
}

/// Not a test of its own: the child of the next one, which writes until it is killed. It says what
/// is written for certain.
#[test]
fn child_writes() {
    let Ok(path) = std::env::var(CHILD) else { return };
    let (store, table) = open(Some(Path::new(&path)));
    let mut out = std::io::stdout();
    for number in 0.. {
        table.put(&key(number % 50), 0, &vec![number; 200]).unwrap();
        if number % 7 == 0 {
            store.flush();
            writeln!(out, "flushed {number}").unwrap();
        }
    }
}

#[test]
fn what_was_flushed_survives_a_kill() {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let mut seed = u64::from(nanos);
    println!("seed {seed}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    for _ in 0..8 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["child_writes", "--exact", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = 1 + (seed >> 33) % 20;
        let mut flushed = 0;
        let mut seen = 0;
        let mut read = |line: String| {
            let found = line.split("flushed ").nth(1).and_then(|text| text.trim().parse().ok());
            if let Some(number) = found {
                flushed = number;
                seen += 1;
            }
            seen
        };
        while lines.next().is_some_and(|line| read(line.unwrap()) < wanted) {}
        child.kill().unwrap();
        child.wait().unwrap();
        lines.map_while(Result::ok).for_each(|line| {
            read(line);
        });
        let (_store, table) = open(Some(&path));
        let found = table.get(&key(flushed % 50)).unwrap().unwrap();
        // A later value may have been written, but never a part of one.
        assert!(found.len() == 200 && found.iter().all(|part| *part == found[0]));
        assert!(found[0] >= flushed && found[0] % 50 == flushed % 50, "{} {flushed}", found[0]);
    }
}
