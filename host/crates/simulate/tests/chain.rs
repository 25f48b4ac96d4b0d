//! The tree's own policies in virtual time: the same each time, and asked again with the answers of their records.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tree;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pointsman_domain::{
    Advice, AttemptResult, Consulted, Endpoint, EngineKind, Facts, FailureReport, FleetView,
    LaneId, LaneInfo, LaneState, Outcome, Read, Recovery, Topology, Trace,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::{
    CallStats, ChainSpec, DryRunChain, DryRunSession, FUEL_PER_MS, Gap, Metering, PolicySpec,
    Replayed, Runtime, RuntimeSettings,
};
use pointsman_simulate::{Chain, Deciders, Hinted};
use serde_json::{Value, json};

use self::tree::{NOON, chain, policy};

fn runtime(metering: Metering) -> Arc<Runtime> {
    Runtime::new(RuntimeSettings { metering, ..RuntimeSettings::default() }).unwrap()
}

/// What all tests but those that compare runtimes run in.
static FUEL: LazyLock<Arc<Runtime>> = LazyLock::new(|| runtime(Metering::Fuel));

/// Six policies that ask, count, remember and wish.
fn six() -> ChainSpec {
    let day = json!({ "name": "day", "from": "08:00", "to": "18:00", "prefer": ["coder"], "load": ["coder"] });
    chain(vec![
        policy("quota", json!({ "window-s": 60, "default": { "requests": 10, "tokens": 20_000 } })),
        policy("budget", json!({ "tiers": ["a", "b"], "tenants": { "team-1": 50 } })),
        policy("cortex", json!({})),
        policy("deadline", json!({})),
        policy("hours", json!({ "schedules": [day] })),
        policy("spread", json!({})),
    ])
}

fn load(chain: &ChainSpec) -> DryRunChain {
    DryRunChain::load(&FUEL, chain).unwrap()
}

fn fleet(load: u32) -> Arc<FleetView> {
    let names = ["orchestrator", "coder", "fast_rag", "super_reader", "governance"];
    let info = |name: &&str| LaneInfo {
        id: LaneId(0),
        name: (*name).to_owned(),
        engine: EngineKind::Vllm,
        models: vec!["auto".into(), (*name).to_owned()],
        labels: vec![("tier".into(), if name.len() > 8 { "b" } else { "a" }.into())],
        max_context: 32_768,
        slots: 8,
        group: 1,
        cost_milli: 500,
    };
    let topology = Topology::new(1, names.iter().map(info).collect());
    let mut view = FleetView::idle(Arc::new(topology), LaneState::Ready);
    for (lane, stat) in view.stats.iter_mut().enumerate() {
        stat.running = (load + u32::try_from(lane).unwrap()) % 8;
        stat.slots_free = 8 - stat.running;
        stat.est_wait_ms = load * 37 % 900;
    }
    Arc::new(view)
}

/// One of a hundred requests, from four tenants.
fn facts(number: u32, now_ms: u64) -> Facts {
    let prompt =
        ["Fix this Rust function: fn main() {}", "Summarise the attached report.", "Hello."]
            [number as usize % 3]
            .repeat(1 + number as usize % 40);
    let body = json!({ "model": "auto", "messages": [{ "role": "user", "content": prompt }] });
    let headers =
        [("x-deadline-ms".parse().unwrap(), (500 + number * 10).into())].into_iter().collect();
    let head = Head {
        id: format!("request-{number}"),
        tenant: Some(format!("team-{}", number % 4)),
        headers,
    };
    let request = Request::parse(Endpoint::ChatCompletions, body.to_string().into(), head).unwrap();
    Facts {
        request: Arc::new(request),
        now_ms,
        seed: number.into(),
        age: Duration::ZERO,
        attempt: 0,
    }
}

fn outcome(facts: &Facts) -> Outcome {
    Outcome {
        request_id: facts.request.id().into(),
        tenant: facts.request.tenant().map(Into::into),
        model: "auto".into(),
        lane: LaneId(1),
        topology: 1,
        ended: AttemptResult::Ok,
        tries: 1,
        queue: Duration::from_millis(3),
        ttft: Duration::from_millis(200),
        total: Duration::from_secs(2),
        prompt_tokens: 400,
        cached_tokens: 100,
        output_tokens: 90,
    }
}

/// A minute and a half with a hundred requests; everything that can be seen of it.
fn perform(performance: DryRunSession) -> (Vec<String>, Vec<Hinted>, Vec<CallStats>) {
    let mut chain = Chain::from(performance);
    let (mut seen, mut hints, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..100 {
        let now = Duration::from_millis(900) * number;
        let now_ms = NOON + u64::try_from(now.as_millis()).unwrap();
        chain.now(now);
        let (view, facts) = (fleet(number), facts(number, now_ms));
        if chain.next_tick().is_some_and(|due| due <= now) {
            hints.extend(chain.tick(&view, now, now_ms));
        }
        let mut trace = Trace::on();
        let merged = chain.advisor().advise(&facts, &view, &mut trace);
        // With the time that each call took.
        seen.push(format!("{merged:?} {:?}", trace.into_consulted()));
        ended.push(outcome(&facts));
        if ended.len() == 16 {
            chain.learn(&view, now_ms, &std::mem::take(&mut ended));
        }
    }
    (seen, hints, chain.conduct())
}

#[test]
fn the_same_requests_get_the_same_advice_down_to_the_fuel() {
    let rehearsal = load(&six());
    // At once, on threads of their own, and in another runtime whose code is compiled anew.
    let (first, second) = std::thread::scope(|scope| {
        let performance = rehearsal.begin();
        let other = scope.spawn(move || perform(performance));
        (perform(rehearsal.begin()), other.join().unwrap())
    });
    assert_eq!(first, second);
    let elsewhere = DryRunChain::load(&runtime(Metering::Fuel), &six()).unwrap();
    assert_eq!(perform(elsewhere.begin()), first);

    let (seen, hints, conduct) = first;
    assert!(seen.iter().any(|it| it.contains("_quota_exceeded")), "`quota` counts, and refuses");
    assert!(!hints.is_empty(), "`hours` wants a lane by day");
    for policy in &conduct {
        assert_eq!((policy.faults, &policy.first_fault), (0, &None), "{policy:?}");
        assert!(policy.calls > 0 && policy.fuel > 1000 * policy.calls, "{policy:?}");
        let most = 5 * FUEL_PER_MS / 2;
        assert!(policy.fuel / policy.calls < most, "more than half of its deadline: {policy:?}");
    }
    assert_eq!(
        conduct.iter().map(|it| &it.policy).collect::<Vec<_>>(),
        rehearsal.references().iter().collect::<Vec<_>>()
    );
}

#[test]
fn ticks_come_at_the_beginning_and_at_their_interval() {
    let rehearsal = load(&six());
    let mut chain = Chain::from(rehearsal.begin());
    let view = fleet(0);
    assert_eq!(chain.next_tick(), Some(Duration::ZERO));
    let at_noon = chain.tick(&view, Duration::from_secs(7), NOON);
    assert_eq!(chain.next_tick(), Some(Duration::from_secs(37)));
    assert!(at_noon.iter().any(|it| it.lane == LaneId(1) && it.hint.is_some()), "{at_noon:?}");
    assert!(chain.tick(&view, Duration::from_secs(36), NOON).is_empty(), "it is not its turn");
    // By night it wants nothing, and says so once.
    let midnight = NOON + 12 * 3600 * 1000;
    let taken_back = chain.tick(&view, Duration::from_secs(37), midnight);
    assert!(
        taken_back.iter().any(|it| it.lane == LaneId(1) && it.hint.is_none()),
        "{taken_back:?}"
    );
    assert_eq!(
        Chain::from(load(&chain_of_cortex()).begin()).next_tick(),
        None,
        "who has no ticks wants none"
    );
}

fn chain_of_cortex() -> ChainSpec {
    chain(vec![policy("cortex", json!({}))])
}

/// Is the request let through?
fn admitted(chain: &Chain, facts: &Facts) -> bool {
    chain.advisor().advise(facts, &fleet(0), &mut Trace::off()).reject.is_none()
}

#[test]
fn the_state_of_a_policy_expires_in_virtual_time() {
    let quota = json!({ "window-s": 60, "default": { "requests": 2 } });
    let rehearsal = load(&chain(vec![policy("quota", quota)]));
    let mut chain = Chain::from(rehearsal.begin());
    let ask = |chain: &Chain| admitted(chain, &facts(1, NOON));
    assert!(ask(&chain) && ask(&chain) && !ask(&chain));
    assert!(
        admitted(&Chain::from(rehearsal.begin()), &facts(1, NOON)),
        "each performance has its own state"
    );
    // The policy keeps an entry for two windows; what it is told of the time stays as it is.
    chain.now(Duration::from_millis(119_999));
    assert!(!ask(&chain));
    chain.now(Duration::from_secs(120));
    assert!(ask(&chain) && ask(&chain) && !ask(&chain));
}

/// A policy that goes round in circles before `ready_ms`.
fn endless(ready_ms: u64) -> (tempfile::TempDir, ChainSpec) {
    let small = include_str!("../../policy/fixtures/small.wat");
    let leaves = "local.get 15\n          i32.const 8\n          i32.ge_u\n";
    assert!(small.contains(leaves));
    let text = small.replace(leaves, &format!("local.get 0\n i64.const {ready_ms}\n i64.ge_u\n"));
    let dir = tempfile::tempdir().unwrap();
    let manifest = "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n";
    fs::write(dir.path().join("policy.toml"), manifest).unwrap();
    fs::write(dir.path().join("policy.wasm"), wat::parse_str(text).unwrap()).unwrap();
    let spec = PolicySpec::new("small", dir.path().to_owned());
    (dir, chain(vec![spec]))
}

#[test]
fn an_endless_loop_ends_at_the_same_place_each_time() {
    let (_dir, spec) = endless(u64::MAX);
    let rehearsal = load(&spec);
    let conduct = || {
        let chain = Chain::from(rehearsal.begin());
        assert!(admitted(&chain, &facts(1, 0)), "who fails has no say");
        chain.conduct().remove(0)
    };
    let first = conduct();
    assert_eq!((first.calls, first.faults, first.slow), (1, 1, 1));
    assert_eq!(first.first_fault.as_deref(), Some("it did not finish within 5 ms"));
    // Beside making the instance.
    assert!((5 * FUEL_PER_MS..5 * FUEL_PER_MS + 10_000).contains(&first.fuel), "{first:?}");
    assert_eq!(conduct(), first);
}

#[test]
fn who_was_taken_out_of_service_comes_back_in_virtual_time() {
    let (_dir, spec) = endless(1000);
    let mut chain = Chain::from(load(&spec).begin());
    let calls = |chain: &Chain| {
        let conduct = chain.conduct().remove(0);
        (conduct.calls, conduct.faults)
    };
    for _ in 0..5 {
        admitted(&chain, &facts(1, 0));
    }
    assert_eq!(calls(&chain), (3, 3), "and then it was left alone");
    chain.now(Duration::from_millis(999));
    admitted(&chain, &facts(1, 1000));
    assert_eq!(calls(&chain), (3, 3));
    chain.now(Duration::from_secs(1));
    for _ in 0..5 {
        admitted(&chain, &facts(1, 1000));
    }
    assert_eq!(calls(&chain), (8, 3));
}

#[test]
fn a_policy_that_cannot_be_loaded_is_named() {
    let said = |spec: ChainSpec| DryRunChain::load(&FUEL, &spec).unwrap_err().to_string();
    let missing = PolicySpec::new("nobody", PathBuf::from("no/such/folder"));
    let error = said(chain(vec![policy("cortex", json!({})), missing]));
    assert_eq!(
        error,
        "the policy `nobody` in no/such/folder cannot be used: no/such/folder/policy.toml is missing"
    );
    let error = said(chain(vec![policy("quota", json!({ "window-s": 0 }))]));
    assert!(
        error.starts_with("the policy `quota` in ") && error.contains("window-s: must be"),
        "{error}"
    );
}

/// What each policy of a chain was asked about a request, and how the request looked to each.
fn record(rehearsal: &DryRunChain, facts: &Facts, view: &Arc<FleetView>) -> Vec<Consulted> {
    let performance = rehearsal.begin();
    for number in 0..4 {
        performance.advisor().advise(&self::facts(4 * number + 1, NOON), view, &mut Trace::off());
    }
    let mut trace = Trace::on();
    performance.advisor().advise(facts, view, &mut trace);
    trace.into_consulted()
}

/// Ask again with another record than that of the call.
fn quota_again(changed: impl FnOnce(&mut Vec<Read>)) -> (Consulted, Replayed<Advice>) {
    let rehearsal = load(&six());
    let (facts, view) = (facts(1, NOON), fleet(3));
    let call = record(&rehearsal, &facts, &view).remove(0);
    let mut reads = call.reads.clone();
    changed(&mut reads);
    let replayed = rehearsal.replay("quota", &facts, &view, &reads).unwrap();
    (call, replayed)
}

#[test]
fn a_recorded_call_is_decided_the_same_again() {
    let rehearsal = load(&six());
    for number in 0..30 {
        let (mut facts, view) = (facts(number, NOON), fleet(number));
        for call in record(&rehearsal, &facts, &view) {
            let name = &call.policy.name;
            let replayed = rehearsal.replay(name, &facts, &view, &call.reads).unwrap();
            assert_eq!(replayed.answer.ok(), call.advice, "{name}");
            assert_eq!(
                (&replayed.missing, &replayed.differing),
                (&Vec::new(), &Vec::new()),
                "{name}"
            );
            assert_eq!((replayed.policy, replayed.dropped), (call.policy, call.dropped));
            let state = |reads: &[Read]| -> Vec<Read> {
                reads.iter().filter(|it| it.call.starts_with("state.")).cloned().collect()
            };
            assert_eq!(state(&replayed.reads), state(&call.reads));
            facts.request = replayed.request;
        }
    }
    assert!(rehearsal.replay("nobody", &facts(0, 0), &fleet(0), &[]).is_none());
}

#[test]
fn who_has_only_the_record_hears_the_same() {
    let rehearsal = load(&six());
    let (then, view) = (facts(1, NOON), fleet(3));
    let call = record(&rehearsal, &then, &view).remove(0);
    assert!(call.advice.is_some());
    // Another request altogether: the answers are those of the record.
    let now = facts(2, 5);
    let replayed = rehearsal.replay("quota", &now, &view, &call.reads).unwrap();
    assert_eq!(replayed.answer.ok(), call.advice);
    assert!(replayed.missing.is_empty());
    let differing: Vec<String> = replayed.differing.iter().map(|it| it.call.clone()).collect();
    assert!(differing.contains(&"context".to_owned()), "{differing:?}");
}

#[test]
fn a_record_with_other_answers_is_decided_otherwise() {
    let (call, replayed) = quota_again(|reads| {
        for read in reads.iter_mut().filter(|read| read.call == "state.increment") {
            read.gave = json!({ "ok": 1_000_000 });
        }
    });
    assert!(call.advice.is_some_and(|advice| advice.reject.is_none()));
    let rejection = replayed.answer.unwrap().reject.unwrap();
    assert_eq!(rejection.status, 429);
    // Whoever refuses a request gives back what was counted, and nobody did that then: it follows from what was.
    let last = replayed.reads.last().unwrap();
    assert_eq!(
        (last.call.as_str(), &last.with[1], &last.gave),
        ("state.increment", &json!(-1), &json!({ "ok": 999_999 }))
    );
    assert!(replayed.missing.is_empty(), "{:?}", replayed.missing);
}

#[test]
fn what_a_record_does_not_have_is_said() {
    let whys =
        |replayed: &Replayed<Advice>| replayed.missing.iter().map(|it| it.why).collect::<Vec<_>>();
    let (_, without) = quota_again(|reads| reads.retain(|read| !read.call.starts_with("state.")));
    assert!(!without.missing.is_empty() && whys(&without).iter().all(|why| *why == Gap::NotAsked));
    let sentence = without.missing[0].to_string();
    assert!(
        sentence.starts_with("asks state.increment [\"")
            && sentence.ends_with(", which the record does not have"),
        "{sentence}"
    );

    let (_, cut) = quota_again(|reads| {
        reads.truncate(1);
        reads.push(Read { call: "cut".into(), with: Vec::new(), gave: Value::Null });
    });
    assert!(
        !cut.missing.is_empty() && whys(&cut).iter().all(|why| *why == Gap::Cut),
        "{:?}",
        cut.missing
    );

    let (_, redacted) = quota_again(|reads| {
        let tenant = reads.iter_mut().find(|read| read.call == "request.tenant").unwrap();
        tenant.gave = json!("redacted:6:0123456789abcdef");
    });
    assert_eq!(whys(&redacted), [Gap::Redacted]);
    assert_eq!(redacted.missing[0].call, "request.tenant");
}

#[test]
fn a_failed_try_is_asked_about_again() {
    let rehearsal = load(&chain(vec![policy("deadline", json!({}))]));
    let mut failed = FailureReport {
        lane: LaneId(1),
        what: AttemptResult::ServerError,
        status: 500,
        sent_bytes: 0,
        elapsed: Duration::from_millis(40),
        attempts_left: 2,
    };
    let (facts, view) = (facts(1, NOON), fleet(1));
    let performance = rehearsal.begin();
    let mut trace = Trace::on();
    let then = performance.advisor().recover(&facts, &view, &failed, &mut trace);
    assert!(matches!(then, Recovery::Retry(_)), "{then:?}");
    let call = trace.into_consulted().remove(0);
    let asked: Vec<&str> = call.reads.iter().map(|read| read.call.as_str()).collect();
    assert!(
        asked.starts_with(&["context", "failure"]) && asked.contains(&"request.header"),
        "{asked:?}"
    );
    let again = |failed: &FailureReport| {
        rehearsal.replay_failure("deadline", &facts, &view, failed, &call.reads).unwrap()
    };
    let same = again(&failed);
    assert_eq!(same.answer, Ok(then.clone()));
    assert_eq!((&same.missing, &same.differing), (&Vec::new(), &Vec::new()));
    // The record goes before what is handed over, and says that it does.
    failed.attempts_left = 0;
    let other = again(&failed);
    assert_eq!(other.answer, Ok(then));
    assert_eq!(other.differing.iter().map(|it| it.call.as_str()).collect::<Vec<_>>(), ["failure"]);
    // Who has no such hook goes on as planned, and asks nothing.
    let cortex = load(&chain_of_cortex());
    let planned = cortex.replay_failure("cortex", &facts, &view, &failed, &call.reads).unwrap();
    assert_eq!((planned.answer, planned.reads), (Ok(Recovery::Planned), Vec::new()));
}
