//! The circuit breaker of a lane: what opens it, and which requests it affects.

use pointsman_tests::client::chat;
use pointsman_tests::wait_until;
use serde_json::json;

use super::{
    engine_state, llama_lane, queue_length, send_chat, silent_client, single_lane_group,
    spawn_chat, start,
};

fn is_open(host: &pointsman_tests::host::Host) -> bool {
    host.metric("pointsman_lane_breaker_open", "lane=\"a\"") == 1.0
}

/// Returns two lanes for the model `m`. Lane `b` takes far longer to load, so `a` is preferred.
fn two_lanes(a: &str, flags: &str) -> String {
    let a = llama_lane("a", &format!("models = [\"a\", \"m\"]\n{a}"), flags);
    let b = llama_lane(
        "b",
        "models = [\"b\", \"m\"]\nload = \"on-demand\"\nexpected-load-time = \"20s\"",
        "--load-ms 100",
    );
    single_lane_group("", &[a, b])
}

#[test]
fn client_errors_and_disconnects_never_open_breaker() {
    let host = start(&two_lanes("", ""));
    host.wait_for_lane("a", "ready");
    for status in [400, 404, 413, 422, 429] {
        host.set_script("a", json!({ "status": status }));
        for _ in 0..6 {
            let response = send_chat(&host, "a");
            let expected = if status == 429 { 503 } else { status };
            assert_eq!(response.status, expected, "{}", response.text());
        }
        assert!(!is_open(&host), "{status}");
    }
    for script in [json!({ "hang": true }), json!({ "token-ms": 50, "tokens": 500 })] {
        host.set_script("a", script);
        for stream in [true, false] {
            for _ in 0..4 {
                let client = silent_client(&host, &chat("a", json!({ "stream": stream })));
                wait_until("the request is in flight", || host.lane("a")["running"] == 1);
                drop(client);
                wait_until("the request has ended", || host.lane("a")["running"] == 0);
            }
        }
        assert!(!is_open(&host));
    }
    assert_eq!(host.metric("pointsman_client_gone_total", ""), 16.0);
    assert_eq!(host.lane("a")["state"], "ready");
    host.set_script("a", json!({}));
    assert_eq!(send_chat(&host, "m").header("x-pointsman-lane"), Some("a"));
    host.assert_no_request_lost();
}

#[test]
fn failures_open_breaker_and_requests_with_fallback_skip_lane() {
    let host = start(&two_lanes("", r#"--script '{"status": 500}'"#));
    host.wait_for_lane("a", "ready");
    for failures in 1..=5 {
        assert!(!is_open(&host));
        assert_eq!(send_chat(&host, "a").status, 502);
        wait_until("the attempt is counted", || {
            host.metric("pointsman_attempts_total", "result=\"server-error\"")
                == f64::from(failures)
        });
    }
    wait_until("the breaker opens", || is_open(&host));
    assert_eq!(host.lane("a")["state"], "degraded");
    let seen = engine_state(&host, "a")["seen"].clone();
    let response = send_chat(&host, "m");
    assert_eq!(
        (response.status, response.header("x-pointsman-lane")),
        (200, Some("b")),
        "{}",
        response.text()
    );
    assert_eq!(engine_state(&host, "a")["seen"], seen);
    // A request without a fallback attempts the lane anyway, and so finds out that it has
    // recovered.
    assert_eq!(send_chat(&host, "a").status, 502);
    host.set_script("a", json!({}));
    assert_eq!(send_chat(&host, "a").status, 200);
    wait_until("the breaker closes", || !is_open(&host));
    assert_eq!(host.lane("a")["state"], "ready");
    assert_eq!(send_chat(&host, "m").header("x-pointsman-lane"), Some("a"));
    host.assert_no_request_lost();
}

#[test]
fn queued_request_with_fallback_leaves_when_breaker_opens() {
    let limits = "slots = 1\ntimeouts = { first-byte = \"400ms\" }";
    let host = start(&two_lanes(limits, r#"--script '{"hang": true}'"#));
    host.wait_for_lane("a", "ready");
    let stream = || spawn_chat(&host, "a", json!({ "stream": true }));
    let mut fail = vec![stream()];
    wait_until("the slot is taken", || host.lane("a")["running"] == 1);
    fail.extend((0..4).map(|_| stream()));
    wait_until("four requests are queued", || queue_length(&host, "a") == 4);
    let with_fallback = spawn_chat(&host, "m", json!({}));
    let response = with_fallback.join().unwrap();
    assert_eq!(
        (response.status, response.header("x-pointsman-lane")),
        (200, Some("b")),
        "{}",
        response.text()
    );
    for failed in fail {
        let response = failed.join().unwrap();
        assert_eq!(
            (response.status, &response.json()["error"]["code"]),
            (504, &json!("engine_timeout")),
            "{}",
            response.text()
        );
    }
    assert!(is_open(&host));
    assert_eq!(host.metric("pointsman_queue_rejected_total", "breaker-open"), 1.0);
    host.assert_no_request_lost();
}

/// A status of 200 is not a success: the end of the stream decides the outcome.
#[test]
fn broken_streams_count_as_failures() {
    let host = start(&two_lanes("", r#"--script '{"end-after": 2}'"#));
    host.wait_for_lane("a", "ready");
    for _ in 0..5 {
        assert!(!is_open(&host));
        let (response, _) = super::start_stream(&host, "a").finish();
        super::final_error(&response.text());
        wait_until("the request has ended", || host.lane("a")["running"] == 0);
    }
    wait_until("the breaker opens", || is_open(&host));
    host.assert_no_request_lost();
}
