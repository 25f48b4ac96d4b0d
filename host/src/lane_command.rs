//! `pointsman lane …`: lanes of a running host, by hand.

use anyhow::{Context as _, Result};
use http::Method;
use pointsman_report::table::clean;
use serde_json::Value;

use crate::cli::lane::{Lane, LaneTarget, Wait};
use crate::cli::policy::HostOptions;
use crate::other_host::{OtherHost, unix_ms_now};
use crate::output;
use crate::policy::{HostClient, aligned, percent_encoded};

/// Runs a subcommand.
///
/// # Errors
/// If the host is not reachable, or cannot carry out the command.
pub(crate) fn lane(command: Lane) -> Result<()> {
    match command {
        Lane::List(host) => {
            let lanes = call(&host, Method::GET, "/lanes")?["lanes"].take();
            show(&host, &lanes, lanes.as_array().map_or(&[], Vec::as_slice))
        }
        Lane::Load { target, wait } => send(&target, "load", &wait_query(&wait)),
        Lane::Unload { target, hold, wait } => {
            send(&target, "unload", &format!("{}&hold={hold}", wait_query(&wait)))
        }
        Lane::Drain { target, undo } => send(&target, "drain", &format!("?undo={undo}")),
        Lane::Restart { target, wait } => send(&target, "restart", &wait_query(&wait)),
        Lane::Logs { target: LaneTarget { name, host }, lines, follow } => {
            let json = host.json;
            let query = format!("?lines={lines}&follow={follow}&json={json}");
            let path = format!("/lanes/{}/logs{query}", percent_encoded(&name));
            let client = HostClient::new(&host.target)?;
            block_on(client.stream(&path, output::print_while_read))
        }
    }
}

fn wait_query(Wait { no_wait }: &Wait) -> String {
    format!("?wait={}", !no_wait)
}

/// Sends a command, and prints the lane after it.
fn send(LaneTarget { name, host }: &LaneTarget, command: &str, query: &str) -> Result<()> {
    let path = format!("/lanes/{}/{command}{query}", percent_encoded(name));
    let lane = call(host, Method::POST, &path)?;
    show(host, &lane, std::slice::from_ref(&lane))
}

/// Sends a request that may take as long as a load.
fn call(host: &HostOptions, method: Method, path: &str) -> Result<Value> {
    let client = HostClient::new(&host.target)?;
    block_on(async { Ok(client.call_without_timeout(method, path).await?) })
}

fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("failed to start the async runtime")?.block_on(work)
}

fn show(host: &HostOptions, value: &Value, lanes: &[Value]) -> Result<()> {
    output::print(&if host.json { format!("{value:#}\n") } else { table(lanes) })
}

fn table(lanes: &[Value]) -> String {
    const HEAD: [&str; 9] =
        ["LANE", "STATE", "ENGINE", "RUNNING", "QUEUED", "SLOTS", "BY HAND", "SINCE", "PROBLEM"];
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(lanes.iter().map(|lane| {
        let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), clean);
        let count =
            |name: &str| lane[name].as_u64().map_or_else(|| "-".to_owned(), |n| n.to_string());
        let manual = &lane["manual"];
        let by_hand = match (manual["mode"].as_str(), manual["by"].as_str()) {
            (Some(mode), Some(by)) => format!("{mode} ({})", clean(by)),
            _ => "-".to_owned(),
        };
        [
            text(&lane["name"]),
            text(&lane["state"]),
            text(&lane["engine"]),
            count("running"),
            count("queued"),
            count("slots"),
            by_hand,
            text(&manual["since"]),
            text(&lane["problem_code"]),
        ]
    }));
    aligned(&rows) + &problems(lanes) + &hosts(lanes)
}

/// Returns what is wrong with lanes, and what to do, as lines below their table.
fn problems(lanes: &[Value]) -> String {
    let line = |lane: &Value| {
        let (name, problem) = (lane["name"].as_str()?, lane["problem"].as_str()?);
        Some(format!("\n{}: {}\n", clean(name), clean(problem)))
    };
    lanes.iter().filter_map(line).collect()
}

/// Returns which lanes are those of other hosts, and how they are there, as lines below the table.
fn hosts(lanes: &[Value]) -> String {
    let line = |lane: &Value| {
        let name = lane["name"].as_str()?;
        let host = OtherHost::read(&lane["host"])?;
        Some(format!("\n{}: {}\n", clean(name), host.describe(unix_ms_now())))
    };
    lanes.iter().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lanes_are_a_table() {
        let held = json!({ "mode": "held", "by": "ann\u{1b}", "since": "2026-11-27T18:00:00Z" });
        let text = table(&[
            json!({ "name": "a", "state": "ready", "engine": "ready", "running": 1, "queued": 0,
                    "slots": 2, "manual": null, "problem_code": null }),
            json!({ "name": "b", "state": "down", "engine": "cold", "manual": held,
                    "problem": "held;\u{1b} load it", "problem_code": "lane_held" }),
            json!({ "name": "far", "state": "ready", "host": {
                    "url": "http://10.0.0.2:8080", "name": "gpu-2\u{1b}", "lane": "c",
                    "liveness": "live" } }),
        ]);
        let (text, below) = text.split_once("\n\n").unwrap();
        assert!(below.starts_with("b: held;") && !below.contains('\u{1b}'), "{below}");
        assert!(below.contains("far: lane `c` of gpu-2"), "{below}");
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["a", "ready", "ready", "1", "0", "2", "-", "-", "-"]);
        assert!(text.contains("held (ann") && !text.contains('\u{1b}'), "{text}");
        assert_eq!(lines[2].last(), Some(&"lane_held"));
    }
}
