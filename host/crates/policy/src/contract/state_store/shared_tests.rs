//! States that several hosts share: who uses them, and what never does.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::contract::shared_state::SharedState;
use crate::contract::state_backing::StateValue;

/// A state of two hosts in one process, and the keys that were removed.
#[derive(Debug, Default)]
struct Shared(Mutex<(i64, Vec<String>)>);

impl SharedState for Shared {
    fn get(&self, _: &str) -> Option<Vec<u8>> {
        Some(self.0.lock().0.to_le_bytes().to_vec())
    }

    fn put(&self, _: &str, _: &[u8], _: u32) {}

    fn delete(&self, key: &str) {
        self.0.lock().1.push(key.to_owned());
    }

    fn increment(&self, key: &str, by: i64, _: u32) -> Option<i64> {
        (key == "counter").then(|| {
            let mut state = self.0.lock();
            state.0 += by;
            state.0
        })
    }

    fn entries(&self) -> Vec<StateEntry> {
        let value = StateValue::Counter(self.0.lock().0);
        vec![StateEntry { key: "counter".to_owned(), value, expires_ms: None }]
    }
}

#[derive(Debug, Default)]
struct Fleet(Arc<Shared>);

impl StateSharing for Fleet {
    fn open(&self, _: &str) -> Arc<dyn SharedState> {
        Arc::<Shared>::clone(&self.0)
    }
}

#[test]
fn only_policies_with_that_scope_share_their_state() {
    let fleet = Arc::new(Fleet::default());
    let hosts = [StateStore::default(), StateStore::default()];
    for host in &hosts {
        host.share(Arc::<Fleet>::clone(&fleet));
        host.set_scope("quota", StateScope::Shared);
        host.set_scope("budget", StateScope::Local);
    }
    let add = |host: usize, policy: &str| {
        hosts[host].state_of(policy).increment("counter".to_owned(), 1, 0)
    };
    assert_eq!((add(0, "quota"), add(1, "quota")), (Ok(1), Ok(2)));
    assert_eq!((add(0, "budget"), add(1, "budget")), (Ok(1), Ok(1)));
    assert!(hosts[0].state_of("quota").is_durable());
    let other = hosts[0].state_of("quota").increment("value".to_owned(), 1, 0);
    assert!(other.is_err(), "not a counter");
}

#[test]
fn copies_of_a_shared_state_have_no_effect_on_it() {
    let (fleet, host) = (Arc::new(Fleet::default()), StateStore::default());
    host.share(Arc::<Fleet>::clone(&fleet));
    host.set_scope("quota", StateScope::Shared);
    let state = host.state_of("quota");
    state.increment("counter".to_owned(), 5, 0).unwrap();
    let copy = state.copy();
    assert_eq!(copy.increment("counter".to_owned(), 1, 0), Ok(6));
    assert_eq!(state.increment("counter".to_owned(), 0, 0), Ok(5));
    state.clear();
    assert_eq!(fleet.0.0.lock().1, ["counter"]);
}

#[test]
fn without_a_store_a_shared_state_is_one_of_this_process() {
    let hosts = [StateStore::default(), StateStore::default()];
    for host in &hosts {
        host.set_scope("quota", StateScope::Shared);
        let state = host.state_of("quota");
        assert_eq!(state.increment("counter".to_owned(), 1, 0), Ok(1));
    }
}
