//! The call of a golden case: one hook of one instance, and what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{
    Advice, AttemptResult, Facts, FailureReport, FleetView, LaneAdvice, LaneId, Merge, OnConflict,
    Outcome, Plan, PlanLimits, PolicyRef, Read, Recovery, Trace,
};
use pointsman_spec::{Hook, OnError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use super::expect::{Expect, ExpectHint, ExpectRecovery, ExpectReject, decided};
use super::fleet::lane_of;
use super::{Case, FactsOf};
use crate::chain::evaluate::{call_on_failure, call_on_request};
use crate::contract::captured_log::LogCapture;
use crate::contract::state_backing::StateValue;
use crate::contract::types::PolicyHint;
use crate::version::Version;
use crate::version::call_error::{CallError, retry_on_timeout};
use crate::version::call_trace::CallTrace;
use crate::version::case_error::CaseInputError;

/// The failed attempt that `on-failure` is called about.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct CaseFailure {
    lane: String,
    #[schemars(with = "String")]
    what: AttemptResult,
    #[serde(default)]
    status: u16,
    #[serde(default)]
    elapsed_ms: u64,
    #[serde(default = "default_attempts_left")]
    attempts_left: u32,
}

fn default_attempts_left() -> u32 {
    1
}

/// What a hook is called with, checked.
pub(super) enum Inputs {
    Request(Facts),
    Failure(Facts, FailureReport),
    Complete(Vec<Outcome>),
    Outcome(Vec<Outcome>),
    Tick,
}

/// A call and what came of it.
#[derive(Debug)]
pub(super) struct CaseCall {
    /// What was decided, in the form of expectations; the error of a call that failed.
    pub(super) got: Result<Expect, CallError>,
    /// What the policy returned, without what was dropped.
    pub(super) returned: Value,
    pub(super) took: Duration,
    pub(super) dropped: Vec<String>,
    pub(super) log: LogCapture,
    pub(super) reads: Vec<Read>,
    /// False if the component does not export the hook.
    pub(super) is_exported: bool,
}

impl Case {
    /// Returns what the hook is called with.
    pub(super) fn inputs(
        &self,
        fleet: &FleetView,
        facts_of: &FactsOf,
    ) -> Result<Inputs, CaseInputError> {
        if let Some(field) = self.expect.unexpected(self.hook) {
            return Err(CaseInputError::Unexpected { field, hook: self.hook.name() });
        }
        match self.hook {
            Hook::Request => Ok(Inputs::Request(self.facts_in(fleet, facts_of)?)),
            Hook::Failure => {
                let failure = self.failure.as_ref();
                let failure = failure.ok_or(CaseInputError::Missing { field: "failure" })?;
                let report = FailureReport {
                    lane: lane_of(&failure.lane, fleet)?,
                    what: failure.what,
                    status: failure.status,
                    sent_bytes: 0,
                    elapsed: Duration::from_millis(failure.elapsed_ms),
                    attempts_left: failure.attempts_left,
                };
                Ok(Inputs::Failure(self.facts_in(fleet, facts_of)?, report))
            }
            Hook::Complete => Ok(Inputs::Complete(self.outcomes(fleet)?)),
            Hook::Outcome => Ok(Inputs::Outcome(self.outcomes(fleet)?)),
            Hook::Tick => Ok(Inputs::Tick),
        }
    }

    fn outcomes(&self, fleet: &FleetView) -> Result<Vec<Outcome>, CaseInputError> {
        self.outcomes.iter().map(|outcome| outcome.outcome(fleet)).collect()
    }

    /// Returns the facts of the request, with the lanes that earlier policies leave.
    fn facts_in(&self, fleet: &FleetView, facts_of: &FactsOf) -> Result<Facts, CaseInputError> {
        let facts = self.facts(facts_of)?;
        let Some(left) = &self.lanes_left else { return Ok(facts) };
        let mut left: Vec<LaneId> =
            left.iter().map(|lane| lane_of(lane, fleet)).collect::<Result<_, _>>()?;
        left.sort_unstable();
        Ok(Facts { lanes_left: Some(left.into()), ..facts })
    }

    /// Calls the hook; again, on another instance, if the call times out.
    pub(super) fn call(
        &self,
        inputs: &Inputs,
        fleet: &Arc<FleetView>,
        version: impl Fn() -> Version,
    ) -> CaseCall {
        let mut done = None;
        let call = || {
            let version = version();
            let mut trace = CallTrace::for_decision(&Trace::on());
            let start = Instant::now();
            let (result, dropped) = match inputs {
                Inputs::Request(facts) => on_request(&version, facts, fleet, &mut trace),
                Inputs::Failure(facts, failed) => {
                    on_failure(&version, facts, fleet, failed, &mut trace)
                }
                Inputs::Complete(outcomes) => {
                    let called = version.observe(fleet, self.now_ms, outcomes, &mut trace);
                    (called.map(|()| (Expect::default(), Value::Null)), Vec::new())
                }
                Inputs::Outcome(outcomes) => {
                    let outcomes = with_own_notes(outcomes, version.reference());
                    let called = version.learn(fleet, self.now_ms, &outcomes, &mut trace);
                    (called.map(|()| (Expect::default(), Value::Null)), Vec::new())
                }
                Inputs::Tick => {
                    let hints = version.tick(fleet, self.now_ms, self.seed, &mut trace);
                    (hints.map(|hints| on_tick(&hints, fleet)), Vec::new())
                }
            };
            let took = start.elapsed();
            let (got, returned) = match result {
                Ok((got, returned)) => {
                    (Ok(Expect { state: Some(state(&version)), ..got }), returned)
                }
                Err(error) => (Err(error.clone()), json!({ "error": error.to_note() })),
            };
            let failed = got.as_ref().err().cloned();
            done = Some(CaseCall {
                got,
                returned,
                took,
                dropped,
                log: version.log_capture(),
                reads: trace.into_reads(),
                is_exported: exports(&version, self.hook),
            });
            failed.map_or(Ok(()), Err)
        };
        // The result is in `done`, with the error of the last attempt.
        let last = retry_on_timeout(call);
        done.unwrap_or_else(|| CaseCall {
            got: last.map(|()| Expect::default()),
            returned: Value::Null,
            took: Duration::ZERO,
            dropped: Vec::new(),
            log: LogCapture::default(),
            reads: Vec::new(),
            is_exported: true,
        })
    }
}

/// Returns the outcomes with notes of this policy.
fn with_own_notes(outcomes: &[Outcome], policy: &PolicyRef) -> Vec<Outcome> {
    let mut own = outcomes.to_vec();
    let notes = own.iter_mut().flat_map(|outcome| &mut outcome.notes);
    notes.for_each(|(by, _)| policy.clone_into(by));
    own
}

fn exports(version: &Version, hook: Hook) -> bool {
    let hooks = version.artifact().hooks();
    match hook {
        Hook::Request => true,
        Hook::Failure => hooks.on_failure,
        Hook::Complete => hooks.on_complete,
        Hook::Outcome => hooks.on_outcome,
        Hook::Tick => hooks.on_tick,
    }
}

/// What a call did, and what it returned; and the parts that were dropped, with the reasons.
type Called = (Result<(Expect, Value), CallError>, Vec<String>);

fn on_request(
    version: &Version,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    trace: &mut CallTrace,
) -> Called {
    let limits = PlanLimits { max_wait: Duration::MAX, max_steps: usize::MAX };
    let mut facts = facts.clone();
    let endpoint = facts.request.info().endpoint;
    let model = facts.request.model().to_owned();
    let left = facts.lanes_left.clone();
    // An invalid filter fails a case, whatever hosts make of it.
    let (advice, dropped) = call_on_request(version, &mut facts, fleet, OnError::Refuse, trace);
    let decided = advice.map(|advice| {
        let returned = json!(advice);
        let mut merge = Merge::new(fleet, &model, endpoint);
        if let Some(left) = left {
            let lanes = LaneAdvice::Only(left.to_vec());
            merge.add(&PolicyRef::new("earlier", ""), 1000, Advice { lanes, ..Advice::default() });
        }
        merge.add(version.reference(), 1000, advice);
        merge.set_need(facts.request.info().into());
        let merged = merge.finish(OnConflict::Refuse);
        let decision = Plan::from_advice(&merged, fleet, &limits);
        let got = decided(&merged, &decision, fleet);
        (Expect { dropped: Some(kinds(&dropped)), ..got }, returned)
    });
    (decided, dropped)
}

fn on_failure(
    version: &Version,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    failed: &FailureReport,
    trace: &mut CallTrace,
) -> Called {
    let (recovery, dropped) = call_on_failure(version, facts, fleet, failed, trace);
    let decided = recovery.map(|recovery| {
        let returned = json!(recovery);
        let got = match recovery {
            Recovery::Planned => {
                Expect { recovery: Some(ExpectRecovery::Planned), ..Expect::default() }
            }
            Recovery::Retry(step) => Expect {
                recovery: Some(ExpectRecovery::Retry),
                lane: Some(fleet.topology.name(step.lane).to_owned()),
                edits: Some(step.edits),
                ..Expect::default()
            },
            Recovery::GiveUp(rejection) => Expect {
                recovery: Some(ExpectRecovery::GiveUp),
                reject: Some(ExpectReject { status: rejection.status, code: rejection.code }),
                ..Expect::default()
            },
        };
        (Expect { dropped: Some(kinds(&dropped)), ..got }, returned)
    });
    (decided, dropped)
}

fn on_tick(hints: &[PolicyHint], fleet: &FleetView) -> (Expect, Value) {
    let expected = |hint: &PolicyHint| ExpectHint {
        lane: fleet.topology.name(hint.lane).to_owned(),
        hint: hint_name(hint.hint).to_owned(),
        // The contract has 32 bits.
        for_ms: hint.ttl.as_millis() as u64,
    };
    let hints: Vec<ExpectHint> = hints.iter().map(expected).collect();
    let returned = json!(hints);
    (Expect { hints: Some(hints), ..Expect::default() }, returned)
}

fn hint_name(hint: LaneHint) -> &'static str {
    match hint {
        LaneHint::Load => "load",
        LaneHint::Release => "release",
        LaneHint::Keep => "keep",
    }
}

/// Returns the kinds of dropped parts, each of which begins with its kind.
fn kinds(dropped: &[String]) -> Vec<String> {
    dropped
        .iter()
        .map(|part| part.split_once(": ").map_or(part.as_str(), |(kind, _)| kind).to_owned())
        .collect()
}

/// Returns the state in the form of cases: counters are integers, values are strings.
fn state(version: &Version) -> BTreeMap<String, Value> {
    let value = |value: StateValue| match value {
        StateValue::Counter(number) => json!(number),
        StateValue::Bytes(bytes) => json!(String::from_utf8_lossy(&bytes)),
    };
    version.state_entries().into_iter().map(|entry| (entry.key, value(entry.value))).collect()
}
