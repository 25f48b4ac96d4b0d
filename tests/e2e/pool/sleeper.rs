//! vLLM's sleep mode, which is believed in nothing.

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, alive, kill};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{AT_ONCE, CHAT, GIB, Machine, ask, engine, leaver, on_gpu, vllm};

const LANE: &str = "memory = \"12GiB\"\nsleep-memory = \"1GiB\"";

fn lane(machine: &Machine, name: &str, level: &str, script: &str) -> String {
    let flags =
        format!("--load-ms 200 --fork-core --script '{script}' {}", machine.flags(12 * GIB));
    let engine = format!("switch = {level:?}\nstop-grace = \"2s\"\nshutdown-timeout = \"1s\"");
    vllm(name, "", &engine, &flags).replace("memory = \"8GiB\"", LANE)
}

/// Lane `a` with this script, and a well one.
fn two(machine: &Machine, level: &str, script: &str) -> Host {
    let lanes = [lane(machine, "a", level, script), lane(machine, "b", level, "{}")];
    machine.start(&on_gpu(AT_ONCE, "memory = \"16GiB\"", &lanes))
}

/// What lane `a` says.
fn words(host: &Host) -> String {
    let reply = post(host.port, CHAT, &chat("a", json!({ "max_tokens": 12 })));
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn a_sleeper_makes_room_and_wakes_up_as_it_was() {
    for level in ["sleep-1", "sleep-2"] {
        let machine = Machine::new(16 * GIB, 100);
        let host = two(&machine, level, "{}");
        let (said, pid) = (words(&host), host.engine_pid("a"));
        for _ in 0..2 {
            assert_eq!(ask(&host, "b").status, 200);
            assert!(alive(pid) && host.lane("a")["engine"] == "cold", "{}", host.lane("a"));
            assert_eq!(words(&host), said);
            assert_eq!((host.engine_pid("a"), &host.lane("a")["starts"]), (pid, &json!(1)));
        }
        assert_eq!(engine(&host, "a")["awake"], 2);
        assert!(!host.log().contains("instead of put to sleep"));
        host.assert_nothing_lost();
        host.stop();
    }
}

#[test]
fn a_sleeper_that_wakes_up_wrong_is_restarted_and_demoted() {
    for script in [r#"{"garbage-after-wake": true}"#, r#"{"wake-500": true}"#] {
        let machine = Machine::new(16 * GIB, 100);
        let host = two(&machine, "sleep-1", script);
        let (said, family) = (words(&host), host.engine_family("a"));
        assert_eq!(ask(&host, "b").status, 200);
        assert_eq!(words(&host), said, "{script}");
        assert!(family.iter().all(|pid| !alive(*pid)), "{script}");
        assert!(
            host.log().contains("stopped and started instead of put to sleep from now on"),
            "{script}"
        );
        assert_eq!(host.lane("a")["starts"], 2, "{script}");
        // From now on it is ended and started.
        let pid = host.engine_pid("a");
        assert_eq!(ask(&host, "b").status, 200);
        assert!(!alive(pid), "{script}");
        assert_eq!((words(&host), &host.lane("a")["starts"]), (said, &json!(3)), "{script}");
        assert_eq!(host.lane("b")["starts"], 1, "the other one still sleeps");
        host.assert_nothing_lost();
        host.stop();
    }
}

/// It says that it sleeps and holds its memory, or never says anything: it is ended while those who wait still do.
#[test]
fn a_sleeper_that_keeps_its_memory_is_ended_in_time() {
    falls_asleep_wrong(r#"{"sleep-keeps-memory": true}"#);
}

#[test]
fn a_sleeper_that_hangs_is_ended_in_time() {
    falls_asleep_wrong(r#"{"sleep-hangs": true}"#);
}

#[test]
fn a_host_can_be_stopped_while_a_sleeper_hangs() {
    let machine = Machine::new(16 * GIB, 100);
    let host = two(&machine, "sleep-1", r#"{"sleep-hangs": true}"#);
    assert!(!words(&host).is_empty());
    let client = leaver(&host, &chat("b", json!({})));
    wait_until("it is to sleep", || host.lane("a")["engine"] == "stopping");
    drop(client);
    host.stop();
}

fn falls_asleep_wrong(script: &str) {
    let machine = Machine::new(16 * GIB, 100);
    let host = two(&machine, "sleep-1", script);
    let (said, family) = (words(&host), host.engine_family("a"));
    let reply = ask(&host, "b");
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert!(family.iter().all(|pid| !alive(*pid)));
    assert!(host.log().contains("stopped and started instead of put to sleep from now on"));
    assert_eq!((words(&host), &host.lane("a")["starts"]), (said, &json!(2)));
    host.assert_nothing_lost();
    host.stop();
}

#[test]
fn a_sleeper_that_dies_in_its_sleep_is_started_anew() {
    let machine = Machine::new(16 * GIB, 100);
    let host = two(&machine, "sleep-1", "{}");
    let (said, family, pid) = (words(&host), host.engine_family("a"), host.engine_pid("a"));
    assert_eq!(ask(&host, "b").status, 200);
    kill(pid, Signal::KILL);
    wait_until("all of it is gone", || family.iter().all(|pid| !alive(*pid)));
    assert_eq!((words(&host), &host.lane("a")["starts"]), (said, &json!(2)));
    host.assert_nothing_lost();
    host.stop();
}

/// Awake it needs almost all the memory, a part of which it holds in its sleep.
#[test]
fn a_sleeper_needs_only_what_it_does_not_hold_already() {
    let machine = Machine::new(16 * GIB, 100);
    let flags = format!("--load-ms 200 --fork-core {}", machine.flags(31 * GIB / 2));
    let lanes = [vllm("a", "", "unload-mode = \"sleep-1\"", &flags).replace(
        "memory = \"8GiB\"",
        "memory = \"15872MiB\"\nsleep-memory = \"1GiB\"\nunload-after = \"300ms\"",
    )];
    let host = machine.start(&on_gpu(AT_ONCE, "memory = \"16GiB\"\nfree-timeout = \"1s\"", &lanes));
    let said = words(&host);
    wait_until("it sleeps", || host.lane("a")["engine"] == "cold");
    assert_eq!(words(&host), said);
    assert_eq!(host.lane("a")["starts"], 1);
    assert!(!host.log().contains("memory did not become free"));
    host.assert_nothing_lost();
    host.stop();
}
