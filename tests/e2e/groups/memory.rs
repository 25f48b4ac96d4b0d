//! Memory: the host verifies that it is free before it starts the next engine, however the last
//! engine ended.

use std::fs;

use pointsman_tests::host::{Host, is_alive, send_signal};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{
    FakeMachine, GIB, SWITCH_IMMEDIATELY, engine_is, engine_state, gpu_group, send_chat,
    spawn_chat, start, start_stream, vllm_lane,
};

const ALL: &str = "memory = \"16GiB\"\n";

fn lane(machine: &FakeMachine, name: &str, more: &str, flags: &str) -> String {
    let flags = format!("--load-ms 200 --fork-core {} {flags}", machine.flags(12 * GIB));
    vllm_lane(name, more, "", &flags).replace("memory = \"8GiB\"", "memory = \"12GiB\"")
}

/// The core of a vLLM outlives its server, and the driver frees its memory some time later. The
/// next engine would fail without that memory, and is started only when it is free.
#[test]
fn load_waits_until_memory_is_free() {
    let machine = FakeMachine::new(16 * GIB, 1000);
    let lanes = [lane(&machine, "a", "", ""), lane(&machine, "b", "", "")];
    let host = machine.start(&gpu_group(SWITCH_IMMEDIATELY, ALL, &lanes));
    assert_eq!(send_chat(&host, "a").status, 200);
    let core = u32::try_from(engine_state(&host, "a")["core"].as_u64().unwrap()).unwrap();
    assert_eq!(machine.holders(), [core.to_string()]);
    send_signal(host.engine_pid("a"), Signal::KILL);
    let next = spawn_chat(&host, "b", json!({}));
    let mut waited = false;
    wait_until("the engine of lane b is started", || {
        let progress = host.lane("b")["progress"].clone();
        waited |= progress.as_str().is_some_and(|progress| {
            // The free memory and the memory that the lane needs.
            progress.contains("4.0 GiB") && progress.contains("12.0 GiB")
        });
        host.lane("b")["pid"].is_u64()
    });
    assert!(waited && !is_alive(core));
    let response = next.join().unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(host.lane("b")["starts"], 1);
    assert_eq!(host.metric("pointsman_engine_exits_total", "lane=\"b\""), 0.0);
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn switch_waits_for_memory_that_is_freed_late() {
    let machine = FakeMachine::new(16 * GIB, 1000);
    let lanes = [lane(&machine, "a", "", ""), lane(&machine, "b", "", "")];
    let host = machine.start(&gpu_group(SWITCH_IMMEDIATELY, ALL, &lanes));
    for model in ["a", "b", "a"] {
        let response = send_chat(&host, model);
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(machine.holders().len(), 1);
    }
    assert_eq!(host.metric("pointsman_engine_exits_total", ""), 0.0);
    assert!(host.metric("pointsman_switch_seconds_sum", "part=\"free\"") >= 1.0);
    host.assert_no_request_lost();
}

/// A server crashes while it serves: queued requests are served by the next engine.
#[test]
fn crashed_engine_restarts_only_when_its_memory_is_free() {
    let machine = FakeMachine::new(16 * GIB, 1000);
    let lanes = [lane(&machine, "a", "slots = 1", r#"--script '{"stall-after": 2}'"#)];
    let host = machine.start(&gpu_group("", ALL, &lanes));
    let mut held = start_stream(&host, "a");
    assert!(held.read_until("data: "));
    let waits = spawn_chat(&host, "a", json!({}));
    wait_until("the request is queued", || host.lane("a")["queued"] == 1);
    send_signal(host.engine_pid("a"), Signal::KILL);
    super::final_error(&held.finish().0.text());
    let response = waits.join().unwrap();
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!((&host.lane("a")["starts"], machine.holders().len()), (&json!(2), 1));
    assert_eq!(host.metric("pointsman_engine_exits_total", ""), 1.0);
    host.assert_no_request_lost();
}

#[test]
fn foreign_memory_holder_is_named() {
    let machine = FakeMachine::new(16 * GIB, 1000);
    machine.occupy(1, 10 * GIB);
    let group = format!("{ALL}free-timeout = \"400ms\"\n");
    let host = machine.start(&gpu_group("", &group, &[lane(&machine, "a", "", "")]));
    let response = send_chat(&host, "a");
    assert_eq!(
        (response.status, &response.json()["error"]["code"]),
        (503, &json!("no_lane_available")),
        "{}",
        response.text()
    );
    let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
    // The timeout, the needed and the free memory, and the process that holds the rest.
    for value in ["0.4 s", "12.0 GiB", "6.0 GiB", "1 (10.0 GiB)"] {
        assert!(message.contains(value), "{value}: {message}");
    }
    host.wait_for_event("engine_load_failed", &[("lane", "a"), ("reason", "no-memory")]);
    assert_eq!(host.lane("a")["starts"], 0);
    machine.occupy(1, 0);
    wait_until("the lane is loaded once the memory is free", || {
        send_chat(&host, "a").status == 200
    });
    host.assert_no_request_lost();
}

/// vLLM only starts if the fraction of the GPU that it is given is free. Its runtime may report
/// another size of the GPU than the kernel: a start that is refused shows which, and the next one
/// gets a fraction of that.
#[test]
fn fraction_of_the_gpu_follows_the_need_and_what_vllm_reports() {
    let machine = FakeMachine::new(16 * GIB, 100);
    let known = lane(&machine, "a", "", "");
    let other = lane(&machine, "b", "", &format!("--device-total {}", 64 * GIB));
    let host = machine.start(&gpu_group(SWITCH_IMMEDIATELY, ALL, &[known, other]));
    assert_eq!(send_chat(&host, "a").status, 200);
    assert!(command_line(&host, "a").contains("--gpu-memory-utilization 0.75 "));
    // 0.75 of 64 GiB are more than there is.
    let refused = send_chat(&host, "b");
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(host.lane("b")["problem_code"], "gpu_memory_taken");
    wait_until("the lane is loaded", || send_chat(&host, "b").status == 200);
    // 12 of 64 GiB.
    let words = command_line(&host, "b");
    assert!(words.contains("--gpu-memory-utilization 0.188 "), "{words}");
    host.wait_for_event("memory_fraction", &[("lane", "b")]);
    host.assert_no_request_lost();
    host.stop();
}

/// Returns the arguments of a lane's engine, each with a space after it.
fn command_line(host: &Host, lane: &str) -> String {
    let words = fs::read(format!("/proc/{}/cmdline", host.engine_pid(lane))).unwrap();
    String::from_utf8(words).unwrap().replace('\0', " ")
}

/// Two lanes that fit are loaded together, and the third lane replaces the one that is idle.
#[test]
fn lanes_that_fit_are_loaded_together() {
    let config = "[[groups]]\nname = \"gpu\"\nmemory = \"17GiB\"\n";
    let stalls = r#"--load-ms 100 --script '{"stall-after": 2}'"#;
    let lanes = [
        vllm_lane("a", "", "", stalls),
        vllm_lane("b", "", "", "--load-ms 100"),
        vllm_lane("c", "", "", "--load-ms 100"),
    ];
    let host = start(&format!("{SWITCH_IMMEDIATELY}{config}{}", lanes.concat()));
    let mut held = start_stream(&host, "a");
    assert!(held.read_until("data: "));
    assert_eq!((send_chat(&host, "b").status, send_chat(&host, "b").status), (200, 200));
    assert!(engine_is(&host, "a", "ready") && engine_is(&host, "b", "ready"));
    assert_eq!(send_chat(&host, "c").status, 200);
    assert!(
        engine_is(&host, "a", "ready")
            && engine_is(&host, "c", "ready")
            && !engine_is(&host, "b", "ready")
    );
    assert_eq!(host.lane("a")["starts"], 1);
    drop(held);
    host.assert_no_request_lost();
}
