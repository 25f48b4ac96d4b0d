//! What a policy costs: one warm call of the cortex policy, from facts to merged advice.
#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has to fail")]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use pointsman_domain::{
    Endpoint, EngineKind, Facts, FleetView, LaneId, LaneInfo, LaneState, Topology, Trace,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::{
    CaseRequest, ChainSpec, Policies, PolicyMetrics, PolicySpec, Runtime, RuntimeSettings,
};
use prometheus_client::registry::Registry;

fn facts(model: &str) -> Facts {
    let prompt = "some words of a prompt ".repeat(90);
    let body = serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": prompt }] });
    let request =
        Request::parse(Endpoint::ChatCompletions, body.to_string().into(), Head::default()).unwrap();
    Facts { request: Arc::new(request), now_ms: 1, seed: 1, age: Duration::ZERO, attempt: 0 }
}

fn facts_of(case: &CaseRequest) -> Result<Facts, String> {
    let headers =
        case.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    let head = Head { id: "case".into(), tenant: None, headers };
    let request = Request::parse(case.endpoint, case.body.get().to_owned().into(), head)
        .map_err(|error| error.to_string())?;
    Ok(Facts { request: Arc::new(request), now_ms: 1, seed: 1, age: Duration::ZERO, attempt: 0 })
}

fn fleet(lanes: usize) -> Arc<FleetView> {
    let names = ["orchestrator", "coder", "fast_rag", "super_reader", "governance"];
    let info = |index: usize| LaneInfo {
        id: LaneId(0),
        name: names.get(index).map_or_else(|| format!("lane-{index}"), |name| (*name).to_owned()),
        engine: EngineKind::Vllm,
        models: vec!["auto".into(), names.get(index).copied().unwrap_or("other").into()],
        labels: Vec::new(),
        max_context: 32_768,
        slots: 4,
        group: 0,
        cost_milli: 0,
    };
    let topology = Topology::new(lanes as u64, (0..lanes).map(info).collect());
    Arc::new(FleetView::idle(Arc::new(topology), LaneState::Ready))
}

fn advise(criterion: &mut Criterion) {
    let settings = RuntimeSettings { warm_instances: 1, ..RuntimeSettings::default() };
    let runtime = Runtime::new(settings).unwrap();
    let spec = PolicySpec::new("cortex", Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/cortex"));
    let metrics = PolicyMetrics::register(&mut Registry::default());
    let policies = Policies::new(&runtime, &metrics, Box::new(facts_of)).unwrap();
    policies.apply(ChainSpec { policies: vec![spec], ..ChainSpec::default() });
    assert_eq!(policies.status()[0].state, "active", "{:?}", policies.status());
    let chain = policies.slot().load_full();
    for (name, model, lanes) in [
        ("advise, model names a lane, 8 lanes", "coder", 8),
        ("advise, 2 KB prompt searched, 1 lane", "auto", 1),
        ("advise, 2 KB prompt searched, 8 lanes", "auto", 8),
        ("advise, 2 KB prompt searched, 64 lanes", "auto", 64),
    ] {
        let (facts, fleet) = (facts(model), fleet(lanes));
        assert_eq!(chain.advise(&facts, &fleet, &mut Trace::off()).by.len(), 1);
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| chain.advise(black_box(&facts), &fleet, &mut Trace::off()))
        });
    }
    let (facts, fleet) = (facts("auto"), fleet(8));
    criterion.bench_function("advise, 2 KB prompt searched, 8 lanes, recorded", |bencher| {
        bencher.iter(|| {
            let mut trace = Trace::on();
            (chain.advise(black_box(&facts), &fleet, &mut trace), trace.into_consulted())
        });
    });
}

criterion_group!(benches, advise);
criterion_main!(benches);
