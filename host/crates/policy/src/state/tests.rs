use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::{Form, MOST_BYTES, State, StateError};
use crate::clock::Clock;

/// One of each form.
fn both() -> [State; 2] {
    [State::default(), State::rehearsed(Clock::standing())]
}

fn bytes(state: &State) -> u64 {
    match &state.0 {
        Form::Shared(entries) => entries.bytes(),
        Form::Rehearsed(entries) => entries.bytes(),
    }
}

#[test]
fn values_and_counters_are_kept_apart() {
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
fn sizes_are_limited_and_a_flood_is_evicted() {
    for state in both() {
        assert_eq!(state.put("k".repeat(129), b"", 0), Err(StateError::TooLong));
        assert_eq!(state.put("k".into(), &[0; 4097], 0), Err(StateError::TooLong));
        assert_eq!(state.increment("k".repeat(129), 1, 0), Err(StateError::TooLong));
        for number in 0..5000 {
            state.put(format!("key-{number}"), &[0; 1000], 0).unwrap();
        }
        let bytes = bytes(&state);
        assert!((MOST_BYTES / 2..=MOST_BYTES).contains(&bytes), "{bytes}");
    }
}

#[test]
fn counting_is_atomic() {
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
fn entries_of_a_rehearsal_expire_by_its_clock() {
    let clock = Clock::standing();
    let state = State::rehearsed(clock.clone());
    state.put("stays".into(), b"a", 0).unwrap();
    state.put("goes".into(), b"b", 1000).unwrap();
    state.increment("counts".into(), 3, 2000).unwrap();
    clock.set(Duration::from_millis(999));
    assert!(state.get("goes").is_some());
    // Written again it stands anew; a counter only from its first use.
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
        "it begins again, and without an end"
    );
    clock.set(Duration::from_secs(1_000_000));
    assert_eq!((state.get("stays").as_deref(), bytes(&state)), (Some(b"a".as_slice()), 106 + 114));
}

#[test]
fn what_was_not_used_for_longest_goes_first() {
    let state = State::rehearsed(Clock::standing());
    // So many fill it: 4,096 bytes, a key of 5 and the overhead.
    let room = usize::try_from(MOST_BYTES).unwrap() / (4096 + 5 + 100);
    (0..room).for_each(|number| state.put(format!("k{number:04}"), &[0; 4096], 0).unwrap());
    assert!(state.get("k0000").is_some(), "and so it was used just now");
    state.put("one more".into(), &[0; 4096], 0).unwrap();
    assert!(
        state.get("k0001").is_none()
            && state.get("k0000").is_some()
            && state.get("k0002").is_some()
    );
}

/// Something that a policy does with its state.
#[derive(Debug, Clone)]
enum Act {
    Get(usize),
    Put(usize, Vec<u8>),
    Delete(usize),
    Increment(usize, i64),
}

fn act() -> impl Strategy<Value = Act> {
    // The last key is too long.
    let key = 0..5usize;
    prop_oneof![
        key.clone().prop_map(Act::Get),
        (key.clone(), prop_oneof![vec(any::<u8>(), 0..20), Just(vec![7; 4097])])
            .prop_map(|(key, value)| Act::Put(key, value)),
        key.clone().prop_map(Act::Delete),
        (key, any::<i64>()).prop_map(|(key, by)| Act::Increment(key, by)),
    ]
}

proptest! {
    #[test]
    fn both_forms_answer_alike(acts in vec(act(), 0..60)) {
        let key = |key: usize| if key == 4 { "k".repeat(200) } else { format!("key-{key}") };
        let [shared, rehearsed] = both();
        for act in acts {
            let answer = |state: &State| match &act {
                Act::Get(of) => format!("{:?}", state.get(&key(*of))),
                Act::Put(of, value) => format!("{:?}", state.put(key(*of), value, 0)),
                Act::Delete(of) => format!("{:?}", state.delete(&key(*of))),
                Act::Increment(of, by) => format!("{:?}", state.increment(key(*of), *by, 0)),
            };
            prop_assert_eq!(answer(&shared), answer(&rehearsed), "{:?}", act);
        }
    }
}
