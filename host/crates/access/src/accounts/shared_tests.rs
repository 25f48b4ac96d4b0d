//! Several hosts that count together, over a store that loses its data at times.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_domain::TokenCounts;
use proptest::prelude::*;

use super::{Accounts, Admission, Ask, Refusal, SharedCounter, SharedCounters};
use crate::identity::Identity;
use crate::limits::{AccountId, AccountLimits, Budget, Limit, Limits, Period};
use crate::moment::Moment;

/// 2026-11-27 12:00 UTC.
const NOON: u64 = 1_795_780_800_000;
const MINUTE: u64 = 60_000;

/// What each host has added to each counter. A host tells a store again that has lost it.
type Store = HashMap<String, HashMap<usize, i64>>;

/// What a host knows of the store.
#[derive(Debug, Default)]
struct Replica {
    own: Mutex<HashMap<String, i64>>,
    /// What the others had added at the last round trip.
    others: Mutex<HashMap<String, i64>>,
    opened: Mutex<HashSet<String>>,
}

#[derive(Debug, Clone, Default)]
struct Counters(Arc<Replica>);

#[derive(Debug)]
struct Counter(String, Arc<Replica>);

impl SharedCounters for Counters {
    fn open(&self, name: &str, _: Duration) -> Arc<dyn SharedCounter> {
        self.0.opened.lock().insert(name.to_owned());
        Arc::new(Counter(name.to_owned(), Arc::clone(&self.0)))
    }
}

impl SharedCounter for Counter {
    fn add(&self, delta: i64) {
        *self.1.own.lock().entry(self.0.clone()).or_default() += delta;
    }

    fn total(&self) -> Option<i64> {
        let others = self.1.others.lock().get(&self.0).copied()?;
        Some(others + self.1.own.lock().get(&self.0).copied().unwrap_or_default())
    }
}

struct Host {
    number: usize,
    accounts: Arc<Accounts>,
    replica: Arc<Replica>,
}

impl Host {
    fn new(number: usize) -> Self {
        let (accounts, counters) = (Arc::<Accounts>::default(), Counters::default());
        accounts.share(Arc::new(counters.clone()));
        Self { number, accounts, replica: counters.0 }
    }

    /// One round trip: what this host has added goes to the store, and what others have comes back.
    fn sync(&self, store: &mut Store) {
        let own = self.replica.own.lock().clone();
        for name in &*self.replica.opened.lock() {
            let counter = store.entry(name.clone()).or_default();
            if let Some(own) = own.get(name) {
                counter.insert(self.number, *own);
            }
            let others = counter.iter().filter(|(number, _)| **number != self.number);
            let others = others.map(|(_, added)| added).sum();
            self.replica.others.lock().insert(name.clone(), others);
        }
    }

    fn admit(&self, key: &Arc<Identity>, tokens: u32, ms: u64) -> Result<Admission, Refusal> {
        let ask = Ask { prompt_tokens: tokens, output_tokens: Some(0), choices: 1 };
        self.accounts.admit(key, ask, at(ms))
    }

    fn used(&self, key: &Identity, limit: Limit, ms: u64) -> u64 {
        let uses = self.accounts.limit_uses(key, at(ms));
        uses.iter().find(|found| found.limit == limit).map_or(0, |found| found.used)
    }
}

fn at(ms: u64) -> Moment {
    Moment { running: Duration::from_millis(ms), unix_ms: NOON + ms }
}

fn key(limits: Limits) -> Arc<Identity> {
    let accounts = vec![AccountLimits { id: AccountId::Key(1), limits }];
    Arc::new(Identity { key: 1, accounts, ..Identity::default() })
}

fn per_minute(requests: u32) -> Arc<Identity> {
    key(Limits { requests_per_minute: Some(requests), ..Limits::default() })
}

fn settle(admission: Admission, tokens: u32, ms: u64) {
    let used = TokenCounts { prompt: tokens, cached: 0, output: 0 };
    admission.settle(used, Duration::from_secs(2), at(ms));
}

/// Admits requests until one is refused, and returns their number.
fn admit_all(host: &Host, key: &Arc<Identity>, ms: u64) -> u32 {
    (0..100_000).find(|_| host.admit(key, 1, ms).is_err()).unwrap()
}

#[test]
fn requests_of_other_hosts_count_and_end_after_a_minute() {
    let (key, mut store) = (per_minute(10), Store::new());
    let (one, other) = (Host::new(0), Host::new(1));
    for _ in 0..6 {
        drop(one.admit(&key, 1, 0));
    }
    one.sync(&mut store);
    // The first request of a key comes before the host has asked the store.
    drop(other.admit(&key, 1, 500));
    other.sync(&mut store);
    assert_eq!(admit_all(&other, &key, 600), 3);
    let allowance = other.accounts.allowance(&key, at(600)).requests.unwrap();
    assert_eq!((allowance.limit, allowance.left), (10, 0));
    other.sync(&mut store);
    one.sync(&mut store);
    let refusal = one.admit(&key, 1, 700).unwrap_err();
    assert_eq!(refusal.limit, Limit::RequestsPerMinute);
    // The first of its own requests has to end.
    let after = refusal.retry_after.unwrap();
    assert!(after > Duration::from_secs(59) && after <= Duration::from_secs(61), "{after:?}");
    for host in [&one, &other] {
        host.sync(&mut store);
        assert_eq!(host.used(&key, Limit::RequestsPerMinute, 2 * MINUTE), 0);
    }
}

#[test]
fn a_host_learns_what_was_used_before_its_first_request() {
    let (key, mut store) = (per_minute(10), Store::new());
    let one = Host::new(0);
    assert_eq!(admit_all(&one, &key, 0), 10);
    one.sync(&mut store);
    let other = Host::new(1);
    drop(other.admit(&key, 1, 30_000));
    other.sync(&mut store);
    assert!(other.admit(&key, 1, 30_100).is_err());
    // What is learned of a span of ten seconds counts until the span is over a minute old.
    other.sync(&mut store);
    assert_eq!(admit_all(&other, &key, 71_000), 9);
}

#[test]
fn a_store_that_lost_its_data_does_not_begin_limits_anew() {
    let budget =
        Budget { period: Period::Day, tokens: None, requests: Some(12), engine_seconds: None };
    let limits =
        Limits { requests_per_minute: Some(10), budgets: vec![budget], ..Limits::default() };
    let (key, mut store) = (key(limits), Store::new());
    let hosts = [0, 1].map(Host::new);
    for host in &hosts {
        for _ in 0..4 {
            drop(host.admit(&key, 1, 0));
        }
    }
    let sync = |store: &mut Store| hosts.iter().for_each(|host| host.sync(store));
    let used = |ms| {
        let limits = [Limit::RequestsPerMinute, Limit::RequestBudget(Period::Day)];
        hosts.each_ref().map(|host| limits.map(|limit| host.used(&key, limit, ms)))
    };
    sync(&mut store);
    sync(&mut store);
    assert_eq!(used(100), [[8, 8]; 2]);
    store.clear();
    hosts[0].sync(&mut store);
    assert_eq!(used(200), [[8, 8]; 2]);
    // What is added afterwards counts at both.
    drop(hosts[0].admit(&key, 1, 300));
    sync(&mut store);
    sync(&mut store);
    assert_eq!(used(400), [[9, 9]; 2]);
}

#[test]
fn expected_tokens_of_other_hosts_are_replaced_by_used_ones() {
    let limits = Limits {
        tokens_per_minute: Some(1000),
        budgets: vec![Budget {
            period: Period::Month,
            tokens: Some(5000),
            requests: None,
            engine_seconds: Some(1000),
        }],
        ..Limits::default()
    };
    let (key, mut store) = (key(limits), Store::new());
    let (one, other) = (Host::new(0), Host::new(1));
    let used = |ms| {
        let limits = [
            Limit::TokensPerMinute,
            Limit::TokenBudget(Period::Month),
            Limit::EngineBudget(Period::Month),
        ];
        limits.map(|limit| other.used(&key, limit, ms))
    };
    drop(other.admit(&key, 0, 0));
    let request = one.admit(&key, 900, 0).unwrap();
    one.sync(&mut store);
    other.sync(&mut store);
    assert_eq!(used(100), [900, 900, 0]);
    settle(request, 40, 20_000);
    one.sync(&mut store);
    // Twenty seconds later the span is another one; it is not known before it was asked for.
    used(20_100);
    other.sync(&mut store);
    assert_eq!(used(20_200), [40, 40, 2]);
    assert_eq!(used(100_000), [0, 40, 2]);
}

#[test]
fn a_budget_that_was_stored_is_not_counted_twice() {
    let budget =
        Budget { period: Period::Day, tokens: None, requests: Some(100), engine_seconds: None };
    let (key, mut store) =
        (key(Limits { budgets: vec![budget], ..Limits::default() }), Store::new());
    let (first, other) = (Host::new(0), Host::new(1));
    for host in [&first, &other, &other] {
        drop(host.admit(&key, 1, 0));
    }
    let rows = first.accounts.take_dirty();
    for host in [&first, &other, &first] {
        host.sync(&mut store);
    }
    assert_eq!(first.used(&key, Limit::RequestBudget(Period::Day), 0), 3);
    // The process is started again, and a copy of its accounts is not seen by others.
    let next = Host::new(2);
    next.accounts.restore(rows.clone());
    next.used(&key, Limit::RequestBudget(Period::Day), 100);
    next.sync(&mut store);
    assert_eq!(next.used(&key, Limit::RequestBudget(Period::Day), 200), 3);
    drop(next.accounts.copy().admit(&key, Ask::default(), at(300)));
    next.sync(&mut store);
    assert_eq!(next.used(&key, Limit::RequestBudget(Period::Day), 400), 3);
    // Nor are the rows of a host that hands over, which has told them by the store as well.
    let successor = Host::new(3);
    successor.used(&key, Limit::RequestBudget(Period::Day), 400);
    drop(successor.admit(&key, 1, 400));
    successor.sync(&mut store);
    assert_eq!(successor.used(&key, Limit::RequestBudget(Period::Day), 500), 4);
    successor.accounts.add(rows);
    assert_eq!(successor.used(&key, Limit::RequestBudget(Period::Day), 500), 4);
}

/// Number of hosts, milliseconds between two round trips of a host, and between its requests.
const HOSTS: usize = 3;
const INTERVAL: u64 = 100;
const STEP: u64 = 20;
/// Requests that a host gets until it knows of one of another host: both wait for a round trip.
const UNKNOWN: usize = (2 * INTERVAL / STEP) as usize;

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// At most what hosts do not know yet exceeds the limit in any minute, and nothing is refused
    /// unless the limit was reached not much longer than a minute ago.
    #[test]
    fn overshoot_is_what_hosts_do_not_know_yet(
        limit in 1_u32..400,
        // Of 1000, at each step of each host.
        busy in 1_u32..1000,
        seed: u64,
        lost_at in proptest::option::of(0_u64..100_000),
    ) {
        let (key, mut store) = (per_minute(limit), Store::new());
        let hosts: [Host; HOSTS] = std::array::from_fn(Host::new);
        let mut random = seed | 1;
        let mut admitted: Vec<u64> = Vec::new();
        for ms in (0..100_000).step_by(usize::try_from(STEP).unwrap()) {
            for (number, host) in hosts.iter().enumerate() {
                if (ms / STEP + number as u64).is_multiple_of(INTERVAL / STEP) {
                    host.sync(&mut store);
                }
                // Xorshift.
                for (left, right) in [(13, 7), (17, 0)] {
                    random ^= random << left;
                    random ^= random >> right.max(5);
                }
                if random % 1000 >= u64::from(busy) {
                    continue;
                }
                match host.admit(&key, 1, ms) {
                    Ok(_) => admitted.push(ms),
                    Err(_) => {
                        let from = ms.saturating_sub(MINUTE + 10_000 + 2 * INTERVAL);
                        let used = admitted.iter().rev().take_while(|at| **at >= from).count();
                        prop_assert!(used >= limit as usize, "{used} of {limit} at {ms}");
                    }
                }
            }
            if lost_at.is_some_and(|lost| lost / STEP == ms / STEP) {
                store.clear();
            }
        }
        for (first, from) in admitted.iter().enumerate() {
            let within = admitted[first..].iter().take_while(|at| **at < from + MINUTE).count();
            let most = limit as usize + HOSTS * UNKNOWN;
            prop_assert!(within <= most, "{within} from {from}, limit {limit}");
        }
    }
}
