//! Switches from one lane to another: in-flight requests finish, and no request is sent to an
//! engine that is about to stop.

use pointsman_tests::client::chat;
use pointsman_tests::wait_until;
use serde_json::json;

use super::{
    SWITCH_IMMEDIATELY, engine_is, engine_state, failed_attempts, final_error, llama_lane,
    queue_length, send_chat, silent_client, single_lane_group, spawn_chat, start, start_stream,
    switch_count, vllm_lane,
};

const STALLS: &str = r#"--load-ms 200 --script '{"stall-after": 2}'"#;
const QUICK: &str = "--load-ms 200";

#[test]
fn switch_never_aborts_stream() {
    let slow = r#"--load-ms 200 --fork-core --script '{"token-ms": 20, "tokens": 50}'"#;
    let host = start(&single_lane_group(
        SWITCH_IMMEDIATELY,
        &[vllm_lane("a", "", "", slow), vllm_lane("b", "", "", slow)],
    ));
    let mut streams: Vec<_> = (0..3).map(|_| start_stream(&host, "a")).collect();
    assert!(streams.iter_mut().all(|stream| stream.read_until("data: ")));
    let whole = spawn_chat(&host, "a", json!({}));
    wait_until("all four requests are in flight", || host.lane("a")["running"] == 4);
    let other = spawn_chat(&host, "b", json!({}));
    wait_until("lane a drains", || engine_is(&host, "a", "draining"));
    let late = spawn_chat(&host, "a", json!({}));
    wait_until("the late request is queued", || queue_length(&host, "a") == 1);
    for stream in streams {
        let (response, complete) = stream.finish();
        let text = response.text();
        assert!(complete && text.ends_with("data: [DONE]\n\n"), "{text}");
        assert_eq!(text.matches("data: ").count(), 1 + 50 + 1, "{text}");
    }
    for response in [whole, other, late] {
        let response = response.join().unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!((&host.lane("a")["starts"], &host.lane("b")["starts"]), (&json!(2), &json!(1)));
    assert_eq!(failed_attempts(&host), 0.0);
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn loading_lane_is_never_evicted() {
    let head =
        "switching = { min-residency = 0.0, linger = \"0s\", starvation-timeout = \"100ms\" }\n";
    let lanes =
        [vllm_lane("a", "", "", "--load-ms 900 --fork-core"), vllm_lane("b", "", "", QUICK)];
    let host = start(&single_lane_group(head, &lanes));
    let first = spawn_chat(&host, "a", json!({}));
    wait_until("lane a is loading", || engine_is(&host, "a", "starting"));
    let others: Vec<_> = (0..3).map(|_| spawn_chat(&host, "b", json!({}))).collect();
    wait_until("the others are queued", || queue_length(&host, "b") == 3);
    assert!(engine_is(&host, "a", "starting"));
    assert_eq!(first.join().unwrap().status, 200);
    others.into_iter().for_each(|other| assert_eq!(other.join().unwrap().status, 200));
    let events = host.all_events();
    let first = |name: &str| {
        let index = events.iter().position(|event| event.matches(name, &[("lane", "a")]));
        index.unwrap_or_else(|| panic!("no event {name}"))
    };
    assert!(first("engine_ready") < first("engine_stopping"));
    assert_eq!((&host.lane("a")["starts"], &host.lane("b")["starts"]), (&json!(1), &json!(1)));
    assert_eq!(host.metric("pointsman_engine_exits_total", ""), 0.0);
    host.assert_no_request_lost();
}

/// Only the client that disconnects needed the switch: the lane that was draining serves again.
#[test]
fn disconnect_of_queued_client_cancels_switch() {
    let kept_alive = format!("{SWITCH_IMMEDIATELY}server = {{ keep-alive = \"50ms\" }}\n");
    for (head, streams) in [(SWITCH_IMMEDIATELY, false), ("", true), (kept_alive.as_str(), true)] {
        let host = start(&single_lane_group(
            head,
            &[vllm_lane("a", "", "", STALLS), vllm_lane("b", "", "", QUICK)],
        ));
        let mut held = start_stream(&host, "a");
        assert!(held.read_until("data: "));
        let client = silent_client(&host, &chat("b", json!({ "stream": streams })));
        wait_until("the request is queued", || queue_length(&host, "b") == 1);
        if head == kept_alive {
            // The response has begun: the host now reads the connection to see a disconnect.
            wait_until("the client gets keep-alive comments", || {
                client.peek(&mut [0; 4096]).unwrap() > 0
            });
        }
        assert_eq!(engine_is(&host, "a", "draining"), head.contains("min-residency"));
        drop(client);
        wait_until("the request is no longer queued", || {
            queue_length(&host, "b") == 0 && engine_is(&host, "a", "ready")
        });
        let response = send_chat(&host, "a");
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!((&host.lane("b")["starts"], &host.lane("a")["starts"]), (&json!(0), &json!(1)));
        assert_eq!(switch_count(&host), 1.0);
        drop(held);
        host.assert_no_request_lost();
        assert_eq!(host.lane("b")["starts"], 0);
    }
}

#[test]
fn disconnect_frees_engine_for_next_lane() {
    let endless = r#"--load-ms 200 --script '{"token-ms": 20, "tokens": 9000}'"#;
    let host = start(&single_lane_group(
        SWITCH_IMMEDIATELY,
        &[vllm_lane("a", "", "", endless), vllm_lane("b", "", "", QUICK)],
    ));
    for body in [chat("a", json!({ "stream": true })), chat("a", json!({}))] {
        let client = silent_client(&host, &body);
        wait_until("the request is in flight", || host.lane("a")["running"] == 1);
        wait_until("the engine is busy", || engine_state(&host, "a")["busy"] == 1);
        let next = spawn_chat(&host, "b", json!({}));
        wait_until("lane a drains", || engine_is(&host, "a", "draining"));
        drop(client);
        assert_eq!(next.join().unwrap().status, 200);
    }
    assert_eq!(host.metric("pointsman_client_gone_total", ""), 2.0);
    host.assert_no_request_lost();
}

#[test]
fn queued_requests_of_lane_are_served_concurrently() {
    let slow = r#"--load-ms 200 --script '{"token-ms": 100, "tokens": 6}'"#;
    let lanes = [
        vllm_lane("a", "", "", STALLS),
        vllm_lane("b", "", "", slow),
        vllm_lane("c", "", "", slow),
    ];
    let host = start(&single_lane_group(SWITCH_IMMEDIATELY, &lanes));
    let mut held = start_stream(&host, "a");
    assert!(held.read_until("data: "));
    let mut responses = Vec::new();
    for round in 1..=4 {
        for lane in ["b", "c"] {
            responses.push(spawn_chat(&host, lane, json!({})));
            wait_until("the request is queued", || queue_length(&host, lane) == round);
        }
    }
    drop(held);
    for lane in ["b", "c"] {
        wait_until("all requests of the lane are in flight", || host.lane(lane)["running"] == 4);
    }
    for response in responses {
        let response = response.join().unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
    }
    assert_eq!(switch_count(&host), 3.0);
    host.assert_no_request_lost();
}

#[test]
fn requests_beyond_drain_timeout_are_aborted_with_error() {
    let head = "switching = { min-residency = 0.0, linger = \"0s\", drain-timeout = \"400ms\" }\n";
    let stalls = r#"--load-ms 200 --script '{"stall-after": 2, "token-ms": 500, "tokens": 9000}'"#;
    let host = start(&single_lane_group(
        head,
        &[vllm_lane("a", "", "", stalls), vllm_lane("b", "", "", QUICK)],
    ));
    let mut aborted = start_stream(&host, "a");
    assert!(aborted.read_until("data: "));
    let whole = spawn_chat(&host, "a", json!({}));
    wait_until("both requests are in flight", || host.lane("a")["running"] == 2);
    let other = spawn_chat(&host, "b", json!({}));
    let (response, complete) = aborted.finish();
    let error = final_error(&response.text());
    assert!(complete && error["code"] == "no_lane_available", "{error}");
    host.wait_for_event("response_aborted", &[("lane", "a"), ("cause", "evicted")]);
    let whole = whole.join().unwrap();
    assert_eq!((whole.status, &whole.json()["error"]["code"]), (503, &json!("no_lane_available")));
    assert!(whole.header("retry-after").is_some());
    assert_eq!(other.join().unwrap().status, 200);
    assert_eq!(host.metric("pointsman_lane_breaker_open", ""), 0.0);
    host.assert_no_request_lost();
    host.stop();
}

/// A response that is not streamed can be aborted and sent to another lane: nothing of it has
/// reached the client.
#[test]
fn request_aborted_before_first_byte_falls_back() {
    let head = "switching = { min-residency = 0.0, linger = \"0s\", drain-timeout = \"300ms\" }\n";
    let hangs = r#"--load-ms 200 --script '{"hang": true}'"#;
    let lanes = [
        vllm_lane("a", "models = [\"a\", \"m\"]", "", hangs),
        vllm_lane("b", "", "", QUICK),
        llama_lane(
            "r",
            "models = [\"r\", \"m\"]\nload = \"on-demand\"\nexpected-load-time = \"20s\"",
            QUICK,
        ),
    ];
    let host = start(&single_lane_group(head, &lanes));
    let moved = spawn_chat(&host, "m", json!({}));
    wait_until("the request is in flight", || host.lane("a")["running"] == 1);
    let other = spawn_chat(&host, "b", json!({}));
    let moved = moved.join().unwrap();
    assert_eq!(
        (moved.status, moved.header("x-pointsman-lane")),
        (200, Some("r")),
        "{}",
        moved.text()
    );
    assert_eq!(other.join().unwrap().status, 200);
    host.assert_no_request_lost();
}
