//! vLLM is started.

use std::net::TcpStream;
use std::time::Instant;

use pointsman_tests::host::Host;
use serde_json::Value;

use crate::processes::{command_line, name, of_session, resident};
use crate::talk::{ask, asking_for_stream};
use crate::watch::Change;
use crate::world::{VLLM, World};
use crate::{report, wait_long};

/// What `progress` begins with, in the order in which an engine gets there.
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

pub(crate) fn the_first_request_loads_it(world: &mut World) {
    let running = world.host();
    let host = &running.host;
    assert_eq!(host.lane(VLLM)["engine"], "cold");
    let begun = Instant::now();
    let answer = ask(host.port, asking_for_stream(VLLM, 8));
    wait_long("it has a port", || host.lane(VLLM)["port"].is_u64());
    let (refused, accepted) = knock(host);
    let told = answer.join().unwrap();
    let loading = running.watch.spent(begun, VLLM, "starting");
    let (comments, done) = (told.comments(), told.done());
    let seen = format!("held with {comments} comments, then 200, tokens and [DONE]: {done}");
    world.report.row("first request, nothing loaded", &seen, told.first);
    let seen =
        format!("its port refused {refused} connections, accepted {accepted} before it was ready");
    world.report.row("vLLM, start to ready", &seen, loading);
    assert!(done && refused > 0, "{told:?}");

    let changes = running.watch.since(begun, VLLM);
    let phases = phases(&changes);
    let texts: Vec<&str> = changes.iter().filter_map(|change| change.progress.as_deref()).collect();
    world.report.row("progress while loading", &phases.join(" > "), None);
    println!("{}", texts.join("\n"));
    let places: Vec<usize> = phases
        .iter()
        .map(|phase| PHASES.iter().position(|known| known == phase).unwrap())
        .collect();
    assert!(places.len() >= 4 && places.is_sorted(), "{texts:?}");

    let lane = host.lane(VLLM);
    let figure =
        |key: &str| lane[key].as_u64().map_or("unknown".to_owned(), |figure| figure.to_string());
    let [tokens, kv, weights] = ["kv_tokens", "kv_bytes", "weights_bytes"].map(figure);
    let seen = format!("kv_tokens {tokens}, kv_bytes {kv}, weights_bytes {weights}");
    world.report.row("read from its log", &seen, None);
    // 1 GiB at 32 KiB a token: eight layers, keys and values, 512 numbers of four bytes.
    assert_eq!(
        (&lane["kv_tokens"], &lane["kv_bytes"]),
        (&Value::from(1 << 15), &Value::from(1 << 30))
    );
    assert_eq!((&lane["progress"], &lane["problem"]), (&Value::Null, &Value::Null));
}

/// Try to connect until the engine is ready: how often that failed, and how often not.
fn knock(host: &Host) -> (u32, u32) {
    let port = host.engine_port(VLLM);
    let (mut refused, mut accepted) = (0, 0);
    wait_long("it is ready", || {
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

/// The phases that were shown, each once for each time it began.
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

pub(crate) fn its_processes_and_arguments(world: &mut World) {
    let running = world.ready();
    let engine = running.host.engine_pid(VLLM);
    let mut family = of_session(engine);
    family.sort_unstable();
    let sizes = family.iter().map(|pid| {
        let gib = resident(*pid) as f64 / f64::from(1 << 30);
        format!("{} {gib:.2} GiB", name(*pid))
    });
    let seen = sizes.collect::<Vec<_>>().join(", ");
    world.report.row("its processes, one session", &seen, None);
    let names: Vec<String> = family.iter().map(|pid| name(*pid)).collect();
    assert!(names.iter().any(|name| name == "VLLM::EngineCor"), "{names:?}");
    assert!(names.iter().any(|name| name == "VLLM::Worker"), "{names:?}");
    let line = command_line(engine);
    println!("{line}");
    for words in ["--scheduling-policy priority", "--shutdown-timeout 10", "--load-format dummy"] {
        assert!(line.contains(words), "{words} is not in {line}");
    }
    // Answers in the time that a warm engine takes.
    let told = ask(running.host.port, asking_for_stream(VLLM, 1)).join().unwrap();
    assert!(told.done(), "{told:?}");
    let first = told.first.map(report::seconds).unwrap_or_default();
    world.report.row(
        "one token from a warm engine",
        &format!("first event after {first}"),
        Some(told.took),
    );
}
