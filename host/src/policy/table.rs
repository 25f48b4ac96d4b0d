//! Formats the policies of a host as text.

use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::Table;
use comfy_table::presets::NOTHING;
use pointsman_report::table::clean;
use serde_json::{Map, Value};

/// Formats policies as a table, one per line.
pub(super) fn list(policies: &[Value]) -> String {
    if policies.is_empty() {
        return "no policies configured; using built-in routing\n".to_owned();
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

/// Formats the details of a policy as an outline.
pub(super) fn details(policy: &Value) -> String {
    let mut text = String::new();
    match policy {
        Value::Object(fields) => outline(fields, "", now_ms(), &mut text),
        other => text = format!("{}\n", scalar(other)),
    }
    text
}

/// Formats the events of a policy as a table, the latest last.
pub(super) fn history(events: &Value) -> String {
    let now = now_ms();
    let mut rows = vec![["WHEN", "EVENT", "VERSION", "BY", "REASON"].map(str::to_owned)];
    rows.extend(events.as_array().into_iter().flatten().map(|event| {
        let cell = |key: &str| match event[key].as_str() {
            None | Some("") => "-".to_owned(),
            Some(text) => clean(text),
        };
        let reason = match event["code"].as_str() {
            None => "-".to_owned(),
            Some(code) => format!("{} [{}]", cell("reason"), clean(code)),
        };
        let at = event["at_ms"].as_u64().unwrap_or_default();
        [relative_time(at, now), cell("event"), cell("version"), cell("by"), reason]
    }));
    aligned(&rows)
}

/// Returns what an operator should see at a glance: the error and the state of other versions.
fn notes(policy: &Value) -> Vec<String> {
    let mut notes = Vec::new();
    let error = &policy["error"];
    if let Some(message) = error["message"].as_str() {
        let code = error["code"].as_str().map_or_else(String::new, |code| format!(" [{code}]"));
        notes.push(clean(&format!("{message}{code}")));
    }
    let stopped: Vec<String> = strings(&policy["stopped_hooks"]).map(clean).collect();
    if !stopped.is_empty() {
        notes.push(format!("stopped after repeated faults: {}", stopped.join(", ")));
    }
    notes.extend(last_faults(policy));
    let candidate = &policy["candidate"];
    notes.extend(last_faults(candidate).into_iter().map(|fault| format!("candidate {fault}")));
    if let Some(version) = candidate["version"].as_str() {
        let mode = candidate["mode"].as_str().unwrap_or("staged");
        let share = candidate["share_permille"].as_u64().filter(|_| mode == "canary");
        let share = share.map_or_else(String::new, |share| {
            format!(", {}.{}% of requests", share / 10, share % 10)
        });
        notes.push(clean(&format!("candidate {version} ({mode}{share})")));
    }
    if let Some(left) = policy["probation"]["left_ms"].as_u64() {
        notes.push(format!("on probation for {}", duration(left)));
    }
    let trial = [&policy["probation"]["trial"], &candidate["trial"]];
    notes.extend(trial.into_iter().filter_map(evidence));
    let versions = policy["rejected"].as_array().into_iter().flatten();
    let rejected: Vec<String> =
        versions.filter_map(|version| version["version"].as_str().map(clean)).collect();
    if !rejected.is_empty() {
        notes.push(format!("rejected: {}", rejected.join(", ")));
    }
    notes
}

/// Returns the texts of a list.
fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Returns the last fault of each hook, newest first: a fault after the response must not hide why
/// requests get no advice.
fn last_faults(version: &Value) -> Vec<String> {
    let mut hooks = Vec::new();
    let mut faults = Vec::new();
    for last in version["last_faults"].as_array().into_iter().flatten() {
        if !hooks.contains(&&last["hook"]) {
            hooks.push(&last["hook"]);
            faults.extend(fault(last));
        }
    }
    faults
}

/// Returns a fault of a policy as one line: the hook, the message and the location.
fn fault(fault: &Value) -> Option<String> {
    let (hook, message) = (fault["hook"].as_str()?, fault["message"].as_str()?);
    let location = match (fault["file"].as_str(), fault["line"].as_u64()) {
        (Some(file), Some(line)) => format!(" at {file}:{line}"),
        (Some(file), None) => format!(" at {file}"),
        (None, _) => String::new(),
    };
    let count = fault["count"].as_u64().filter(|count| *count > 1);
    let count = count.map_or_else(String::new, |count| format!(" ({count} times)"));
    Some(clean(&format!("{hook}: {message}{location}{count}")))
}

/// Returns how far a trial is from a roll back.
fn evidence(trial: &Value) -> Option<String> {
    let requests = |arm: &str| trial[arm]["requests"].as_u64();
    let (new, control) = (requests("new")?, requests("control")?);
    let (suspect, percent) = (trial["suspect"].as_str()?, trial["evidence_percent"].as_u64()?);
    let suspect = match percent {
        0 => String::new(),
        percent => format!(", {} {percent}%", clean(suspect)),
    };
    Some(format!("trial: {new} requests, control {control}{suspect}"))
}

/// Formats rows as columns, separated by two blanks. The last column is not padded.
pub(crate) fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    format!("{}\n", table.trim_fmt())
}

/// Writes one line for each field that is not empty, and nested fields below it, indented.
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
                    let line = item.as_object().map(|fields| on_one_line(fields, now));
                    let line = line.unwrap_or_else(|| scalar(item));
                    text.push_str(&format!("{indent}  - {line}\n"));
                }
            }
            Value::Array(items) if items.is_empty() => {}
            value => text.push_str(&format!("{indent}{name}: {}\n", field(key, value, now))),
        }
    }
}

fn on_one_line(fields: &Map<String, Value>, now: u64) -> String {
    let fields = fields.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| {
        let name = clean(key.strip_suffix("_ms").unwrap_or(key)).replace('_', " ");
        format!("{name} {}", field(key, value, now))
    });
    fields.collect::<Vec<_>>().join(", ")
}

/// Formats a value. Times and durations are numbers with known keys.
fn field(key: &str, value: &Value, now: u64) -> String {
    match value.as_u64() {
        Some(at) if ["since_ms", "at_ms"].contains(&key) => relative_time(at, now),
        Some(left) if key == "left_ms" => duration(left),
        _ => scalar(value),
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => clean(text),
        // JSON escapes control characters.
        other => other.to_string(),
    }
}

/// Formats a duration in a suitable unit.
fn duration(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Formats a time relative to now.
fn relative_time(at: u64, now: u64) -> String {
    let distance = duration(at.abs_diff(now));
    if at > now { format!("in {distance}") } else { format!("{distance} ago") }
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
    fn list_is_a_table() {
        assert_eq!(list(&[]), "no policies configured; using built-in routing\n");
        let policies = [
            json!({
                "name": "cortex", "state": "active", "version": "0.1.0+9f6cf3c7", "weight": 1000,
                "on_error": "skip",
                "probation": { "left_ms": 57_000, "trial": {
                    "new": { "requests": 41 }, "control": { "requests": 4 },
                    "suspect": "no-lane", "evidence_percent": 37,
                } },
                "candidate": { "version": "0.2.0+aa", "mode": "canary", "share_permille": 25 },
                "rejected": [{ "version": "0.1.9+bb", "reason": "slow" }],
            }),
            json!({
                "name": "x", "state": "failed", "version": "",
                "error": { "code": "file_missing", "message": "no\u{1b}[31m file" },
            }),
        ];
        let expected = "\
NAME    STATE   VERSION         WEIGHT  ON-ERROR  NOTES
cortex  active  0.1.0+9f6cf3c7  1000    skip      \
candidate 0.2.0+aa (canary, 2.5% of requests); on probation for 57 s; \
trial: 41 requests, control 4, no-lane 37%; rejected: 0.1.9+bb
x       failed  -               -       -         no [31m file [file_missing]
";
        assert_eq!(list(&policies), expected);
    }

    #[test]
    fn list_shows_stopped_hooks_and_last_fault_of_each_hook() {
        let policy = json!({
            "stopped_hooks": ["on-complete"],
            "last_faults": [
                { "hook": "on-complete", "message": "no\u{1b}[0m", "file": "a.py", "line": 3,
                  "count": 4 },
                { "hook": "on-request", "message": "last" },
                { "hook": "on-complete", "message": "older" },
                { "hook": "on-request", "message": "older" },
            ],
        });
        let expected = [
            "stopped after repeated faults: on-complete",
            "on-complete: no [0m at a.py:3 (4 times)",
            "on-request: last",
        ];
        assert_eq!(notes(&policy), expected);
    }

    #[test]
    fn history_is_a_table() {
        let now = now_ms();
        let events = json!([
            { "at_ms": now - 3 * 3_600_000, "event": "activated", "version": "1+a", "by": "file" },
            { "at_ms": now - 90_000, "event": "refused", "version": "", "by": "file",
              "code": "case_failed", "reason": "case 1" },
        ]);
        let expected = "\
WHEN      EVENT      VERSION  BY    REASON
3 h ago   activated  1+a      file  -
90 s ago  refused    -        file  case 1 [case_failed]
";
        assert_eq!(history(&events), expected);
    }

    #[test]
    fn details_are_an_outline() {
        let now = now_ms();
        let policy = json!({
            "name": "cortex", "config": { "a": { "b": 1 } }, "error": null, "rejected": [],
            "idle_instances": 4,
            "probation": { "left_ms": 90_500, "calls": 7 },
            "history": [
                { "version": "1", "since_ms": now - 3 * 3_600_000 },
                { "version": "0", "since_ms": null },
            ],
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
