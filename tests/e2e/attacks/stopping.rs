//! A host that is stopped while it is attacked.

use std::fmt::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::time::Duration;

use pointsman_tests::attack::{RawClient, request_head};
use pointsman_tests::client::{chat, get, post, stream};
use pointsman_tests::deployment::{chain, policy_dir};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{descendants_of, is_alive, program, send_signal};
use pointsman_tests::{wait_at_most, wait_until};
use rustix::process::Signal;
use serde_json::json;

use super::CHAT;
use crate::{FAKE_ENGINE, host, lane, one_lane};

#[test]
fn draining_host_answers_probes_and_refuses_requests() {
    let mut host = one_lane(&["--script", r#"{"stall-after": 2}"#]);
    let mut event_stream = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(event_stream.read_until("word1"));
    host.signal(Signal::TERM);
    host.wait_for_event("draining", &[("signal", "SIGTERM")]);
    assert_eq!(get(host.port, "/livez").status, 200);
    for path in ["/readyz", "/health"] {
        assert_eq!(get(host.port, path).status, 503, "{path}");
    }
    let refused = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(refused.error_code(), "stopping");
    assert!(refused.header("retry-after").is_some());
    host.signal(Signal::TERM);
    let text = event_stream.finish().0.text();
    assert!(text.contains("\"error\"") && !text.contains("[DONE]"), "{text}");
    assert!(host.wait_for_exit().success());
}

/// There is nothing to wait for in the request of a client that has stopped to send it.
#[test]
fn stalled_uploads_do_not_hold_up_a_stop() {
    let config = format!("server = {{ drain-timeout = \"50s\" }}\n{}", lane("a", &["a"], &[]));
    let mut host = host(&config);
    let mut clients: Vec<RawClient> = (0..4).map(|_| RawClient::connect(host.port)).collect();
    for client in &mut clients {
        client.send(request_head(CHAT, 1000, ""));
        client.send("{\"model\":");
    }
    let idle = RawClient::connect(host.port);
    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200);
    let processes = host.descendants();
    host.signal(Signal::TERM);
    wait_at_most(Duration::from_secs(20), "the host exits long before its drain timeout", || {
        !is_alive(host.pid())
    });
    assert!(host.wait_for_exit().success());
    wait_at_most(Duration::from_secs(20), "no process is left", || {
        processes.iter().all(|pid| !is_alive(*pid))
    });
    drop((clients, idle));
}

/// The error event of a stop says that the host stops, and not that the engine has failed.
#[test]
fn stop_is_not_the_engines_error() {
    let mut host = one_lane(&["--script", r#"{"tokens": 100000, "token-ms": 20}"#]);
    let mut event_stream = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(event_stream.read_until("word"));
    host.signal(Signal::TERM);
    host.wait_for_event("draining", &[("signal", "SIGTERM")]);
    host.signal(Signal::TERM);
    let text = event_stream.finish().0.text();
    assert!(text.contains("\"error\"") && !text.contains("engine_error"), "{text}");
    assert!(host.wait_for_exit().success());
}

/// Returns a policy that takes seconds to compile.
fn large_policy() -> Guest {
    let mut code = String::new();
    for function in 0..2000 {
        write!(code, "(func $f{function} (param i64) (result i64) (local.get 0)").unwrap();
        for step in 0..60 {
            write!(code, "(i64.const {step}) (i64.mul) (local.get 0) (i64.xor)").unwrap();
        }
        code += ")\n";
    }
    Guest::new("p").code(&code)
}

#[test]
fn host_that_loads_policies_answers_and_heeds_signals() {
    let dir = policy_dir(&[large_policy()]);
    let file = dir.path().join("pointsman.toml");
    let policies = format!("[policies]\ncache = \"cache\"\n{}", chain(&["p"], ""));
    std::fs::write(&file, policies + &lane("a", &["a"], &[])).unwrap();
    // The port file is written only when the policies are loaded.
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(["serve", "--listen", &format!("127.0.0.1:{port}")]).arg(&file);
    command.env("XDG_STATE_HOME", dir.path().join("state"));
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = |path: &str| {
        let mut client = RawClient::try_connect(port, Duration::from_secs(1))?;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n"));
        client.read_response(Duration::from_secs(10)).status()
    };
    wait_until("the host answers", || status("/livez") == Some(200));
    assert_eq!(status("/readyz"), Some(503), "the policies are not loaded yet");
    let processes = descendants_of(child.id());
    send_signal(child.id(), Signal::TERM);
    wait_at_most(Duration::from_secs(10), "the host exits", || child.try_wait().unwrap().is_some());
    wait_until("no compiler is left", || processes.iter().all(|pid| !is_alive(*pid)));
}
