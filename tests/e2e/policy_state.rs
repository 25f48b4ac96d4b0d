//! The state of policies outlives restarts, kills and a full disk, and operators can see it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_tests::client::{Response, chat, open, post};
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::{pause, wait_until};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";
const HOUR: u64 = 3600;

/// What a kill may cost.
const MAX_LOSS: Duration = Duration::from_secs(1);

/// Returns a host configuration with a quota of requests in an hour.
fn config(requests: u32) -> String {
    let policies = root().join("policies");
    format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \"quota\"\n\
         config = {{ window-s = {HOUR}, default = {{ requests = {requests} }} }}\n{}",
        lane("a", &["a"], &[])
    )
}

fn start(program: &Path, dir: TempDir, requests: u32) -> Host {
    // A window that ends in the middle of a test would begin a new count.
    let left = HOUR - unix_time().as_secs() % HOUR;
    if left < 60 {
        pause(Duration::from_secs(left));
    }
    Host::start_in(program, dir, &config(requests), &[]).wait_until_ready()
}

fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

fn ask(host: &Host) -> Response {
    post(host.port, CHAT, &chat("a", json!({})))
}

/// Runs `pointsman state` for a running host; returns exit code, standard output and standard
/// error.
fn command(host: &Host, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("state").args(arguments).arg("--socket").arg(host.admin_socket().unwrap());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn command_json(host: &Host, arguments: &[&str]) -> Value {
    let (code, out, error) = command(host, &[arguments, &["--json"]].concat());
    assert_eq!(code, 0, "{error}");
    serde_json::from_str(&out).unwrap()
}

/// Returns the key of the counter of requests, and its value.
fn counted(host: &Host) -> (String, u64) {
    let entries = command_json(host, &["list", "--policy", "quota"]);
    let entry = entries.as_array().unwrap().first();
    let Some(entry) = entry else { return (String::new(), 0) };
    (entry["key"].as_str().unwrap().to_owned(), entry["counter"].as_u64().unwrap())
}

#[test]
fn quota_of_an_hour_still_refuses_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = start(&program(FAKE_ENGINE), dir, 3);
    (0..3).for_each(|_| assert_eq!(ask(&host).status, 200));
    assert_eq!(ask(&host).error_code(), "request_quota_exceeded");
    host.signal(Signal::TERM);
    host.wait_for_exit();
    let host = start(&program(FAKE_ENGINE), host.into_dir(), 3);
    let refused = ask(&host);
    assert_eq!((refused.status, refused.error_code()), (429, "request_quota_exceeded".into()));
    // By a kill, too.
    pause(MAX_LOSS);
    let host = start(&program(FAKE_ENGINE), host.into_dir(), 3);
    assert_eq!(ask(&host).error_code(), "request_quota_exceeded");
    host.assert_no_request_lost();
}

#[test]
fn operators_see_and_clear_the_state() {
    let host = start(&program(FAKE_ENGINE), tempfile::tempdir().unwrap(), 2);
    (0..2).for_each(|_| assert_eq!(ask(&host).status, 200));
    let states = command_json(&host, &["list"]);
    let quota = &states[0];
    assert_eq!(
        (&quota["policy"], &quota["entries"], &quota["durable"], &quota["loaded"]),
        (&json!("quota"), &json!(1), &json!(true), &json!(true)),
        "{states}"
    );
    let (key, count) = counted(&host);
    assert!(key.starts_with("requests/") && count == 2, "{key} {count}");
    let entry = command_json(&host, &["get", "--policy", "quota", "--key", &key]);
    assert_eq!((&entry["counter"], &entry["kind"]), (&json!(2), &json!("counter")));
    assert!(entry["expires"].as_str().is_some_and(|at| at.ends_with('Z')), "{entry}");
    let (code, out, _) = command(&host, &["get", "--policy", "quota", "--key", &key]);
    assert_eq!((code, out.as_str()), (0, "2\n"));
    let (_, table, _) = command(&host, &["list"]);
    assert!(table.contains("quota") && table.contains("over restarts"), "{table}");
    for (arguments, error) in [
        (["get", "--policy", "quota", "--key", "none"], "[state_key_not_found]"),
        (["get", "--policy", "none", "--key", "none"], "[policy_not_found]"),
    ] {
        let (code, _, message) = command(&host, &arguments);
        assert!(code == 1 && message.contains(error), "{message}");
    }
    assert_eq!(ask(&host).status, 429);
    let cleared = command_json(&host, &["clear", "--policy", "quota", "--key", &key]);
    assert_eq!(cleared["cleared"], 1);
    assert_eq!(ask(&host).status, 200);
    assert_eq!(command_json(&host, &["clear", "--policy", "quota"])["cleared"], 1);
    // What was removed does not come back, whenever the host is killed.
    let host = start(&program(FAKE_ENGINE), host.into_dir(), 2);
    assert_eq!(counted(&host).1, 0);
}

/// Kills a host at random times. What was counted more than a second before is in the store, and
/// no request is counted twice.
#[test]
fn at_most_a_second_of_state_is_lost_by_a_kill() {
    let mut seed = u64::from(unix_time().subsec_nanos());
    println!("seed {seed}");
    let mut dir = tempfile::tempdir().unwrap();
    let (mut at_least, mut at_most) = (0, 0);
    for _ in 0..4 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let host = start(&program(FAKE_ENGINE), dir, 1_000_000);
        let (port, stop) = (host.port, AtomicBool::new(false));
        let (answered, killed) = std::thread::scope(|scope| {
            let client = || {
                let head = [("content-type", "application/json")];
                let body = chat("a", json!({})).to_string();
                let mut answered = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let sent = std::panic::catch_unwind(|| {
                        open(port, "POST", CHAT, &head, body.as_bytes()).finish().1
                    });
                    // One that was not answered may be counted.
                    answered.push(matches!(sent, Ok(true)).then(Instant::now));
                }
                answered
            };
            let clients = [scope.spawn(client), scope.spawn(client)];
            pause(Duration::from_millis(1200 + (seed >> 33) % 1500));
            stop.store(true, Ordering::Relaxed);
            host.signal(Signal::KILL);
            let killed = Instant::now();
            let answered = clients.map(|client| client.join().unwrap());
            (answered.concat(), killed)
        });
        let is_old = |at: &&Option<Instant>| at.is_some_and(|at| killed - at > MAX_LOSS);
        at_least += answered.iter().filter(is_old).count() as u64;
        at_most += answered.len() as u64;
        let host = start(&program(FAKE_ENGINE), host.into_dir(), 1_000_000);
        let found = counted(&host).1;
        println!("{found} of {at_most} requests, {at_least} of them older than a second");
        assert!((at_least..=at_most).contains(&found), "{at_least} {found} {at_most}");
        // What was lost stays lost.
        (at_least, at_most) = (found, found);
        dir = host.into_dir();
    }
    assert!(at_least > 0);
}

/// With a full disk, policies go on with their state, which is written when there is space.
#[test]
fn state_is_written_after_the_disk_was_full() {
    let dir = tempfile::tempdir().unwrap();
    // A program that exceeds the limit gets a signal, unless it ignores it.
    let wrapper: PathBuf = dir.path().join("wrapper");
    let pointsman = program(FAKE_ENGINE);
    fs::write(&wrapper, format!("#!/bin/sh\ntrap '' XFSZ\nexec {pointsman:?} \"$@\"\n")).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o700)).unwrap();
    let mut host = start(&wrapper, dir, 5);
    let pid = Pid::from_raw(i32::try_from(host.pid()).unwrap());
    let limit = |bytes: Option<u64>| {
        prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    };
    let metric = |name: &str| host.metric(&format!("pointsman_{name}"), "");
    assert_eq!((ask(&host).status, metric("state_write_failures_total")), (200, 0.0));
    // Also for the log.
    limit(Some(4096));
    (0..4).for_each(|_| assert_eq!(ask(&host).status, 200));
    wait_until("the disk is full", || {
        metric("state_write_failures_total") > 0.0 && metric("usage_unwritten") > 0.0
    });
    assert_eq!(ask(&host).error_code(), "request_quota_exceeded");
    limit(None);
    // The file is open again then.
    wait_until("the usage is written", || metric("usage_unwritten") == 0.0);
    host.signal(Signal::TERM);
    host.wait_for_exit();
    let host = start(&program(FAKE_ENGINE), host.into_dir(), 5);
    assert_eq!(counted(&host).1, 5);
    assert_eq!(ask(&host).error_code(), "request_quota_exceeded");
}
