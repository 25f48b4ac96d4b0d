//! Graceful shutdown of the host.

use std::os::unix::net::UnixDatagram;

use pointsman_tests::WAIT_TIMEOUT;
use pointsman_tests::client::{chat, get, post, stream};
use pointsman_tests::host::{Host, is_alive, program};
use rustix::process::Signal;
use serde_json::json;

use crate::{FAKE_ENGINE, host, lane, one_lane};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn stream_finishes_within_drain_timeout() {
    let mut host = one_lane(&["--script", r#"{"token-ms": 20, "tokens": 40}"#]);
    let engine = host.engine_pid("a");
    let mut event_stream = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(event_stream.read_until("word1"));
    host.signal(Signal::INT);
    host.wait_for_event("draining", &[("signal", "SIGINT")]);
    for (path, status) in [("/livez", 200), ("/readyz", 503), ("/health", 503)] {
        assert_eq!(get(host.port, path).status, status, "{path}");
    }
    let rejected = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!((rejected.status, rejected.error_code()), (503, json!("stopping")));
    assert!(rejected.header("retry-after").is_some());
    let (response, complete) = event_stream.finish();
    assert!(complete && response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
    assert!(host.wait_for_exit().success());
    assert!(!is_alive(engine));
}

#[test]
fn stream_beyond_drain_timeout_ends_with_error_event() {
    let config = format!(
        "server = {{ drain-timeout = \"200ms\" }}\n{}",
        lane("a", &["a"], &["--script", r#"{"stall-after": 2}"#])
    );
    let mut host = host(&config);
    let mut event_stream = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(event_stream.read_until("word1"));
    host.signal(Signal::TERM);
    let (response, _) = event_stream.finish();
    let text = response.text();
    assert!(text.contains("\"stopping\"") && !text.contains("[DONE]"), "{text}");
    assert!(host.wait_for_exit().success());
    host.wait_for_event("response_aborted", &[("cause", "aborted")]);
}

#[test]
fn second_signal_skips_draining() {
    let mut host = one_lane(&["--script", r#"{"stall-after": 2}"#]);
    let engine = host.engine_pid("a");
    let mut event_stream = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(event_stream.read_until("word1"));
    host.signal(Signal::TERM);
    host.wait_for_event("draining", &[("signal", "SIGTERM")]);
    host.signal(Signal::TERM);
    let (response, _) = event_stream.finish();
    assert!(!response.text().contains("[DONE]"));
    assert!(host.wait_for_exit().success());
    assert!(!is_alive(engine));
}

#[test]
fn service_manager_is_notified() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let receive = || {
        let mut buffer = [0; 200];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    let notify = path.to_str().unwrap().to_owned();
    let config = format!("server.drain-timeout = \"100s\"\n{}", lane("a", &["a"], &[]));
    let env = [("NOTIFY_SOCKET", notify.as_str()), ("WATCHDOG_USEC", "200000")];
    let mut host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &env);
    let skip_to = |field: &str| loop {
        let message = receive();
        if message.lines().any(|line| line.starts_with(field)) {
            return message;
        }
    };
    assert!(receive().contains("\nEXTEND_TIMEOUT_USEC="));
    skip_to("READY=1");
    // More than one: it goes on.
    skip_to("WATCHDOG=1");
    skip_to("WATCHDOG=1");
    host.signal(Signal::HUP);
    let reloading = skip_to("RELOADING=1");
    let micros = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(micros.is_some_and(|micros| micros.parse::<u64>().is_ok()), "{reloading}");
    skip_to("READY=1");
    host.signal(Signal::TERM);
    let stopping = skip_to("STOPPING=1");
    let micros = stopping.lines().find_map(|line| line.strip_prefix("EXTEND_TIMEOUT_USEC="));
    let micros: u64 = micros.expect("the host asks for time").parse().unwrap();
    // The drain, and the `stop-grace` of the engine, which is 2 s.
    assert!((102_000_000..150_000_000).contains(&micros), "{stopping}");
    assert!(host.wait_for_exit().success());
}
