use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::contract::state_backing::StateValue;

type Entries = BTreeMap<String, StateEntry>;

/// A backing in memory, which can be full.
#[derive(Debug, Default)]
struct Disk {
    states: Mutex<BTreeMap<String, Entries>>,
    is_full: AtomicBool,
    is_broken: AtomicBool,
}

fn io_error() -> StateBackingError {
    StateBackingError(Box::new(std::io::Error::other("no space")))
}

impl StateBacking for Disk {
    fn load(&self, policy: &str) -> Result<Vec<StateEntry>, StateBackingError> {
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(io_error());
        }
        let states = self.states.lock();
        Ok(states.get(policy).into_iter().flat_map(|entries| entries.values().cloned()).collect())
    }

    fn save(&self, changes: &[StateChanges]) -> Result<(), StateBackingError> {
        if self.is_full.load(Ordering::Relaxed) {
            return Err(io_error());
        }
        let mut states = self.states.lock();
        for StateChanges { policy, is_whole, entries, removed } in changes {
            let state = states.entry(policy.clone()).or_default();
            if *is_whole {
                state.clear();
            }
            state.extend(entries.iter().map(|entry| (entry.key.clone(), entry.clone())));
            removed.iter().for_each(|key| drop(state.remove(key)));
        }
        Ok(())
    }

    fn policies(&self) -> Result<Vec<String>, StateBackingError> {
        Ok(self.states.lock().keys().cloned().collect())
    }
}

impl Disk {
    fn keys(&self, policy: &str) -> Vec<String> {
        self.states.lock().get(policy).map_or(Vec::new(), |state| state.keys().cloned().collect())
    }
}

/// Returns the states of a new process.
fn started(disk: &Arc<Disk>) -> StateStore {
    let states = StateStore::default();
    states.attach(Arc::clone(disk) as Arc<dyn StateBacking>);
    states
}

fn counter(state: &State, key: &str) -> i64 {
    state.increment(key.to_owned(), 0, 0).unwrap()
}

#[test]
fn state_outlives_a_restart() {
    let disk = Arc::<Disk>::default();
    let states = started(&disk);
    let state = states.state_of("p");
    state.put("text".into(), b"one", 0).unwrap();
    state.put("gone".into(), b"two", 0).unwrap();
    state.increment("n".into(), 5, 60_000).unwrap();
    assert_eq!((states.save().unwrap(), states.save().unwrap()), (3, 0));
    state.delete("gone");
    (0..1000).for_each(|_| assert!(state.increment("n".into(), 1, 60_000).is_ok()));
    assert_eq!(states.save().unwrap(), 2, "a counter is written once");
    state.increment("n".into(), 7, 0).unwrap();
    drop(states);
    let states = started(&disk);
    let state = states.state_of("p");
    assert_eq!(state.get("text").as_deref(), Some(b"one".as_slice()));
    assert_eq!((state.get("gone"), counter(&state, "n")), (None, 1005));
    assert_eq!(states.save().unwrap(), 1, "the counter of this test only");
    assert_eq!(states.state_of("other").get("text"), None);
}

#[test]
fn what_is_written_before_the_restore_stays() {
    let disk = Arc::<Disk>::default();
    let states = started(&disk);
    let state = states.state_of("p");
    state.put("text".into(), b"old", 0).unwrap();
    state.increment("n".into(), 10, 0).unwrap();
    states.save().unwrap();
    let states = StateStore::default();
    let state = states.state_of("p");
    assert!(!state.is_durable());
    state.put("text".into(), b"new", 0).unwrap();
    state.increment("n".into(), 1, 0).unwrap();
    states.attach(Arc::clone(&disk) as Arc<dyn StateBacking>);
    assert_eq!(state.get("text").as_deref(), Some(b"new".as_slice()));
    assert_eq!(counter(&state, "n"), 11);
    assert_eq!(states.save().unwrap(), 2);
    assert_eq!(counter(&started(&disk).state_of("p"), "n"), 11);
}

#[test]
fn expired_entries_are_not_restored() {
    let disk = Arc::<Disk>::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let now = u64::try_from(now.as_millis()).unwrap();
    let entry = |key: &str, expires_ms| StateEntry {
        key: key.to_owned(),
        value: StateValue::Counter(3),
        expires_ms,
    };
    let entries = [("old", Some(now - 1)), ("new", Some(now + 60_000)), ("ever", None)];
    let entries = entries.map(|(key, expires)| entry(key, expires)).to_vec();
    let policy = "p".to_owned();
    disk.save(&[StateChanges { policy, entries, ..StateChanges::default() }]).unwrap();
    let states = started(&disk);
    let state = states.state_of("p");
    assert_eq!((state.get("old"), counter(&state, "new"), counter(&state, "ever")), (None, 3, 3));
    states.save().unwrap();
    assert_eq!(disk.keys("p"), ["ever", "new"]);
    // The time to live is what was left of it.
    let restored = state.entries().into_iter().find(|entry| entry.key == "new").unwrap();
    assert_eq!(restored.expires_ms, Some(now + 60_000));
}

#[test]
fn limits_hold_for_what_is_saved() {
    let disk = Arc::<Disk>::default();
    let states = started(&disk);
    let state = states.state_of("p");
    for number in 0..3000 {
        state.put(format!("key-{number}"), &[0; 1000], 0).unwrap();
        if number % 500 == 0 {
            states.save().unwrap();
        }
    }
    states.save().unwrap();
    // Evictions of the last maintenance.
    states.save().unwrap();
    let mut own: Vec<String> = state.entries().into_iter().map(|entry| entry.key).collect();
    own.sort();
    assert_eq!(disk.keys("p"), own);
    assert!((500..1000).contains(&own.len()), "{}", own.len());
}

#[test]
fn full_disk_loses_nothing_that_is_in_memory() {
    let disk = Arc::<Disk>::default();
    let states = started(&disk);
    let state = states.state_of("p");
    state.put("gone".into(), b"", 0).unwrap();
    states.save().unwrap();
    disk.is_full.store(true, Ordering::Relaxed);
    state.increment("n".into(), 1, 0).unwrap();
    state.delete("gone");
    assert!(states.save().is_err());
    state.increment("n".into(), 1, 0).unwrap();
    assert!(states.save().is_err());
    // More keys than are remembered.
    for number in 0..30_000 {
        state.put(format!("many-{number}"), b"", 0).unwrap();
        state.delete(&format!("many-{number}"));
    }
    assert!(states.save().is_err());
    disk.is_full.store(false, Ordering::Relaxed);
    states.save().unwrap();
    assert_eq!((counter(&started(&disk).state_of("p"), "n"), disk.keys("p").len()), (2, 1));
}

#[test]
fn state_that_cannot_be_read_is_left_as_it_is() {
    let disk = Arc::<Disk>::default();
    let states = started(&disk);
    states.state_of("p").increment("n".into(), 4, 0).unwrap();
    states.save().unwrap();
    disk.is_broken.store(true, Ordering::Relaxed);
    let states = started(&disk);
    let state = states.state_of("p");
    assert_eq!((state.increment("n".into(), 1, 0), state.is_durable()), (Ok(1), false));
    assert_eq!(states.save().unwrap(), 0);
    disk.is_broken.store(false, Ordering::Relaxed);
    assert_eq!(counter(&started(&disk).state_of("p"), "n"), 4);
}

#[test]
fn operators_see_and_clear_states() {
    let disk = Arc::<Disk>::default();
    let states = started(&disk);
    states.state_of("p").put("a".into(), b"1234", 0).unwrap();
    states.state_of("q").increment("n".into(), 1, 0).unwrap();
    states.save().unwrap();
    let states = started(&disk);
    states.state_of("q");
    let summary = |policy: &str, is_loaded, bytes| StateSummary {
        policy: policy.to_owned(),
        is_loaded,
        is_durable: true,
        entries: 1,
        bytes,
    };
    assert_eq!(states.summaries().unwrap(), [summary("p", false, 5), summary("q", true, 9)]);
    assert!(states.find("r").unwrap().is_none());
    states.find("p").unwrap().unwrap().clear();
    states.save().unwrap();
    assert_eq!((disk.keys("p").len(), disk.keys("q").len()), (0, 1));
}

/// Every increment that is acknowledged before a save is in what the save has written.
#[test]
fn concurrent_increments_are_saved() {
    let disk = Arc::<Disk>::default();
    let states = started(&disk);
    let state = states.state_of("p");
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for number in 0..30_000 {
                        state.increment(format!("n{}", number % 7), 1, 0).unwrap();
                    }
                })
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            states.save().unwrap();
        }
    });
    states.save().unwrap();
    let restored = started(&disk).state_of("p");
    let sum: i64 = (0..7).map(|number| counter(&restored, &format!("n{number}"))).sum();
    assert_eq!(sum, 90_000);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, Vec<u8>),
    Increment(u8, i64),
    Delete(u8),
    Clear,
    Save,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let key = 0..6u8;
    prop_oneof![
        3 => (key.clone(), vec(any::<u8>(), 0..4)).prop_map(|(key, value)| Step::Put(key, value)),
        6 => (key.clone(), -9..9i64).prop_map(|(key, by)| Step::Increment(key, by)),
        2 => key.prop_map(Step::Delete),
        1 => Just(Step::Clear),
        3 => Just(Step::Save),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    /// After a restart, a state is what it was at the last save.
    #[test]
    fn restart_returns_to_the_last_save(steps in vec(step(), 0..80)) {
        let disk = Arc::<Disk>::default();
        let mut states = started(&disk);
        let read = |state: &State| -> Vec<_> {
            (0..6).map(|key| state.get(&key.to_string())).collect()
        };
        let mut saved = vec![None; 6];
        for step in steps {
            let state = states.state_of("p");
            match step {
                Step::Put(key, value) => state.put(key.to_string(), &value, 0).unwrap(),
                // Fails for a value that is not a counter.
                Step::Increment(key, by) => drop(state.increment(key.to_string(), by, 0)),
                Step::Delete(key) => state.delete(&key.to_string()),
                Step::Clear => state.clear(),
                Step::Save => {
                    states.save().unwrap();
                    saved = read(&state);
                }
                Step::Restart => {
                    states = started(&disk);
                    prop_assert_eq!(&read(&states.state_of("p")), &saved);
                }
            }
        }
    }
}
