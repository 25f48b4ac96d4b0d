//! The expectations of golden cases, and their comparison with decisions.

use pointsman_domain::{Decision, Edit, FleetView, Merged, Switching};
use serde::{Deserialize, Serialize};

use crate::version::case_error::Difference;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Expect {
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

pub(super) fn compare(
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
