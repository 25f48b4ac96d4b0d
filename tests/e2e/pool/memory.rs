//! Memory: seen to be free before the next engine is started, whatever became of the last one.

use pointsman_tests::host::{alive, kill};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{
    AT_ONCE, GIB, Machine, ask, asking, engine, is_engine, on_gpu, start, streaming, vllm,
};

const ALL: &str = "memory = \"16GiB\"\n";

fn lane(machine: &Machine, name: &str, more: &str, flags: &str) -> String {
    let flags = format!("--load-ms 200 --fork-core {} {flags}", machine.flags(12 * GIB));
    vllm(name, more, "", &flags).replace("memory = \"8GiB\"", "memory = \"12GiB\"")
}

/// The core of a vLLM outlives its server, and the driver gives its memory back a while after that. The next engine, which
/// would fail for want of memory, is not started before.
#[test]
fn memory_is_seen_to_be_free_before_the_next_load() {
    let machine = Machine::new(16 * GIB, 1000);
    let lanes = [lane(&machine, "a", "", ""), lane(&machine, "b", "", "")];
    let host = machine.start(&on_gpu(AT_ONCE, ALL, &lanes));
    assert_eq!(ask(&host, "a").status, 200);
    let core = u32::try_from(engine(&host, "a")["core"].as_u64().unwrap()).unwrap();
    assert_eq!(machine.holders(), [core.to_string()]);
    kill(host.engine_pid("a"), Signal::KILL);
    let next = asking(&host, "b", json!({}));
    let mut waited = false;
    wait_until("lane b is started", || {
        let progress = host.lane("b")["progress"].clone();
        waited |= progress.as_str().is_some_and(|progress| {
            progress.starts_with("waiting for memory: 4.0 GiB of 12.0 GiB")
        });
        host.lane("b")["pid"].is_u64()
    });
    assert!(waited && !alive(core));
    let reply = next.join().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(host.lane("b")["starts"], 1);
    assert_eq!(host.metric("pointsman_engine_exits_total", "lane=\"b\""), 0.0);
    host.assert_nothing_lost();
    host.stop();
}

#[test]
fn a_switch_waits_for_memory_that_is_given_back_late() {
    let machine = Machine::new(16 * GIB, 1000);
    let lanes = [lane(&machine, "a", "", ""), lane(&machine, "b", "", "")];
    let host = machine.start(&on_gpu(AT_ONCE, ALL, &lanes));
    for model in ["a", "b", "a"] {
        let reply = ask(&host, model);
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(machine.holders().len(), 1);
    }
    assert_eq!(host.metric("pointsman_engine_exits_total", ""), 0.0);
    assert!(host.metric("pointsman_switch_seconds_sum", "part=\"free\"") >= 1.0);
    host.assert_nothing_lost();
}

/// A server that dies while it works: those who wait get the engine that comes after it.
#[test]
fn an_engine_that_lost_its_server_comes_back_only_when_its_memory_is_free() {
    let machine = Machine::new(16 * GIB, 1000);
    let lanes = [lane(&machine, "a", "slots = 1", r#"--script '{"stall-after": 2}'"#)];
    let host = machine.start(&on_gpu("", ALL, &lanes));
    let mut held = streaming(&host, "a");
    assert!(held.until("data: "));
    let waits = asking(&host, "a", json!({}));
    wait_until("it waits", || host.lane("a")["queued"] == 1);
    kill(host.engine_pid("a"), Signal::KILL);
    super::last_words(&held.finish().0.text());
    let reply = waits.join().unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!((&host.lane("a")["starts"], machine.holders().len()), (&json!(2), 1));
    assert_eq!(host.metric("pointsman_engine_exits_total", ""), 1.0);
    host.assert_nothing_lost();
}

#[test]
fn memory_that_somebody_else_holds_is_named() {
    let machine = Machine::new(16 * GIB, 1000);
    machine.taken_by(1, 10 * GIB);
    let group = format!("{ALL}free-timeout = \"400ms\"\n");
    let host = machine.start(&on_gpu("", &group, &[lane(&machine, "a", "", "")]));
    let reply = ask(&host, "a");
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (503, &json!("no_lane_available")),
        "{}",
        reply.text()
    );
    let message = reply.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(
        message
            .contains("memory did not become free within 0.4 s: 12.0 GiB are needed, 6.0 GiB free"),
        "{message}"
    );
    assert!(message.contains("held by 1 (10.0 GiB)"), "{message}");
    assert_eq!(host.lane("a")["starts"], 0);
    machine.taken_by(1, 0);
    wait_until("it is loaded once there is room", || ask(&host, "a").status == 200);
    host.assert_nothing_lost();
}

/// Two that fit together are loaded together, and the third takes the place of the one that is idle.
#[test]
fn lanes_that_fit_together_stay_together() {
    let config = "[[groups]]\nname = \"gpu\"\nmemory = \"17GiB\"\n";
    let stalls = r#"--load-ms 100 --script '{"stall-after": 2}'"#;
    let lanes = [
        vllm("a", "", "", stalls),
        vllm("b", "", "", "--load-ms 100"),
        vllm("c", "", "", "--load-ms 100"),
    ];
    let host = start(&format!("{AT_ONCE}{config}{}", lanes.concat()));
    let mut held = streaming(&host, "a");
    assert!(held.until("data: "));
    assert_eq!((ask(&host, "b").status, ask(&host, "b").status), (200, 200));
    assert!(is_engine(&host, "a", "ready") && is_engine(&host, "b", "ready"));
    assert_eq!(ask(&host, "c").status, 200);
    assert!(
        is_engine(&host, "a", "ready")
            && is_engine(&host, "c", "ready")
            && !is_engine(&host, "b", "ready")
    );
    assert_eq!(host.lane("a")["starts"], 1);
    drop(held);
    host.assert_nothing_lost();
}
