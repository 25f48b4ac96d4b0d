//! The repository's policies in virtual time: their runs are deterministic, and recorded calls can
//! be replayed.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tree;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pointsman_domain::{
    Advice, AttemptResult, Endpoint, EngineKind, Facts, FailureReport, FleetView, LaneId, LaneInfo,
    LaneState, Outcome, PolicyCall, Read, Recovered, Recovery, Topology, Trace,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::{
    CallStats, ChainSpec, DryRunChain, DryRunSession, FUEL_PER_MS, Gap, Metering, PolicySpec,
    Replayed, Runtime, RuntimeSettings,
};
use pointsman_simulate::{ChainAdvisor, SimAdvisor, TimedHint};
use serde_json::{Value, json};

use self::tree::{NOON, chain, policy};

fn runtime(metering: Metering) -> Arc<Runtime> {
    Runtime::new(RuntimeSettings { metering, ..RuntimeSettings::default() }).unwrap()
}

/// The runtime of all tests except those that compare runtimes.
static FUEL: LazyLock<Arc<Runtime>> = LazyLock::new(|| runtime(Metering::Fuel));

/// Returns six policies that use host calls, counters, state and lane hints.
fn six_policies() -> ChainSpec {
    let day = json!({
        "name": "day", "from": "08:00", "to": "18:00", "prefer": ["coder"], "load": ["coder"],
    });
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
        names: Default::default(),
        labels: vec![("tier".into(), if name.len() > 8 { "b" } else { "a" }.into())],
        max_context: 32_768,
        endpoints: pointsman_domain::EndpointSet::all(),
        slots: 8,
        group: 1,
        cost_milli: 500,
        is_peer: false,
    };
    let topology = Topology::new(1, names.iter().map(info).collect());
    let mut view = FleetView::idle(Arc::new(topology), LaneState::Ready);
    for (lane, stat) in view.stats_mut().iter_mut().enumerate() {
        stat.running = (load + u32::try_from(lane).unwrap()) % 8;
        stat.slots_free = 8 - stat.running;
        stat.est_wait_ms = load * 37 % 900;
    }
    Arc::new(view)
}

/// Returns the facts of one of a hundred requests from four tenants.
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
        ..Head::default()
    };
    let request = Request::parse(Endpoint::ChatCompletions, body.to_string().into(), head).unwrap();
    Facts {
        request: Arc::new(request),
        now_ms,
        seed: number.into(),
        age: Duration::ZERO,
        attempt: 0,
        time_left: None,
        lanes_left: None,
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
        attempts: Vec::new(),
        notes: Vec::new(),
    }
}

/// Runs a hundred requests within 90 seconds, and returns all advice, hints and call statistics.
fn run_session(session: DryRunSession) -> (Vec<String>, Vec<TimedHint>, Vec<CallStats>) {
    let mut chain = ChainAdvisor::from(session);
    let (mut advice, mut hints, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..100 {
        let now = Duration::from_millis(900) * number;
        let now_ms = NOON + u64::try_from(now.as_millis()).unwrap();
        chain.set_now(now);
        let (view, facts) = (fleet(number), facts(number, now_ms));
        if chain.next_tick().is_some_and(|due| due <= now) {
            hints.extend(chain.tick(&view, now, now_ms));
        }
        let mut trace = Trace::on();
        let merged = chain.advisor().advise(&facts, &view, &mut trace).merged;
        // Includes the time that each call took.
        advice.push(format!("{merged:?} {:?}", trace.into_calls()));
        outcomes.push(outcome(&facts));
        if outcomes.len() == 16 {
            chain.observe(&view, now_ms, &std::mem::take(&mut outcomes));
        }
    }
    (advice, hints, chain.call_stats())
}

#[test]
fn runs_are_deterministic_including_fuel() {
    let dry_run = load(&six_policies());
    // Concurrently on two threads, and in another runtime that compiles the code again.
    let (first, second) = std::thread::scope(|scope| {
        let session = dry_run.begin();
        let other = scope.spawn(move || run_session(session));
        (run_session(dry_run.begin()), other.join().unwrap())
    });
    assert_eq!(first, second);
    let other_runtime = DryRunChain::load(&runtime(Metering::Fuel), &six_policies()).unwrap();
    assert_eq!(run_session(other_runtime.begin()), first);

    let (advice, hints, stats) = first;
    assert!(
        advice.iter().any(|advice| advice.contains("_quota_exceeded")),
        "`quota` counts and rejects"
    );
    assert!(!hints.is_empty(), "`hours` hints at a lane during the day");
    for policy in &stats {
        assert_eq!((policy.faults, &policy.first_fault), (0, &None), "{policy:?}");
        assert!(policy.calls > 0 && policy.fuel > 1000 * policy.calls, "{policy:?}");
        let max = 5 * FUEL_PER_MS / 2;
        assert!(policy.fuel / policy.calls < max, "more than half of its deadline: {policy:?}");
    }
    assert_eq!(
        stats.iter().map(|stats| &stats.policy).collect::<Vec<_>>(),
        dry_run.references().iter().collect::<Vec<_>>()
    );
}

#[test]
fn ticks_run_at_the_start_and_at_their_interval() {
    let dry_run = load(&six_policies());
    let mut chain = ChainAdvisor::from(dry_run.begin());
    let view = fleet(0);
    assert_eq!(chain.next_tick(), Some(Duration::ZERO));
    let at_noon = chain.tick(&view, Duration::from_secs(7), NOON);
    assert_eq!(chain.next_tick(), Some(Duration::from_secs(37)));
    assert!(
        at_noon.iter().any(|hint| hint.lane == LaneId(1) && hint.hint.is_some()),
        "{at_noon:?}"
    );
    assert!(chain.tick(&view, Duration::from_secs(36), NOON).is_empty(), "the tick is not due");
    // At night `hours` withdraws its hint once.
    let midnight = NOON + 12 * 3600 * 1000;
    let withdrawn = chain.tick(&view, Duration::from_secs(37), midnight);
    assert!(
        withdrawn.iter().any(|hint| hint.lane == LaneId(1) && hint.hint.is_none()),
        "{withdrawn:?}"
    );
    assert_eq!(
        ChainAdvisor::from(load(&cortex_chain()).begin()).next_tick(),
        None,
        "`cortex` has no tick hook"
    );
}

fn cortex_chain() -> ChainSpec {
    chain(vec![policy("cortex", json!({}))])
}

/// Returns true if no policy rejects the request.
fn is_admitted(chain: &ChainAdvisor, facts: &Facts) -> bool {
    chain.advisor().advise(facts, &fleet(0), &mut Trace::off()).merged.reject.is_none()
}

#[test]
fn policy_state_expires_in_virtual_time() {
    let quota = json!({ "window-s": 60, "default": { "requests": 2 } });
    let dry_run = load(&chain(vec![policy("quota", quota)]));
    let mut chain = ChainAdvisor::from(dry_run.begin());
    let admits = |chain: &ChainAdvisor| is_admitted(chain, &facts(1, NOON));
    assert!(admits(&chain) && admits(&chain) && !admits(&chain));
    assert!(
        is_admitted(&ChainAdvisor::from(dry_run.begin()), &facts(1, NOON)),
        "each session has its own state"
    );
    // The policy keeps an entry for two windows. Only the clock of the state advances here, and not
    // the wall clock in the facts.
    chain.set_now(Duration::from_millis(119_999));
    assert!(!admits(&chain));
    chain.set_now(Duration::from_secs(120));
    assert!(admits(&chain) && admits(&chain) && !admits(&chain));
}

/// Returns a policy that never returns from calls before `ready_ms`.
fn looping_policy(ready_ms: u64) -> (tempfile::TempDir, ChainSpec) {
    let small = include_str!("../../policy/fixtures/small.wat");
    let exit = "local.get 15\n          i32.const 8\n          i32.ge_u\n";
    assert!(small.contains(exit));
    let text = small.replace(exit, &format!("local.get 0\n i64.const {ready_ms}\n i64.ge_u\n"));
    let dir = tempfile::tempdir().unwrap();
    let manifest = "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n";
    fs::write(dir.path().join("policy.toml"), manifest).unwrap();
    fs::write(dir.path().join("policy.wasm"), wat::parse_str(text).unwrap()).unwrap();
    let spec = PolicySpec::new("small", dir.path().to_owned());
    (dir, chain(vec![spec]))
}

#[test]
fn infinite_loop_is_interrupted_deterministically() {
    let (_dir, spec) = looping_policy(u64::MAX);
    let dry_run = load(&spec);
    let stats = || {
        let chain = ChainAdvisor::from(dry_run.begin());
        assert!(is_admitted(&chain, &facts(1, 0)), "a failed policy has no effect");
        chain.call_stats().remove(0)
    };
    let first = stats();
    assert_eq!((first.calls, first.faults, first.slow), (1, 1, 1));
    assert!(first.first_fault.as_deref().is_some_and(|fault| fault.contains("5 ms")), "{first:?}");
    // The deadline, and the fuel of instantiation.
    assert!((5 * FUEL_PER_MS..5 * FUEL_PER_MS + 10_000).contains(&first.fuel), "{first:?}");
    assert_eq!(stats(), first);
}

#[test]
fn circuit_breaker_closes_in_virtual_time() {
    let (_dir, spec) = looping_policy(1000);
    let mut chain = ChainAdvisor::from(load(&spec).begin());
    let calls = |chain: &ChainAdvisor| {
        let stats = chain.call_stats().remove(0);
        (stats.calls, stats.faults)
    };
    for _ in 0..5 {
        is_admitted(&chain, &facts(1, 0));
    }
    assert_eq!(calls(&chain), (3, 3), "the breaker opens after three faults");
    chain.set_now(Duration::from_millis(999));
    is_admitted(&chain, &facts(1, 1000));
    assert_eq!(calls(&chain), (3, 3));
    chain.set_now(Duration::from_secs(1));
    for _ in 0..5 {
        is_admitted(&chain, &facts(1, 1000));
    }
    assert_eq!(calls(&chain), (8, 3));
}

#[test]
fn load_error_names_the_policy() {
    let load_error = |spec: ChainSpec| DryRunChain::load(&FUEL, &spec).unwrap_err().to_string();
    let missing = PolicySpec::new("missing", PathBuf::from("no/such/folder"));
    let error = load_error(chain(vec![policy("cortex", json!({})), missing]));
    assert!(error.contains("`missing`") && error.contains("no/such/folder/policy.toml"), "{error}");
    let error = load_error(chain(vec![policy("quota", json!({ "window-s": 0 }))]));
    assert!(error.contains("`quota`") && error.contains("window-s"), "{error}");
}

/// Returns the recorded calls of all policies of a chain for a request.
fn record(dry_run: &DryRunChain, facts: &Facts, view: &Arc<FleetView>) -> Vec<PolicyCall> {
    let session = dry_run.begin();
    // Fills the state of the policies.
    for number in 0..4 {
        session.advisor().advise(&self::facts(4 * number + 1, NOON), view, &mut Trace::off());
    }
    let mut trace = Trace::on();
    session.advisor().advise(facts, view, &mut trace);
    trace.into_calls()
}

/// Replays a call of `quota` with a changed record.
fn replay_quota(change: impl FnOnce(&mut Vec<Read>)) -> (PolicyCall, Replayed<Advice>) {
    let dry_run = load(&six_policies());
    let (facts, view) = (facts(1, NOON), fleet(3));
    let call = record(&dry_run, &facts, &view).remove(0);
    let mut reads = call.reads.clone();
    change(&mut reads);
    let replayed = dry_run.replay("quota", &facts, &view, &reads).unwrap();
    (call, replayed)
}

#[test]
fn replayed_call_has_the_recorded_result() {
    let dry_run = load(&six_policies());
    for number in 0..30 {
        let (mut facts, view) = (facts(number, NOON), fleet(number));
        for call in record(&dry_run, &facts, &view) {
            let name = &call.policy.name;
            let replayed = dry_run.replay(name, &facts, &view, &call.reads).unwrap();
            assert_eq!(replayed.answer.ok(), call.advice, "{name}");
            assert_eq!(
                (&replayed.missing, &replayed.differing),
                (&Vec::new(), &Vec::new()),
                "{name}"
            );
            assert_eq!((replayed.policy, replayed.dropped), (call.policy, call.dropped));
            let state = |reads: &[Read]| -> Vec<Read> {
                reads.iter().filter(|read| read.call.starts_with("state.")).cloned().collect()
            };
            assert_eq!(state(&replayed.reads), state(&call.reads));
            facts.request = replayed.request;
        }
    }
    assert!(dry_run.replay("missing", &facts(0, 0), &fleet(0), &[]).is_none());
}

#[test]
fn replay_uses_the_record_instead_of_the_request() {
    let dry_run = load(&six_policies());
    let (then, view) = (facts(1, NOON), fleet(3));
    let call = record(&dry_run, &then, &view).remove(0);
    assert!(call.advice.is_some());
    // The facts are those of another request, but host calls are answered from the record.
    let now = facts(2, 5);
    let replayed = dry_run.replay("quota", &now, &view, &call.reads).unwrap();
    assert_eq!(replayed.answer.ok(), call.advice);
    assert!(replayed.missing.is_empty());
    let differing: Vec<String> = replayed.differing.iter().map(|read| read.call.clone()).collect();
    assert!(differing.contains(&"context".to_owned()), "{differing:?}");
}

#[test]
fn changed_record_changes_the_replayed_result() {
    let (call, replayed) = replay_quota(|reads| {
        for read in reads.iter_mut().filter(|read| read.call == "state.increment") {
            read.gave = json!({ "ok": 1_000_000 });
        }
    });
    assert!(call.advice.is_some_and(|advice| advice.reject.is_none()));
    let rejection = replayed.answer.unwrap().reject.unwrap();
    assert_eq!(rejection.status, 429);
    // A policy that rejects a request reverts its counter. That call was not recorded, so its
    // result is derived from the recorded value.
    let last = replayed.reads.last().unwrap();
    assert_eq!(
        (last.call.as_str(), &last.with[1], &last.gave),
        ("state.increment", &json!(-1), &json!({ "ok": 999_999 }))
    );
    assert!(replayed.missing.is_empty(), "{:?}", replayed.missing);
}

#[test]
fn missing_parts_of_a_record_are_reported() {
    let gaps = |replayed: &Replayed<Advice>| {
        replayed.missing.iter().map(|missing| missing.why).collect::<Vec<_>>()
    };
    let (_, without) = replay_quota(|reads| reads.retain(|read| !read.call.starts_with("state.")));
    assert!(!without.missing.is_empty() && gaps(&without).iter().all(|gap| *gap == Gap::NotAsked));
    let missing = &without.missing[0];
    assert_eq!(missing.call, "state.increment", "{missing}");
    assert!(missing.to_string().contains("state.increment [\""), "{missing}");

    let (_, truncated) = replay_quota(|reads| {
        reads.truncate(1);
        reads.push(Read { call: "cut".into(), with: Vec::new(), gave: Value::Null });
    });
    assert!(
        !truncated.missing.is_empty() && gaps(&truncated).iter().all(|gap| *gap == Gap::Cut),
        "{:?}",
        truncated.missing
    );

    let (_, redacted) = replay_quota(|reads| {
        let tenant = reads.iter_mut().find(|read| read.call == "request.tenant").unwrap();
        tenant.gave = json!("redacted:6:0123456789abcdef");
    });
    assert_eq!(gaps(&redacted), [Gap::Redacted]);
    assert_eq!(redacted.missing[0].call, "request.tenant");
}

#[test]
fn recover_call_is_replayed() {
    let dry_run = load(&chain(vec![policy("deadline", json!({}))]));
    let mut failure = FailureReport {
        lane: LaneId(1),
        what: AttemptResult::ServerError,
        status: 500,
        sent_bytes: 0,
        elapsed: Duration::from_millis(40),
        attempts_left: 2,
    };
    let (facts, view) = (facts(1, NOON), fleet(1));
    let session = dry_run.begin();
    let mut trace = Trace::on();
    let Recovered { recovery: recorded, by } =
        session.advisor().recover(&facts, &view, &failure, &mut trace);
    assert!(matches!(recorded, Recovery::Retry(_)), "{recorded:?}");
    assert_eq!(by.unwrap().name.as_ref(), "deadline");
    let call = trace.into_calls().remove(0);
    let host_calls: Vec<&str> = call.reads.iter().map(|read| read.call.as_str()).collect();
    assert!(
        host_calls.starts_with(&["context", "failure"]) && host_calls.contains(&"request.header"),
        "{host_calls:?}"
    );
    let replay = |failure: &FailureReport| {
        dry_run.replay_failure("deadline", &facts, &view, failure, &call.reads).unwrap()
    };
    let same = replay(&failure);
    assert_eq!(same.answer, Ok(recorded.clone()));
    assert_eq!((&same.missing, &same.differing), (&Vec::new(), &Vec::new()));
    // The record takes precedence over the arguments, and the difference is reported.
    failure.attempts_left = 0;
    let other = replay(&failure);
    assert_eq!(other.answer, Ok(recorded));
    let differing: Vec<&str> = other.differing.iter().map(|read| read.call.as_str()).collect();
    assert_eq!(differing, ["failure"]);
    // A policy without this hook continues as planned, without host calls.
    let cortex = load(&cortex_chain());
    let planned = cortex.replay_failure("cortex", &facts, &view, &failure, &call.reads).unwrap();
    assert_eq!((planned.answer, planned.reads), (Ok(Recovery::Planned), Vec::new()));
}
