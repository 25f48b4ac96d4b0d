//! Processes of vLLM are killed during a stream.

use std::time::{Duration, Instant};

use pointsman_tests::client::{post, stream};
use pointsman_tests::host::{Host, is_alive, send_signal};
use rustix::process::Signal;
use serde_json::json;

use crate::client::{CHAT, chat_body, read_stream, stream_body};
use crate::environment::{TestEnvironment, VLLM};
use crate::leftovers::Leftovers;
use crate::processes::{named, session_members};
use crate::{report, wait_long};

pub(crate) fn api_server_killed_during_stream(environment: &mut TestEnvironment) {
    assert_recovers_from_kill(
        environment,
        "SIGKILL of the API server in mid-stream",
        |engine, _| engine,
    );
}

pub(crate) fn core_killed_during_stream(environment: &mut TestEnvironment) {
    assert_recovers_from_kill(
        environment,
        "SIGKILL of VLLM::EngineCore in mid-stream",
        |_, processes| named(processes, "VLLM::EngineCore").unwrap(),
    );
}

fn assert_recovers_from_kill(
    environment: &mut TestEnvironment,
    what: &str,
    victim: fn(u32, &[u32]) -> u32,
) {
    let running = environment.ready_host();
    let host = &running.host;
    let engine = host.engine_pid(VLLM);
    let processes = session_members(engine);
    assert!(processes.len() >= 3, "{processes:?}");
    let leftovers = Leftovers::now();
    let starts = host.lane(VLLM)["starts"].as_u64().unwrap();
    let start = Instant::now();
    let mut response = stream(host.port, CHAT, &stream_body(VLLM, 800));
    assert!(response.read_until("\"content\":"));
    send_signal(victim(engine, &processes), Signal::KILL);
    let killed = Instant::now();
    let outcome = read_stream(response, start);
    let ended = killed.elapsed();
    let has_exited =
        || session_members(engine).is_empty() && !processes.iter().any(|pid| is_alive(*pid));
    wait_long("no process of the engine is left", has_exited);
    let cleared = killed.elapsed();
    let leftovers = Leftovers::now().since(&leftovers);
    let (rejected, recovered) = (wait_until_served(host), killed.elapsed());

    let seen = format!(
        "explicit error and no [DONE]: {}; last event {}",
        outcome.is_broken(),
        outcome.last_event()
    );
    environment.report.row(what, &seen, Some(ended));
    environment.report.row(
        "all its processes have exited",
        &format!("{} of them", processes.len()),
        Some(cleared),
    );
    environment.report.row("files left behind", &leftovers, None);
    let rejected = if rejected.is_empty() { "none".to_owned() } else { rejected.join(", ") };
    let seen =
        format!("starts {starts} > {}; rejected before: {rejected}", host.lane(VLLM)["starts"]);
    environment.report.row("the lane serves again", &seen, Some(recovered));
    let changes = running.monitor.changes_since(killed, VLLM);
    let problem = changes.iter().find_map(|change| change.problem.as_deref()).unwrap_or("none");
    environment.report.row("the reported problem", problem.get(..300).unwrap_or(problem), None);
    assert!(outcome.is_broken(), "{outcome:?}");
    assert_eq!(host.lane(VLLM)["starts"], starts + 1);
    assert!(cleared < Duration::from_secs(20), "{}", report::seconds(cleared));
    assert!(problem != "none");
}

/// Sends requests until one is served; returns the statuses of those that were rejected before.
fn wait_until_served(host: &Host) -> Vec<String> {
    let mut rejected = Vec::new();
    wait_long("the lane serves", || {
        // A stream gets keep-alive comments, so this client does not time out while it waits.
        let response = post(host.port, CHAT, &chat_body(VLLM, 2, &json!({ "stream": true })));
        let served = response.status == 200 && response.text().ends_with("data: [DONE]\n\n");
        if !served {
            let wait = response.header("retry-after").unwrap_or("none");
            rejected.push(format!("{} (retry-after {wait})", response.status));
            println!("{}", response.text());
            pointsman_tests::pause(Duration::from_millis(500));
        }
        served
    });
    rejected
}
