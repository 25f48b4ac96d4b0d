//! What the benchmarks of policies have in common: requests, fleets, and policies loaded as a host does.
#![allow(dead_code, reason = "each benchmark uses a part of it")]
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up has to fail")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Endpoint, EngineKind, Facts, FleetView, LaneId, LaneInfo, LaneState, Topology,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::{
    CaseRequest, ChainSpec, Policies, PolicyMetrics, PolicySpec, Runtime, RuntimeSettings,
};
use prometheus_client::registry::Registry;

/// What a policy gets to know of a case's request.
pub(crate) fn facts_of(case: &CaseRequest) -> Result<Facts, pointsman_policy::FactsError> {
    let headers = case
        .headers
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    let head = Head { id: "case".into(), tenant: case.tenant.clone(), headers };
    let request = Request::parse(case.endpoint, case.body.get().to_owned().into(), head)?;
    let (now_ms, seed) = (case.now_ms, case.seed);
    Ok(Facts { request: Arc::new(request), now_ms, seed, age: Duration::ZERO, attempt: 0 })
}

/// A chat request for `model` with a prompt of about so many bytes.
pub(crate) fn facts(model: &str, prompt_bytes: usize) -> Facts {
    let words = "some words of a prompt ";
    let prompt = words.repeat(prompt_bytes / words.len());
    let body =
        serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": prompt }] });
    let request =
        Request::parse(Endpoint::ChatCompletions, body.to_string().into(), Head::default())
            .unwrap();
    Facts { request: Arc::new(request), now_ms: 1, seed: 1, age: Duration::ZERO, attempt: 0 }
}

/// So many lanes, ready and idle; the first ones have the names of Cortex's.
pub(crate) fn fleet(lanes: usize) -> Arc<FleetView> {
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

/// A folder of the tree's own policies.
pub(crate) fn policy_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name)
}

/// Policies, and nothing loaded yet.
pub(crate) fn policies(settings: RuntimeSettings) -> Arc<Policies> {
    let runtime = Runtime::new(settings).unwrap();
    let metrics = PolicyMetrics::register(&mut Registry::default());
    Policies::new(&runtime, &metrics, Box::new(facts_of)).unwrap()
}

/// A chain of these, all in service.
pub(crate) fn load(policies: &Policies, specs: Vec<PolicySpec>) {
    policies.apply(ChainSpec { policies: specs, keep: 3, ..ChainSpec::default() });
    for policy in policies.status() {
        assert_eq!(policy.state, "active", "{policy:?}");
    }
}
