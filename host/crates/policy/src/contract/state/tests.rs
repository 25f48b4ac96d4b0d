use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Backend, State};
use crate::clock::Clock;
use crate::contract::state::entry::{MAX_STATE_BYTES, StateError};

/// A state of each backend.
fn both() -> [State; 2] {
    [State::default(), State::deterministic(Clock::manual())]
}

fn bytes(state: &State) -> u64 {
    match &state.0 {
        Backend::Concurrent(entries) => entries.bytes(),
        Backend::Deterministic(entries) => entries.bytes(),
        Backend::Shared(_) => unreachable!("not created here"),
    }
}

#[test]
fn values_and_counters_are_distinct() {
    for state in both() {
        assert_eq!(state.get("a"), None);
        state.put("a".into(), b"one", 0).unwrap();
        assert_eq!(state.get("a").as_deref(), Some(b"one".as_slice()));
        assert_eq!(state.increment("a".into(), 1, 0), Err(StateError::NotACounter));
        assert_eq!(
            (state.increment("n".into(), 5, 0), state.increment("n".into(), -2, 0)),
            (Ok(5), Ok(3))
        );
        assert_eq!(state.get("n"), Some(3i64.to_le_bytes().to_vec()));
        state.delete("a");
        assert_eq!(state.get("a"), None);
    }
}

#[test]
fn sizes_are_limited_and_old_entries_are_evicted() {
    for state in both() {
        assert_eq!(state.put("k".repeat(129), b"", 0), Err(StateError::TooLong));
        assert_eq!(state.put("k".into(), &[0; 4097], 0), Err(StateError::TooLong));
        assert_eq!(state.increment("k".repeat(129), 1, 0), Err(StateError::TooLong));
        for number in 0..5000 {
            state.put(format!("key-{number}"), &[0; 1000], 0).unwrap();
        }
        let bytes = bytes(&state);
        assert!((MAX_STATE_BYTES / 2..=MAX_STATE_BYTES).contains(&bytes), "{bytes}");
    }
}

#[test]
fn increment_is_atomic() {
    for state in both() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    (0..1000).for_each(|_| assert!(state.increment("n".into(), 1, 0).is_ok()))
                });
            }
        });
        assert_eq!(state.increment("n".into(), 0, 0), Ok(4000));
    }
}

#[test]
fn deterministic_entries_expire_by_the_virtual_clock() {
    let clock = Clock::manual();
    let state = State::deterministic(clock.clone());
    state.put("stays".into(), b"a", 0).unwrap();
    state.put("goes".into(), b"b", 1000).unwrap();
    state.increment("counts".into(), 3, 2000).unwrap();
    clock.set(Duration::from_millis(999));
    assert!(state.get("goes").is_some());
    // A write restarts the time to live; an increment does not.
    state.put("goes".into(), b"c", 1000).unwrap();
    assert_eq!(state.increment("counts".into(), 1, 2000), Ok(4));
    clock.set(Duration::from_millis(1998));
    assert!(state.get("goes").is_some());
    clock.set(Duration::from_millis(1999));
    assert_eq!((state.get("goes"), state.increment("counts".into(), 0, 0)), (None, Ok(4)));
    clock.set(Duration::from_secs(2));
    assert_eq!(
        state.increment("counts".into(), 1, 0),
        Ok(1),
        "an expired counter starts again, without expiry"
    );
    clock.set(Duration::from_secs(1_000_000));
    assert_eq!((state.get("stays").as_deref(), bytes(&state)), (Some(b"a".as_slice()), 106 + 114));
}

#[test]
fn least_recently_used_entry_is_evicted_first() {
    let state = State::deterministic(Clock::manual());
    // The number of entries that fill it: 4,096 bytes, a key of 5 and the overhead.
    let capacity = usize::try_from(MAX_STATE_BYTES).unwrap() / (4096 + 5 + 100);
    (0..capacity).for_each(|number| state.put(format!("k{number:04}"), &[0; 4096], 0).unwrap());
    assert!(state.get("k0000").is_some(), "reading marks it as used");
    state.put("one more".into(), &[0; 4096], 0).unwrap();
    assert!(
        state.get("k0001").is_none()
            && state.get("k0000").is_some()
            && state.get("k0002").is_some()
    );
}

/// An operation on the state.
#[derive(Debug, Clone)]
enum Operation {
    Get(usize),
    Put(usize, Vec<u8>),
    Delete(usize),
    Increment(usize, i64),
}

fn operation() -> impl Strategy<Value = Operation> {
    // The last key is too long.
    let key = 0..5usize;
    prop_oneof![
        key.clone().prop_map(Operation::Get),
        (key.clone(), prop_oneof![vec(any::<u8>(), 0..20), Just(vec![7; 4097])])
            .prop_map(|(key, value)| Operation::Put(key, value)),
        key.clone().prop_map(Operation::Delete),
        (key, any::<i64>()).prop_map(|(key, by)| Operation::Increment(key, by)),
    ]
}

proptest! {
    #[test]
    fn both_backends_return_the_same_results(operations in vec(operation(), 0..60)) {
        let key = |key: usize| if key == 4 { "k".repeat(200) } else { format!("key-{key}") };
        let [concurrent, deterministic] = both();
        for operation in operations {
            let result = |state: &State| match &operation {
                Operation::Get(index) => format!("{:?}", state.get(&key(*index))),
                Operation::Put(index, value) => format!("{:?}", state.put(key(*index), value, 0)),
                Operation::Delete(index) => format!("{:?}", state.delete(&key(*index))),
                Operation::Increment(index, by) => {
                    format!("{:?}", state.increment(key(*index), *by, 0))
                }
            };
            prop_assert_eq!(result(&concurrent), result(&deterministic), "{:?}", operation);
        }
    }
}

#[test]
fn copy_has_the_entries_and_is_independent() {
    let clock = Clock::manual();
    for state in [State::default(), State::deterministic(clock.clone())] {
        state.put("text".to_owned(), b"one", 60_000).unwrap();
        state.increment("count".to_owned(), 3, 0).unwrap();
        let copy = state.copy();
        assert_eq!(copy.get("text").as_deref(), Some(&b"one"[..]));
        assert_eq!(copy.increment("count".to_owned(), 1, 0), Ok(4));
        copy.put("text".to_owned(), b"two", 0).unwrap();
        copy.put("new".to_owned(), b"x", 0).unwrap();
        copy.delete("text");
        assert_eq!(state.get("text").as_deref(), Some(&b"one"[..]));
        assert_eq!(state.increment("count".to_owned(), 0, 0), Ok(3));
        assert_eq!(state.get("new"), None);
    }
}
