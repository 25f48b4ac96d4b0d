//! Engines: started, waited for, restarted, and ended with all that belongs to them.

use pointsman_tests::client::{chat, get, post};
use pointsman_tests::host::{Host, alive, kill, program};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use crate::{FAKE_ENGINE, host, lane, one_lane};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn requests_wait_for_an_engine_that_is_loading() {
    let host = Host::start(&program(FAKE_ENGINE), &lane("a", &["a"], &["--load-ms", "700"]));
    assert_eq!(get(host.port, "/readyz").status, 503);
    let reply = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(get(host.port, "/readyz").status, 200);
    host.assert_nothing_lost();
}

#[test]
fn an_engine_that_dies_is_started_again_with_growing_pauses() {
    let host = one_lane(&[]);
    for start in 2..4 {
        kill(host.engine_pid("a"), Signal::KILL);
        wait_until("it was started again", || {
            host.lane("a")["starts"] == start && host.lane("a")["state"] == "ready"
        });
    }
    assert_eq!(host.metric("pointsman_engine_exits_total", "reason=\"SIGKILL\""), 2.0);
    assert!(host.log().contains("killed by SIGKILL"));
    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200);
    host.stop();
}

#[test]
fn the_whole_group_ends_with_its_engine() {
    let host = one_lane(&["--fork-child", "--ignore-sigterm"]);
    let (engine, family) = (host.engine_pid("a"), host.engine_family("a"));
    assert!(family.len() == 2 && family.contains(&engine), "{family:?}");
    // A crash of the leader takes the child that it left with it.
    kill(engine, Signal::KILL);
    wait_until("the old family is gone", || family.iter().all(|pid| !alive(*pid)));
    wait_until("there is a new one", || host.lane("a")["state"] == "ready");
    // `stop` checks that nothing is left, although the engine takes no notice of SIGTERM.
    host.stop();
}

#[test]
fn engines_end_when_the_host_is_killed() {
    let mut host = one_lane(&[]);
    let engine = host.engine_pid("a");
    host.signal(Signal::KILL);
    host.ended();
    wait_until("the engine is gone", || !alive(engine));
}

#[test]
fn a_command_that_cannot_be_started_is_named() {
    let config = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"llama-cpp\"\ncommand = [\"no-such-program\", \"{port}\"]\n";
    let host = Host::start(&program(FAKE_ENGINE), config);
    wait_until("the lane is down", || host.lane("a")["state"] == "down");
    let problem = host.lane("a")["problem"].as_str().unwrap().to_owned();
    assert!(problem.contains("`no-such-program` cannot be started"), "{problem}");
}

#[test]
fn an_engine_that_never_gets_ready_is_ended_and_tried_again() {
    let config = lane("a", &["a"], &["--load-ms", "3600000"]) + "start-timeout = \"300ms\"\n";
    let host = Host::start(&program(FAKE_ENGINE), &config);
    wait_until("it was tried twice", || host.lane("a")["starts"].as_u64() >= Some(2));
    assert!(host.log().contains("did not answer within 0.3 s"));
    host.stop();
}

#[test]
fn an_external_engine_is_used_while_it_answers() {
    let engine = one_lane(&[]);
    let port = engine.engine_port("a");
    let url = format!("http://127.0.0.1:{port}/v1");
    let config = format!(
        "[[lanes]]\nname = \"x\"\n[lanes.engine]\ndriver = \"external\"\nurl = {url:?}\nkey-env = \"TEST_KEY\"\nprobe-interval = \"100ms\"\n"
    );
    engine.script("a", json!({ "echo": true }));
    let host = Host::start_in(
        &program(FAKE_ENGINE),
        tempfile::tempdir().unwrap(),
        &config,
        &[("TEST_KEY", "sesame")],
    )
    .ready();
    let seen = post(host.port, CHAT, &chat("x", json!({}))).json();
    assert_eq!(seen["headers"]["authorization"], "Bearer sesame");
    assert!(!host.log().contains("sesame"));
    engine.stop();
    wait_until("its end is noticed", || host.lane("x")["state"] == "down");
    assert_eq!(post(host.port, CHAT, &chat("x", json!({}))).status, 503);
    host.assert_nothing_lost();
}

#[test]
fn lanes_do_not_share_their_fate() {
    let host = host(&[lane("a", &["a"], &[]), lane("b", &["b"], &[])].concat());
    let b = host.engine_pid("b");
    kill(host.engine_pid("a"), Signal::KILL);
    assert_eq!(post(host.port, CHAT, &chat("b", json!({}))).status, 200);
    wait_until("a is back", || host.lane("a")["starts"] == 2 && host.lane("a")["state"] == "ready");
    assert_eq!(host.engine_pid("b"), b);
}
