//! Benchmarks of recording a decision: the cost for the caller, who hands the record over, and for
//! the thread that writes it.
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use pointsman_domain::{
    Decision, Endpoint, FleetView, LaneInfo, LaneState, Merge, NoLaneReason, OnConflict,
    PlanLimits, PolicyCall, PolicyRef, Read, RequestInfo, Topology,
};
use pointsman_record::{
    DecisionRecord, End, Ended, Entry, Key, Mode, QueueLimits, Record, RecordMetrics, Recorder,
    Redact, Rule, Sample, Settings,
};
use prometheus_client::registry::Registry;
use serde_json::json;

fn fleet(lanes: usize) -> Arc<FleetView> {
    let lane = |number: usize| LaneInfo {
        id: pointsman_domain::LaneId(0),
        name: format!("lane-{number}"),
        engine: pointsman_domain::EngineKind::Vllm,
        models: vec!["auto".to_owned()],
        names: Default::default(),
        labels: Vec::new(),
        max_context: 32768,
        endpoints: pointsman_domain::EndpointSet::all(),
        slots: 4,
        group: 0,
        cost_milli: 0,
        is_peer: false,
    };
    let topology = Topology::new(1, (0..lanes).map(lane).collect());
    Arc::new(FleetView::idle(Arc::new(topology), LaneState::Ready))
}

/// A decision as made by the cortex policy: a dozen host calls, one of which reads a prompt of 2
/// KB.
fn decision(fleet: &FleetView) -> DecisionRecord {
    let read = |call: &str, gave| Read { call: call.to_owned(), with: vec![json!(0)], gave };
    let mut reads =
        vec![read("request.model", json!("auto")), read("request.text", json!("x".repeat(2048)))];
    reads.extend((0..10).map(|_| read("request.contains", json!(false))));
    let consulted = PolicyCall {
        policy: PolicyRef::new("cortex", "0.1.0"),
        hook: "on-request".to_owned(),
        took: Duration::from_micros(9),
        reads,
        advice: Some(pointsman_domain::Advice::default()),
        note: None,
        dropped: Vec::new(),
        fleet: Vec::new(),
        log: Vec::new(),
    };
    DecisionRecord {
        request_id: "0192f0c1e5a87c3d9b0e6a4f2d1c8b7a".into(),
        tenant: Some("team-a".into()),
        model: "auto".into(),
        now_ms: 1,
        seed: 2,
        age: Duration::ZERO,
        attempt: 0,
        figures: RequestInfo::default(),
        topology: fleet.topology.generation(),
        guards: None,
        chain: None,
        fleet: Vec::new(),
        consulted: vec![consulted],
        merged: Merge::new(fleet, "auto", Endpoint::ChatCompletions)
            .finish(OnConflict::Refuse)
            .into(),
        decision: Decision::NoLane(NoLaneReason::AllDown),
        tries: Vec::new(),
        end: End { how: Ended::Error, total: Duration::ZERO },
        outcome: None,
        request: None,
    }
}

fn record(criterion: &mut Criterion) {
    let redact = Redact {
        text: Rule::Hash,
        tenant: Rule::Hash,
        state: Rule::Keep,
        headers: Vec::new(),
        fields: Vec::new(),
        key: Key::from_secret("bench"),
    };
    let settings = |dir: &tempfile::TempDir| Settings {
        dir: dir.path().to_owned(),
        mode: Mode::Decisions,
        sample: Sample::ALL,
        errors: false,
        max_size: 64 << 20,
        keep: 1,
        queue: QueueLimits { records: 1024, bytes: 16 << 20 },
        redact: redact.clone(),
        host: "bench".to_owned(),
        limits: PlanLimits { max_wait: Duration::from_secs(1), max_steps: 5 },
    };
    let fleet = fleet(8);
    let one = decision(&fleet);

    let dir = tempfile::tempdir().expect("create a temporary directory");
    let metrics = RecordMetrics::register(&mut Registry::default());
    let (recorder, writer) = Recorder::start(settings(&dir), metrics).expect("start the recorder");
    let entry = || Entry {
        decision: Arc::new(one.clone()),
        fleet: Arc::clone(&fleet),
        chain: None,
        request: None,
    };
    criterion.bench_function("decide whether to record", |bencher| {
        bencher.iter(|| recorder.interest(black_box("0192f0c1e5a87c3d9b0e6a4f2d1c8b7a")));
    });
    criterion.bench_function("record, with a mostly full queue", |bencher| {
        bencher.iter_batched(entry, |entry| recorder.record(entry), BatchSize::SmallInput);
    });
    criterion.bench_function("record, with space in the queue", |bencher| {
        bencher.iter_custom(|times| {
            let mut elapsed = Duration::ZERO;
            for _ in 0..times {
                let entry = entry();
                let started = Instant::now();
                recorder.record(entry);
                elapsed += started.elapsed();
                // Let the writer run.
                #[expect(clippy::disallowed_methods, reason = "paces the benchmark")]
                std::thread::park_timeout(Duration::from_micros(50));
            }
            elapsed
        });
    });
    writer.finish(Duration::from_secs(10));

    criterion.bench_function("serialise a record as JSON", |bencher| {
        let record = Record::Decision(Box::new(DecisionRecord {
            fleet: fleet.stats().collect(),
            ..one.clone()
        }));
        bencher.iter(|| black_box(&record).to_line());
    });
}

criterion_group!(benches, record);
criterion_main!(benches);
