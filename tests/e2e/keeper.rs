//! Engines outlive a host that is killed: its keeper keeps them, and the next host takes them over.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use pointsman_tests::client::{chat, post, try_post};
use pointsman_tests::host::{Host, descendants_of, is_alive, keepers, program, send_signal};
use pointsman_tests::{pause, wait_until};
use rustix::process::Signal;
use serde_json::json;

use crate::{FAKE_ENGINE, lane, one_lane};

const CHAT: &str = "/v1/chat/completions";

fn host_program() -> PathBuf {
    program(FAKE_ENGINE)
}

fn keeper(host: &Host) -> u32 {
    let keepers = keepers(&host.dir.path().canonicalize().unwrap());
    assert_eq!(keepers.len(), 1, "one keeper");
    keepers[0]
}

fn kill(host: &mut Host) {
    host.signal(Signal::KILL);
    host.wait_for_exit();
}

/// Starts a host after one that was killed.
fn start_again(host: Host, config: &str) -> Host {
    Host::start_in(&host_program(), host.into_dir_of_killed(), config, &[])
}

fn assert_serves(host: &Host) {
    let response = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!(response.status, 200, "{}", response.text());
}

#[test]
fn next_host_takes_over_engine_of_killed_host() {
    let config = lane("a", &["a"], &["--load-ms", "6000"]);
    let mut host = Host::start(&host_program(), &config).wait_until_ready();
    let (pid, port, keeper) = (host.engine_pid("a"), host.engine_port("a"), keeper(&host));
    kill(&mut host);
    pause(Duration::from_millis(200));
    assert!(is_alive(pid), "the keeper keeps the engine");
    let host = start_again(host, &config);
    let begun = Instant::now();
    assert_serves(&host);
    // Some milliseconds, unless the machine is busy; a load takes six seconds.
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let lane = host.lane("a");
    assert_eq!(
        (&lane["pid"], &lane["port"], &lane["starts"]),
        (&json!(pid), &json!(port), &json!(1))
    );
    host.wait_for_event("engine_adopted", &[("lane", "a"), ("pid", &pid.to_string())]);
    assert!(host.events("orphan_ended", &[]).is_empty());
    // Its end is noticed, and it is started again.
    send_signal(pid, Signal::KILL);
    wait_until("the engine has restarted", || {
        host.lane("a")["starts"] == 2 && host.lane("a")["state"] == "ready"
    });
    host.wait_for_event("engine_lost", &[("lane", "a"), ("reason", "SIGKILL")]);
    let engine = host.engine_pid("a");
    host.stop();
    wait_until("nothing is left", || !is_alive(engine) && !is_alive(keeper));
}

#[test]
fn loading_engine_is_taken_over() {
    let config = lane("a", &["a"], &["--load-ms", "3000"]);
    let mut host = Host::start(&host_program(), &config);
    wait_until("the engine has a process", || host.lane("a")["pid"].is_u64());
    let pid = host.engine_pid("a");
    kill(&mut host);
    let host = start_again(host, &config).wait_until_ready();
    assert_eq!(host.engine_pid("a"), pid);
    assert_serves(&host);
    host.stop();
    wait_until("nothing is left", || !is_alive(pid));
}

#[test]
fn changed_engine_is_ended_and_started_anew() {
    let mut host = one_lane(&[]);
    let pid = host.engine_pid("a");
    kill(&mut host);
    let host = start_again(host, &lane("a", &["a"], &["--load-ms", "1"])).wait_until_ready();
    assert!(!is_alive(pid));
    host.wait_for_event("engine_not_adopted", &[("lane", "a"), ("changed", "command")]);
    host.wait_for_event("orphan_ended", &[("lane", "a"), ("pid", &pid.to_string())]);
    assert_serves(&host);
}

#[test]
fn engine_of_removed_lane_is_ended() {
    let both = format!("{}{}", lane("a", &["a"], &[]), lane("b", &["b"], &[]));
    let mut host = Host::start(&host_program(), &both).wait_until_ready();
    let (kept, removed) = (host.engine_pid("a"), host.engine_pid("b"));
    kill(&mut host);
    let host = start_again(host, &lane("a", &["a"], &[])).wait_until_ready();
    assert!(is_alive(kept) && !is_alive(removed));
    assert_eq!(host.engine_pid("a"), kept);
}

#[test]
fn engines_end_after_orphan_grace() {
    let config = format!("state.orphan-grace = \"500ms\"\n{}", lane("a", &["a"], &[]));
    let mut host = Host::start(&host_program(), &config).wait_until_ready();
    let (engine, keeper) = (host.engine_pid("a"), keeper(&host));
    kill(&mut host);
    let killed = Instant::now();
    wait_until("no process is left", || !is_alive(engine) && !is_alive(keeper));
    assert!(killed.elapsed() >= Duration::from_millis(500), "{:?}", killed.elapsed());
}

/// A host that is killed while it stops does not leave engines to the keeper.
#[test]
fn stop_of_host_is_not_a_crash() {
    let slow = ["--script", r#"{"token-ms": 20000, "tokens": 40}"#];
    let config = format!("server.drain-timeout = \"60s\"\n{}", lane("a", &["a"], &slow));
    let mut host = Host::start(&host_program(), &config).wait_until_ready();
    let (engine, keeper) = (host.engine_pid("a"), keeper(&host));
    let port = host.port;
    let client = std::thread::spawn(move || try_post(port, CHAT, &chat("a", json!({}))).is_some());
    wait_until("the request is in flight", || host.metric("pointsman_lane_running", "") == 1.0);
    host.signal(Signal::TERM);
    host.wait_for_event("draining", &[]);
    pause(Duration::from_millis(100));
    kill(&mut host);
    wait_until("no process is left", || !is_alive(engine) && !is_alive(keeper));
    client.join().unwrap();
}

/// The keeper is killed under load again and again: no request is lost, and no engine restarted.
#[test]
fn killed_keepers_are_replaced_under_load() {
    let host = one_lane(&[]);
    let engine = host.engine_pid("a");
    let (stop, sent) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    assert_serves(&host);
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 1..=5 {
            let old = keeper(&host);
            send_signal(old, Signal::KILL);
            wait_until("another keeper", || {
                host.events("keeper_restarted", &[]).len() == round && keeper(&host) != old
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(sent.load(Ordering::Relaxed) > 0);
    assert_eq!((host.engine_pid("a"), &host.lane("a")["starts"]), (engine, &json!(1)));
    assert!(is_alive(engine));
    host.assert_no_request_lost();
    // The last keeper has the engine: it survives the host, too.
    let (config, mut host) = (lane("a", &["a"], &[]), host);
    kill(&mut host);
    let host = start_again(host, &config).wait_until_ready();
    assert_eq!(host.engine_pid("a"), engine);
    host.stop();
    wait_until("nothing is left", || !is_alive(engine));
}

/// Kills the host and its keeper, and starts the next host.
fn kill_both(after_crash: &str) -> (Host, u32) {
    let config = format!("state.after-crash = {after_crash:?}\n{}", lane("a", &["a"], &[]));
    let mut host = Host::start(&host_program(), &config).wait_until_ready();
    let (engine, keeper) = (host.engine_pid("a"), keeper(&host));
    // It must not replace the keeper.
    host.signal(Signal::STOP);
    send_signal(keeper, Signal::KILL);
    wait_until("the keeper has exited", || !is_alive(keeper));
    kill(&mut host);
    (start_again(host, &config).wait_until_ready(), engine)
}

#[test]
fn next_start_ends_engines_if_keeper_was_killed_too() {
    let (host, engine) = kill_both("end");
    assert!(!is_alive(engine));
    host.wait_for_event("orphan_ended", &[("lane", "a")]);
    assert_serves(&host);
}

#[test]
fn next_start_takes_engines_over_although_keeper_was_killed_too() {
    let (host, engine) = kill_both("adopt");
    assert_eq!(host.engine_pid("a"), engine);
    assert_serves(&host);
    let (keeper, engines) = (keeper(&host), descendants_of(engine));
    host.stop();
    wait_until("nothing is left", || {
        !is_alive(engine) && !is_alive(keeper) && engines.iter().all(|pid| !is_alive(*pid))
    });
}

/// The engine ends while no host is attached.
#[test]
fn engine_that_ended_unattended_is_started_again() {
    let mut host = one_lane(&[]);
    let engine = host.engine_pid("a");
    kill(&mut host);
    send_signal(engine, Signal::KILL);
    wait_until("the engine has exited", || !is_alive(engine));
    let host = start_again(host, &lane("a", &["a"], &[])).wait_until_ready();
    assert_ne!(host.engine_pid("a"), engine);
    assert_serves(&host);
}

/// A keeper of another version refuses the host, which does not start.
#[test]
fn keeper_of_another_version_is_reported() {
    use std::io::{Read as _, Write as _};
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
        .create(&state)
        .unwrap();
    let listener = std::os::unix::net::UnixListener::bind(state.join("keeper.sock")).unwrap();
    let keeper = std::thread::spawn(move || {
        let (mut host, _) = listener.accept().unwrap();
        let mut header = [0; 8];
        host.read_exact(&mut header).unwrap();
        let refusal = json!({"type": "refused", "code": "protocol", "protocol": 99, "owner": null});
        let refusal = refusal.to_string();
        let length = u32::try_from(refusal.len()).unwrap().to_le_bytes();
        host.write_all(&[&length[..], &[0; 4], refusal.as_bytes()].concat()).unwrap();
        host.read_to_end(&mut Vec::new()).unwrap();
    });
    let file = dir.path().join("host.toml");
    std::fs::write(&file, format!("state.dir = \"state\"\n{}", lane("a", &["a"], &[]))).unwrap();
    let mut command = std::process::Command::new(host_program());
    let output = command.args(["serve", "--listen", "127.0.0.1:0"]).arg(&file).output().unwrap();
    assert!(!output.status.success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("[protocol]") && error.contains("99"), "{error}");
    keeper.join().unwrap();
}
