use std::fs;
use std::path::Path;

use pointsman_policy::StateValue;
use pointsman_store::Options;

use super::*;

fn open(dir: &Path) -> StoredStates {
    let path = Some(dir.join(crate::store::FILE));
    let options = Options { path, namespaces: Vec::new(), on_loss: Box::new(|_| {}) };
    StoredStates(Store::open(options).unwrap())
}

fn counter(key: &str, count: i64) -> StateEntry {
    StateEntry { key: key.to_owned(), value: StateValue::Counter(count), expires_ms: None }
}

fn changes(policy: &str, entries: Vec<StateEntry>) -> StateChanges {
    StateChanges { policy: policy.to_owned(), entries, ..StateChanges::default() }
}

#[test]
fn states_are_apart_and_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let states = open(dir.path());
    // One name is the beginning of the other.
    states
        .save(&[changes("p", vec![counter("1a", 1)]), changes("p1", vec![counter("a", 2)])])
        .unwrap();
    drop(states);
    let states = open(dir.path());
    assert_eq!(states.policies().unwrap(), ["p", "p1"]);
    assert_eq!(states.load("p").unwrap(), [counter("1a", 1)]);
    assert_eq!(states.load("p1").unwrap(), [counter("a", 2)]);
    let removed = StateChanges { removed: vec!["1a".to_owned()], ..changes("p", vec![]) };
    let cleared = StateChanges { is_whole: true, ..changes("p1", vec![]) };
    states.save(&[removed, cleared]).unwrap();
    assert_eq!((states.load("p").unwrap(), states.load("p1").unwrap()), (vec![], vec![]));
    assert_eq!(states.policies().unwrap(), ["p"]);
}

/// The bytes of the first format version, as that host wrote them.
#[test]
fn first_format_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let states = open(dir.path());
    let update = |store: &Store| -> Result<(), StoreError> {
        store.update(|transaction| {
            transaction.table("policy-state")?.put(b"quota", &[0, 0, 0, 1])?;
            let mut rows = transaction.table("policy-state.1")?;
            let mut put = |key: &str, value: &[u8]| {
                rows.put(&[&[0, 5], &b"quota"[..], key.as_bytes()].concat(), value)
            };
            put("ta:r:9", b"\x01\0\0\x01\x9b\xc7\x7b\xd0\0\0\0\0\0\0\0\0\x07")?;
            put("text", b"\0\0\0\0\0\0\0\0\0abc")?;
            put("broken", b"\x07")?;
            Ok(())
        })
    };
    update(&states.0).unwrap();
    let expires = 0x0000_019b_c77b_d000;
    let counter = StateEntry { expires_ms: Some(expires), ..counter("ta:r:9", 7) };
    let text = StateEntry { value: StateValue::Bytes(b"abc".to_vec()), ..self::counter("text", 0) };
    assert_eq!(states.load("quota").unwrap(), [counter, text]);
}

#[test]
fn state_of_a_later_version_is_kept_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let states = open(dir.path());
    states.save(&[changes("p", vec![counter("early", 1)])]).unwrap();
    let later = |store: &Store| -> Result<(), StoreError> {
        store.update(|transaction| {
            transaction.table(VERSIONS)?.put(b"p", &2_u32.to_be_bytes())?;
            transaction.table("policy-state.2")?.put(b"p", b"later")
        })
    };
    later(&states.0).unwrap();
    assert_eq!((states.load("p").unwrap(), states.policies().unwrap().len()), (vec![], 0));
    states.save(&[changes("p", vec![counter("new", 2)])]).unwrap();
    drop(states);
    let states = open(dir.path());
    assert_eq!(states.load("p").unwrap(), [counter("new", 2)], "nothing from before");
    let kept = states.0.update(|transaction| transaction.table("policy-state.2")?.get(b"p"));
    assert_eq!(kept.unwrap().as_deref(), Some(b"later".as_slice()));
}

/// A state that is full and changes all the time does not let the file grow.
#[test]
fn file_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let states = open(dir.path());
    for round in 0..30_u32 {
        let key = |number: u32, round: u32| format!("{number}-{round}");
        let entries = (0..250).map(|number| StateEntry {
            value: StateValue::Bytes(vec![7; 4000]),
            ..counter(&key(number, round), 0)
        });
        let removed = (0..250).map(|number| key(number, round.wrapping_sub(1))).collect();
        states.save(&[StateChanges { removed, ..changes("p", entries.collect()) }]).unwrap();
    }
    assert_eq!(states.load("p").unwrap().len(), 250);
    let size = || fs::metadata(dir.path().join(crate::store::FILE)).unwrap().len();
    assert!(size() < 16 << 20, "{}", size());
}
