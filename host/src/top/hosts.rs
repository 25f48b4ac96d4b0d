//! The rows of the view of other hosts: those whose lanes this host has, those that read it, and
//! the store that they share.

use pointsman_report::table::clean;
use serde_json::Value;

use crate::other_host::{OtherHost, duration, unix_ms_now};

/// Returns what it is, its name, its state and more about it, for each row. `shared` is the store.
pub(super) fn rows(lanes: &[Value], readers: &[Value], shared: &Value) -> Vec<[String; 4]> {
    let now = unix_ms_now();
    let lanes = lanes.iter().filter_map(|lane| {
        let host = OtherHost::read(&lane["host"])?;
        let name = lane["name"].as_str().map(clean).unwrap_or_default();
        Some(["lane".to_owned(), name, host.liveness(), host.summary(now)])
    });
    let readers = readers.iter().map(|reader| {
        let name = reader["name"].as_str().map_or_else(|| "an operator".to_owned(), clean);
        let details = format!("reads this host for {}", age(&reader["since_unix_ms"], now));
        ["reader".to_owned(), name, "connected".to_owned(), details]
    });
    lanes.chain(readers).chain(store(shared, now)).chain(identity(shared)).collect()
}

/// Returns the row of another host that has had the identity of this one.
fn identity(store: &Value) -> Option<[String; 4]> {
    let other = store["identity_copied"]["other"].as_str().map(clean)?;
    let details = format!("that of {other} [host_identity_copied]");
    Some(["store".to_owned(), "identity".to_owned(), "copied".to_owned(), details])
}

/// Returns the row of the shared store, if there is one.
fn store(store: &Value, now: u64) -> Option<[String; 4]> {
    let state = store["state"].as_str().map(clean)?;
    let count = |name: &str| store[name].as_u64().map_or_else(|| "?".to_owned(), |n| n.to_string());
    let details = format!(
        "for {}, {} changes pending, {} dropped, {} of {} hosts",
        age(&store["since_unix_ms"], now),
        count("pending"),
        count("dropped"),
        count("replicas"),
        count("expected_replicas"),
    );
    Some(["store".to_owned(), "shared state".to_owned(), state, details])
}

/// Returns the time since a point in time.
fn age(unix_ms: &Value, now: u64) -> String {
    // Saturates: the clock of another machine may be ahead.
    unix_ms.as_u64().map_or_else(|| "-".to_owned(), |since| duration(now.saturating_sub(since)))
}
