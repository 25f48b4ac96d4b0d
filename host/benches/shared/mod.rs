//! Requests, fleets, and policies for benchmarks. Policies are loaded as in a host.
#![allow(dead_code, reason = "each benchmark uses only some of the functions")]
#![expect(clippy::unwrap_used, reason = "a failed setup has to end the benchmark")]

pub(crate) mod calls;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Endpoint, EngineKind, Facts, FleetView, LaneId, LaneInfo, LaneState, RequestView, Topology,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::{
    CaseRequest, ChainSpec, FactsError, Policies, PolicyMetrics, PolicySpec, Runtime,
    RuntimeSettings,
};
use prometheus_client::registry::Registry;

/// Returns the facts that a policy receives about the request of a golden case.
pub(crate) fn facts_from_case(case: &CaseRequest) -> Result<Facts, FactsError> {
    let headers = case
        .headers
        .iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    let tenant = case.tenant.clone();
    let head = Head { id: "case".into(), tenant, headers, ..Head::default() };
    let request = Request::parse(case.endpoint, case.body.get().to_owned().into(), head)?;
    let (now_ms, seed) = (case.now_ms, case.seed);
    Ok(arrived(Arc::new(request), now_ms, seed))
}

/// Returns the facts of a chat request for `model` with a prompt of about `prompt_bytes` bytes.
pub(crate) fn facts(model: &str, prompt_bytes: usize) -> Facts {
    let words = "some words of a prompt ";
    let prompt = words.repeat(prompt_bytes / words.len());
    let body =
        serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": prompt }] });
    let request =
        Request::parse(Endpoint::ChatCompletions, body.to_string().into(), Head::default())
            .unwrap();
    arrived(Arc::new(request), 1, 1)
}

/// Returns a view of `lanes` ready, idle lanes. The first five have the names of Cortex's lanes,
/// which its policy looks up.
pub(crate) fn fleet(lanes: usize) -> Arc<FleetView> {
    let names = ["orchestrator", "coder", "fast_rag", "super_reader", "governance"];
    let info = |index: usize| LaneInfo {
        id: LaneId(0),
        name: names.get(index).map_or_else(|| format!("lane-{index}"), |name| (*name).to_owned()),
        engine: EngineKind::Vllm,
        models: vec!["auto".into(), names.get(index).copied().unwrap_or("other").into()],
        names: Default::default(),
        labels: Vec::new(),
        max_context: 32_768,
        endpoints: pointsman_domain::EndpointSet::all(),
        slots: 4,
        group: 0,
        cost_milli: 0,
        is_peer: false,
    };
    let topology = Topology::new(lanes as u64, (0..lanes).map(info).collect());
    Arc::new(FleetView::idle(Arc::new(topology), LaneState::Ready))
}

/// Returns the folder of a built-in policy.
pub(crate) fn policy_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name)
}

/// Returns policies with an empty chain.
pub(crate) fn policies(settings: RuntimeSettings) -> Arc<Policies> {
    let runtime = Runtime::new(settings).unwrap();
    let metrics = PolicyMetrics::register(&mut Registry::default());
    Policies::new(&runtime, &metrics, Box::new(facts_from_case)).unwrap()
}

/// Loads a chain of these policies.
///
/// # Panics
/// If one of them is not active afterwards.
pub(crate) fn load(policies: &Policies, specs: Vec<PolicySpec>) {
    policies.apply(ChainSpec { policies: specs, keep: 3, ..ChainSpec::default() });
    for policy in policies.status() {
        assert_eq!(policy.state, "active", "{policy:?}");
    }
}

/// Returns the facts of a request that has just arrived.
pub(crate) fn arrived(request: Arc<dyn RequestView>, now_ms: u64, seed: u64) -> Facts {
    let (time_left, lanes_left) = (Some(Duration::from_secs(60)), None);
    Facts { request, now_ms, seed, age: Duration::ZERO, attempt: 0, time_left, lanes_left }
}
