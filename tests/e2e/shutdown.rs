//! Stopping in good order.

use pointsman_tests::client::{chat, stream};
use pointsman_tests::host::alive;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use crate::{host, lane, one_lane};

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_stream_finishes_within_the_drain_time_and_nothing_is_left() {
    let mut host = one_lane(&["--script", r#"{"token-ms": 20, "tokens": 40}"#]);
    let engine = host.engine_pid("a");
    let mut answer = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(answer.until("word1"));
    host.signal(Signal::INT);
    wait_until("it drains", || host.log().contains("SIGINT: draining"));
    wait_until("nobody new gets in", || {
        std::net::TcpStream::connect(("127.0.0.1", host.port)).is_err()
    });
    let (reply, complete) = answer.finish();
    assert!(complete && reply.text().ends_with("data: [DONE]\n\n"), "{}", reply.text());
    assert!(host.ended().success());
    assert!(!alive(engine));
}

#[test]
fn a_stream_that_takes_longer_is_cut_with_an_error_event() {
    let config = format!(
        "server = {{ drain-timeout = \"200ms\" }}\n{}",
        lane("a", &["a"], &["--script", r#"{"stall-after": 2}"#])
    );
    let mut host = host(&config);
    let mut answer = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(answer.until("word1"));
    host.signal(Signal::TERM);
    let (reply, _) = answer.finish();
    assert!(
        reply.text().contains("the router is stopping") && !reply.text().contains("[DONE]"),
        "{}",
        reply.text()
    );
    assert!(host.ended().success());
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut host = one_lane(&["--script", r#"{"stall-after": 2}"#]);
    let engine = host.engine_pid("a");
    let mut answer = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(answer.until("word1"));
    host.signal(Signal::TERM);
    wait_until("it drains", || host.log().contains("SIGTERM: draining"));
    host.signal(Signal::TERM);
    let (reply, _) = answer.finish();
    assert!(!reply.text().contains("[DONE]"));
    assert!(host.ended().success());
    assert!(!alive(engine));
}
