//! Golden cases: requests with a fleet, and what the host has to make of the policy's advice about them. A policy that does
//! not decide as its own cases say is not put into service.
//!
//! One JSON object in a line of `cases.jsonl`:
//!
//! ```json
//! {"name": "code goes to coder",
//!  "config": {},
//!  "state": {"spent:team-a": 5000},
//!  "request": {"endpoint": "chat-completions", "body": {"model": "auto", "messages": []}, "headers": {}, "tenant": null},
//!  "fleet": {"lanes": [{"name": "coder", "models": ["auto"], "state": "ready", "slots": 4}]},
//!  "expect": {"lane": "coder", "fallback": [], "why": "…"}}
//! ```
//!
//! `state` is what the policy finds in its state: numbers are counters. `expect` is partial: only what it names is compared. Lanes are described by the fields of the contract's `lane-info` and
//! `lane-stat`; all but the name may be left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::{
    Decision, Edit, Endpoint, EngineKind, Facts, FleetView, LaneId, LaneInfo, LaneStat, LaneState,
    Merge, Merged, OnConflict, Plan, PlanLimits, Switching, Topology, Trace,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::chain::ask;
use crate::state::State;
use crate::version::{Version, retry_on_timeout};

/// Makes facts of a case's request; the wire belongs to another crate.
pub type FactsOf = dyn Fn(&CaseRequest) -> Result<Facts, String> + Send + Sync;

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
pub(crate) struct Case {
    #[serde(skip)]
    line: usize,
    name: String,
    #[serde(default = "empty_config")]
    pub(crate) config: serde_json::Value,
    #[serde(default)]
    state: BTreeMap<String, serde_json::Value>,
    pub(crate) request: CaseRequest,
    pub(crate) fleet: CaseFleet,
    expect: Expect,
}

/// The lanes of a case.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFleet {
    lanes: Vec<CaseLane>,
}

#[derive(Debug, Clone, Deserialize)]
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

#[derive(Debug, Default, Deserialize)]
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

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExpectReject {
    status: u16,
    code: String,
}

/// Something that a policy decides otherwise than its case says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What: `lane`, `fallback`, `edits`, …
    pub what: &'static str,
    /// What the case says.
    pub expected: String,
    /// What the policy decided.
    pub got: String,
}

/// What came of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// Its line in the file.
    pub line: usize,
    /// Its name.
    pub name: String,
    /// Empty for a case that is as it should be.
    pub differences: Vec<Difference>,
    /// How long the policy took.
    pub took: Duration,
}

impl CaseResult {
    /// The first difference as a sentence.
    fn sentence(&self) -> Option<String> {
        let Difference { what, expected, got } = self.differences.first()?;
        Some(format!(
            "golden case {} (`{}`): expected {what} {expected}, got {got}",
            self.line, self.name
        ))
    }
}

/// Read all cases of `text`, which is what is in `file`.
///
/// # Errors
/// With the line that is none.
pub(crate) fn read(file: &Path, text: &str) -> Result<Vec<Case>, CaseError> {
    let read = |(index, line): (usize, &str)| {
        let line_number = index + 1;
        let case = serde_json::from_str(line).map_err(|error| CaseError {
            file: file.to_owned(),
            what: format!("line {line_number}: {error}"),
        })?;
        Ok(Case { line: line_number, ..case })
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(read).collect()
}

/// Run those cases of `text`, which is what is in `file`, whose names are `wanted`; `version` makes the policy with a case's
/// configuration and state.
///
/// # Errors
/// When a case cannot be read.
pub(crate) fn run(
    file: &Path,
    text: &str,
    wanted: impl Fn(&str) -> bool,
    version: impl Fn(&serde_json::Value, Arc<State>) -> Version,
    facts_of: &FactsOf,
) -> Result<Vec<CaseResult>, CaseError> {
    let result = |case: Case| {
        let fail = |what| CaseError {
            file: file.to_owned(),
            what: format!("line {} (`{}`): {what}", case.line, case.name),
        };
        // A version of its own for each case, and each time: what one leaves behind must not help the next.
        case.state().map_err(fail)?;
        let version = || version(&case.config, case.state().unwrap_or_default());
        let (differences, took) = differences(&case, version, facts_of).map_err(fail)?;
        Ok(CaseResult { line: case.line, name: case.name, differences, took })
    };
    read(file, text)?.into_iter().filter(|case| wanted(&case.name)).map(result).collect()
}

/// The same, where one difference is one too many.
///
/// # Errors
/// With the first case that differs, or cannot be read.
pub(crate) fn prove(
    file: &Path,
    text: &str,
    version: impl Fn(&serde_json::Value, Arc<State>) -> Version,
    facts_of: &FactsOf,
) -> Result<usize, CaseError> {
    let results = run(file, text, |_| true, version, facts_of)?;
    match results.iter().find_map(CaseResult::sentence) {
        Some(what) => Err(CaseError { file: file.to_owned(), what }),
        None => Ok(results.len()),
    }
}

impl Case {
    /// A request with a fleet of which nothing is expected.
    pub(crate) fn of(request: CaseRequest, fleet: CaseFleet) -> Self {
        let (config, expect) = (empty_config(), Expect::default());
        Self {
            line: 0,
            name: String::new(),
            config,
            state: BTreeMap::new(),
            request,
            fleet,
            expect,
        }
    }

    /// The lanes as the policy sees them, or so many lanes like them.
    pub(crate) fn view(&self, lanes: Option<usize>) -> Arc<FleetView> {
        let resized = lanes.map(|lanes| self.fleet.resized(lanes));
        Arc::new(fleet(resized.as_ref().unwrap_or(&self.fleet), self.line as u64))
    }

    /// The state that the case begins with: numbers become counters, texts become values.
    pub(crate) fn state(&self) -> Result<Arc<State>, String> {
        let state = State::default();
        for (key, value) in &self.state {
            let stored = match value {
                serde_json::Value::String(text) => state.put(key.clone(), text.as_bytes(), 0),
                value => match value.as_i64() {
                    Some(number) => state.increment(key.clone(), number, 0).map(|_| ()),
                    None => return Err(format!("state `{key}` must be a whole number or a text")),
                },
            };
            stored.map_err(|error| format!("state `{key}`: {error:?}"))?;
        }
        Ok(Arc::new(state))
    }
}

fn differences(
    case: &Case,
    version: impl Fn() -> Version,
    facts_of: &FactsOf,
) -> Result<(Vec<Difference>, Duration), String> {
    let limits = PlanLimits { max_wait: Duration::MAX, max_steps: usize::MAX };
    let fleet = case.view(None);
    let facts = facts_of(&case.request)?;
    let mut merge = Merge::new(&fleet, facts.request.model());
    let mut took = Duration::ZERO;
    let asked = retry_on_timeout(|| {
        let version = version();
        let begun = Instant::now();
        let advice = ask(&version, &mut facts.clone(), &fleet, &mut Trace::off());
        took = begun.elapsed();
        Ok((version.reference, advice?))
    });
    let (reference, advice) = match asked {
        Ok(advice) => advice,
        Err(error) => {
            let (expected, got) = ("advice".to_owned(), format!("none: {error}"));
            return Ok((vec![Difference { what: "some", expected, got }], took));
        }
    };
    merge.add(&reference, 1000, advice);
    let merged = merge.finish(OnConflict::Refuse);
    let decision = Plan::from_advice(&merged, &fleet, &limits);
    Ok((compare(&case.expect, &merged, &decision, &fleet), took))
}

impl CaseFleet {
    /// So many lanes: the first of these, or these again under other names.
    fn resized(&self, lanes: usize) -> Self {
        let round = |index: usize| index / self.lanes.len().max(1) + 1;
        let numbered = |(index, lane): (usize, &CaseLane)| match round(index) {
            1 => lane.clone(),
            round => CaseLane { name: format!("{}-{round}", lane.name), ..lane.clone() },
        };
        Self { lanes: self.lanes.iter().cycle().take(lanes).enumerate().map(numbered).collect() }
    }
}

fn compare(
    expect: &Expect,
    merged: &Merged,
    decision: &Decision,
    fleet: &FleetView,
) -> Vec<Difference> {
    let (steps, reject, priority) = match decision {
        Decision::Route(plan) => (
            plan.steps.iter().map(|step| fleet.topology.name(step.lane).to_owned()).collect(),
            None,
            plan.priority,
        ),
        Decision::Reject(_, rejection) => (
            Vec::new(),
            Some(ExpectReject { status: rejection.status, code: rejection.code.clone() }),
            0,
        ),
        Decision::NoLane(_) => (Vec::new(), None, 0),
    };
    let lane = match (decision, steps.first()) {
        (_, Some(lane)) => lane.clone(),
        (Decision::NoLane(reason), None) => format!("none: {reason}"),
        (_, None) => {
            let shown = reject.as_ref().map(|reject| format!("{} {}", reject.status, reject.code));
            format!("none: rejected with {}", shown.unwrap_or_default())
        }
    };
    let mut found = Vec::new();
    let mut plain = |what, expected: Option<&String>, got: &str| {
        if let Some(expected) = expected.filter(|expected| *expected != got) {
            found.push(Difference { what, expected: expected.clone(), got: got.to_owned() });
        }
    };
    plain("lane", expect.lane.as_ref(), &lane);
    plain("why", expect.why.as_ref(), &merged.why().unwrap_or_default());
    let fallback: Vec<String> = steps.iter().skip(1).cloned().collect();
    found.extend(differs("fallback", expect.fallback.as_ref(), &fallback));
    found.extend(differs("edits", expect.edits.as_ref(), &merged.edits));
    found.extend(differs("priority", expect.priority.as_ref(), &priority));
    found.extend(differs("switching", expect.switching.as_ref(), &merged.switching));
    if expect.reject.is_some() && expect.reject != reject {
        found.extend(differs("reject", Some(&expect.reject), &reject));
    }
    found
}

/// As JSON, because that is how cases are written.
fn differs<T: PartialEq + Serialize>(
    what: &'static str,
    expected: Option<&T>,
    got: &T,
) -> Option<Difference> {
    let shown = |value: &T| serde_json::to_string(value).unwrap_or_default();
    let expected = expected.filter(|expected| *expected != got)?;
    Some(Difference { what, expected: shown(expected), got: shown(got) })
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
