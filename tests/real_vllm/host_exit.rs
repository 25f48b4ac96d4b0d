//! The host is stopped or killed, and no process of vLLM is left.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use pointsman_tests::client::{post, stream};
use pointsman_tests::host::{Host, is_alive, program};
use pointsman_tests::upgrade::UpgradedHost;
use rustix::process::Signal;
use serde_json::json;

use crate::client::{CHAT, chat_body, raw_request, read_stream, stream_body};
use crate::environment::{TestEnvironment, VLLM};
use crate::leftovers::Leftovers;
use crate::processes::{name, named, session_members};
use crate::{FAKE_ENGINE, wait_long};

/// The time for the keeper to notice the exit of the host, terminate the engines and kill them.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) fn no_request_was_lost(environment: &mut TestEnvironment) {
    let running = environment.ready_host();
    running.host.assert_no_request_lost();
    let host = &running.host;
    let count =
        |end: &str| format!("{} {}", end, host.metric(&format!("pointsman_{end}_total"), ""));
    let ends = ["accepted", "answered", "fell_back", "errors", "client_gone"].map(count);
    environment.report.row(
        "the host's accounting",
        &format!("{}: balanced", ends.join(", ")),
        None,
    );
}

pub(crate) fn host_upgraded_during_stream(environment: &mut TestEnvironment) {
    let mut host = UpgradedHost::new(environment.take_host(), &program(FAKE_ENGINE));
    let (port, session) = (host.host.port, host.host.engine_pid(VLLM));
    let (processes, start) = (all_processes(&host.host), Instant::now());
    let mut response = stream(port, CHAT, &stream_body(VLLM, 200));
    assert!(response.read_until("\"content\":"));
    let asked = Instant::now();
    let result = host.upgrade();
    let seen = format!("nothing was dispatched for {} ms", result["pause_ms"]);
    environment.report.row("upgrade of the host in mid-stream", &seen, Some(asked.elapsed()));
    let outcome = read_stream(response, start);
    let seen = format!("complete: {}", outcome.is_done());
    environment.report.row("the stream meanwhile", &seen, None);
    assert!(outcome.is_done(), "{outcome:?}");
    assert_eq!(host.host.engine_pid(VLLM), session);
    let next = post(port, CHAT, &chat_body(VLLM, 4, &json!({})));
    assert_eq!(next.status, 200, "{}", next.text());
    assert!(host.wait_for_first().success());
    host.stop();
    wait_long("no process is left", || remains(&processes, session).is_empty());
}

pub(crate) fn host_stopped_during_stream(environment: &mut TestEnvironment) {
    let mut host = environment.take_host();
    let session = host.engine_pid(VLLM);
    let (processes, leftovers) = (all_processes(&host), Leftovers::now());
    let start = Instant::now();
    let mut response = stream(host.port, CHAT, &stream_body(VLLM, 200));
    assert!(response.read_until("\"content\":"));
    host.signal(Signal::TERM);
    let asked = Instant::now();
    let outcome = read_stream(response, start);
    let finished = asked.elapsed();
    let status = host.wait_for_exit();
    let ended = asked.elapsed();
    let seen =
        format!("the stream is complete: {}; the host exits with {status}", outcome.is_done());
    environment.report.row("SIGTERM of the host in mid-stream", &seen, Some(ended));
    environment.report.row("the stream meanwhile", "", Some(finished));
    let left = wait_long("no process is left", || remains(&processes, session).is_empty());
    environment.report.row("processes left after that", "none", Some(left));
    environment.report.row("files left behind", &Leftovers::now().since(&leftovers), None);
    assert!(outcome.is_done(), "{outcome:?}");
    assert!(status.success(), "{}", host.log_text());
    // The keeper has nothing to end, and exits a moment after the host.
    assert!(left < Duration::from_secs(2), "{left:?}");
}

pub(crate) fn host_killed_while_vllm_starts(environment: &mut TestEnvironment) {
    assert_kill_leaves_nothing(environment, "SIGKILL of the host, vLLM is starting", |processes| {
        processes.len() == 1 && processes.iter().all(|pid| name(*pid).contains("vllm"))
    });
}

pub(crate) fn host_killed_while_vllm_loads(environment: &mut TestEnvironment) {
    assert_kill_leaves_nothing(
        environment,
        "SIGKILL of the host, vLLM loads in three processes",
        |processes| {
            named(processes, "VLLM::EngineCore").is_some()
                && named(processes, "VLLM::Worker").is_some()
        },
    );
}

fn assert_kill_leaves_nothing(
    environment: &mut TestEnvironment,
    what: &str,
    condition: fn(&[u32]) -> bool,
) {
    let mut host = environment.start_unmonitored();
    let port = host.port;
    let body = chat_body(VLLM, 1, &json!({})).to_string();
    let request = std::thread::spawn(move || raw_request(port, "POST", CHAT, &body));
    wait_long("the engine has a process", || host.lane(VLLM)["pid"].is_u64());
    let session = host.engine_pid(VLLM);
    wait_long("the load has made progress", || condition(&session_members(session)));
    assert_eq!(host.lane(VLLM)["engine"], "starting");
    let (processes, leftovers) = (all_processes(&host), Leftovers::now());
    host.signal(Signal::KILL);
    let killed = Instant::now();
    host.wait_for_exit();
    // The request fails with the host.
    request.join().unwrap().ok();
    let left = || remains(&processes, session);
    while !left().is_empty() && killed.elapsed() < CLEANUP_TIMEOUT {
        pointsman_tests::pause(Duration::from_millis(50));
    }
    let (took, left) = (killed.elapsed(), left());
    let names: Vec<String> = left.iter().map(|pid| format!("{} {pid}", name(*pid))).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    environment.report.row(
        what,
        &format!("{} processes before, left: {names}", processes.len()),
        Some(took),
    );
    environment.report.row("files left behind", &Leftovers::now().since(&leftovers), None);
    assert!(left.is_empty(), "{names}");
}

/// Returns all processes of a host, including its engines and the keeper.
fn all_processes(host: &Host) -> HashSet<u32> {
    let mut processes = host.descendants();
    processes.extend(session_members(host.engine_pid(VLLM)));
    processes
}

/// Returns the living ones of these processes and of the engine's session.
fn remains(processes: &HashSet<u32>, session: u32) -> Vec<u32> {
    let mut left = session_members(session);
    left.extend(processes.iter().filter(|pid| is_alive(**pid)));
    left.sort_unstable();
    left.dedup();
    left
}
