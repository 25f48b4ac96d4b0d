//! The merging: replicas with clocks of the test, a store in memory, and rounds that fail.

mod memory;

use std::sync::Arc;

use proptest::prelude::*;

use self::memory::MemoryStore;
use crate::batch::{Batch, Op};
use crate::bucket::Bucket;
use crate::entry::{Entry, EntryValue};
use crate::replica::Replica;
use crate::usage::Now;

/// A day in 2026, in milliseconds since 1970.
const WALL: u64 = 1_790_000_000_000;

struct Host {
    bucket: Bucket,
    replica: Replica,
    round: u64,
    mono: u64,
}

impl Host {
    fn new(id: u64) -> Self {
        Self {
            bucket: Bucket::new(1 << 20, 1000),
            replica: Replica::with_id(id),
            round: 0,
            mono: 0,
        }
    }

    fn now(&self) -> Now {
        Now { mono: self.mono, wall: WALL + self.mono }
    }

    fn add(&mut self, key: &str, delta: i64, ttl: u64) -> i64 {
        let now = self.now();
        self.bucket.add(key, (delta, ttl), || self.replica.unique_name(), now)
    }

    fn total(&mut self, key: &str) -> i64 {
        let now = self.now();
        self.bucket.total(key, || self.replica.unique_name(), now)
    }

    fn reset(&mut self, key: &str) {
        let (now, stamp) = (self.now(), self.replica.stamps.next(WALL + self.mono));
        self.bucket.reset(key, stamp, || self.replica.unique_name(), now);
    }

    fn write(&mut self, key: &str, value: Option<&str>, ttl: u64) {
        let (now, stamp) = (self.now(), self.replica.stamps.next(WALL + self.mono));
        self.bucket.write(key, stamp, (value.map(|text| text.as_bytes().into()), ttl), now);
    }

    fn get(&mut self, key: &str) -> Option<String> {
        let now = self.now();
        self.bucket.get(key, now).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    fn collect(&mut self) -> Batch {
        self.round += 1;
        let items = self.bucket.collect(1000, self.now());
        let has_changes = items.iter().any(|item| match &item.op {
            Op::Count(count) => count.delta != 0 || count.is_reset,
            Op::Write(_) => true,
            Op::Read(_) => false,
        });
        Batch { base: "base".into(), items, has_changes }
    }

    fn apply(&mut self, batch: &Batch, reply: &crate::batch::BatchReply) {
        let (now, stamps) = (self.now(), &self.replica.stamps);
        self.bucket.apply(&batch.items, reply, now, |stamp| stamps.observe(stamp));
    }

    fn sync(&mut self, store: &mut MemoryStore) {
        let batch = self.collect();
        let reply = store.run(&batch, self.replica.id, self.round);
        self.apply(&batch, &reply);
    }
}

/// Lets time pass for all.
fn pass(ms: u64, store: &mut MemoryStore, hosts: &mut [Host]) {
    store.now += ms;
    hosts.iter_mut().for_each(|host| host.mono += ms);
}

fn hosts(count: u64) -> (MemoryStore, Vec<Host>) {
    let mut store = MemoryStore::default();
    store.now = WALL + 12_345;
    (store, (1..=count).map(Host::new).collect())
}

fn sync_all(store: &mut MemoryStore, hosts: &mut [Host]) {
    for _ in 0..3 {
        hosts.iter_mut().for_each(|host| host.sync(store));
    }
}

/// How a round goes.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Good,
    RequestLost,
    ReplyLost,
    /// Executed after later rounds, and without a reply.
    Late,
}

#[derive(Debug, Clone)]
enum Step {
    Add { host: usize, key: u8, delta: i64 },
    Put { host: usize, key: u8 },
    Remove { host: usize, key: u8 },
    Round { host: usize, fate: Fate },
    ExecuteLate,
    LoseData,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![
        4 => Just(Fate::Good),
        1 => Just(Fate::RequestLost),
        2 => Just(Fate::ReplyLost),
        2 => Just(Fate::Late),
    ];
    let step = prop_oneof![
        6 => (0..3usize, 0..3u8, -3..10i64)
            .prop_map(|(host, key, delta)| Step::Add { host, key, delta }),
        3 => (0..3usize, 0..3u8).prop_map(|(host, key)| Step::Put { host, key }),
        1 => (0..3usize, 0..3u8).prop_map(|(host, key)| Step::Remove { host, key }),
        8 => (0..3usize, fate).prop_map(|(host, fate)| Step::Round { host, fate }),
        1 => Just(Step::ExecuteLate),
        1 => Just(Step::LoseData),
        2 => (1..2000u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    /// A failed case is printed with its steps.
    #[test]
    fn no_delta_is_lost_or_counted_twice_and_the_last_write_wins(steps in steps()) {
        let (mut store, mut hosts) = hosts(3);
        let (mut sums, mut late) = ([0i64; 3], Vec::<(Batch, u64, u64)>::new());
        for step in steps {
            match step {
                Step::Add { host, key, delta } => {
                    sums[usize::from(key)] += delta;
                    hosts[host].add(&key.to_string(), delta, 0);
                }
                Step::Put { host, key } => {
                    let value = format!("{host} at {}", hosts[host].mono);
                    hosts[host].write(&key.to_string(), Some(&value), 0);
                }
                Step::Remove { host, key } => hosts[host].write(&key.to_string(), None, 0),
                Step::Round { host, fate } => {
                    let host = &mut hosts[host];
                    let batch = host.collect();
                    let (id, round) = (host.replica.id, host.round);
                    match fate {
                        Fate::Good => {
                            let reply = store.run(&batch, id, round);
                            host.apply(&batch, &reply);
                        }
                        Fate::RequestLost => {}
                        Fate::ReplyLost => _ = store.run(&batch, id, round),
                        Fate::Late => late.push((batch, id, round)),
                    }
                }
                Step::ExecuteLate => for (batch, id, round) in late.drain(..).rev() {
                    store.run(&batch, id, round);
                },
                // What waits in the connections of a store is lost with its data.
                Step::LoseData => {
                    store.lose_data();
                    late.clear();
                }
                Step::Pass(ms) => pass(ms, &mut store, &mut hosts),
            }
        }
        // An entry that is not used is not refreshed; a use asks for it.
        for key in 0..3u8 {
            for host in &mut hosts {
                host.total(&key.to_string());
                host.get(&key.to_string());
            }
        }
        for (batch, id, round) in late {
            store.run(&batch, id, round);
        }
        sync_all(&mut store, &mut hosts);
        for (key, sum) in sums.iter().enumerate() {
            let key = key.to_string();
            let totals: Vec<i64> = hosts.iter_mut().map(|host| host.total(&key)).collect();
            prop_assert_eq!(totals, vec![*sum; 3]);
            let values: Vec<_> = hosts.iter_mut().map(|host| host.get(&key)).collect();
            prop_assert!(values.iter().all(|value| *value == values[0]), "{:?}", values);
        }
        prop_assert_eq!(hosts.iter().map(|host| host.bucket.pending()).sum::<usize>(), 0);
    }
}

#[test]
fn a_counter_expires_for_all_at_the_time_of_its_first_use() {
    let (mut store, mut hosts) = hosts(2);
    hosts[0].add("k", 5, 1_000);
    hosts[0].sync(&mut store);
    pass(600, &mut store, &mut hosts);
    hosts[1].add("k", 2, 1_000);
    sync_all(&mut store, &mut hosts);
    assert_eq!((hosts[0].total("k"), hosts[1].total("k")), (7, 7));
    pass(400, &mut store, &mut hosts);
    assert_eq!((hosts[0].total("k"), hosts[1].total("k")), (0, 0));
    hosts[1].add("k", 1, 1_000);
    sync_all(&mut store, &mut hosts);
    assert_eq!((hosts[0].total("k"), hosts[1].total("k")), (1, 1));
}

#[test]
fn what_the_store_expires_first_is_not_counted_again() {
    let (mut store, mut hosts) = hosts(1);
    hosts[0].add("k", 5, 1_000);
    hosts[0].sync(&mut store);
    hosts[0].add("k", 2, 1_000);
    // The clock of the store is ahead.
    store.now += 1_000;
    hosts[0].sync(&mut store);
    assert_eq!(hosts[0].total("k"), 2);
}

#[test]
fn lost_data_comes_back_from_the_replicas_except_what_has_expired() {
    let (mut store, mut hosts) = hosts(2);
    hosts[0].add("k", 5, 10_000);
    hosts[0].add("short", 5, 100);
    hosts[1].add("k", 3, 10_000);
    hosts[1].write("v", Some("text"), 0);
    sync_all(&mut store, &mut hosts);
    store.lose_data();
    pass(500, &mut store, &mut hosts);
    sync_all(&mut store, &mut hosts);
    let mut third = Host::new(3);
    third.total("k");
    third.total("short");
    third.get("v");
    third.sync(&mut store);
    let values = (third.total("k"), third.total("short"), third.get("v"));
    assert_eq!(values, (8, 0, Some("text".to_owned())));
}

#[test]
fn a_reset_wins_over_what_was_counted_before_it() {
    let (mut store, mut hosts) = hosts(2);
    hosts[0].add("k", 5, 10_000);
    hosts[1].add("k", 3, 10_000);
    sync_all(&mut store, &mut hosts);
    hosts[0].reset("k");
    hosts[0].add("k", 1, 2_000);
    sync_all(&mut store, &mut hosts);
    assert_eq!((hosts[0].total("k"), hosts[1].total("k")), (1, 1));
    // The time to live is that of the first use after the reset.
    pass(2_000, &mut store, &mut hosts);
    sync_all(&mut store, &mut hosts);
    assert_eq!((hosts[0].total("k"), hosts[1].total("k")), (0, 0));
}

#[test]
fn a_removal_wins_over_earlier_writes_and_is_not_undone_by_a_slow_clock() {
    let (mut store, mut hosts) = hosts(2);
    hosts[0].mono = 5_000;
    hosts[0].write("k", Some("new"), 0);
    sync_all(&mut store, &mut hosts);
    assert_eq!(hosts[1].get("k"), None, "the entry was not in use");
    sync_all(&mut store, &mut hosts);
    assert_eq!(hosts[1].get("k").as_deref(), Some("new"));
    // Later, although the clock of this host is five seconds behind.
    hosts[1].write("k", None, 0);
    sync_all(&mut store, &mut hosts);
    assert_eq!((hosts[0].get("k"), hosts[1].get("k")), (None, None));
}

#[test]
fn full_buckets_forget_what_is_unused_and_count_changes_that_are_dropped() {
    let (mut store, mut hosts) = hosts(1);
    let host = &mut hosts[0];
    host.bucket = Bucket::new(1 << 20, 2);
    for (number, key) in ["a", "b", "c"].iter().enumerate() {
        host.mono = number as u64;
        host.add(key, 1, 0);
    }
    assert_eq!((host.bucket.dropped(), host.bucket.pending()), (1, 2));
    host.sync(&mut store);
    host.add("d", 1, 0);
    assert_eq!((host.bucket.dropped(), host.bucket.pending()), (1, 1));
    // What was forgotten after it was sent is still in the store.
    host.sync(&mut store);
    host.add("b", 1, 0);
    host.sync(&mut store);
    assert_eq!(host.total("b"), 2);
    let bytes = |host: &Host| host.bucket.entries(host.now()).len();
    assert_eq!(bytes(host), 2);
}

#[test]
fn idle_entries_are_refreshed_rarely_and_then_not_at_all() {
    let (mut store, mut hosts) = hosts(1);
    hosts[0].add("k", 1, 0);
    hosts[0].sync(&mut store);
    let mut asked = |hosts: &mut Vec<Host>, rounds: u64| {
        let mut count = 0;
        for _ in 0..rounds {
            pass(50, &mut store, hosts);
            let batch = hosts[0].collect();
            count += batch.items.len();
            let reply = store.run(&batch, 1, hosts[0].round);
            hosts[0].apply(&batch, &reply);
        }
        count
    };
    assert_eq!(asked(&mut hosts, 19), 19);
    assert!((1..=3).contains(&asked(&mut hosts, 40)), "once a second");
    asked(&mut hosts, 1200);
    assert_eq!(asked(&mut hosts, 100), 0);
    // It is still known, and a use refreshes it.
    let entries = hosts[0].bucket.entries(hosts[0].now());
    let expected = Entry { key: "k".to_owned(), value: EntryValue::Counter(1), expires_ms: None };
    assert_eq!(entries, [expected]);
    assert_eq!(hosts[0].total("k"), 1);
    assert_eq!(asked(&mut hosts, 1), 1);
}

#[test]
fn contributions_are_bounded_where_the_script_is_exact() {
    let mut host = Host::new(1);
    assert_eq!(host.add("k", i64::MAX, 0), 1 << 53);
    assert_eq!(host.add("l", i64::MIN, 0), -(1 << 53));
    let name: Arc<str> = host.replica.unique_name();
    assert_ne!(name, Replica::with_id(2).unique_name());
}
