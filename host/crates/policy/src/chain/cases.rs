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

pub(crate) mod expect;
pub(crate) mod fleet;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::{
    Allowance, Endpoint, Facts, FleetView, Merge, OnConflict, Plan, PlanLimits, Trace,
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::chain::cases::expect::{Expect, compare};
use crate::chain::cases::fleet::{CaseFleet, fleet};
use crate::chain::evaluate::evaluate;
use crate::contract::state::State;
use crate::version::Version;
use crate::version::call_error::retry_on_timeout;
use crate::version::case_error::{CaseError, CaseStateError, Difference, FactsError};
use pointsman_spec::OnError;

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
    /// The name of the key.
    #[serde(default)]
    pub key_name: Option<String>,
    /// The group of the key.
    #[serde(default)]
    pub key_group: Option<String>,
    /// What the limits of the key leave.
    #[serde(default)]
    pub allowance: Allowance,
    /// The wall clock in milliseconds since the Unix epoch.
    #[serde(default)]
    pub now_ms: u64,
    /// The seed of the decision.
    #[serde(default)]
    pub seed: u64,
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
    let endpoint = facts.request.info().endpoint;
    let mut merge = Merge::new(&fleet, facts.request.model(), endpoint);
    let mut took = Duration::ZERO;
    let evaluated = retry_on_timeout(|| {
        let version = version();
        let start = Instant::now();
        let mut facts = facts.clone();
        // An invalid filter fails a case, whatever hosts make of it.
        let (on_error, trace) = (OnError::Refuse, &mut Trace::off());
        let advice = evaluate(&version, &mut facts, &fleet, on_error, trace).result;
        took = start.elapsed();
        Ok((version.reference().clone(), advice?, facts.request.info()))
    });
    let (reference, advice, info) = match evaluated {
        Ok(advice) => advice,
        Err(error) => {
            let (expected, got) = ("some".to_owned(), format!("none: {error}"));
            return (vec![Difference { what: "advice", expected, got }], took);
        }
    };
    merge.add(&reference, 1000, advice);
    merge.set_need(info.into());
    let merged = merge.finish(OnConflict::Refuse);
    let decision = Plan::from_advice(&merged, &fleet, &limits);
    (compare(&case.expect, &merged, &decision, &fleet), took)
}

fn default_endpoint() -> Endpoint {
    Endpoint::ChatCompletions
}

fn empty_config() -> serde_json::Value {
    serde_json::json!({})
}
