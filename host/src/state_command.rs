//! `pointsman state …`: shows and clears the states of policies in a running host.

use anyhow::Result;
use http::Method;
use pointsman_report::table::clean;
use serde_json::Value;

use crate::cli::state::{Entry, State};
use crate::output;
use crate::policy::{aligned, call, percent_encoded};

/// Runs a subcommand.
pub(crate) fn state(command: State) -> Result<()> {
    let (host, shown, to_text): (_, Value, fn(&Value) -> String) = match command {
        State::List { policy: None, host } => {
            let mut states = call(&host, Method::GET, "/state", None)?;
            (host, states["states"].take(), summaries)
        }
        State::List { policy: Some(policy), host } => {
            let mut state = call(&host, Method::GET, &path(&policy, "", None), None)?;
            (host, state["entries"].take(), entries)
        }
        State::Get { entry: Entry { policy, key }, host } => {
            let entry = call(&host, Method::GET, &path(&policy, "", Some(&key)), None)?;
            (host, entry, value)
        }
        State::Clear { policy, key, host } => {
            let path = path(&policy, "/clear", key.as_deref());
            let cleared = call(&host, Method::POST, &path, None)?;
            (host, cleared, |cleared| format!("{} entries removed\n", cleared["cleared"]))
        }
    };
    output::print(&if host.json { format!("{shown:#}\n") } else { to_text(&shown) })
}

fn path(policy: &str, command: &str, key: Option<&str>) -> String {
    let query = key.map(|key| format!("?key={}", percent_encoded(key)));
    format!("/state/{}{command}{}", percent_encoded(policy), query.unwrap_or_default())
}

fn rows(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn summaries(states: &Value) -> String {
    let mut table = vec![["POLICY", "ENTRIES", "BYTES", "KEPT", "NOTES"].map(str::to_owned)];
    table.extend(rows(states).iter().map(|state| {
        let kept = if state["durable"] == true { "over restarts" } else { "in memory" };
        let notes = if state["loaded"] == true { "" } else { "not configured" };
        let policy = clean(state["policy"].as_str().unwrap_or_default());
        let [entries, bytes] = ["entries", "bytes"].map(|name| state[name].to_string());
        [policy, entries, bytes, kept.to_owned(), notes.to_owned()]
    }));
    aligned(&table)
}

fn entries(entries: &Value) -> String {
    let mut table = vec![["KEY", "KIND", "VALUE", "BYTES", "EXPIRES"].map(str::to_owned)];
    table.extend(rows(entries).iter().map(|entry| {
        let text = |name: &str| clean(entry[name].as_str().unwrap_or("-"));
        let value = entry["counter"].as_i64().map_or_else(|| "-".to_owned(), |n| n.to_string());
        [text("key"), text("kind"), value, entry["bytes"].to_string(), text("expires")]
    }));
    aligned(&table)
}

/// Returns a value alone, so that scripts can take it; bytes that are not text as hexadecimal.
fn value(entry: &Value) -> String {
    let text = ["text", "hex"].iter().find_map(|name| entry[*name].as_str());
    match text {
        Some(text) => format!("{}\n", clean(text)),
        None => format!("{}\n", entry["counter"]),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn states_are_tables() {
        let states = json!([
            { "policy": "a\u{1b}", "loaded": true, "durable": true, "entries": 2, "bytes": 30 },
            { "policy": "b", "loaded": false, "durable": false, "entries": 0, "bytes": 0 },
        ]);
        let text = summaries(&states);
        assert!(!text.contains('\u{1b}') && text.lines().count() == 3, "{text}");
        assert!(text.contains("over restarts") && text.contains("not configured"), "{text}");
        let counter = json!({ "key": "k", "kind": "counter", "bytes": 9, "counter": 5 });
        let listed = entries(&json!([counter]));
        let line: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(line, ["k", "counter", "5", "9", "-"]);
        assert_eq!(value(&counter), "5\n");
        assert_eq!(value(&json!({ "text": "a" })), "a\n");
        assert_eq!(path("p/q", "/clear", Some("a b")), "/state/p%2Fq/clear?key=a%20b");
    }
}
