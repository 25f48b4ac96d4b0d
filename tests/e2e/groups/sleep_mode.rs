//! vLLM's sleep mode: the host verifies everything that the engine reports about it.

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, is_alive, send_signal};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{
    CHAT, FakeMachine, GIB, SWITCH_IMMEDIATELY, engine_state, gpu_group, send_chat, silent_client,
    vllm_lane,
};

const LANE: &str = "memory = \"12GiB\"\nsleep-memory = \"1GiB\"";

fn lane(machine: &FakeMachine, name: &str, level: &str, script: &str) -> String {
    let flags =
        format!("--load-ms 200 --fork-core --script '{script}' {}", machine.flags(12 * GIB));
    let engine = format!("unload-mode = {level:?}\nstop-grace = \"2s\"\nshutdown-timeout = \"1s\"");
    vllm_lane(name, "", &engine, &flags).replace("memory = \"8GiB\"", LANE)
}

/// Starts a host with lane `a`, which has this script, and a healthy lane `b`.
fn start_two_lanes(machine: &FakeMachine, level: &str, script: &str) -> Host {
    let lanes = [lane(machine, "a", level, script), lane(machine, "b", level, "{}")];
    machine.start(&gpu_group(SWITCH_IMMEDIATELY, "memory = \"16GiB\"", &lanes))
}

/// Returns the text of a response of lane `a`.
fn response_text(host: &Host) -> String {
    let response = post(host.port, CHAT, &chat("a", json!({ "max_tokens": 12 })));
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn sleeping_engine_frees_memory_and_wakes_unchanged() {
    for level in ["sleep-1", "sleep-2"] {
        let machine = FakeMachine::new(16 * GIB, 100);
        let host = start_two_lanes(&machine, level, "{}");
        let (text, pid) = (response_text(&host), host.engine_pid("a"));
        for _ in 0..2 {
            assert_eq!(send_chat(&host, "b").status, 200);
            assert!(is_alive(pid) && host.lane("a")["engine"] == "cold", "{}", host.lane("a"));
            assert_eq!(response_text(&host), text);
            assert_eq!((host.engine_pid("a"), &host.lane("a")["starts"]), (pid, &json!(1)));
        }
        assert_eq!(engine_state(&host, "a")["awake"], 2);
        assert_eq!(host.events("sleep_disabled", &[]), []);
        host.assert_no_request_lost();
        host.stop();
    }
}

#[test]
fn engine_that_wakes_with_wrong_output_restarts_without_sleep_mode() {
    for script in [r#"{"garbage-after-wake": true}"#, r#"{"wake-500": true}"#] {
        let machine = FakeMachine::new(16 * GIB, 100);
        let host = start_two_lanes(&machine, "sleep-1", script);
        let (text, processes) = (response_text(&host), host.engine_processes("a"));
        assert_eq!(send_chat(&host, "b").status, 200);
        assert_eq!(response_text(&host), text, "{script}");
        assert!(processes.iter().all(|pid| !is_alive(*pid)), "{script}");
        host.wait_for_event("sleep_disabled", &[("lane", "a")]);
        assert_eq!(host.lane("a")["starts"], 2, "{script}");
        // From now on the engine is stopped and started again.
        let pid = host.engine_pid("a");
        assert_eq!(send_chat(&host, "b").status, 200);
        assert!(!is_alive(pid), "{script}");
        assert_eq!(
            (response_text(&host), &host.lane("a")["starts"]),
            (text, &json!(3)),
            "{script}"
        );
        assert_eq!(host.lane("b")["starts"], 1, "lane b still sleeps");
        host.assert_no_request_lost();
        host.stop();
    }
}

/// The engine reports that it sleeps but holds its memory, or never responds. It is ended while the
/// requests for the other lane are still waiting.
#[test]
fn engine_that_keeps_memory_asleep_is_ended() {
    assert_failed_sleep_ends_engine(r#"{"sleep-keeps-memory": true}"#);
}

#[test]
fn engine_that_hangs_while_falling_asleep_is_ended() {
    assert_failed_sleep_ends_engine(r#"{"sleep-hangs": true}"#);
}

#[test]
fn host_stops_while_engine_hangs_falling_asleep() {
    let machine = FakeMachine::new(16 * GIB, 100);
    let host = start_two_lanes(&machine, "sleep-1", r#"{"sleep-hangs": true}"#);
    assert!(!response_text(&host).is_empty());
    let client = silent_client(&host, &chat("b", json!({})));
    wait_until("the engine is falling asleep", || host.lane("a")["engine"] == "stopping");
    drop(client);
    host.stop();
}

fn assert_failed_sleep_ends_engine(script: &str) {
    let machine = FakeMachine::new(16 * GIB, 100);
    let host = start_two_lanes(&machine, "sleep-1", script);
    let (text, processes) = (response_text(&host), host.engine_processes("a"));
    let response = send_chat(&host, "b");
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(processes.iter().all(|pid| !is_alive(*pid)));
    host.wait_for_event("sleep_disabled", &[("lane", "a")]);
    assert_eq!((response_text(&host), &host.lane("a")["starts"]), (text, &json!(2)));
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn engine_that_crashes_asleep_is_started_again() {
    let machine = FakeMachine::new(16 * GIB, 100);
    let host = start_two_lanes(&machine, "sleep-1", "{}");
    let (text, processes, pid) =
        (response_text(&host), host.engine_processes("a"), host.engine_pid("a"));
    assert_eq!(send_chat(&host, "b").status, 200);
    send_signal(pid, Signal::KILL);
    wait_until("all processes of the engine have exited", || {
        processes.iter().all(|pid| !is_alive(*pid))
    });
    assert_eq!((response_text(&host), &host.lane("a")["starts"]), (text, &json!(2)));
    host.assert_no_request_lost();
    host.stop();
}

/// Awake, the engine needs almost all the memory, a part of which it holds while it sleeps.
#[test]
fn wake_up_needs_only_memory_not_held_asleep() {
    let machine = FakeMachine::new(16 * GIB, 100);
    let flags = format!("--load-ms 200 --fork-core {}", machine.flags(31 * GIB / 2));
    let lanes = [vllm_lane("a", "", "unload-mode = \"sleep-1\"", &flags).replace(
        "memory = \"8GiB\"",
        "memory = \"15872MiB\"\nsleep-memory = \"1GiB\"\nunload-after = \"300ms\"",
    )];
    let host = machine.start(&gpu_group(
        SWITCH_IMMEDIATELY,
        "memory = \"16GiB\"\nfree-timeout = \"1s\"",
        &lanes,
    ));
    let text = response_text(&host);
    wait_until("the engine sleeps", || host.lane("a")["engine"] == "cold");
    assert_eq!(response_text(&host), text);
    assert_eq!(host.lane("a")["starts"], 1);
    assert_eq!(host.events("engine_load_failed", &[]), []);
    host.assert_no_request_lost();
    host.stop();
}
