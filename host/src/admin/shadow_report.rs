//! Describes what a shadow decides otherwise, with the names of lanes.

use pointsman_domain::{Advice, Topology};
use pointsman_replay::compare_results;
use serde_json::{Value, json};

/// Returns a list of `{"request", "part", "active", "shadow"}` for the differences in the status of
/// a candidate. The lanes are those of now: one that has been removed has no name any more.
pub(super) fn describe(differences: Option<&Value>, topology: &Topology) -> Value {
    let differences = differences.and_then(Value::as_array).into_iter().flatten();
    let parts = differences.flat_map(|difference| {
        let advice = |side: &str| -> Option<Advice> {
            serde_json::from_value(difference[side].clone()).ok()
        };
        let (active, shadow) = (advice("active"), advice("shadow"));
        let compared = compare_results(
            active.as_ref().ok_or("error"),
            shadow.as_ref().ok_or("error"),
            topology,
        );
        // As in the comparison itself: notes and hints have no effect on a decision.
        let found = compared.into_iter().filter(|found| !["notes", "hints"].contains(&found.part));
        found.map(|found| {
            json!({
                "request": difference["request"],
                "part": found.part,
                "active": found.recorded,
                "shadow": found.replayed,
            })
        })
    });
    parts.collect()
}
