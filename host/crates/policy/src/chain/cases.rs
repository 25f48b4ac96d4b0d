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
//! `hook` is the hook that is called, `on-request` by default: `on-failure` gets a `failure`,
//! `on-complete` and `on-outcome` have `outcomes`. `state` is the initial state of the policy:
//! numbers are counters. `expect` is partial: only the fields it has are compared. Lanes are
//! described by the fields of the contract's `lane-info` and `lane-stat`; all except the name are
//! optional.

pub(crate) mod expect;
pub(crate) mod facts;
pub(crate) mod fleet;
mod hooks;
mod outcomes;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{Allowance, Endpoint, Facts, FleetView, Read};
use pointsman_spec::Hook;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::chain::cases::expect::{Expect, compare};
use crate::chain::cases::facts::CaseFacts;
use crate::chain::cases::fleet::{CaseFleet, fleet};
use crate::chain::cases::hooks::{CaseCall, CaseFailure, Inputs};
use crate::chain::cases::outcomes::CaseOutcome;
use crate::contract::captured_log::LogLine;
use crate::contract::state::State;
use crate::version::Version;
use crate::version::case_error::{
    CaseError, CaseInputError, CaseStateError, Difference, FactsError,
};

/// Parses the request of a case into facts; the parser belongs to another crate.
pub type FactsOf = dyn Fn(&CaseRequest) -> Result<Facts, FactsError> + Send + Sync;

/// The request of a case.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CaseRequest {
    /// The endpoint.
    #[serde(default = "default_endpoint")]
    #[schemars(with = "String")]
    pub endpoint: Endpoint,
    /// The body, as a client would send it.
    #[schemars(with = "serde_json::Map<String, serde_json::Value>")]
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
    #[schemars(with = "serde_json::Value")]
    pub allowance: Allowance,
    /// The wall clock in milliseconds since the Unix epoch.
    #[serde(default)]
    pub now_ms: u64,
    /// The seed of the decision.
    #[serde(default)]
    pub seed: u64,
    /// Facts that replace those of the body.
    #[serde(default)]
    pub facts: CaseFacts,
}

/// A golden case.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Case {
    #[serde(skip)]
    line: usize,
    name: String,
    #[serde(default = "empty_config")]
    pub(crate) config: serde_json::Value,
    #[serde(default)]
    state: BTreeMap<String, serde_json::Value>,
    /// The hook that is called.
    #[serde(default)]
    hook: Hook,
    /// Only for hooks about a request.
    pub(crate) request: Option<CaseRequest>,
    pub(crate) fleet: CaseFleet,
    /// Only for `on-failure`.
    failure: Option<CaseFailure>,
    /// Only for hooks about a request: the lanes that the filters of earlier policies leave.
    lanes_left: Option<Vec<String>>,
    /// Only for `on-complete` and `on-outcome`.
    #[serde(default)]
    outcomes: Vec<CaseOutcome>,
    /// The wall clock of the hooks that are not about a request.
    #[serde(default)]
    now_ms: u64,
    /// The seed of `on-tick`.
    #[serde(default)]
    seed: u64,
    expect: Expect,
}

/// The result of a case.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CaseResult {
    /// The line in the file.
    pub line: usize,
    /// The name.
    pub name: String,
    /// The hook that was called, such as `on-request`.
    pub hook: &'static str,
    /// The differences; empty for a case that passed.
    pub differences: Vec<Difference>,
    /// The duration of the call.
    pub took: Duration,
    /// Parts of the advice that the host dropped, each as `KIND: REASON`.
    pub dropped: Vec<String>,
    /// Log lines of the policy, unless they went to the log of this process.
    pub log: Vec<LogLine>,
    /// What an instrumented policy reported of the code that it executed.
    pub marks: Vec<String>,
    /// What the policy read and returned.
    pub trace: CaseTrace,
}

/// What a policy read, and what it returned, in a case.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CaseTrace {
    /// Names of the lanes, by id.
    pub lanes: Vec<String>,
    /// Host calls with their results, in order.
    #[serde(rename = "host-calls")]
    pub reads: Vec<Read>,
    /// What the policy returned, without what was dropped; `{"error": …}` if the call failed.
    pub returned: serde_json::Value,
    /// What came of it, in the form of `expect`; `null` if the call failed.
    pub decided: serde_json::Value,
}

/// Returns the JSON Schema of a golden case, which is one line of `cases.jsonl`, of draft 7.
pub fn case_schema() -> serde_json::Value {
    SchemaSettings::draft07().into_generator().into_root_schema_for::<Case>().to_value()
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
    let run = |case: Case| {
        // Validated once, so that the closure below cannot fail.
        case.checked_state(file)?;
        let fleet = case.view(None);
        let inputs =
            case.inputs(&fleet, facts_of).map_err(|error| case.input_error(file, error))?;
        // A new version for each case and each attempt: they must not affect each other.
        let version = || version(&case.config, case.state().unwrap_or_default());
        Ok(result(&case, &inputs, &fleet, version))
    };
    read(file, text)?.into_iter().filter(|case| wanted(&case.name)).map(run).collect()
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
            hook: Hook::Request,
            request: Some(request),
            fleet,
            failure: None,
            lanes_left: None,
            outcomes: Vec::new(),
            now_ms: 0,
            seed: 0,
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

    /// Returns true if the case is about `on-request`.
    pub(crate) fn is_decision(&self) -> bool {
        self.hook == Hook::Request
    }

    /// Parses the request.
    pub(crate) fn facts(&self, facts_of: &FactsOf) -> Result<Facts, CaseInputError> {
        let request = self.request.as_ref();
        let request = request.ok_or(CaseInputError::Missing { field: "request" })?;
        let facts = facts_of(request).map_err(CaseInputError::Request)?;
        Ok(request.facts.apply(facts))
    }

    /// Adds the position in `file` to an error.
    pub(crate) fn input_error(&self, file: &Path, error: CaseInputError) -> CaseError {
        CaseError::Input { file: file.to_owned(), line: self.line, name: self.name.clone(), error }
    }
}

/// Calls the policy about a case, and compares what it did.
fn result(
    case: &Case,
    inputs: &Inputs,
    fleet: &Arc<FleetView>,
    version: impl Fn() -> Version,
) -> CaseResult {
    let CaseCall { got, returned, took, dropped, log, reads, is_exported } =
        case.call(inputs, fleet, version);
    let (differences, decided) = match &got {
        _ if !is_exported => {
            let (expected, got) = (case.hook.name().to_owned(), "not exported".to_owned());
            (vec![Difference { what: "hook", expected, got }], serde_json::Value::Null)
        }
        Ok(got) => (compare(&case.expect, got), serde_json::json!(got)),
        Err(error) => {
            let (expected, got) = ("some".to_owned(), format!("none: {error}"));
            (vec![Difference { what: "advice", expected, got }], serde_json::Value::Null)
        }
    };
    let lanes = fleet.topology.lanes().iter().map(|lane| lane.name.clone()).collect();
    let trace = CaseTrace { lanes, reads, returned, decided };
    CaseResult {
        line: case.line,
        name: case.name.clone(),
        hook: case.hook.name(),
        differences,
        took,
        dropped,
        log: log.lines,
        marks: log.marks,
        trace,
    }
}

fn default_endpoint() -> Endpoint {
    Endpoint::ChatCompletions
}

fn empty_config() -> serde_json::Value {
    serde_json::json!({})
}

#[cfg(test)]
mod tests {
    use pointsman_fuzz::json_schema::accepts;

    use super::*;

    #[test]
    fn schema_accepts_the_cases_of_all_policies() {
        let schema = case_schema();
        let policies = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../policies");
        let folders = std::fs::read_dir(policies).unwrap().map(|entry| entry.unwrap().path());
        let files: Vec<String> = folders
            .filter_map(|dir| std::fs::read_to_string(dir.join("cases.jsonl")).ok())
            .collect();
        assert!(files.len() > 5);
        for line in files.iter().flat_map(|file| file.lines()) {
            let mut case: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(accepts(&schema, &case), "{line}");
            for place in ["", "/expect", "/fleet", "/fleet/lanes/0"] {
                let mut other = case.clone();
                let Some(place) = other.pointer_mut(place) else { continue };
                place["zzz"] = 1.into();
                assert!(!accepts(&schema, &other), "{other}");
                assert!(read(Path::new("c"), &other.to_string()).is_err());
            }
            case["name"] = 1.into();
            assert!(!accepts(&schema, &case));
        }
    }
}
