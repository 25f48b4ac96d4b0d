//! Graceful shutdown of the host.

use pointsman_tests::client::{chat, stream};
use pointsman_tests::host::is_alive;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use crate::{host, lane, one_lane};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn stream_finishes_within_drain_timeout() {
    let mut host = one_lane(&["--script", r#"{"token-ms": 20, "tokens": 40}"#]);
    let engine = host.engine_pid("a");
    let mut event_stream = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(event_stream.read_until("word1"));
    host.signal(Signal::INT);
    host.wait_for_event("draining", &[("signal", "SIGINT")]);
    wait_until("the port is closed", || {
        std::net::TcpStream::connect(("127.0.0.1", host.port)).is_err()
    });
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
