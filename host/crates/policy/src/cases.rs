//! Golden cases: requests with a fleet, and what the host has to make of the policy's advice about them. A policy that does
//! not decide as its own cases say is not put into service.
//!
//! One JSON object in a line of `cases.jsonl`:
//!
//! ```json
//! {"name": "code goes to coder",
//!  "config": {},
//!  "request": {"endpoint": "chat-completions", "body": {"model": "auto", "messages": []}, "headers": {}, "tenant": null},
//!  "fleet": {"lanes": [{"name": "coder", "models": ["auto"], "state": "ready", "slots": 4}]},
//!  "expect": {"lane": "coder", "fallback": [], "why": "…"}}
//! ```
//!
//! `expect` is partial: only what it names is compared. Lanes are described by the fields of the contract's `lane-info` and
//! `lane-stat`; all but the name may be left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pointsman_domain::{
    Decision, Edit, Endpoint, EngineKind, Facts, FleetView, LaneId, LaneInfo, LaneStat, LaneState, Merge,
    OnConflict, Plan, PlanLimits, Switching, Topology, Trace,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::chain::consult;
use crate::policy::Policy;

/// Makes facts of a case's request; the wire belongs to another crate.
pub type FactsOf<'a> = dyn Fn(&CaseRequest) -> Result<Facts, String> + 'a;

/// The request of a case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CaseRequest {
    /// The endpoint.
    #[serde(default = "chat")]
    pub endpoint: Endpoint,
    /// The body, as it would come.
    pub body: Box<RawValue>,
    /// The headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The tenant.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Wall clock in milliseconds since the Unix epoch.
    #[serde(default)]
    pub now_ms: u64,
    /// Seed.
    #[serde(default)]
    pub seed: u64,
}

/// A case that failed, or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", file.display())]
pub struct CaseError {
    file: PathBuf,
    what: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Case {
    name: String,
    #[serde(default = "empty_config")]
    config: serde_json::Value,
    request: CaseRequest,
    fleet: CaseFleet,
    expect: Expect,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseFleet {
    lanes: Vec<CaseLane>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CaseLane {
    name: String,
    models: Option<Vec<String>>,
    #[serde(default)]
    engine: EngineKind,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    max_context: u32,
    #[serde(default = "four")]
    slots: u32,
    #[serde(default)]
    group: u32,
    #[serde(default)]
    cost_milli: u32,
    #[serde(default = "ready")]
    state: LaneState,
    slots_free: Option<u32>,
    #[serde(default)]
    running: u32,
    #[serde(default)]
    waiting: u32,
    #[serde(default)]
    queued: u32,
    #[serde(default)]
    kv_used: u16,
    #[serde(default)]
    errors: u16,
    #[serde(default)]
    ttft_p50_ms: u32,
    #[serde(default)]
    ttft_p99_ms: u32,
    #[serde(default)]
    decode_tps: u32,
    #[serde(default)]
    est_wait_ms: u32,
    #[serde(default)]
    ready_in_ms: u32,
    #[serde(default)]
    displaces: u32,
    #[serde(default)]
    cached_tokens: u32,
    #[serde(default)]
    stale_ms: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Expect {
    lane: Option<String>,
    fallback: Option<Vec<String>>,
    edits: Option<Vec<Edit>>,
    reject: Option<ExpectReject>,
    priority: Option<i32>,
    switching: Option<Switching>,
    why: Option<String>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectReject {
    status: u16,
    code: String,
}

/// Run all cases of a file; `with_config` makes the policy with a case's configuration.
pub(crate) fn run(
    file: &Path,
    with_config: impl Fn(&serde_json::Value) -> Policy,
    facts_of: &FactsOf<'_>,
) -> Result<usize, CaseError> {
    let fail = |what: String| CaseError { file: file.to_owned(), what };
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        // A policy need not have cases to be loaded; the tests of the tree want them of ours.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(fail(format!("cannot be read: {error}"))),
    };
    let mut last: Option<(serde_json::Value, Policy)> = None;
    let mut count = 0;
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = index + 1;
        let case: Case =
            serde_json::from_str(line).map_err(|error| fail(format!("line {number}: {error}")))?;
        let policy = match last.take() {
            Some((config, policy)) if config == case.config => policy,
            _ => with_config(&case.config),
        };
        check(&case, number as u64, &policy, facts_of)
            .map_err(|what| fail(format!("golden case {number} (`{}`): {what}", case.name)))?;
        last = Some((case.config, policy));
        count += 1;
    }
    Ok(count)
}

fn check(case: &Case, number: u64, policy: &Policy, facts_of: &FactsOf<'_>) -> Result<(), String> {
    let limits = PlanLimits { max_wait: std::time::Duration::MAX, max_steps: usize::MAX };
    let fleet = Arc::new(fleet(&case.fleet, number));
    let mut facts = facts_of(&case.request)?;
    let mut merge = Merge::new(&fleet, facts.request.model());
    consult(policy, &mut facts, &fleet, &mut merge, &mut Trace::off()).map_err(|error| error.to_string())?;
    let merged = merge.finish(OnConflict::Refuse);
    let decision = Plan::from_advice(&merged, &fleet, &limits);

    let expect = &case.expect;
    let (steps, reject, priority) = match &decision {
        Decision::Route(plan) => (
            plan.steps.iter().map(|step| fleet.topology.name(step.lane).to_owned()).collect(),
            None,
            plan.priority,
        ),
        Decision::Reject(_, rejection) => {
            (Vec::new(), Some(ExpectReject { status: rejection.status, code: rejection.code.clone() }), 0)
        }
        Decision::NoLane(reason) if expect.lane.is_some() => {
            return Err(format!("expected a lane, got none: {reason}"));
        }
        Decision::NoLane(_) => (Vec::new(), None, 0),
    };
    if expect.reject.is_some() && reject != expect.reject {
        return Err(format!("expected {:?}, got {reject:?}", expect.reject));
    }
    if let (Some(lane), Some(reject)) = (&expect.lane, &reject) {
        return Err(format!("expected lane {lane}, got {reject:?}"));
    }
    same("lane", expect.lane.as_ref(), steps.first().unwrap_or(&String::new()))?;
    let fallback: Vec<String> = steps.iter().skip(1).cloned().collect();
    same("fallback", expect.fallback.as_ref(), &fallback)?;
    same("edits", expect.edits.as_ref(), &merged.edits)?;
    same("priority", expect.priority.as_ref(), &priority)?;
    same("switching", expect.switching.as_ref(), &merged.switching)?;
    same("why", expect.why.as_ref(), &merged.why().unwrap_or_default())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, expected: Option<&T>, got: &T) -> Result<(), String> {
    match expected {
        Some(expected) if expected != got => Err(format!("expected {what} {expected:?}, got {got:?}")),
        _ => Ok(()),
    }
}

/// The fleet of a case. Each case is a topology of its own, as instances may keep what they know of one.
fn fleet(case: &CaseFleet, generation: u64) -> FleetView {
    let info = |lane: &CaseLane| LaneInfo {
        id: LaneId(0),
        name: lane.name.clone(),
        engine: lane.engine,
        models: lane.models.clone().unwrap_or_else(|| vec![lane.name.clone()]),
        labels: lane.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        max_context: lane.max_context,
        slots: lane.slots,
        group: lane.group,
        cost_milli: lane.cost_milli,
    };
    let topology = Topology::new(generation, case.lanes.iter().map(info).collect());
    let stat = |(info, lane): (&LaneInfo, &CaseLane)| LaneStat {
        id: info.id,
        state: lane.state,
        running: lane.running,
        waiting: lane.waiting,
        queued: lane.queued,
        slots_free: lane.slots_free.unwrap_or(if lane.state.serving() { lane.slots } else { 0 }),
        kv_used: lane.kv_used,
        errors: lane.errors,
        ttft_p50_ms: lane.ttft_p50_ms,
        ttft_p99_ms: lane.ttft_p99_ms,
        decode_tps: lane.decode_tps,
        est_wait_ms: lane.est_wait_ms,
        ready_in_ms: lane.ready_in_ms,
        displaces: lane.displaces,
        cached_tokens: lane.cached_tokens,
        stale_ms: lane.stale_ms,
    };
    let stats = topology.lanes().iter().zip(&case.lanes).map(stat).collect();
    FleetView { topology: Arc::new(topology), stats }
}

fn chat() -> Endpoint {
    Endpoint::ChatCompletions
}

fn empty_config() -> serde_json::Value {
    serde_json::json!({})
}

fn four() -> u32 {
    4
}

fn ready() -> LaneState {
    LaneState::Ready
}
