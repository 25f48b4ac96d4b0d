//! Engine processes: they are started, awaited, restarted, and ended with all their descendants.

use pointsman_tests::client::{chat, get, post};
use pointsman_tests::host::{Host, is_alive, program, send_signal};
use pointsman_tests::wait_until;
use pointsman_xtask::status::all_lanes_are_ready;
use rustix::process::Signal;
use serde_json::json;

use crate::{FAKE_ENGINE, host, lane, one_lane};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn requests_wait_for_loading_engine() {
    let host = Host::start(&program(FAKE_ENGINE), &lane("a", &["a"], &["--load-ms", "700"]));
    assert_eq!(get(host.port, "/readyz").status, 503);
    // What `cargo xtask demo` waits for.
    assert!(!all_lanes_are_ready(&get(host.port, "/status").text()));
    let response = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(get(host.port, "/readyz").status, 200);
    assert!(all_lanes_are_ready(&get(host.port, "/status").text()));
    host.assert_no_request_lost();
}

#[test]
fn crashed_engine_is_restarted() {
    let host = one_lane(&[]);
    for start in 2..4 {
        send_signal(host.engine_pid("a"), Signal::KILL);
        wait_until("the engine has restarted", || {
            host.lane("a")["starts"] == start && host.lane("a")["state"] == "ready"
        });
    }
    assert_eq!(host.metric("pointsman_engine_exits_total", "reason=\"SIGKILL\""), 2.0);
    host.wait_for_event("engine_lost", &[("lane", "a"), ("reason", "SIGKILL")]);
    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200);
    host.stop();
}

#[test]
fn process_group_ends_with_engine() {
    let host = one_lane(&["--fork-child", "--ignore-sigterm"]);
    let (engine, processes) = (host.engine_pid("a"), host.engine_processes("a"));
    assert!(processes.len() == 2 && processes.contains(&engine), "{processes:?}");
    // When the leader crashes, its child must end too.
    send_signal(engine, Signal::KILL);
    wait_until("the old processes have exited", || processes.iter().all(|pid| !is_alive(*pid)));
    wait_until("the new engine is ready", || host.lane("a")["state"] == "ready");
    // `stop` asserts that no process is left, although the engine ignores SIGTERM.
    host.stop();
}

#[test]
fn engines_end_when_host_is_killed() {
    let config = format!("state.orphan-grace = \"0s\"\n{}", lane("a", &["a"], &[]));
    let mut host = Host::start(&program(FAKE_ENGINE), &config).wait_until_ready();
    let engine = host.engine_pid("a");
    host.signal(Signal::KILL);
    host.wait_for_exit();
    wait_until("the engine has exited", || !is_alive(engine));
}

#[test]
fn failed_command_is_named_in_status() {
    let config = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
        command = [\"no-such-program\", \"{port}\"]\n";
    let host = Host::start(&program(FAKE_ENGINE), config);
    wait_until("the lane is down", || host.lane("a")["state"] == "down");
    let problem = host.lane("a")["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("no-such-program"), "{problem}");
    assert_eq!(host.lane("a")["problem_code"], "program_not_found");
    host.wait_for_event("engine_load_failed", &[("lane", "a")]);
}

#[test]
fn engine_beyond_start_timeout_is_restarted() {
    let config = lane("a", &["a"], &["--load-ms", "3600000"]) + "start-timeout = \"300ms\"\n";
    let host = Host::start(&program(FAKE_ENGINE), &config);
    wait_until("the engine was started twice", || host.lane("a")["starts"].as_u64() >= Some(2));
    let failed =
        host.wait_for_event("engine_load_failed", &[("lane", "a"), ("reason", "start-timeout")]);
    assert!(failed.text("error").contains("0.3 s"), "{failed:?}");
    host.stop();
}

#[test]
fn external_engine_is_used_while_probes_succeed() {
    let engine = one_lane(&[]);
    let port = engine.engine_port("a");
    let url = format!("http://127.0.0.1:{port}/v1");
    let config = format!(
        "[[lanes]]\nname = \"x\"\n[lanes.engine]\ndriver = \"external\"\nurl = {url:?}\n\
         key-env = \"TEST_KEY\"\nprobe-interval = \"100ms\"\n"
    );
    engine.set_script("a", json!({ "echo": true }));
    let host = Host::start_in(
        &program(FAKE_ENGINE),
        tempfile::tempdir().unwrap(),
        &config,
        &[("TEST_KEY", "sesame")],
    )
    .wait_until_ready();
    let echoed = post(host.port, CHAT, &chat("x", json!({}))).json();
    assert_eq!(echoed["headers"]["authorization"], "Bearer sesame");
    assert!(!host.log_text().contains("sesame"));
    engine.stop();
    wait_until("the lane is down", || host.lane("x")["state"] == "down");
    assert_eq!(post(host.port, CHAT, &chat("x", json!({}))).status, 503);
    host.assert_no_request_lost();
}

#[test]
fn crash_of_one_engine_does_not_affect_other_lane() {
    let host = host(&[lane("a", &["a"], &[]), lane("b", &["b"], &[])].concat());
    let b = host.engine_pid("b");
    send_signal(host.engine_pid("a"), Signal::KILL);
    assert_eq!(post(host.port, CHAT, &chat("b", json!({}))).status, 200);
    wait_until("lane a is ready again", || {
        host.lane("a")["starts"] == 2 && host.lane("a")["state"] == "ready"
    });
    assert_eq!(host.engine_pid("b"), b);
}
