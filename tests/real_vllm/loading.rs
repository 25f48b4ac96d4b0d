//! Start of vLLM.

use std::net::TcpStream;
use std::time::Instant;

use pointsman_tests::host::Host;
use serde_json::Value;

use crate::client::{spawn_stream, stream_body};
use crate::environment::{TestEnvironment, VLLM};
use crate::processes::{command_line, name, resident, session_members};
use crate::status_monitor::Change;
use crate::{report, wait_long};

/// The phases with which `progress` begins, in the order of a load.
const PHASES: [&str; 8] = [
    "starting",
    "reading the model's configuration",
    "loading weights",
    "compiling",
    "taking memory for the KV cache",
    "recording GPU graphs",
    "warming up",
    "listening",
];

pub(crate) fn first_request_loads_engine(environment: &mut TestEnvironment) {
    let running = environment.host();
    let host = &running.host;
    assert_eq!(host.lane(VLLM)["engine"], "cold");
    let start = Instant::now();
    let response = spawn_stream(host.port, stream_body(VLLM, 8));
    wait_long("the engine has a port", || host.lane(VLLM)["port"].is_u64());
    let (refused, accepted) = probe_port(host);
    let outcome = response.join().unwrap();
    let loading = running.monitor.time_in_state(start, VLLM, "starting");
    let (comments, done) = (outcome.comments(), outcome.is_done());
    let seen = format!("held with {comments} keep-alive comments, then complete: {done}");
    environment.report.row("first request, no engine loaded", &seen, outcome.first);
    let seen = format!(
        "its port refused {refused} connections, and accepted {accepted} before it was ready"
    );
    environment.report.row("vLLM, start to ready", &seen, loading);
    assert!(done && refused > 0, "{outcome:?}");

    let changes = running.monitor.changes_since(start, VLLM);
    let phases = phases(&changes);
    let texts: Vec<&str> = changes.iter().filter_map(|change| change.progress.as_deref()).collect();
    environment.report.row("progress while loading", &phases.join(" > "), None);
    println!("{}", texts.join("\n"));
    let places: Vec<usize> = phases
        .iter()
        .map(|phase| PHASES.iter().position(|known| known == phase).unwrap())
        .collect();
    assert!(places.len() >= 4 && places.is_sorted(), "{texts:?}");

    let lane = host.lane(VLLM);
    let number =
        |key: &str| lane[key].as_u64().map_or("unknown".to_owned(), |number| number.to_string());
    let [tokens, kv, weights] = ["kv_tokens", "kv_bytes", "weights_bytes"].map(number);
    let seen = format!("kv_tokens {tokens}, kv_bytes {kv}, weights_bytes {weights}");
    environment.report.row("read from its log", &seen, None);
    // 1 GiB at 32 KiB per token: eight layers, keys and values, 512 numbers of four bytes.
    assert_eq!(
        (&lane["kv_tokens"], &lane["kv_bytes"]),
        (&Value::from(1 << 15), &Value::from(1 << 30))
    );
    assert_eq!((&lane["progress"], &lane["problem"]), (&Value::Null, &Value::Null));
}

/// Connects repeatedly until the engine is ready; returns how many attempts were refused and
/// accepted.
fn probe_port(host: &Host) -> (u32, u32) {
    let port = host.engine_port(VLLM);
    let (mut refused, mut accepted) = (0, 0);
    wait_long("the engine is ready", || {
        let connected = TcpStream::connect(("127.0.0.1", port)).is_ok();
        let ready = host.lane(VLLM)["engine"] == "ready";
        match (ready, connected) {
            (true, _) => {}
            (false, true) => accepted += 1,
            (false, false) => refused += 1,
        }
        ready
    });
    (refused, accepted)
}

/// Returns the phases that were reported, without repetitions in succession.
fn phases(changes: &[Change]) -> Vec<&'static str> {
    let mut phases = Vec::new();
    for progress in changes.iter().filter_map(|change| change.progress.as_deref()) {
        let phase = PHASES.into_iter().find(|phase| progress.starts_with(phase));
        if let Some(phase) = phase
            && phases.last() != Some(&phase)
        {
            phases.push(phase);
        }
    }
    phases
}

pub(crate) fn processes_and_arguments(environment: &mut TestEnvironment) {
    let running = environment.ready_host();
    let engine = running.host.engine_pid(VLLM);
    let mut processes = session_members(engine);
    processes.sort_unstable();
    let sizes = processes.iter().map(|pid| {
        let gib = resident(*pid) as f64 / f64::from(1 << 30);
        format!("{} {gib:.2} GiB", name(*pid))
    });
    let seen = sizes.collect::<Vec<_>>().join(", ");
    environment.report.row("its processes, one session", &seen, None);
    let names: Vec<String> = processes.iter().map(|pid| name(*pid)).collect();
    assert!(names.iter().any(|name| name == "VLLM::EngineCor"), "{names:?}");
    assert!(names.iter().any(|name| name == "VLLM::Worker"), "{names:?}");
    let line = command_line(engine);
    println!("{line}");
    for arguments in
        ["--scheduling-policy priority", "--shutdown-timeout 10", "--load-format dummy"]
    {
        assert!(line.contains(arguments), "{arguments} is not in {line}");
    }
    // The latency of a warm engine.
    let outcome = spawn_stream(running.host.port, stream_body(VLLM, 1)).join().unwrap();
    assert!(outcome.is_done(), "{outcome:?}");
    let first = outcome.first.map(report::seconds).unwrap_or_default();
    environment.report.row(
        "one token from a warm engine",
        &format!("first event after {first}"),
        Some(outcome.took),
    );
}
