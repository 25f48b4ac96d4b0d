//! The cost of lanes that take turns: the same workloads under three disciplines, in virtual time,
//! as tables. The numbers are not times of this program, and are the same on every machine.
//!
//! The lanes orchestrator, coder and fast_rag share a GPU whose memory fits one of them. A load
//! takes 40 s, a stop 5 s, and a response 4 s.
//!
//! - `fifo`: strictly first come, first served. There is a switch whenever the next request is for
//!   another lane.
//! - `default`: the dispatcher with default rules.
//! - `cortex`: the same, with the advice of the cortex policy. A request that would exceed its
//!   maximum wait goes to super_reader, which is always loaded.
//!
//! `-- --timeline` also prints the states of the engines over time.

mod shared;
#[path = "turns/world.rs"]
mod world;

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{QueueLimits, Rules};
use pointsman_domain::{
    Advisor, Decision, Endpoint, EngineKind, FleetView, LaneId, LaneInfo, OnTimeout, Plan,
    PlanLimits, Step, Switching, Topology, Trace, Triggers,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::{Policies, PolicySpec, RuntimeSettings};

use self::shared::{arrived, load, policies, policy_dir};
use self::world::{Client, Discipline, Outcome, run, s};

const ORCHESTRATOR: LaneId = LaneId(0);
const CODER: LaneId = LaneId(1);
const FAST_RAG: LaneId = LaneId(2);
/// `queue.max-wait` of `examples/cortex.toml`.
const CORTEX_MAX_WAIT: Duration = s(300);

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
        names: Default::default(),
        labels: Vec::new(),
        max_context: 32_768,
        endpoints: pointsman_domain::EndpointSet::all(),
        slots: *slots,
        group: *group,
        cost_milli: 0,
        is_peer: false,
    };
    Arc::new(Topology::new(1, lanes.iter().map(info).collect()))
}

/// Returns a client that sends a request per second, to three lanes in turn.
fn alternating() -> Vec<Client> {
    let lanes = vec![ORCHESTRATOR, CODER, FAST_RAG];
    let interval = Some(s(1));
    vec![Client { lanes, priority: 0, start: s(0), interval, requests: Some(300) }]
}

/// Returns agents that plan and code in turn, and a client that uses a third lane at intervals.
fn sessions() -> Vec<Client> {
    let session = |index| Client {
        lanes: vec![ORCHESTRATOR, CODER],
        priority: 0,
        start: s(index),
        interval: None,
        requests: Some(20),
    };
    let retrieval = Client {
        lanes: vec![FAST_RAG],
        priority: 0,
        start: s(90),
        interval: Some(s(90)),
        requests: None,
    };
    (0..12).map(session).chain([retrieval]).collect()
}

/// Returns batch clients that keep one lane busy, and a client with priority that uses another.
fn interactive() -> Vec<Client> {
    let batch = |index: u64| Client {
        lanes: vec![CODER],
        priority: 0,
        start: s(index / 4),
        interval: None,
        requests: Some(60),
    };
    let interactive = Client {
        lanes: vec![FAST_RAG],
        priority: 10,
        start: s(60),
        interval: Some(s(60)),
        requests: None,
    };
    (0..16).map(batch).chain([interactive]).collect()
}

/// Returns a plan without fallbacks and, for practical purposes, without a maximum wait.
fn requested_lane(lane: LaneId, client: &Client, _: &Arc<FleetView>, _: Duration) -> Plan {
    Plan {
        steps: vec![Step { lane, edits: Vec::new(), context: 0 }],
        on: Triggers::ALL,
        priority: client.priority,
        flow: None,
        // Longer than any workload takes.
        max_wait: s(1_000_000),
        on_timeout: OnTimeout::Reject,
        first_token: None,
        switching: Switching::Allow,
    }
}

/// Loads the cortex policy.
fn cortex() -> Arc<Policies> {
    let policies = policies(RuntimeSettings { warm_instances: 1, ..RuntimeSettings::default() });
    let mut spec = PolicySpec::new("cortex", policy_dir("cortex"));
    spec.settings.deadline = Some(s(1));
    load(&policies, vec![spec]);
    policies
}

/// Returns the plan from a policy's advice about a request for `lane`.
fn advised(chain: &dyn Advisor, lane: LaneId, view: &Arc<FleetView>, now: Duration) -> Plan {
    let model = view.topology.name(lane);
    let body =
        serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": "hello" }] });
    let request =
        Request::parse(Endpoint::ChatCompletions, body.to_string().into(), Head::default());
    let request = Arc::new(request.expect("valid request"));
    let now_ms = u64::try_from(now.as_millis()).unwrap_or_default();
    let facts = arrived(request, now_ms, 1);
    // Only the deadline of the policy's calls is in real time. On a busy machine a call may exceed
    // it, so it is repeated.
    let mut calls = (0..1000).map(|_| chain.advise(&facts, view, &mut Trace::off()).merged);
    let merged = calls.find(|merged| merged.by.len() == 1).expect("policy gives advice");
    let limits = PlanLimits { max_wait: CORTEX_MAX_WAIT, max_steps: 8 };
    match Plan::from_advice(&merged, view, &limits) {
        Decision::Route(plan) => plan,
        other => panic!("not routed: {other:?}"),
    }
}

/// Formats a duration in seconds.
fn seconds(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64())
}

/// Returns the maximum, the mean and the 99th percentile (nearest rank), formatted in seconds.
fn wait_statistics(waits: impl Iterator<Item = Duration>) -> [String; 3] {
    let mut all: Vec<Duration> = waits.collect();
    all.sort_unstable();
    // `max(1)`: of no waits, the mean is zero.
    let mean = all.iter().sum::<Duration>() / u32::try_from(all.len()).unwrap_or(u32::MAX).max(1);
    let p99 = all.get((all.len() * 99).div_ceil(100).max(1) - 1).copied().unwrap_or_default();
    [all.last().copied().unwrap_or_default(), mean, p99].map(seconds)
}

/// Returns the cells of a discipline, in the order of the columns in [`print_table`].
fn row(name: &str, outcome: &Outcome) -> Vec<String> {
    let [max, mean, p99] = wait_statistics(outcome.waits.iter().map(|(_, wait)| *wait));
    let rag = outcome.waits.iter().filter(|(lane, _)| *lane == FAST_RAG).map(|(_, wait)| *wait);
    let [rag_max, rag_mean, _] = wait_statistics(rag);
    let counts = [outcome.fell_back, outcome.errors].map(|count| count.to_string());
    let [fell_back, errors] = counts;
    let (loads, served) = (outcome.loads.to_string(), outcome.waits.len().to_string());
    let (done, idle) = (seconds(outcome.done_at), seconds(outcome.idle));
    let requests = u32::try_from(outcome.waits.len()).unwrap_or(u32::MAX).max(1);
    let estimated = seconds(outcome.estimated / requests);
    let name = name.to_owned();
    vec![
        name, served, loads, done, max, mean, estimated, p99, rag_max, rag_mean, fell_back, errors,
        idle,
    ]
}

fn print_table(title: &str, rows: &[Vec<String>]) {
    let head = [
        "discipline",
        "served",
        "loads",
        "all done",
        "max",
        "mean",
        "estimated",
        "p99",
        "rag max",
        "rag mean",
        "fell back",
        "errors",
        "idle",
    ];
    println!(
        "\n{title} (times in seconds; idle: a lane is loaded but unused while others are queued)"
    );
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
    let base = Rules { queue: QueueLimits { per_lane: 1000, total: 1000 }, ..Rules::default() };
    let immediate = Rules { min_residency: 0, linger: 0, ..base };
    let by_cortex = |lane: LaneId, _: &Client, view: &Arc<FleetView>, now: Duration| {
        advised(&**chain, lane, view, now)
    };
    let disciplines = [
        Discipline { name: "fifo", rules: immediate, sequential: true, plan: &requested_lane },
        Discipline { name: "default", rules: base, sequential: false, plan: &requested_lane },
        Discipline { name: "cortex", rules: base, sequential: false, plan: &by_cortex },
    ];
    let workloads = [
        ("300 requests, one per second, for three lanes in turn", alternating()),
        (
            "12 sessions, 20 requests each, for orchestrator and coder; fast_rag every 90 s",
            sessions(),
        ),
        (
            "16 clients, 60 requests each, for coder; fast_rag with priority 10 every 60 s",
            interactive(),
        ),
    ];
    for (title, clients) in &workloads {
        let mut rows = Vec::new();
        let mut fifo: Option<Outcome> = None;
        for discipline in &disciplines {
            let outcome = run(discipline, clients, &topology);
            assert_eq!(outcome, run(discipline, clients, &topology), "runs are not deterministic");
            if timeline {
                println!("\n{title}: {}\n{}", discipline.name, outcome.timeline.join("\n"));
            }
            rows.push(row(discipline.name, &outcome));
            match (discipline.name, &fifo) {
                ("fifo", _) => fifo = Some(outcome),
                ("default", Some(fifo)) => {
                    assert_eq!(
                        (fifo.errors, outcome.errors, outcome.fell_back),
                        (0, 0, 0),
                        "{title}"
                    );
                    assert!(
                        outcome.loads < fifo.loads && outcome.done_at < fifo.done_at,
                        "{title}"
                    );
                }
                _ => {}
            }
        }
        print_table(title, &rows);
    }
}
