//! Formats the details of a policy, with the differences of its shadow as tables.

use std::collections::BTreeMap;

use pointsman_report::table::clean;
use serde_json::Value;

use super::table::{self, aligned};

/// Maximum characters of a value.
const MAX_CHARS: usize = 60;

/// Formats the details of a policy.
pub(super) fn details(policy: &Value) -> String {
    let mut policy = policy.clone();
    let report = policy.pointer_mut("/candidate/report").map(Value::take).unwrap_or_default();
    // The raw advice, of which the report has what differs.
    let raw = policy.pointer_mut("/candidate/differences");
    if let (Some(raw), true) = (raw, report.is_array()) {
        raw.take();
    }
    format!("{}{}", table::details(&policy), tables(report.as_array().map_or(&[], Vec::as_slice)))
}

/// Formats differences: how many there are of each kind, and each of them.
fn tables(report: &[Value]) -> String {
    if report.is_empty() {
        return String::new();
    }
    let cell = |difference: &Value, key: &str| {
        let text = clean(difference[key].as_str().unwrap_or("-"));
        match text.char_indices().nth(MAX_CHARS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    };
    let mut parts: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    let mut rows = vec![["REQUEST", "PART", "ACTIVE", "SHADOW"].map(str::to_owned)];
    for difference in report {
        let row = ["request", "part", "active", "shadow"].map(|key| cell(difference, key));
        let change = format!("{} -> {}", row[2], row[3]);
        *parts.entry(row[1].clone()).or_default().entry(change).or_default() += 1;
        rows.push(row);
    }
    let mut kinds = vec![["DIFFERENCE", "COUNT", "MOST COMMON"].map(str::to_owned)];
    kinds.extend(parts.into_iter().map(|(part, changes)| {
        let count: usize = changes.values().sum();
        let most = changes.into_iter().max_by_key(|(_, count)| *count);
        let most = most.map(|(change, count)| format!("{change} ({count})")).unwrap_or_default();
        [part, count.to_string(), most]
    }));
    format!("\nlatest differences of the shadow\n{}\n{}", aligned(&kinds), aligned(&rows))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn difference(request: &str, shadow: &str) -> Value {
        json!({ "request": request, "part": "lanes", "active": "only a", "shadow": shadow })
    }

    #[test]
    fn differences_are_tables() {
        let report =
            [difference("1", "only b"), difference("2", "only c"), difference("3", "only b")];
        let policy = json!({
            "name": "p",
            "candidate": { "differed": 3, "differences": [{ "lanes": 99 }], "report": report },
        });
        let expected = "\
name: p
candidate:
  differed: 3

latest differences of the shadow
DIFFERENCE  COUNT  MOST COMMON
lanes       3      only a -> only b (2)

REQUEST  PART   ACTIVE  SHADOW
1        lanes  only a  only b
2        lanes  only a  only c
3        lanes  only a  only b
";
        assert_eq!(details(&policy), expected);
        // An older host sends the differences only.
        let policy = json!({ "candidate": { "differences": [{ "request": "1" }] } });
        assert_eq!(details(&policy), table::details(&policy));
    }
}
