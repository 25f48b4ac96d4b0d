use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pointsman_domain::TokenCounts;
use proptest::prelude::*;

use super::{Accounts, Admission, Ask, BudgetRow, LimitUse, Refusal};
use crate::identity::Identity;
use crate::limits::{AccountId, AccountLimits, Budget, Limit, Limits, Period};
use crate::moment::Moment;

/// 2026-11-27 12:00 UTC.
const NOON: u64 = 1_795_780_800_000;
const HOUR: u64 = 3_600_000;
const MINUTE: u64 = 60_000;

fn at(ms: u64) -> Moment {
    Moment { running: Duration::from_millis(ms), unix_ms: NOON + ms }
}

fn identity(accounts: impl IntoIterator<Item = (AccountId, Limits)>) -> Arc<Identity> {
    let accounts = accounts.into_iter().map(|(id, limits)| AccountLimits { id, limits }).collect();
    Arc::new(Identity { key: 1, accounts, ..Identity::default() })
}

fn key(limits: Limits) -> Arc<Identity> {
    identity([(AccountId::Key(1), limits)])
}

fn ask(tokens: u32) -> Ask {
    let output_tokens = Some(tokens - tokens / 2);
    Ask { prompt_tokens: tokens / 2, output_tokens, choices: 1 }
}

fn output(output: u32) -> TokenCounts {
    TokenCounts { prompt: 0, cached: 0, output }
}

fn budget(period: Period, tokens: u64) -> Limits {
    let budget = Budget { period, tokens: Some(tokens), requests: None, engine_seconds: None };
    Limits { budgets: vec![budget], ..Limits::default() }
}

/// What the limits of one account mean, by the requests themselves: (when, tokens).
#[derive(Default)]
struct Model {
    requests: Vec<(u64, u64)>,
}

impl Model {
    /// Requests and tokens that count at a point in time: those of the 600 steps before.
    fn counted(&self, now: u64) -> (u64, u64) {
        let counted = self.requests.iter().filter(|(at, _)| now / 100 - at / 100 <= 600);
        counted.fold((0, 0), |(requests, sum), (_, tokens)| (requests + 1, sum + tokens))
    }

    /// The most requests and tokens of any 60 seconds.
    fn most(&self) -> (u64, u64) {
        let sums = self.requests.iter().map(|(from, _)| {
            let within = self.requests.iter().filter(|(at, _)| (*from..from + MINUTE).contains(at));
            within.fold((0, 0), |(requests, sum), (_, tokens)| (requests + 1, sum + tokens))
        });
        sums.fold((0, 0), |most, sum| (most.0.max(sum.0), most.1.max(sum.1)))
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// Time passes.
    Pass(u64),
    /// A request of key 0 or 1 with this number of tokens.
    Send(usize, u32),
    /// The request that has been in flight longest ends, with this share of its tokens.
    End(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0u64..3_000).prop_map(Op::Pass),
        1 => (0u64..70_000).prop_map(Op::Pass),
        8 => (0usize..2, 1u32..60).prop_map(|(key, tokens)| Op::Send(key, tokens)),
        5 => (0u8..=100).prop_map(Op::End),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Two keys of one tenant: each decision is that of the model, `Retry-After` is true, and no 60
    /// seconds have more than the limits.
    #[test]
    fn limits_are_those_of_the_model(
        ops in prop::collection::vec(op(), 1..300),
        requests in 1u32..12,
        tokens in 20u64..200,
        concurrent in 1u32..8,
    ) {
        let shared = Limits {
            requests_per_minute: Some(requests + requests / 2),
            tokens_per_minute: Some(tokens + tokens / 2),
            ..Limits::default()
        };
        let limits = Limits {
            requests_per_minute: Some(requests),
            tokens_per_minute: Some(tokens),
            concurrent: Some(concurrent),
            ..Limits::default()
        };
        let keys = [0, 1].map(|key| {
            let tenant = (AccountId::Tenant("t".into()), shared.clone());
            identity([(AccountId::Key(key), limits.clone()), tenant])
        });
        let accounts = Arc::new(Accounts::default());
        // The keys, and the tenant.
        let mut models: [Model; 3] = Default::default();
        let mut open: VecDeque<(usize, [usize; 2], u32, Admission)> = VecDeque::new();
        let mut now = 0;
        for op in ops {
            match op {
                Op::Pass(ms) => now += ms,
                Op::End(percent) => {
                    let Some((key, places, tokens, admission)) = open.pop_front() else { continue };
                    let used = tokens * u32::from(percent) / 100;
                    admission.settle(output(used), Duration::ZERO, at(now));
                    models[key].requests[places[0]].1 = used.into();
                    models[2].requests[places[1]].1 = used.into();
                }
                Op::Send(key, asked) => {
                    let fits = |model: &Model, limits: &Limits| {
                        let (sent, used) = model.counted(now);
                        sent < limits.requests_per_minute.unwrap().into()
                            && used + u64::from(asked) <= limits.tokens_per_minute.unwrap()
                    };
                    let in_flight = open.iter().filter(|(of, ..)| *of == key).count();
                    let expected = fits(&models[key], &limits)
                        && fits(&models[2], &shared)
                        && in_flight < concurrent as usize;
                    match accounts.admit(&keys[key], ask(asked), at(now)) {
                        Ok(admission) => {
                            prop_assert!(expected, "accepted at {now}");
                            let places = [key, 2].map(|model| {
                                models[model].requests.push((now, asked.into()));
                                models[model].requests.len() - 1
                            });
                            open.push_back((key, places, asked, admission));
                        }
                        Err(refusal) => {
                            prop_assert!(!expected, "refused at {now}: {refusal}");
                            check_retry(&accounts, &keys[key], asked, &refusal, now)?;
                        }
                    }
                }
            }
        }
        for (model, limits) in models.iter().zip([&limits, &limits, &shared]) {
            let (sent, used) = model.most();
            prop_assert!(sent <= limits.requests_per_minute.unwrap().into());
            prop_assert!(used <= limits.tokens_per_minute.unwrap());
        }
    }
}

/// A request that was refused is refused until the time that the refusal names.
fn check_retry(
    accounts: &Arc<Accounts>,
    key: &Arc<Identity>,
    asked: u32,
    refusal: &Refusal,
    now: u64,
) -> Result<(), TestCaseError> {
    let Some(after) = refusal.retry_after else {
        prop_assert!(u64::from(asked) > refusal.max);
        return Ok(());
    };
    if refusal.limit == Limit::Concurrent {
        prop_assert!(after >= Duration::from_secs(1));
        return Ok(());
    }
    let excess = |ms: u64| {
        // On a copy: a point in time in the future would be the latest one from then on.
        let copy = accounts.table.lock().detached();
        let copy = Arc::new(Accounts { table: parking_lot::Mutex::new(copy) });
        copy.admit(key, ask(asked), at(ms)).err().map(|refusal| refusal.limit)
    };
    let retry = now + u64::try_from(after.as_millis()).unwrap();
    // Requests in flight may still have all slots then.
    prop_assert!(excess(retry).is_none_or(|limit| limit == Limit::Concurrent));
    prop_assert!(excess(retry - 1).is_some());
    Ok(())
}

/// A client that sends whenever it may gets at least 99 % of the limit.
#[test]
fn limit_can_be_used_in_full() {
    let limits = Limits { tokens_per_minute: Some(60_000), ..Limits::default() };
    let (key, accounts) = (key(limits), Arc::new(Accounts::default()));
    let minutes = 50;
    let mut sum = 0u64;
    for ms in (0..minutes * MINUTE).step_by(7) {
        if let Ok(admission) = accounts.admit(&key, ask(40), at(ms)) {
            admission.settle(output(30), Duration::ZERO, at(ms));
            sum += 30;
        }
    }
    // The first minute begins with nothing used.
    let limit = 60_000 * (minutes + 1);
    assert!(sum <= limit && sum * 100 >= 60_000 * minutes * 99, "{sum} of {limit}");
}

#[test]
fn larger_requests_than_the_limit_are_refused_for_ever() {
    let limits = Limits { tokens_per_minute: Some(100), ..budget(Period::Day, 50) };
    let (key, accounts) = (key(limits), Arc::new(Accounts::default()));
    let refusal = accounts.admit(&key, ask(101), at(0)).unwrap_err();
    assert_eq!((refusal.asked, refusal.retry_after), (101, None));
    let refusal = accounts.admit(&key, ask(51), at(0)).unwrap_err();
    assert_eq!((refusal.limit, refusal.max), (Limit::TokenBudget(Period::Day), 50));
    // What a response without a limit may have is only an estimate.
    let unlimited = Ask { prompt_tokens: 10, output_tokens: None, choices: 1 };
    accounts.admit(&key, unlimited, at(0)).unwrap();
}

#[test]
fn estimates_follow_the_responses() {
    let limits = Limits { tokens_per_minute: Some(1_000_000), ..Limits::default() };
    let (key, accounts) = (key(limits), Arc::new(Accounts::default()));
    let unlimited = Ask { prompt_tokens: 0, output_tokens: None, choices: 1 };
    let (mut reserved, mut sum) = (Vec::new(), 0);
    for round in 0..200 {
        let admission = accounts.admit(&key, unlimited, at(round)).unwrap();
        let tokens = admission.allowance().tokens.unwrap();
        reserved.push(tokens.limit - tokens.left - sum);
        let used = if round < 100 { 4000 } else { 100 };
        admission.settle(output(used), Duration::ZERO, at(round));
        sum += u64::from(used);
    }
    assert!((3990..=4000).contains(&reserved[50]), "{}", reserved[50]);
    assert!((100..=120).contains(&reserved[199]), "{}", reserved[199]);
}

#[test]
fn estimates_count_each_choice() {
    let limits = Limits { tokens_per_minute: Some(1_000_000), ..Limits::default() };
    let (key, accounts) = (key(limits), Arc::new(Accounts::default()));
    let mut used = 0;
    let mut reserved = |choices, tokens| {
        let unlimited = Ask { prompt_tokens: 0, output_tokens: None, choices };
        let admission = accounts.admit(&key, unlimited, at(0)).unwrap();
        let left = admission.allowance().tokens.unwrap().left;
        let reserved = 1_000_000 - left - used;
        admission.settle(output(tokens), Duration::ZERO, at(0));
        used += u64::from(tokens);
        reserved
    };
    // It learns slowly from responses that are shorter than expected: each choice has 100 tokens.
    assert_eq!((reserved(4, 400), reserved(1, 100)), (512 * 4, 487));
    assert_eq!((reserved(8, 800), reserved(2, 200)), (463 * 8, 441 * 2));
}

#[test]
fn cached_tokens_are_free_and_dropped_requests_are_not() {
    let limits = Limits { tokens_per_minute: Some(1000), ..budget(Period::Month, 5000) };
    let (key, accounts) = (key(limits), Arc::new(Accounts::default()));
    let used = |ms| {
        let allowance = accounts.allowance(&key, at(ms));
        (1000 - allowance.tokens.unwrap().left, 5000 - allowance.budget.unwrap().left)
    };
    let admission = accounts.admit(&key, ask(400), at(0)).unwrap();
    assert_eq!(used(0), (400, 400));
    let counts = TokenCounts { prompt: 100, cached: 90, output: 5 };
    admission.settle(counts, Duration::from_millis(250), at(10));
    assert_eq!(used(10), (15, 15));
    drop(accounts.admit(&key, ask(100), at(20)).unwrap());
    assert_eq!(used(20), (115, 115));
    // A request that ends later than 60 seconds counts for budgets only.
    let long = accounts.admit(&key, ask(100), at(30)).unwrap();
    long.settle(output(300), Duration::ZERO, at(2 * MINUTE));
    assert_eq!(used(2 * MINUTE), (0, 415));
}

#[test]
fn budgets_begin_anew_with_their_period() {
    let (key, accounts) = (key(budget(Period::Day, 100)), Arc::new(Accounts::default()));
    let admission = accounts.admit(&key, ask(80), at(0)).unwrap();
    let refusal = accounts.admit(&key, ask(30), at(HOUR)).unwrap_err();
    // Until midnight.
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(11 * HOUR)));
    accounts.admit(&key, ask(100), at(12 * HOUR)).unwrap();
    // It counts in the period in which it was accepted.
    admission.settle(output(80), Duration::ZERO, at(12 * HOUR));
    assert_eq!(accounts.allowance(&key, at(12 * HOUR)).budget.unwrap().left, 0);
    // A clock that is corrected does not begin one.
    let corrected = Moment { running: Duration::from_millis(12 * HOUR), unix_ms: NOON };
    assert!(accounts.admit(&key, ask(1), corrected).is_err());
}

#[test]
fn engine_time_has_a_budget() {
    let time =
        Budget { tokens: None, engine_seconds: Some(2), ..budget(Period::Week, 0).budgets[0] };
    let limits = Limits { budgets: vec![time], ..Limits::default() };
    let (key, accounts) = (key(limits), Arc::new(Accounts::default()));
    for _ in 0..4 {
        let admission = accounts.admit(&key, ask(1), at(0)).unwrap();
        admission.settle(output(1), Duration::from_millis(500), at(0));
    }
    let refusal = accounts.admit(&key, ask(1), at(0)).unwrap_err();
    assert_eq!(refusal.limit, Limit::EngineBudget(Period::Week));
    // Friday noon to Monday.
    assert_eq!(refusal.retry_after, Some(Duration::from_millis(60 * HOUR)));
}

#[test]
fn budgets_survive_the_process() {
    let limits = Limits {
        budgets: [budget(Period::Day, 100), budget(Period::Month, 1000)]
            .map(|l| l.budgets[0])
            .into(),
        ..Limits::default()
    };
    let (key, accounts) = (key(limits), Arc::new(Accounts::default()));
    let admission = accounts.admit(&key, ask(60), at(0)).unwrap();
    let open = accounts.admit(&key, ask(10), at(0)).unwrap();
    admission.settle(output(60), Duration::from_secs(3), at(0));
    let rows = accounts.take_dirty();
    let row = BudgetRow {
        account: AccountId::Key(1),
        period: Period::Day,
        start_unix_ms: NOON - 12 * HOUR,
        tokens: 60,
        requests: 2,
        engine_ms: 3000,
    };
    assert_eq!((rows.len(), &rows[0]), (2, &row));
    assert!(accounts.take_dirty().is_empty());
    drop(open);
    assert_eq!(accounts.take_dirty().len(), 2);

    let text = serde_json::to_string(&rows).unwrap();
    let restored = Arc::new(Accounts::default());
    restored.restore(serde_json::from_str::<Vec<BudgetRow>>(&text).unwrap());
    // The clock of this machine is set later.
    let unset = Moment { running: Duration::ZERO, unix_ms: 0 };
    assert!(restored.admit(&key, ask(41), unset).is_err());
    restored.admit(&key, ask(40), at(0)).unwrap();
    let tomorrow = at(12 * HOUR);
    let admission = restored.admit(&key, ask(100), tomorrow).unwrap();
    assert_eq!(admission.allowance().budget.unwrap().left, 0);
}

#[test]
fn changed_limits_apply_at_once_to_what_was_used() {
    let with = |requests| Limits { requests_per_minute: Some(requests), ..Limits::default() };
    let (accounts, before) = (Arc::new(Accounts::default()), key(with(3)));
    let admissions = [0, 1, 2].map(|_| accounts.admit(&before, ask(1), at(0)).unwrap());
    assert!(accounts.admit(&key(with(2)), ask(1), at(0)).is_err());
    accounts.admit(&key(with(4)), ask(1), at(0)).unwrap();
    let tokens = Limits { tokens_per_minute: Some(4), ..Limits::default() };
    assert!(accounts.admit(&key(tokens), ask(1), at(0)).is_err());
    drop(admissions);
}

#[test]
fn queue_places_are_limited_apart_from_requests() {
    let limits = Limits { queued: Some(2), ..Limits::default() };
    let (key, accounts) = (key(limits), Arc::new(Accounts::default()));
    let mut admissions = [0, 1, 2].map(|_| accounts.admit(&key, ask(1), at(0)).unwrap());
    let [first, second, third] = &mut admissions;
    assert!(first.limits_queue());
    first.wait().unwrap();
    first.wait().unwrap();
    second.wait().unwrap();
    assert_eq!(third.wait().unwrap_err().limit, Limit::Queued);
    first.stop_waiting();
    third.wait().unwrap();
    let [_, second, mut first] = {
        let [a, b, c] = admissions;
        [c, b, a]
    };
    drop(second);
    first.wait().unwrap();
}

/// Accounts of clients that have gone are forgotten, and those with a budget in the next period.
#[test]
fn idle_accounts_are_forgotten() {
    let accounts = Arc::new(Accounts::default());
    let start = Instant::now();
    for number in 0..100_000 {
        let limits = match number {
            0..10 => budget(Period::Day, 100),
            _ => Limits { requests_per_minute: Some(10), ..Limits::default() },
        };
        let key = identity([(AccountId::Key(number), limits)]);
        let admission = accounts.admit(&key, ask(1), at(number / 10)).unwrap();
        admission.settle(output(1), Duration::ZERO, at(number / 10));
    }
    assert_eq!(accounts.count(), 100_000);
    let limits = Limits { requests_per_minute: Some(10), ..Limits::default() };
    accounts.admit(&key(limits.clone()), ask(1), at(3 * MINUTE)).unwrap();
    assert_eq!(accounts.count(), 10);
    accounts.admit(&key(limits), ask(1), at(13 * HOUR)).unwrap();
    assert_eq!(accounts.count(), 1);
    assert!(start.elapsed() < Duration::from_secs(20));
}

/// 64 threads share one account: never more than the limits, and nothing stays counted.
#[test]
fn threads_share_limits() {
    let limits = Limits {
        requests_per_minute: Some(5000),
        concurrent: Some(16),
        queued: Some(4),
        ..Limits::default()
    };
    let (key, accounts) = (key(limits), Arc::new(Accounts::default()));
    let (in_flight, accepted) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                for round in 0..400 {
                    let Ok(mut admission) = accounts.admit(&key, ask(1), at(round)) else {
                        std::thread::yield_now();
                        continue;
                    };
                    assert!(in_flight.fetch_add(1, Ordering::SeqCst) < 16);
                    accepted.fetch_add(1, Ordering::SeqCst);
                    admission.wait().ok();
                    in_flight.fetch_sub(1, Ordering::SeqCst);
                    match round % 2 {
                        0 => admission.settle(output(1), Duration::ZERO, at(round)),
                        _ => drop(admission),
                    }
                }
            });
        }
    });
    let accepted = accepted.into_inner();
    let allowance = accounts.allowance(&key, at(400));
    assert_eq!(allowance.requests.unwrap().left, 5000 - accepted);
    assert!(accepted <= 5000);
    assert!(accounts.table.lock().is_idle_at(at(2 * MINUTE)));
}

#[test]
fn the_use_of_each_limit_is_reported() {
    let accounts = Arc::new(Accounts::default());
    let of_key =
        Limits { concurrent: Some(2), tokens_per_minute: Some(100), ..budget(Period::Day, 400) };
    let of_tenant = Limits { requests_per_minute: Some(0), ..Limits::default() };
    let identity = identity([(AccountId::Key(1), of_key)]);
    let uses = |ms| -> Vec<(Limit, u64, u64, u16, Option<u64>)> {
        let uses = accounts.limit_uses(&identity, at(ms)).into_iter();
        let found = uses.map(|found: LimitUse| {
            let (left, permille) = (found.left(), found.used_permille());
            (found.limit, found.used, left, permille, found.resets_unix_ms)
        });
        found.collect()
    };
    let (tokens, concurrent) = (Limit::TokensPerMinute, Limit::Concurrent);
    let day = Limit::TokenBudget(Period::Day);
    let unused = [(tokens, 0, 100, 0, None), (concurrent, 0, 2, 0, None), (day, 0, 400, 0, None)];
    assert_eq!(uses(0), unused);
    assert_eq!(accounts.count(), 0, "a report creates no account");
    let admission = accounts.admit(&identity, ask(80), at(MINUTE)).unwrap();
    let (minute, midnight) = (Some(NOON + 2 * MINUTE + 100), Some(NOON + 12 * HOUR));
    let in_flight = [
        (tokens, 80, 20, 800, minute),
        (concurrent, 1, 1, 500, None),
        (day, 80, 320, 200, midnight),
    ];
    assert_eq!(uses(MINUTE + 20), in_flight);
    admission.settle(output(120), Duration::ZERO, at(MINUTE + 50));
    // More than expected, and more than the limit.
    let ended = [
        (tokens, 120, 0, 1000, minute),
        (concurrent, 0, 2, 0, None),
        (day, 120, 280, 300, midnight),
    ];
    assert_eq!(uses(MINUTE + 60), ended);
    assert_eq!(uses(3 * MINUTE)[0], (tokens, 0, 100, 0, None));
    assert_eq!(uses(13 * HOUR)[2], (day, 0, 400, 0, None));
    let closed = self::identity([(AccountId::Tenant("t".to_owned()), of_tenant)]);
    assert_eq!(accounts.limit_uses(&closed, at(0))[0].used_permille(), 1000);
}
