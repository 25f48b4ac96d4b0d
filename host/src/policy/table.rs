//! Answers of a host, for people to read.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

/// Policies, one a line.
pub(super) fn of(policies: &[Value]) -> String {
    if policies.is_empty() {
        return "no policies: the built-in rule decides\n".to_owned();
    }
    let mut rows =
        vec![["NAME", "STATE", "VERSION", "WEIGHT", "ON-ERROR", "NOTES"].map(str::to_owned)];
    rows.extend(policies.iter().map(|policy| {
        let cell = |key: &str| match &policy[key] {
            Value::Null => "-".to_owned(),
            Value::String(text) if text.is_empty() => "-".to_owned(),
            value => scalar(value),
        };
        let [name, state, version, weight, on_error] =
            ["name", "state", "version", "weight", "on_error"].map(cell);
        [name, state, version, weight, on_error, notes(policy).join("; ")]
    }));
    aligned(&rows)
}

/// What there is to know of one policy, as an outline.
pub(super) fn details(policy: &Value) -> String {
    let mut text = String::new();
    match policy {
        Value::Object(fields) => outline(fields, "", now_ms(), &mut text),
        other => text = format!("{}\n", scalar(other)),
    }
    text
}

/// What an operator should see at a glance.
fn notes(policy: &Value) -> Vec<String> {
    let mut notes = Vec::new();
    let error = &policy["error"];
    if let Some(what) = error.as_str().or(error["what"].as_str()) {
        notes.push(clean(what));
    }
    let trial = &policy["trial"];
    if let Some(version) = trial["version"].as_str() {
        let share = trial["share_permille"].as_u64().filter(|_| trial["mode"] == "canary");
        let share =
            share.map_or_else(String::new, |share| format!(" for {}.{} %", share / 10, share % 10));
        let mode = trial["mode"].as_str().unwrap_or("on trial");
        notes.push(format!("{} as {}{share}", clean(version), clean(mode)));
    }
    if let Some(left) = policy["probation"]["left_ms"].as_u64() {
        notes.push(format!("on probation for another {}", span(left)));
    }
    let aside: Vec<String> = policy["set_aside"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|version| version["version"].as_str().map(clean))
        .collect();
    if !aside.is_empty() {
        notes.push(format!("set aside: {}", aside.join(", ")));
    }
    notes
}

/// Columns with two blanks between them. The last one is as long as it likes.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let cells =
            row.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// One line for each field that is not empty; what is inside of it stands below it, further in.
fn outline(fields: &Map<String, Value>, indent: &str, now: u64, text: &mut String) {
    for (key, value) in fields {
        let name = clean(key.strip_suffix("_ms").unwrap_or(key)).replace('_', " ");
        match value {
            Value::Null => {}
            Value::Object(inside) if key != "config" && !inside.is_empty() => {
                text.push_str(&format!("{indent}{name}:\n"));
                outline(inside, &format!("{indent}  "), now, text);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                text.push_str(&format!("{indent}{name}:\n"));
                for item in items {
                    let one = item.as_object().map(|fields| on_one_line(fields, now));
                    text.push_str(&format!(
                        "{indent}  - {}\n",
                        one.unwrap_or_else(|| scalar(item))
                    ));
                }
            }
            Value::Array(items) if items.is_empty() => {}
            value => text.push_str(&format!("{indent}{name}: {}\n", field(key, value, now))),
        }
    }
}

fn on_one_line(fields: &Map<String, Value>, now: u64) -> String {
    let format_duration =
        fields.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
            let name = clean(key.strip_suffix("_ms").unwrap_or(key)).replace('_', " ");
            format!("{name} {}", field(key, value, now))
        });
    format_duration.collect::<Vec<_>>().join(", ")
}

/// A value by itself. Moments and spans are numbers whose keys say so.
fn field(key: &str, value: &Value, now: u64) -> String {
    match value.as_u64() {
        Some(at) if ["since_ms", "at_ms"].contains(&key) => moment(at, now),
        Some(left) if key == "left_ms" => span(left),
        _ => scalar(value),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => clean(text),
        // JSON has its own way with what a terminal must not see.
        other => other.to_string(),
    }
}

/// What a policy says may hold anything; a terminal gets none of its commands.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A time in the unit that suits it.
fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// How far away a moment is.
fn moment(at: u64, now: u64) -> String {
    let far = span(at.abs_diff(now));
    if at > now { format!("in {far}") } else { format!("{far} ago") }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_list_is_a_table() {
        assert_eq!(of(&[]), "no policies: the built-in rule decides\n");
        let policies = [
            json!({ "name": "cortex", "state": "active", "version": "0.1.0+9f6cf3c7", "weight": 1000, "on_error": "skip",
                    "probation": { "left_ms": 57_000 }, "trial": { "version": "0.2.0+aa", "mode": "canary", "share_permille": 25 },
                    "set_aside": [{ "version": "0.1.9+bb", "reason": "slow" }] }),
            json!({ "name": "x", "state": "failed", "version": "", "error": { "what": "no\u{1b}[31m file" } }),
        ];
        let expected = "\
NAME    STATE   VERSION         WEIGHT  ON-ERROR  NOTES
cortex  active  0.1.0+9f6cf3c7  1000    skip      0.2.0+aa as canary for 2.5 %; on probation for another 57 s; set aside: 0.1.9+bb
x       failed  -               -       -         no [31m file
";
        assert_eq!(of(&policies), expected);
    }

    #[test]
    fn details_are_an_outline() {
        let now = now_ms();
        let policy = json!({
            "name": "cortex", "config": { "a": { "b": 1 } }, "error": null, "set_aside": [], "idle_instances": 4,
            "probation": { "left_ms": 90_500, "calls": 7 },
            "history": [{ "version": "1", "since_ms": now - 3 * 3_600_000 }, { "version": "0", "since_ms": null }],
            "something_new": [1, 2],
        });
        let expected = "\
name: cortex
config: {\"a\":{\"b\":1}}
idle instances: 4
probation:
  left: 90 s
  calls: 7
history:
  - version 1, since 3 h ago
  - version 0
something new: [1,2]
";
        assert_eq!(details(&policy), expected);
        assert_eq!(details(&json!("text")), "text\n");
    }
}
