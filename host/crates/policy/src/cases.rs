//! Golden cases: requests with a fleet, and the decisions that are expected of the policy. A
//! version that fails a case is not activated.
//!
//! Each line of `cases.jsonl` is a JSON object:
//!
//! ```json
//! {"name": "code goes to coder",
//!  "config": {},
//!  "state": {"spent:team-a": 5000},
//!  "request": {"endpoint": "chat-completions", "body": {"model": "auto", "messages": []},
//!              "headers": {}, "tenant": null},
//!  "fleet": {"lanes": [{"name": "coder", "models": ["auto"], "state": "ready", "slots": 4}]},
//!  "expect": {"lane": "coder", "fallback": [], "why": "…"}}
//! ```
//!
//! `state` is the initial state of the policy: numbers are counters. `expect` is partial: only the
//! fields it has are compared. Lanes are described by the fields of the contract's `lane-info` and
//! `lane-stat`; all except the name are optional.

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

use crate::chain::evaluate;
use crate::state::State;
use crate::version::{Version, retry_on_timeout};

/// An error of parsing the request of a case.
pub type FactsError = Box<dyn std::error::Error + Send + Sync>;

/// Parses the request of a case into facts; the parser belongs to another crate.
pub type FactsOf = dyn Fn(&CaseRequest) -> Result<Facts, FactsError> + Send + Sync;

/// The request of a case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CaseRequest {
    /// The endpoint.
    #[serde(default = "default_endpoint")]
    pub endpoint: Endpoint,
    /// The body, as a client would send it.
    pub body: Box<RawValue>,
    /// The headers.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The tenant.
    #[serde(default)]
    pub tenant: Option<String>,
    /// The wall clock in milliseconds since the Unix epoch.
    #[serde(default)]
    pub now_ms: u64,
    /// The seed of the decision.
    #[serde(default)]
    pub seed: u64,
}

/// A golden case that is invalid or fails.
#[derive(Debug, thiserror::Error)]
pub enum CaseError {
    /// A line is not a case.
    #[error("{}:{line}: invalid case: {error}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
        /// The error.
        error: serde_json::Error,
    },
    /// The state of a case is invalid.
    #[error("{}:{line}: case `{name}`: {error}", file.display())]
    State {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
        /// The name of the case.
        name: String,
        /// The error.
        error: CaseStateError,
    },
    /// The request of a case is invalid.
    #[error("{}:{line}: case `{name}`: invalid request: {error}", file.display())]
    Request {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
        /// The name of the case.
        name: String,
        /// The error.
        error: FactsError,
    },
    /// The policy decided differently.
    #[error(
        "{}:{line}: case `{name}` failed: {}: expected {}, found {}",
        file.display(), difference.what, difference.expected, difference.got
    )]
    Failed {
        /// The file.
        file: PathBuf,
        /// The line.
        line: usize,
        /// The name of the case.
        name: String,
        /// The first difference.
        difference: Difference,
    },
}

/// An error in the state of a case.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CaseStateError {
    /// A value is neither an integer nor a string.
    #[error("invalid state `{key}`: expected an integer or a string")]
    Type {
        /// The key.
        key: String,
    },
    /// A key or a value is too long.
    #[error("invalid state `{key}`: key or value too long")]
    TooLong {
        /// The key.
        key: String,
    },
}

impl CaseError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Syntax { .. } | Self::State { .. } | Self::Request { .. } => "case_invalid",
            Self::Failed { .. } => "case_failed",
        }
    }
}

/// A golden case.
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
    #[serde(default = "default_slots")]
    slots: u32,
    #[serde(default)]
    group: u32,
    #[serde(default)]
    cost_milli: u32,
    #[serde(default = "default_state")]
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

/// A difference between the decision and a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The part of the decision: `lane`, `fallback`, `edits`, …
    pub what: &'static str,
    /// The expected value.
    pub expected: String,
    /// The value that the policy decided.
    pub got: String,
}

/// The result of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// The line in the file.
    pub line: usize,
    /// The name.
    pub name: String,
    /// The differences; empty for a case that passed.
    pub differences: Vec<Difference>,
    /// The duration of the call.
    pub took: Duration,
}

/// Parses the cases in `text`, the content of `file`.
///
/// # Errors
/// If a line is not a case.
pub(crate) fn read(file: &Path, text: &str) -> Result<Vec<Case>, CaseError> {
    let read = |(index, line): (usize, &str)| {
        let number = index + 1;
        match serde_json::from_str(line) {
            Ok(case) => Ok(Case { line: number, ..case }),
            Err(error) => Err(CaseError::Syntax { file: file.to_owned(), line: number, error }),
        }
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(read).collect()
}

/// Runs the cases in `text`, the content of `file`, whose names are `wanted`. `version` creates a
/// version with the configuration and the state of a case.
///
/// # Errors
/// If a case is invalid.
pub(crate) fn run(
    file: &Path,
    text: &str,
    wanted: impl Fn(&str) -> bool,
    version: impl Fn(&serde_json::Value, Arc<State>) -> Version,
    facts_of: &FactsOf,
) -> Result<Vec<CaseResult>, CaseError> {
    let result = |case: Case| {
        // Validated once, so that the closure below cannot fail.
        case.checked_state(file)?;
        // A new version for each case and each attempt: they must not affect each other.
        let version = || version(&case.config, case.state().unwrap_or_default());
        let facts = case.facts(file, facts_of)?;
        let (differences, took) = differences(&case, &facts, version);
        Ok(CaseResult { line: case.line, name: case.name, differences, took })
    };
    read(file, text)?.into_iter().filter(|case| wanted(&case.name)).map(result).collect()
}

/// Runs all cases in `text`, the content of `file`, and returns their number.
///
/// # Errors
/// If a case is invalid, or fails; the error is about the first one.
pub(crate) fn validate(
    file: &Path,
    text: &str,
    version: impl Fn(&serde_json::Value, Arc<State>) -> Version,
    facts_of: &FactsOf,
) -> Result<usize, CaseError> {
    let results = run(file, text, |_| true, version, facts_of)?;
    let count = results.len();
    for CaseResult { line, name, differences, .. } in results {
        if let Some(difference) = differences.into_iter().next() {
            return Err(CaseError::Failed { file: file.to_owned(), line, name, difference });
        }
    }
    Ok(count)
}

impl Case {
    /// Creates a case without expectations.
    pub(crate) fn new(request: CaseRequest, fleet: CaseFleet) -> Self {
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

    /// Returns the fleet as the policy sees it, resized to `lanes` lanes if given.
    pub(crate) fn view(&self, lanes: Option<usize>) -> Arc<FleetView> {
        let resized = lanes.map(|lanes| self.fleet.resized(lanes));
        Arc::new(fleet(resized.as_ref().unwrap_or(&self.fleet), self.line as u64))
    }

    /// Creates the initial state: integers become counters, strings become values.
    pub(crate) fn state(&self) -> Result<Arc<State>, CaseStateError> {
        let state = State::default();
        for (key, value) in &self.state {
            let stored = match value {
                serde_json::Value::String(text) => state.put(key.clone(), text.as_bytes(), 0),
                value => match value.as_i64() {
                    Some(number) => state.increment(key.clone(), number, 0).map(|_| ()),
                    None => return Err(CaseStateError::Type { key: key.clone() }),
                },
            };
            // A fresh state has no values that an increment could collide with, so only lengths can
            // be wrong.
            stored.map_err(|_| CaseStateError::TooLong { key: key.clone() })?;
        }
        Ok(Arc::new(state))
    }

    /// Creates the initial state like [`Case::state`], with the position in `file` in errors.
    pub(crate) fn checked_state(&self, file: &Path) -> Result<Arc<State>, CaseError> {
        self.state().map_err(|error| CaseError::State {
            file: file.to_owned(),
            line: self.line,
            name: self.name.clone(),
            error,
        })
    }

    /// Parses the request, with the position in `file` in errors.
    pub(crate) fn facts(&self, file: &Path, facts_of: &FactsOf) -> Result<Facts, CaseError> {
        facts_of(&self.request).map_err(|error| CaseError::Request {
            file: file.to_owned(),
            line: self.line,
            name: self.name.clone(),
            error,
        })
    }
}

/// Calls the policy about a case, and compares the decision. Also returns the duration of the last
/// attempt.
fn differences(
    case: &Case,
    facts: &Facts,
    version: impl Fn() -> Version,
) -> (Vec<Difference>, Duration) {
    let limits = PlanLimits { max_wait: Duration::MAX, max_steps: usize::MAX };
    let fleet = case.view(None);
    let mut merge = Merge::new(&fleet, facts.request.model());
    let mut took = Duration::ZERO;
    let evaluated = retry_on_timeout(|| {
        let version = version();
        let start = Instant::now();
        let advice = evaluate(&version, &mut facts.clone(), &fleet, &mut Trace::off());
        took = start.elapsed();
        Ok((version.reference, advice?))
    });
    let (reference, advice) = match evaluated {
        Ok(advice) => advice,
        Err(error) => {
            let (expected, got) = ("some".to_owned(), format!("none: {error}"));
            return (vec![Difference { what: "advice", expected, got }], took);
        }
    };
    merge.add(&reference, 1000, advice);
    let merged = merge.finish(OnConflict::Refuse);
    let decision = Plan::from_advice(&merged, &fleet, &limits);
    (compare(&case.expect, &merged, &decision, &fleet), took)
}

impl CaseFleet {
    /// Returns a fleet of `lanes` lanes: the first of these, or copies of them under other names.
    fn resized(&self, lanes: usize) -> Self {
        let copy = |index: usize| index / self.lanes.len().max(1) + 1;
        let numbered = |(index, lane): (usize, &CaseLane)| match copy(index) {
            1 => lane.clone(),
            copy => CaseLane { name: format!("{}-{copy}", lane.name), ..lane.clone() },
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
            let rejection =
                reject.as_ref().map(|reject| format!("{} {}", reject.status, reject.code));
            format!("none: rejected with {}", rejection.unwrap_or_default())
        }
    };
    let mut found = Vec::new();
    let mut compare_text = |what, expected: Option<&String>, got: &str| {
        if let Some(expected) = expected.filter(|expected| *expected != got) {
            found.push(Difference { what, expected: expected.clone(), got: got.to_owned() });
        }
    };
    compare_text("lane", expect.lane.as_ref(), &lane);
    compare_text("why", expect.why.as_ref(), &merged.why().unwrap_or_default());
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

/// Compares two values, and returns a difference as JSON, the format of cases.
fn differs<T: PartialEq + Serialize>(
    what: &'static str,
    expected: Option<&T>,
    got: &T,
) -> Option<Difference> {
    let json = |value: &T| serde_json::to_string(value).unwrap_or_default();
    let expected = expected.filter(|expected| *expected != got)?;
    Some(Difference { what, expected: json(expected), got: json(got) })
}

/// Creates the fleet of a case. Each case has its own topology generation, because instances may
/// cache data of a topology.
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

fn default_endpoint() -> Endpoint {
    Endpoint::ChatCompletions
}

fn empty_config() -> serde_json::Value {
    serde_json::json!({})
}

fn default_slots() -> u32 {
    4
}

fn default_state() -> LaneState {
    LaneState::Ready
}
