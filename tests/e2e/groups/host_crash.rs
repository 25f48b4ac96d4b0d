//! The host is killed: its engines end with it, and the next host ends any that are left.

use std::fs;
use std::net::TcpStream;

use pointsman_tests::host::{Host, is_alive, keepers, send_signal};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{FakeMachine, GIB, engine_state, gpu_group, send_chat, silent_client, vllm_lane};

fn config(machine: &FakeMachine, flags: &str) -> String {
    let flags = format!("--fork-core {} {flags}", machine.flags(12 * GIB));
    let lane = vllm_lane("a", "", "", &flags).replace("memory = \"8GiB\"", "memory = \"12GiB\"");
    gpu_group("state.orphan-grace = \"0s\"", "memory = \"16GiB\"", &[lane])
}

/// Returns the id of the keeper, which ends the engines when the host cannot.
fn keeper(host: &Host) -> u32 {
    let keepers = keepers(&host.dir.path().canonicalize().unwrap());
    assert_eq!(keepers.len(), 1);
    keepers[0]
}

#[test]
fn killed_host_leaves_nothing_of_loading_engine() {
    let machine = FakeMachine::new(16 * GIB, 200);
    let mut host = machine.start(&config(&machine, "--load-ms 3600000"));
    let _client = silent_client(&host, &pointsman_tests::client::chat("a", json!({})));
    wait_until("the engine is loading", || {
        host.lane("a")["progress"].is_string() && machine.holders().len() == 1
    });
    let children = host.descendants();
    assert!(children.len() >= 3, "{children:?}");
    host.signal(Signal::KILL);
    host.wait_for_exit();
    wait_until("no process is left", || children.iter().all(|child| !is_alive(*child)));
    wait_until("the memory is free", || machine.holders().is_empty());
}

/// Keeper and host are killed, so that no process is left to end the core. The next host ends the
/// core before it starts any engine.
#[test]
fn next_host_ends_orphaned_engine() {
    let machine = FakeMachine::new(16 * GIB, 200);
    let config = config(&machine, "--load-ms 100");
    let mut host = machine.start(&config);
    assert_eq!(send_chat(&host, "a").status, 200);
    let (leader, port) = (host.engine_pid("a"), host.engine_port("a"));
    let core = u32::try_from(engine_state(&host, "a")["core"].as_u64().unwrap()).unwrap();
    // The host must not replace the keeper.
    host.signal(Signal::STOP);
    let keeper = keeper(&host);
    send_signal(keeper, Signal::KILL);
    wait_until("the keeper has exited", || !is_alive(keeper));
    host.signal(Signal::KILL);
    host.wait_for_exit();
    wait_until("the server exits with the host", || !is_alive(leader));
    assert!(is_alive(core) && machine.holders() == [core.to_string()]);
    let dir = std::mem::replace(&mut host.dir, tempfile::tempdir().unwrap());
    fs::remove_file(dir.path().join("port")).unwrap();
    let host = Host::start_in(&machine.program(), dir, &config, &[]);
    assert!(!is_alive(core), "the core must end before the host listens");
    host.wait_for_event("orphan_ended", &[("lane", "a"), ("pid", &leader.to_string())]);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    let response = send_chat(&host, "a");
    assert_eq!(
        (response.status, &host.lane("a")["starts"]),
        (200, &json!(1)),
        "{}",
        response.text()
    );
    assert_eq!(machine.holders().len(), 1);
    host.assert_no_request_lost();
    host.stop();
    wait_until("the memory is free", || machine.holders().is_empty());
}

/// With `orphan-grace = "0s"`, the engine of a killed keeper ends, too, and another keeper has the
/// next one.
#[test]
fn killed_keeper_is_replaced() {
    let machine = FakeMachine::new(16 * GIB, 200);
    let mut host = machine.start(&config(&machine, "--load-ms 100"));
    let first = keeper(&host);
    send_signal(first, Signal::KILL);
    wait_until("the keeper has exited", || !is_alive(first));
    host.wait_for_event("keeper_restarted", &[]);
    assert_eq!(send_chat(&host, "a").status, 200);
    assert_ne!(keeper(&host), first);
    let children = host.descendants();
    host.signal(Signal::KILL);
    host.wait_for_exit();
    wait_until("no process is left", || children.iter().all(|child| !is_alive(*child)));
    wait_until("the memory is free", || machine.holders().is_empty());
}

/// SIGTERM in the middle of a load ends all processes of the engine.
#[test]
fn stopped_host_leaves_nothing_of_loading_engine() {
    let machine = FakeMachine::new(16 * GIB, 200);
    let config = format!(
        "server = {{ drain-timeout = \"100ms\" }}\n{}",
        config(&machine, "--load-ms 3600000 --ignore-sigterm")
    );
    let config = config.replace(
        "driver = \"vllm\"",
        "driver = \"vllm\"\nshutdown-timeout = \"0s\"\nstop-grace = \"500ms\"",
    );
    let host = machine.start(&config);
    let _client = silent_client(&host, &pointsman_tests::client::chat("a", json!({})));
    wait_until("the engine is loading", || machine.holders().len() == 1);
    host.stop();
    wait_until("the memory is free", || machine.holders().is_empty());
}
