//! Upgrades that fail: the old host goes on as if nothing had happened.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use pointsman_tests::host::keepers;

use super::*;

/// Asserts that an upgrade fails with this text, and that no request and no engine notices.
fn assert_goes_on(host: &UpgradedHost, arguments: &[&str], text: &str) {
    let (port, engine) = (host.host.port, host.host.engine_pid("a"));
    let running = begin_stream(port);
    let sent = under_load(port, 2, || {
        let error = host.failed_upgrade(arguments);
        assert!(error.contains("[upgrade_failed]") && error.contains(text), "{error}");
    });
    assert!(sent > 0);
    contents(running.finish());
    let lane = host.host.lane("a");
    assert_eq!((&lane["pid"], &lane["starts"]), (&json!(engine), &json!(1)));
}

/// Writes a program that is to be the successor.
fn script(host: &UpgradedHost, text: &str) -> PathBuf {
    let path = host.host.dir.path().join("successor");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

#[test]
fn successor_that_does_not_start_changes_nothing() {
    let mut host = start(&lane("a", &["a"], &STREAMING));
    let file = host.host.dir.path().join("pointsman.toml");
    assert_goes_on(&host, &["--program", "/nonexistent/pointsman"], "/nonexistent/pointsman");
    let ends = script(&host, "exit 3");
    assert_goes_on(&host, &["--program", ends.to_str().unwrap()], "exit status: 3");
    let hangs = script(&host, "exec sleep 1000");
    let arguments = ["--program", hangs.to_str().unwrap(), "--timeout", "1"];
    assert_goes_on(&host, &arguments, "within 1 s");
    // A file that is written while the host is upgraded.
    let whole = fs::read_to_string(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    assert_goes_on(&host, &[], "pointsman.toml");
    fs::write(&file, &whole).unwrap();
    host.upgrade();
    assert!(host.wait_for_first().success());
}

#[test]
fn address_that_is_in_use_changes_nothing() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let config = lane("a", &["a"], &STREAMING);
    let mut host = start(&config);
    let file = host.host.dir.path().join("pointsman.toml");
    let more = format!("{config}\n[[listeners]]\naddress = \"{address}\"\n");
    fs::write(&file, pointsman_tests::host::with_json_log(&more)).unwrap();
    assert_goes_on(&host, &[], &address);
    // Once it is free, the next process listens there.
    drop(taken);
    host.upgrade();
    let port = address.rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(post(port, CHAT, &chat("a", json!({}))).status, 200);
    // Its removal closes it.
    fs::write(&file, pointsman_tests::host::with_json_log(&config)).unwrap();
    host.upgrade();
    wait_until("the port is closed", || std::net::TcpStream::connect(&address).is_err());
}

/// The successor can write nothing, and what the old host writes afterwards is not lost.
#[test]
fn successor_on_a_full_disk_changes_nothing() {
    let mut host = start(&lane("a", &["a"], &STREAMING));
    // A program that exceeds the limit gets a signal, unless it ignores it.
    let own = program(FAKE_ENGINE);
    let full = script(&host, &format!("trap '' XFSZ\nulimit -f 0\nexec {own:?} \"$@\""));
    assert_goes_on(&host, &["--program", full.to_str().unwrap()], "File too large");
    wait_until("the usage is written", || host.host.metric("pointsman_usage_unwritten", "") == 0.0);
    host.upgrade();
    assert!(host.wait_for_first().success());
    host.stop();
}

/// The store cannot be opened by the successor, for example because of its version.
#[test]
fn store_that_cannot_be_opened_is_taken_back() {
    let mut host = start(&lane("a", &["a"], &STREAMING));
    let store = host.host.admin_socket().unwrap().with_file_name("store");
    // Not a private file any more.
    fs::set_permissions(&store, PermissionsExt::from_mode(0o666)).unwrap();
    assert_goes_on(&host, &[], "store");
    fs::set_permissions(&store, PermissionsExt::from_mode(0o600)).unwrap();
    host.upgrade();
    assert!(host.wait_for_first().success());
    host.stop();
}

#[test]
fn killed_keeper_is_replaced_before_an_upgrade() {
    let mut host = start(&lane("a", &["a"], &STREAMING));
    let engine = host.host.engine_pid("a");
    let keeper = keepers(&host.host.dir.path().canonicalize().unwrap())[0];
    send_signal(keeper, Signal::KILL);
    host.upgrade();
    assert_eq!(host.host.engine_pid("a"), engine);
    assert!(host.wait_for_first().success());
    assert_eq!(post(host.host.port, CHAT, &chat("a", json!({}))).status, 200);
    host.stop();
    assert!(!is_alive(engine));
}

/// The engine ends at about the time of the upgrade: it is started again by whichever host notices.
#[test]
fn engine_that_dies_during_the_upgrade_is_started_again() {
    let mut host = start(&lane("a", &["a"], &[]));
    let engine = host.host.engine_pid("a");
    send_signal(engine, Signal::KILL);
    host.upgrade();
    host.host.wait_for_lane("a", "ready");
    assert_ne!(host.host.engine_pid("a"), engine);
    assert_eq!(post(host.host.port, CHAT, &chat("a", json!({}))).status, 200);
    host.stop();
}

/// The successor is killed after the hand-over: the streams of the old host go on.
#[test]
fn streams_of_the_old_host_survive_its_successor() {
    let mut host = start(&lane("a", &["a"], &STREAMING));
    let (port, engine) = (host.host.port, host.host.engine_pid("a"));
    let running = begin_stream(port);
    host.upgrade();
    send_signal(host.pid(), Signal::KILL);
    contents(running.finish());
    assert!(host.wait_for_first().success());
    assert!(is_alive(engine), "the keeper keeps it");
}

/// A host of another version of the protocol does not hand over, and is told why.
#[test]
fn host_of_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("host.toml");
    fs::write(&file, format!("state.dir = \"state\"\n{}", lane("a", &["a"], &[]))).unwrap();
    let (mut old, input) = UnixStream::pair().unwrap();
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(["serve", "--take-over", "--listen", "127.0.0.1:0"]).arg(&file);
    command.stdin(Stdio::from(OwnedFd::from(input))).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    // Closes this process's copy of the successor's end.
    drop(command);
    let begin = json!({ "type": "begin", "content": { "protocol": 99, "state_dir": null } });
    let begin = begin.to_string();
    let length = u32::try_from(begin.len()).unwrap().to_le_bytes();
    old.write_all(&[&length[..], &[0; 4], begin.as_bytes()].concat()).unwrap();
    let mut answer = Vec::new();
    old.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("failed") && answer.contains("[protocol]"), "{answer}");
    assert!(!child.wait().unwrap().success());
}
