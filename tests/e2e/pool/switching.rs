//! One lane for another: what is under way is finished, and nothing is sent where it would be lost.

use pointsman_tests::client::chat;
use pointsman_tests::wait_until;
use serde_json::json;

use super::{
    AT_ONCE, ask, asking, engine, failed_tries, is_engine, last_words, leaver, llama, loads,
    one_at_a_time, queued, start, streaming, vllm,
};

const STALLS: &str = r#"--load-ms 200 --script '{"stall-after": 2}'"#;
const QUICK: &str = "--load-ms 200";

#[test]
fn a_switch_never_cuts_a_stream() {
    let slow = r#"--load-ms 200 --fork-core --script '{"token-ms": 20, "tokens": 50}'"#;
    let host = start(&one_at_a_time(AT_ONCE, &[vllm("a", "", "", slow), vllm("b", "", "", slow)]));
    let mut streams: Vec<_> = (0..3).map(|_| streaming(&host, "a")).collect();
    assert!(streams.iter_mut().all(|stream| stream.until("data: ")));
    let whole = asking(&host, "a", json!({}));
    wait_until("all four are under way", || host.lane("a")["running"] == 4);
    let other = asking(&host, "b", json!({}));
    wait_until("lane a drains", || is_engine(&host, "a", "draining"));
    let late = asking(&host, "a", json!({}));
    wait_until("the late one waits", || queued(&host, "a") == 1);
    for stream in streams {
        let (reply, complete) = stream.finish();
        let text = reply.text();
        assert!(complete && text.ends_with("data: [DONE]\n\n"), "{text}");
        assert_eq!(text.matches("data: ").count(), 1 + 50 + 1, "{text}");
    }
    for answer in [whole, other, late] {
        let reply = answer.join().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert_eq!((&host.lane("a")["starts"], &host.lane("b")["starts"]), (&json!(2), &json!(1)));
    assert_eq!(failed_tries(&host), 0.0);
    host.assert_nothing_lost();
    host.stop();
}

#[test]
fn a_loading_lane_is_never_evicted() {
    let head =
        "switching = { min-residency = 0.0, linger = \"0s\", starvation-timeout = \"100ms\" }\n";
    let lanes = [vllm("a", "", "", "--load-ms 900 --fork-core"), vllm("b", "", "", QUICK)];
    let host = start(&one_at_a_time(head, &lanes));
    let first = asking(&host, "a", json!({}));
    wait_until("lane a is loading", || is_engine(&host, "a", "starting"));
    let others: Vec<_> = (0..3).map(|_| asking(&host, "b", json!({}))).collect();
    wait_until("the others wait", || queued(&host, "b") == 3);
    assert!(is_engine(&host, "a", "starting"));
    assert_eq!(first.join().unwrap().status, 200);
    others.into_iter().for_each(|other| assert_eq!(other.join().unwrap().status, 200));
    let log = host.log();
    let first = |what: &str| {
        let line = log.lines().position(|line| line.contains(what) && line.contains("lane=\"a\""));
        line.unwrap_or_else(|| panic!("no line says: {what}"))
    };
    assert!(first("the engine is ready") < first("the engine is stopping"));
    assert_eq!((&host.lane("a")["starts"], &host.lane("b")["starts"]), (&json!(1), &json!(1)));
    assert_eq!(host.metric("pointsman_engine_exits_total", ""), 0.0);
    host.assert_nothing_lost();
}

/// The one that leaves was the only one to want the switch: what drains for it goes on serving.
#[test]
fn a_client_that_leaves_while_it_waits_triggers_no_switch() {
    let kept_alive = format!("{AT_ONCE}server = {{ keep-alive = \"50ms\" }}\n");
    for (head, streams) in [(AT_ONCE, false), ("", true), (kept_alive.as_str(), true)] {
        let host =
            start(&one_at_a_time(head, &[vllm("a", "", "", STALLS), vllm("b", "", "", QUICK)]));
        let mut held = streaming(&host, "a");
        assert!(held.until("data: "));
        let client = leaver(&host, &chat("b", json!({ "stream": streams })));
        wait_until("it waits", || queued(&host, "b") == 1);
        if head == kept_alive {
            // Its answer has begun, and is read from here on.
            wait_until("it is kept alive", || client.peek(&mut [0; 4096]).unwrap() > 0);
        }
        assert_eq!(is_engine(&host, "a", "draining"), head.contains("min-residency"));
        drop(client);
        wait_until("it waits no more", || {
            queued(&host, "b") == 0 && is_engine(&host, "a", "ready")
        });
        let reply = ask(&host, "a");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!((&host.lane("b")["starts"], &host.lane("a")["starts"]), (&json!(0), &json!(1)));
        assert_eq!(loads(&host), 1.0);
        drop(held);
        host.assert_nothing_lost();
        assert_eq!(host.lane("b")["starts"], 0);
    }
}

#[test]
fn a_client_that_leaves_frees_the_engine_for_the_next_lane() {
    let endless = r#"--load-ms 200 --script '{"token-ms": 20, "tokens": 9000}'"#;
    let host =
        start(&one_at_a_time(AT_ONCE, &[vllm("a", "", "", endless), vllm("b", "", "", QUICK)]));
    for body in [chat("a", json!({ "stream": true })), chat("a", json!({}))] {
        let client = leaver(&host, &body);
        wait_until("lane a works", || host.lane("a")["running"] == 1);
        wait_until("its engine does", || engine(&host, "a")["busy"] == 1);
        let next = asking(&host, "b", json!({}));
        wait_until("lane a drains", || is_engine(&host, "a", "draining"));
        drop(client);
        assert_eq!(next.join().unwrap().status, 200);
    }
    assert_eq!(host.metric("pointsman_client_gone_total", ""), 2.0);
    host.assert_nothing_lost();
}

#[test]
fn requests_are_grouped_by_lane_and_served_side_by_side() {
    let slow = r#"--load-ms 200 --script '{"token-ms": 100, "tokens": 6}'"#;
    let lanes = [vllm("a", "", "", STALLS), vllm("b", "", "", slow), vllm("c", "", "", slow)];
    let host = start(&one_at_a_time(AT_ONCE, &lanes));
    let mut held = streaming(&host, "a");
    assert!(held.until("data: "));
    let mut answers = Vec::new();
    for round in 1..=4 {
        for lane in ["b", "c"] {
            answers.push(asking(&host, lane, json!({})));
            wait_until("it waits", || queued(&host, lane) == round);
        }
    }
    drop(held);
    for lane in ["b", "c"] {
        wait_until("all of them are answered at once", || host.lane(lane)["running"] == 4);
    }
    for answer in answers {
        let reply = answer.join().unwrap();
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    assert_eq!(loads(&host), 3.0);
    host.assert_nothing_lost();
}

#[test]
fn answers_that_outlast_the_limit_are_cut_with_words() {
    let head = "switching = { min-residency = 0.0, linger = \"0s\", drain-timeout = \"400ms\" }\n";
    let stalls = r#"--load-ms 200 --script '{"stall-after": 2, "token-ms": 500, "tokens": 9000}'"#;
    let host = start(&one_at_a_time(head, &[vllm("a", "", "", stalls), vllm("b", "", "", QUICK)]));
    let mut cut = streaming(&host, "a");
    assert!(cut.until("data: "));
    let whole = asking(&host, "a", json!({}));
    wait_until("both are under way", || host.lane("a")["running"] == 2);
    let other = asking(&host, "b", json!({}));
    let (reply, complete) = cut.finish();
    let error = last_words(&reply.text());
    assert!(
        complete && error["message"].as_str().unwrap().contains("exchanged for another"),
        "{error}"
    );
    let whole = whole.join().unwrap();
    assert_eq!((whole.status, &whole.json()["error"]["code"]), (503, &json!("no_lane_available")));
    assert!(whole.header("retry-after").is_some());
    assert_eq!(other.join().unwrap().status, 200);
    assert_eq!(host.metric("pointsman_lane_breaker_open", ""), 0.0);
    host.assert_nothing_lost();
    host.stop();
}

/// An answer in one piece that is cut goes to another lane: nothing of it has been sent.
#[test]
fn a_request_that_is_cut_before_its_first_byte_goes_elsewhere() {
    let head = "switching = { min-residency = 0.0, linger = \"0s\", drain-timeout = \"300ms\" }\n";
    let hangs = r#"--load-ms 200 --script '{"hang": true}'"#;
    let lanes = [
        vllm("a", "models = [\"a\", \"m\"]", "", hangs),
        vllm("b", "", "", QUICK),
        llama(
            "r",
            "models = [\"r\", \"m\"]\nload = \"on-demand\"\nexpected-load-time = \"20s\"",
            QUICK,
        ),
    ];
    let host = start(&one_at_a_time(head, &lanes));
    let moved = asking(&host, "m", json!({}));
    wait_until("it is under way", || host.lane("a")["running"] == 1);
    let other = asking(&host, "b", json!({}));
    let moved = moved.join().unwrap();
    assert_eq!(
        (moved.status, moved.header("x-pointsman-lane")),
        (200, Some("r")),
        "{}",
        moved.text()
    );
    assert_eq!(other.join().unwrap().status, 200);
    host.assert_nothing_lost();
}
