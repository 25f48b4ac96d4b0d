//! The expectations of golden cases, and their comparison with decisions.

use std::collections::BTreeMap;

use pointsman_domain::{Decision, Edit, FleetView, Merged, Switching};
use pointsman_spec::Hook;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::version::case_error::Difference;

/// What is expected of a policy, or what it has done; `None` for what is not compared, or does not
/// apply to the hook.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Expect {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lane: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fallback: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<Value>>")]
    pub(super) edits: Option<Vec<Edit>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reject: Option<ExpectReject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) priority: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub(super) switching: Option<Switching>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) why: Option<String>,
    /// The kinds of the parts of advice that the host dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dropped: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recovery: Option<ExpectRecovery>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hints: Option<Vec<ExpectHint>>,
    /// Entries of the state after the call; `null` for a key without an entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<BTreeMap<String, Value>>,
}

/// A rejection.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ExpectReject {
    pub(super) status: u16,
    pub(super) code: String,
}

/// What follows a failed attempt. The lane of a retry is `lane`, a rejection is `reject`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ExpectRecovery {
    Planned,
    Retry,
    GiveUp,
}

/// A hint about a lane.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ExpectHint {
    pub(super) lane: String,
    /// `load`, `release` or `keep`.
    pub(super) hint: String,
    pub(super) for_ms: u64,
}

impl Expect {
    /// Returns a field that does not apply to this hook.
    pub(super) fn unexpected(&self, hook: Hook) -> Option<&'static str> {
        let decision = [
            ("fallback", self.fallback.is_some()),
            ("priority", self.priority.is_some()),
            ("switching", self.switching.is_some()),
            ("why", self.why.is_some()),
        ];
        let request = [
            ("lane", self.lane.is_some()),
            ("edits", self.edits.is_some()),
            ("reject", self.reject.is_some()),
            ("dropped", self.dropped.is_some()),
        ];
        let recovery = [("recovery", self.recovery.is_some())];
        let hints = [("hints", self.hints.is_some())];
        let forbidden: &[&[(&'static str, bool)]] = match hook {
            Hook::Request => &[&recovery, &hints],
            Hook::Failure => &[&decision, &hints],
            Hook::Complete | Hook::Outcome => &[&decision, &request, &recovery, &hints],
            Hook::Tick => &[&decision, &request, &recovery],
        };
        forbidden.iter().copied().flatten().find(|(_, is_set)| *is_set).map(|(name, _)| *name)
    }
}

/// Returns what was decided about a request.
pub(super) fn decided(merged: &Merged, decision: &Decision, fleet: &FleetView) -> Expect {
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
        (_, Some(lane)) => String::clone(lane),
        (Decision::NoLane(reason), None) => format!("none: {reason}"),
        (_, None) => {
            let rejection =
                reject.as_ref().map(|reject| format!("{} {}", reject.status, reject.code));
            format!("none: rejected with {}", rejection.unwrap_or_default())
        }
    };
    Expect {
        lane: Some(lane),
        fallback: Some(steps.into_iter().skip(1).collect()),
        edits: Some(merged.edits.clone()),
        reject,
        priority: Some(priority),
        switching: Some(merged.switching),
        why: Some(merged.why().unwrap_or_default()),
        ..Expect::default()
    }
}

/// Compares what is expected with what a policy has done.
pub(super) fn compare(expect: &Expect, got: &Expect) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut compare_text = |what, expected: &Option<String>, got: &Option<String>| {
        let got = got.as_deref().unwrap_or_default();
        if let Some(expected) = expected.as_ref().filter(|expected| *expected != got) {
            found.push(Difference { what, expected: expected.clone(), got: got.to_owned() });
        }
    };
    compare_text("lane", &expect.lane, &got.lane);
    compare_text("why", &expect.why, &got.why);
    found.extend(differs("fallback", &expect.fallback, &got.fallback));
    found.extend(differs("edits", &expect.edits, &got.edits));
    found.extend(differs("priority", &expect.priority, &got.priority));
    found.extend(differs("switching", &expect.switching, &got.switching));
    found.extend(differs("reject", &expect.reject, &got.reject));
    found.extend(differs("dropped", &expect.dropped, &got.dropped));
    found.extend(differs("recovery", &expect.recovery, &got.recovery));
    found.extend(differs("hints", &expect.hints, &got.hints));
    for (key, expected) in expect.state.iter().flatten() {
        let value = got.state.as_ref().and_then(|state| state.get(key)).unwrap_or(&Value::Null);
        if value != expected {
            let (expected, got) = (json!({ key: expected }), json!({ key: value }));
            found.push(Difference {
                what: "state",
                expected: expected.to_string(),
                got: got.to_string(),
            });
        }
    }
    found
}

/// Compares two values, and returns a difference as JSON, the format of cases.
fn differs<T: PartialEq + Serialize>(
    what: &'static str,
    expected: &Option<T>,
    got: &Option<T>,
) -> Option<Difference> {
    let json = |value: &Option<T>| serde_json::to_string(value).unwrap_or_default();
    let is_different = expected.is_some() && expected != got;
    is_different.then(|| Difference { what, expected: json(expected), got: json(got) })
}
