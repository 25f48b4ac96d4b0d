//! What counts against a lane, and who heeds it.

use pointsman_tests::client::chat;
use pointsman_tests::wait_until;
use serde_json::json;

use super::{ask, asking, engine, leaver, llama, one_at_a_time, queued, start};

fn is_open(host: &pointsman_tests::host::Host) -> bool {
    host.metric("pointsman_lane_breaker_open", "lane=\"a\"") == 1.0
}

/// Two lanes for the model `m`; `b` takes far longer to start, and so `a` comes first.
fn two(a: &str, flags: &str) -> String {
    let a = llama("a", &format!("models = [\"a\", \"m\"]\n{a}"), flags);
    let b = llama(
        "b",
        "models = [\"b\", \"m\"]\nload = \"on-demand\"\nexpected-load-time = \"20s\"",
        "--load-ms 100",
    );
    one_at_a_time("", &[a, b])
}

#[test]
fn mistakes_and_departures_of_clients_never_open_the_breaker() {
    let host = start(&two("", ""));
    host.wait_for("a", "ready");
    for status in [400, 404, 413, 422, 429] {
        host.script("a", json!({ "status": status }));
        for _ in 0..6 {
            let reply = ask(&host, "a");
            let expected = if status == 429 { 503 } else { status };
            assert_eq!(reply.status, expected, "{}", reply.text());
        }
        assert!(!is_open(&host), "{status}");
    }
    for script in [json!({ "hang": true }), json!({ "token-ms": 50, "tokens": 500 })] {
        host.script("a", script);
        for stream in [true, false] {
            for _ in 0..4 {
                let client = leaver(&host, &chat("a", json!({ "stream": stream })));
                wait_until("it is under way", || host.lane("a")["running"] == 1);
                drop(client);
                wait_until("it is gone", || host.lane("a")["running"] == 0);
            }
        }
        assert!(!is_open(&host));
    }
    assert_eq!(host.metric("pointsman_client_gone_total", ""), 16.0);
    assert_eq!(host.lane("a")["state"], "ready");
    host.script("a", json!({}));
    assert_eq!(ask(&host, "m").header("x-pointsman-lane"), Some("a"));
    host.assert_nothing_lost();
}

#[test]
fn failures_open_it_and_requests_with_a_fallback_leave_at_once() {
    let host = start(&two("", r#"--script '{"status": 500}'"#));
    host.wait_for("a", "ready");
    for failures in 1..=5 {
        assert!(!is_open(&host));
        assert_eq!(ask(&host, "a").status, 502);
        wait_until("it is counted", || {
            host.metric("pointsman_attempts_total", "result=\"server-error\"")
                == f64::from(failures)
        });
    }
    wait_until("the breaker opens", || is_open(&host));
    assert_eq!(host.lane("a")["state"], "degraded");
    let seen = engine(&host, "a")["seen"].clone();
    let reply = ask(&host, "m");
    assert_eq!(
        (reply.status, reply.header("x-pointsman-lane")),
        (200, Some("b")),
        "{}",
        reply.text()
    );
    assert_eq!(engine(&host, "a")["seen"], seen);
    // Whoever has nowhere else to go tries all the same, and so finds out that the lane is well again.
    assert_eq!(ask(&host, "a").status, 502);
    host.script("a", json!({}));
    assert_eq!(ask(&host, "a").status, 200);
    wait_until("the breaker closes", || !is_open(&host));
    assert_eq!(host.lane("a")["state"], "ready");
    assert_eq!(ask(&host, "m").header("x-pointsman-lane"), Some("a"));
    host.assert_nothing_lost();
}

#[test]
fn those_who_wait_and_have_a_fallback_leave_when_it_opens() {
    let limits = "slots = 1\ntimeouts = { first-byte = \"400ms\" }";
    let host = start(&two(limits, r#"--script '{"hang": true}'"#));
    host.wait_for("a", "ready");
    let mut fail = vec![asking(&host, "a", json!({}))];
    wait_until("the slot is taken", || host.lane("a")["running"] == 1);
    fail.extend((0..4).map(|_| asking(&host, "a", json!({}))));
    wait_until("four wait", || queued(&host, "a") == 4);
    let leaves = asking(&host, "m", json!({}));
    let reply = leaves.join().unwrap();
    assert_eq!(
        (reply.status, reply.header("x-pointsman-lane")),
        (200, Some("b")),
        "{}",
        reply.text()
    );
    for failed in fail {
        let reply = failed.join().unwrap();
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (504, &json!("engine_timeout")),
            "{}",
            reply.text()
        );
    }
    assert!(is_open(&host));
    assert_eq!(host.metric("pointsman_queue_refused_total", "breaker-open"), 1.0);
    host.assert_nothing_lost();
}

/// A status of 200 is no success: the outcome is that of the stream's end.
#[test]
fn streams_that_break_count_as_failures() {
    let host = start(&two("", r#"--script '{"end-after": 2}'"#));
    host.wait_for("a", "ready");
    for _ in 0..5 {
        assert!(!is_open(&host));
        let (reply, _) = super::streaming(&host, "a").finish();
        super::last_words(&reply.text());
        wait_until("it has ended", || host.lane("a")["running"] == 0);
    }
    wait_until("the breaker opens", || is_open(&host));
    host.assert_nothing_lost();
}
