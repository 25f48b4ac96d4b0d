//! The host is killed: nothing of its engines stays, and the next one cleans up what did.

use std::fs;
use std::net::TcpStream;

use pointsman_tests::host::{Host, alive, kill};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{GIB, Machine, ask, engine, leaver, on_gpu, vllm};

fn config(machine: &Machine, flags: &str) -> String {
    let flags = format!("--fork-core {} {flags}", machine.flags(12 * GIB));
    let lane = vllm("a", "", "", &flags).replace("memory = \"8GiB\"", "memory = \"12GiB\"");
    on_gpu("", "memory = \"16GiB\"", &[lane])
}

/// The process that ends the engines when the host cannot.
fn keeper(host: &Host) -> u32 {
    let is_keeper = |pid: &u32| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split('\0').nth(1) == Some("keeper")
    };
    host.children().into_iter().find(is_keeper).expect("there is a keeper")
}

#[test]
fn a_host_that_is_killed_in_the_middle_of_a_load_leaves_nothing() {
    let machine = Machine::new(16 * GIB, 200);
    let mut host = machine.start(&config(&machine, "--load-ms 3600000"));
    let _client = leaver(&host, &pointsman_tests::client::chat("a", json!({})));
    wait_until("it is loading", || {
        host.lane("a")["progress"].is_string() && machine.holders().len() == 1
    });
    let children = host.children();
    assert!(children.len() >= 3, "{children:?}");
    host.signal(Signal::KILL);
    host.ended();
    wait_until("nothing is left", || children.iter().all(|child| !alive(*child)));
    wait_until("the memory is free", || machine.holders().is_empty());
}

/// Keeper and host are killed, so that nobody is left to end the core. The next host does, before it starts anything.
#[test]
fn a_host_that_starts_again_ends_what_the_last_one_left() {
    let machine = Machine::new(16 * GIB, 200);
    let config = config(&machine, "--load-ms 100");
    let mut host = machine.start(&config);
    assert_eq!(ask(&host, "a").status, 200);
    let (leader, port) = (host.engine_pid("a"), host.engine_port("a"));
    let core = u32::try_from(engine(&host, "a")["core"].as_u64().unwrap()).unwrap();
    kill(keeper(&host), Signal::KILL);
    host.signal(Signal::KILL);
    host.ended();
    wait_until("the server went with the host", || !alive(leader));
    assert!(alive(core) && machine.holders() == [core.to_string()]);
    let dir = std::mem::replace(&mut host.dir, tempfile::tempdir().unwrap());
    fs::remove_file(dir.path().join("port")).unwrap();
    let host = Host::start_in(&machine.program(), dir, &config, &[]);
    assert!(!alive(core), "it is ended before the host listens");
    let log = host.log();
    assert!(log.contains(&format!("of an earlier host (process {leader}) was ended")), "{log}");
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    let reply = ask(&host, "a");
    assert_eq!((reply.status, &host.lane("a")["starts"]), (200, &json!(1)), "{}", reply.text());
    assert_eq!(machine.holders().len(), 1);
    host.assert_nothing_lost();
    host.stop();
    wait_until("the memory is free", || machine.holders().is_empty());
}

/// With its keeper gone, a host gets another one for the next engine.
#[test]
fn a_keeper_that_dies_is_replaced() {
    let machine = Machine::new(16 * GIB, 200);
    let mut host = machine.start(&config(&machine, "--load-ms 100"));
    let first = keeper(&host);
    kill(first, Signal::KILL);
    wait_until("it is dead", || !alive(first));
    assert_eq!(ask(&host, "a").status, 200);
    assert_ne!(keeper(&host), first);
    let children = host.children();
    host.signal(Signal::KILL);
    host.ended();
    wait_until("nothing is left", || children.iter().all(|child| !alive(*child)));
    wait_until("the memory is free", || machine.holders().is_empty());
}

/// SIGTERM in the middle of a load ends all of the engine, too.
#[test]
fn a_host_that_is_stopped_in_the_middle_of_a_load_leaves_nothing() {
    let machine = Machine::new(16 * GIB, 200);
    let config = format!(
        "server = {{ drain-timeout = \"100ms\" }}\n{}",
        config(&machine, "--load-ms 3600000 --ignore-sigterm")
    );
    let config = config.replace(
        "driver = \"vllm\"",
        "driver = \"vllm\"\nshutdown-timeout = \"0s\"\nstop-grace = \"500ms\"",
    );
    let host = machine.start(&config);
    let _client = leaver(&host, &pointsman_tests::client::chat("a", json!({})));
    wait_until("it is loading", || machine.holders().len() == 1);
    host.stop();
    wait_until("the memory is free", || machine.holders().is_empty());
}
