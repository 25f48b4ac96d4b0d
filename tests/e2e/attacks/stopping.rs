//! A host that is stopped while it is attacked.

use std::time::Duration;

use pointsman_tests::attack::{RawClient, request_head};
use pointsman_tests::client::{chat, get, post, stream};
use pointsman_tests::wait_at_most;
use rustix::process::Signal;
use serde_json::json;

use super::CHAT;
use crate::{host, lane, one_lane};

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
    let is_alive = pointsman_tests::host::is_alive;
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
