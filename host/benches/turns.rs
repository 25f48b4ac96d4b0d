//! What taking turns costs: the same workloads under three disciplines, in virtual time, as tables. Not a
//! timing: the numbers are the same on every machine.
//!
//! orchestrator, coder and fast_rag share a GPU that fits one of them; loading takes 40 s, stopping 5 s, a
//! request 4 s.
//!
//! - `fifo`: strictly one after the other. Lanes are exchanged whenever the next request is for another one.
//! - `default`: the dispatcher with its own rules.
//! - `cortex`: the same, with the advice of the cortex policy. A request that would come too late goes to
//!   super_reader, which is always on.
//!
//! With `--timeline` after `--`, what the engines do is printed, too.

mod shared;
#[path = "turns/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{QueueLimits, Rules};
use pointsman_domain::{
    Advisor, Decision, Endpoint, EngineKind, Facts, FleetView, LaneId, LaneInfo, OnTimeout, Plan,
    PlanLimits, Step, Switching, Topology, Trace, Triggers,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::{Policies, PolicySpec, RuntimeSettings};

use self::shared::{load, policies, policy_dir};
use self::world::{Asker, Discipline, Outcome, run, s};

const ORCHESTRATOR: LaneId = LaneId(0);
const CODER: LaneId = LaneId(1);
const FAST_RAG: LaneId = LaneId(2);
/// As in examples/cortex.toml.
const CORTEX_WAITS: Duration = s(300);

fn topology() -> Arc<Topology> {
    let lanes = [
        ("orchestrator", 8, 1),
        ("coder", 8, 1),
        ("fast_rag", 8, 1),
        ("super_reader", 2, 0),
        ("governance", 2, 0),
    ];
    let info = |(name, slots, group): &(&str, u32, u32)| LaneInfo {
        id: LaneId(0),
        name: (*name).to_owned(),
        engine: if *group > 0 { EngineKind::Vllm } else { EngineKind::LlamaCpp },
        models: vec![(*name).to_owned()],
        labels: Vec::new(),
        max_context: 32_768,
        slots: *slots,
        group: *group,
        cost_milli: 0,
    };
    Arc::new(Topology::new(1, lanes.iter().map(info).collect()))
}

/// Three lanes that are asked in turn, once a second.
fn alternating() -> Vec<Asker> {
    let lanes = vec![ORCHESTRATOR, CODER, FAST_RAG];
    vec![Asker { lanes, priority: 0, begins: s(0), every: Some(s(1)), requests: Some(300) }]
}

/// Agents that plan and code in turn, and somebody who looks something up now and then.
fn sessions() -> Vec<Asker> {
    let session = |index| Asker {
        lanes: vec![ORCHESTRATOR, CODER],
        priority: 0,
        begins: s(index),
        every: None,
        requests: Some(20),
    };
    let rag = Asker {
        lanes: vec![FAST_RAG],
        priority: 0,
        begins: s(90),
        every: Some(s(90)),
        requests: None,
    };
    (0..12).map(session).chain([rag]).collect()
}

/// Batches that keep the coder busy, and a person who asks for another lane.
fn interactive() -> Vec<Asker> {
    let batch = |index: u64| Asker {
        lanes: vec![CODER],
        priority: 0,
        begins: s(index / 4),
        every: None,
        requests: Some(60),
    };
    let person = Asker {
        lanes: vec![FAST_RAG],
        priority: 10,
        begins: s(60),
        every: Some(s(60)),
        requests: None,
    };
    (0..16).map(batch).chain([person]).collect()
}

/// Patient, and nowhere else to go.
fn as_asked(lane: LaneId, asker: &Asker, _: &Arc<FleetView>, _: Duration) -> Plan {
    Plan {
        steps: vec![Step { lane, edits: Vec::new() }],
        on: Triggers::ALL,
        priority: asker.priority,
        flow: None,
        max_wait: s(1_000_000),
        on_timeout: OnTimeout::Reject,
        first_token: None,
        switching: Switching::Allow,
    }
}

fn cortex() -> Arc<Policies> {
    let policies = policies(RuntimeSettings { warm_instances: 1, ..RuntimeSettings::default() });
    let mut spec = PolicySpec::new("cortex", policy_dir("cortex"));
    spec.settings.deadline = Some(s(1));
    load(&policies, vec![spec]);
    policies
}

fn advised(chain: &dyn Advisor, lane: LaneId, view: &Arc<FleetView>, now: Duration) -> Plan {
    let model = view.topology.name(lane);
    let body =
        serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": "hello" }] });
    let request =
        Request::parse(Endpoint::ChatCompletions, body.to_string().into(), Head::default());
    let request = Arc::new(request.expect("a request"));
    let now_ms = u64::try_from(now.as_millis()).unwrap_or_default();
    let facts = Facts { request, now_ms, seed: 1, age: Duration::ZERO, attempt: 0 };
    // The policy's deadline is the only thing here in real time: on a busy machine a call may miss it.
    let mut tries = (0..1000).map(|_| chain.advise(&facts, view, &mut Trace::off()));
    let merged = tries.find(|merged| merged.by.len() == 1).expect("the policy has an opinion");
    match Plan::from_advice(&merged, view, &PlanLimits { max_wait: CORTEX_WAITS, max_steps: 8 }) {
        Decision::Route(plan) => plan,
        other => panic!("no route: {other:?}"),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64())
}

/// Longest, mean and 99th percentile (nearest rank).
fn waits(of: impl Iterator<Item = Duration>) -> [String; 3] {
    let mut all: Vec<Duration> = of.collect();
    all.sort_unstable();
    let mean = all.iter().sum::<Duration>() / u32::try_from(all.len()).unwrap_or(u32::MAX).max(1);
    let p99 = all.get((all.len() * 99).div_ceil(100).max(1) - 1).copied().unwrap_or_default();
    [all.last().copied().unwrap_or_default(), mean, p99].map(seconds)
}

fn row(name: &str, outcome: &Outcome) -> Vec<String> {
    let [longest, mean, p99] = waits(outcome.waits.iter().map(|(_, wait)| *wait));
    let rag = outcome.waits.iter().filter(|(lane, _)| *lane == FAST_RAG).map(|(_, wait)| *wait);
    let [rag_longest, rag_mean, _] = waits(rag);
    let counts = [outcome.elsewhere, outcome.errors].map(|count| count.to_string());
    let [elsewhere, errors] = counts;
    let (loads, answered) = (outcome.loads.to_string(), outcome.waits.len().to_string());
    let (all, idle) = (seconds(outcome.answered_at), seconds(outcome.idle));
    let expected =
        seconds(outcome.expected / u32::try_from(outcome.waits.len()).unwrap_or(u32::MAX).max(1));
    let name = name.to_owned();
    vec![
        name,
        answered,
        loads,
        all,
        longest,
        mean,
        expected,
        p99,
        rag_longest,
        rag_mean,
        elsewhere,
        errors,
        idle,
    ]
}

fn print_table(title: &str, rows: &[Vec<String>]) {
    let head = [
        "discipline",
        "answered",
        "loads",
        "all done",
        "longest",
        "mean",
        "expected",
        "p99",
        "rag longest",
        "rag mean",
        "elsewhere",
        "errors",
        "idle",
    ];
    println!("\n{title} (times in seconds; idle: loaded and without work while somebody waited)");
    let head: Vec<String> = head.map(str::to_owned).to_vec();
    for cells in std::iter::once(&head).chain(rows) {
        let aligned =
            cells.iter().zip(&head).map(|(cell, head)| format!("{cell:>0$}", head.len().max(8)));
        println!("{}", aligned.collect::<Vec<_>>().join("  "));
    }
}

fn main() {
    let timeline = std::env::args().any(|argument| argument == "--timeline");
    let (topology, policies) = (topology(), cortex());
    let chain = policies.slot().load_full();
    let patient = Rules { queue: QueueLimits { per_lane: 1000, total: 1000 }, ..Rules::default() };
    let at_once = Rules { min_residency: 0, linger: 0, ..patient };
    let by_cortex = |lane: LaneId, _: &Asker, view: &Arc<FleetView>, now: Duration| {
        advised(&**chain, lane, view, now)
    };
    let disciplines = [
        Discipline { name: "fifo", rules: at_once, one_by_one: true, plan: &as_asked },
        Discipline { name: "default", rules: patient, one_by_one: false, plan: &as_asked },
        Discipline { name: "cortex", rules: patient, one_by_one: false, plan: &by_cortex },
    ];
    let workloads = [
        ("300 requests, one a second, for three lanes in turn", alternating()),
        (
            "12 sessions of 20 requests for orchestrator and coder in turn, fast_rag every 90 s",
            sessions(),
        ),
        (
            "16 clients with 60 requests each for coder, fast_rag with priority 10 every 60 s",
            interactive(),
        ),
    ];
    for (title, askers) in &workloads {
        let mut rows = Vec::new();
        let mut fifo: Option<Outcome> = None;
        for discipline in &disciplines {
            let outcome = run(discipline, askers, &topology);
            assert_eq!(
                outcome,
                run(discipline, askers, &topology),
                "the world is not deterministic"
            );
            if timeline {
                println!("\n{title}: {}\n{}", discipline.name, outcome.timeline.join("\n"));
            }
            rows.push(row(discipline.name, &outcome));
            match (discipline.name, &fifo) {
                ("fifo", _) => fifo = Some(outcome),
                ("default", Some(fifo)) => {
                    assert_eq!(
                        (fifo.errors, outcome.errors, outcome.elsewhere),
                        (0, 0, 0),
                        "{title}"
                    );
                    assert!(
                        outcome.loads < fifo.loads && outcome.answered_at < fifo.answered_at,
                        "{title}"
                    );
                }
                _ => {}
            }
        }
        print_table(title, &rows);
    }
}
