//! Switches between vLLM and llama.cpp, which share memory for one of them.

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pointsman_tests::client::stream;
use pointsman_tests::host::Host;
use serde_json::json;

use crate::client::{CHAT, chat_body, raw_request, read_stream, stream_body};
use crate::environment::{LLAMA, MonitoredHost, TestEnvironment, VLLM};
use crate::processes::session_members;
use crate::status_monitor::StatusMonitor;

pub(crate) fn switch_during_stream(environment: &mut TestEnvironment) {
    let running = environment.ready_host();
    let MonitoredHost { host, monitor } = &*running;
    let session = host.engine_pid(VLLM);
    let start = Instant::now();
    let mut long = stream(host.port, CHAT, &stream_body(VLLM, 200));
    assert!(long.read_until("\"content\":"));
    let requested = Instant::now();
    let reader = spawn_chat(host, LLAMA, 4);
    let outcome = read_stream(long, start);
    let finished = requested.elapsed();
    let (response, took) = reader.join().unwrap();
    let left = session_members(session);

    let states = format_states(monitor, requested, VLLM);
    environment.report.row(
        "another lane is requested in mid-stream",
        &format!("vLLM: {states}"),
        Some(took),
    );
    let complete = outcome.is_done() && outcome.last_event().contains("\"completion_tokens\":200");
    let seen = format!("complete with all 200 tokens: {complete}");
    environment.report.row("the stream meanwhile", &seen, Some(finished));
    environment.report.row(
        "the other lane",
        &format_states(monitor, requested, LLAMA),
        monitor.time_in_state(requested, LLAMA, "starting"),
    );
    let overlaps = monitor.overlaps();
    environment.report.row(
        "two engines at the same time",
        &format!("observed {} times", overlaps.len()),
        None,
    );
    assert!(complete, "{outcome:?}");
    assert!(is_success(&response), "{response}");
    assert!(monitor.time_in_state(requested, VLLM, "draining").is_some(), "{states}");
    assert!(left.is_empty() && overlaps.is_empty(), "{left:?} {overlaps:?}");
}

pub(crate) fn switch_back(environment: &mut TestEnvironment) {
    let running = environment.host();
    let MonitoredHost { host, monitor } = &*running;
    let (response, _) = spawn_chat(host, LLAMA, 1).join().unwrap();
    assert!(is_success(&response) && host.lane(LLAMA)["engine"] == "ready", "{response}");
    let requested = Instant::now();
    let (response, took) = spawn_chat(host, VLLM, 8).join().unwrap();
    let seen = format!(
        "a plain request is held and served: {}; llama.cpp: {}; vLLM: {}",
        is_success(&response),
        format_states(monitor, requested, LLAMA),
        format_states(monitor, requested, VLLM)
    );
    environment.report.row("back to vLLM", &seen, Some(took));
    let overlaps = monitor.overlaps();
    assert!(is_success(&response), "{response}");
    assert!(overlaps.is_empty(), "{overlaps:?}");
}

/// Sends a request without streaming in a thread of its own; returns the response and its duration.
fn spawn_chat(host: &Host, lane: &'static str, tokens: u32) -> JoinHandle<(String, Duration)> {
    let port = host.port;
    std::thread::spawn(move || {
        let start = Instant::now();
        let response =
            raw_request(port, "POST", CHAT, &chat_body(lane, tokens, &json!({})).to_string());
        (response.unwrap_or_else(|error| error.to_string()), start.elapsed())
    })
}

fn is_success(response: &str) -> bool {
    response.starts_with("HTTP/1.1 200") && response.contains("\"completion_tokens\"")
}

/// Formats the states of an engine with their durations, except for the last state, which
/// continues.
fn format_states(monitor: &StatusMonitor, since: Instant, lane: &str) -> String {
    let states = monitor.states(since, lane);
    let last = states.len().saturating_sub(1);
    let one = |(index, (state, duration)): (usize, &(String, Duration))| {
        if index == last {
            state.clone()
        } else {
            format!("{state} {:.1} s", duration.as_secs_f64())
        }
    };
    states.iter().enumerate().map(one).collect::<Vec<_>>().join(" > ")
}
