//! What hosts tell each other of budgets.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::TokenCounts;

use super::{Accounts, Ask, BudgetUse, SharedCounter, SharedCounters};
use crate::identity::Identity;
use crate::limits::{AccountId, AccountLimits, Budget, Limit, Limits, Period};
use crate::moment::Moment;

/// 2026-11-27 12:00 UTC.
const NOON: u64 = 1_795_780_800_000;
const DAY: u64 = 24 * 3_600_000;

/// Counters in a store that is away.
#[derive(Debug)]
struct Away;

impl SharedCounters for Away {
    fn open(&self, _: &str, _: Duration) -> Arc<dyn SharedCounter> {
        Arc::new(Self)
    }
}

impl SharedCounter for Away {
    fn add(&self, _: i64) {}

    fn total(&self) -> Option<i64> {
        None
    }
}

fn host() -> Arc<Accounts> {
    let accounts = Arc::<Accounts>::default();
    accounts.share(Arc::new(Away));
    accounts
}

fn key(tokens: u64) -> Arc<Identity> {
    let budget =
        Budget { period: Period::Day, tokens: Some(tokens), requests: None, engine_seconds: None };
    let limits = Limits { budgets: vec![budget], ..Limits::default() };
    let accounts = vec![AccountLimits { id: AccountId::Key(1), limits }];
    Arc::new(Identity { key: 1, accounts, ..Identity::default() })
}

fn at(ms: u64) -> Moment {
    Moment { running: Duration::from_millis(ms), unix_ms: NOON + ms }
}

/// Uses tokens at a host, and returns false if they are refused.
fn spend(host: &Arc<Accounts>, key: &Arc<Identity>, tokens: u32, ms: u64) -> bool {
    let ask = Ask { prompt_tokens: tokens, output_tokens: Some(0), choices: 1 };
    let Ok(admission) = host.admit(key, ask, at(ms)) else { return false };
    let used = TokenCounts { prompt: tokens, cached: 0, output: 0 };
    admission.settle(used, Duration::from_secs(3), at(ms));
    true
}

/// Returns what a host tells in a round of which something is left.
fn tell(host: &Accounts, ms: u64) -> Vec<BudgetUse> {
    let uses = host.take_untold(10, at(ms));
    if uses.is_empty() { host.take_untold(10, at(ms)) } else { uses }
}

fn used(host: &Accounts, key: &Identity, ms: u64) -> u64 {
    let uses = host.limit_uses(key, at(ms));
    uses.iter().find(|found| found.limit == Limit::TokenBudget(Period::Day)).unwrap().used
}

#[test]
fn budget_of_all_hosts_is_told_again_after_all_have_restarted() {
    let key = key(1000);
    let hosts = [host(), host()];
    assert!(spend(&hosts[0], &key, 600, 0) && spend(&hosts[1], &key, 300, 0));
    let rows = hosts.map(|host| host.take_dirty());
    // All processes are new, and so is the store.
    let hosts = rows.map(|rows| {
        let accounts = Arc::<Accounts>::default();
        accounts.restore(rows);
        accounts.share(Arc::new(Away));
        accounts
    });
    let told = hosts.each_ref().map(|host| tell(host, 100));
    assert_eq!([told[0][0].used, told[1][0].used], [[1, 600, 3000], [1, 300, 3000]]);
    assert_eq!(told[0][0].name, told[1][0].name);
    assert!(told[0][0].keep > Duration::from_secs(12 * 3600));
    hosts[0].tell(&told[0], &[told[1][0].used]);
    hosts[1].tell(&told[1], &[told[0][0].used]);
    for host in &hosts {
        assert_eq!(used(host, &key, 200), 900);
        assert!(!spend(host, &key, 101, 200));
        // A change is part of three rounds.
        assert_eq!([0; 3].map(|_| tell(host, 200).len()), [1, 1, 0]);
    }
    // A store that has less has lost data.
    hosts[0].tell(&told[0], &[[0; 3]]);
    assert_eq!(used(&hosts[0], &key, 300), 900);
    assert!(spend(&hosts[0], &key, 100, 300) && !spend(&hosts[0], &key, 1, 300));
    let told = tell(&hosts[0], 300);
    assert_eq!(told[0].used[1], 700);
    // The next day begins anew, and what is told of the day before does not count.
    hosts[0].tell(&told, &[[9, 900, 0]]);
    assert_eq!(used(&hosts[0], &key, DAY), 0);
    hosts[0].tell(&told, &[[9, 950, 0]]);
    assert_eq!(used(&hosts[0], &key, DAY), 0);
}

#[test]
fn budgets_that_were_not_told_are_kept_for_the_next_time() {
    let key = key(1000);
    let accounts = host();
    assert!(tell(&accounts, 0).is_empty());
    spend(&accounts, &key, 10, 0);
    for _ in 0..5 {
        let uses = tell(&accounts, 0);
        assert_eq!(uses.len(), 1);
        accounts.give_back_untold(&uses);
    }
    spend(&accounts, &key, 10, 0);
    assert_eq!(tell(&accounts, 0)[0].used[..2], [2, 20]);
    accounts.mark_all_untold();
    accounts.mark_all_untold();
    assert_eq!([0; 4].map(|_| tell(&accounts, 0).len()), [1, 1, 1, 0]);
    // Of a period that is over there is nothing to tell.
    accounts.mark_all_untold();
    assert!(tell(&accounts, DAY).is_empty());
    // A host that shares nothing has nothing to tell.
    let alone = Arc::<Accounts>::default();
    spend(&alone, &key, 10, 0);
    assert!(tell(&alone, 0).is_empty());
}

#[test]
fn budget_of_a_copied_store_is_that_of_the_other_host() {
    let key = key(1000);
    let original = host();
    assert!(spend(&original, &key, 600, 0));
    let rows = original.take_dirty();
    let copy = Arc::<Accounts>::default();
    copy.restore(rows.clone());
    copy.share(Arc::new(Away));
    assert!(spend(&copy, &key, 50, 100));
    copy.disown(rows);
    let told = [tell(&original, 200), tell(&copy, 200)];
    assert_eq!([told[0][0].used, told[1][0].used], [[1, 600, 3000], [1, 50, 3000]]);
    original.tell(&told[0], &[told[1][0].used]);
    copy.tell(&told[1], &[told[0][0].used]);
    assert_eq!([used(&original, &key, 300), used(&copy, &key, 300)], [650, 650]);
    // It is what a restart finds.
    assert_eq!(copy.take_dirty()[0].tokens, 50);
}
