//! Clients that wait: kept alive, told their limits, and never left without an answer.

use pointsman_tests::client::{chat, get, open, post, send};
use pointsman_tests::host::root;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{
    AT_ONCE, CHAT, ask, asking, is_engine, last_words, llama, one_at_a_time, queued, start,
    streaming, streaming_later, vllm,
};

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn long_waits_keep_streaming_clients_alive() {
    let head = "server = { keep-alive = \"150ms\" }\n";
    let host = start(&one_at_a_time(head, &[vllm("a", "", "", "--load-ms 1000")]));
    let body = chat("a", json!({ "stream": true })).to_string();
    let mut answer =
        open(host.port, "POST", CHAT, &[JSON, ("x-request-id", "mine")], body.as_bytes());
    let header = |name: &str| {
        answer.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    };
    assert_eq!((answer.status, header("x-request-id")), (200, Some("mine")));
    assert!(header("content-type").unwrap().starts_with("text/event-stream"));
    assert_eq!(
        (header("cache-control"), header("x-accel-buffering")),
        (Some("no-cache"), Some("no"))
    );
    assert!(answer.until(": keep-alive\n\n: keep-alive\n\n"));
    assert!(is_engine(&host, "a", "starting") || is_engine(&host, "a", "ready"));
    let (reply, complete) = answer.finish();
    let text = reply.text();
    assert!(
        complete && text.starts_with(": keep-alive\n\n") && text.ends_with("data: [DONE]\n\n"),
        "{text}"
    );
    assert!(text.contains("chatcmpl-mine"), "{text}");
    let answer = &text[text.find("data: ").unwrap()..];
    assert!(!answer.contains("keep-alive"), "{text}");
    host.assert_nothing_lost();
}

#[test]
fn what_fails_after_a_long_wait_ends_with_an_error_event() {
    let head = "server = { keep-alive = \"100ms\" }\nqueue = { max-wait = \"900ms\" }\n";
    let lanes = [
        vllm("fails", "", "", "--load-ms 1000 --fail-load 3"),
        vllm("slow", "", "", "--load-ms 3600000"),
        llama("mute", "timeouts = { first-byte = \"400ms\" }", r#"--script '{"hang": true}'"#),
        llama("sick", "", r#"--script '{"status": 400}'"#),
    ];
    let host = start(&one_at_a_time(head, &lanes));
    host.wait_for("mute", "ready");
    for (lane, code) in
        [("fails", "no_lane_available"), ("slow", "queue_timeout"), ("mute", "engine_timeout")]
    {
        let (reply, complete) = streaming(&host, lane).finish();
        let text = reply.text();
        assert!(
            reply.status == 200 && complete && text.starts_with(": keep-alive\n\n"),
            "{lane}: {text}"
        );
        assert_eq!(last_words(&text)["code"], code, "{lane}: {text}");
        if lane == "fails" {
            wait_until("it is over", || !is_engine(&host, "fails", "starting"));
        }
    }
    assert_eq!(host.metric("pointsman_errors_total", ""), 3.0);
    host.assert_nothing_lost();
}

/// What is wrong with the request itself is told with its status, if that is known soon enough, and in words if it is not.
#[test]
fn a_refusal_after_a_long_wait_is_told_in_an_event() {
    let head = "server = { keep-alive = \"100ms\" }\n";
    let host = start(&one_at_a_time(
        head,
        &[vllm("a", "", "", r#"--load-ms 500 --script '{"status": 400}'"#)],
    ));
    let (reply, complete) = streaming(&host, "a").finish();
    let error = last_words(&reply.text());
    assert!(reply.status == 200 && complete, "{}", reply.text());
    assert_eq!(error["type"], "invalid_request_error", "{error}");
    assert_eq!(streaming(&host, "a").finish().0.status, 400);
    host.assert_nothing_lost();
}

#[test]
fn a_client_that_does_not_stream_is_told_when_to_come_back() {
    let head = "queue = { max-wait = \"500ms\" }\nserver = { keep-alive = \"100ms\" }\n";
    let host = start(&one_at_a_time(head, &[vllm("a", "", "", "--load-ms 2500")]));
    let reply = ask(&host, "a");
    assert_eq!(
        (reply.status, &reply.json()["error"]["code"]),
        (503, &json!("queue_timeout")),
        "{}",
        reply.text()
    );
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert!(reply.header("x-request-id").is_some_and(|id| id.len() == 32));
    assert_eq!(reply.header("x-pointsman-lane"), Some("a"));
    // The load was not in vain.
    host.wait_for("a", "ready");
    assert_eq!((ask(&host, "a").status, &host.lane("a")["starts"]), (200, &json!(1)));
    host.assert_nothing_lost();
}

#[test]
fn every_request_ends_and_limits_are_visible() {
    let head = format!("{AT_ONCE}queue = {{ per-lane = 3, total = 5, max-wait = \"3s\" }}\n");
    let stalls = r#"--load-ms 100 --script '{"stall-after": 2}'"#;
    let lanes = [vllm("a", "", "", stalls), vllm("b", "", "", ""), vllm("c", "", "", "")];
    let host = start(&one_at_a_time(&head, &lanes));
    let mut held = streaming(&host, "a");
    assert!(held.until("data: "));
    let full = |lane: &str| {
        let reply = ask(&host, lane);
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (429, &json!("queue_full")),
            "{}",
            reply.text()
        );
        assert!(
            reply.text().contains("requests wait already, which is the limit"),
            "{}",
            reply.text()
        );
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    };
    let mut waiting: Vec<_> = (0..3).map(|_| asking(&host, "b", json!({}))).collect();
    wait_until("three wait", || queued(&host, "b") == 3);
    full("b");
    waiting.extend((0..2).map(|_| asking(&host, "c", json!({}))));
    wait_until("five wait", || host.metric("pointsman_lane_queued", "") == 5.0);
    full("c");
    for waiting in waiting {
        let reply = waiting.join().unwrap();
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (503, &json!("queue_timeout")),
            "{}",
            reply.text()
        );
    }
    assert_eq!(host.metric("pointsman_queue_refused_total", "queue-full"), 2.0);
    assert_eq!(host.metric("pointsman_queue_refused_total", "timed-out"), 5.0);
    // Nobody is left who wants another lane, and so this one goes on.
    wait_until("lane a serves", || is_engine(&host, "a", "ready"));
    assert_eq!(ask(&host, "a").status, 200);
    drop(held);
    host.assert_nothing_lost();
}

#[test]
fn those_who_wait_are_answered_when_the_host_stops() {
    let head = "server = { keep-alive = \"100ms\", drain-timeout = \"300ms\" }\n";
    let mut host =
        start(&one_at_a_time(head, &[vllm("a", "", "", "--load-ms 3600000 --fork-core")]));
    let whole: Vec<_> = (0..2).map(|_| asking(&host, "a", json!({}))).collect();
    let streamed = streaming_later(&host, "a");
    wait_until("they wait", || queued(&host, "a") == 3);
    let children = host.children();
    host.signal(Signal::TERM);
    let (reply, complete) = streamed.join().unwrap();
    assert!(complete, "{}", reply.text());
    assert_eq!(last_words(&reply.text())["code"], "no_lane_available", "{}", reply.text());
    assert!(host.ended().success());
    wait_until("nothing is left", || {
        children.iter().all(|child| !pointsman_tests::host::alive(*child))
    });
    for waiter in whole {
        let reply = waiter.join().expect("an answer, and not only the end of the connection");
        assert_eq!(
            (reply.status, &reply.json()["error"]["code"]),
            (503, &json!("no_lane_available"))
        );
    }
}

/// A request that has somewhere else to go goes there at once, if it could not be served here in time.
#[test]
fn a_request_with_a_fallback_does_not_wait_in_vain() {
    let policies = root().join("policies");
    for (max_wait, lane, tries) in
        [("2s", "super_reader", Some("2")), ("50s", "orchestrator", None)]
    {
        let head = format!(
            "queue = {{ max-wait = {max_wait:?} }}\npolicies = {{ dir = {policies:?}, cache = \"cache\", chain = [{{ name = \
             \"cortex\" }}] }}\n"
        );
        let lanes = [
            vllm("orchestrator", "", "", "--load-ms 200")
                .replace("expected-load-time = \"1s\"", "expected-load-time = \"30s\""),
            llama("super_reader", "", ""),
        ];
        let host = start(&one_at_a_time(&head, &lanes));
        host.wait_for("super_reader", "ready");
        let reply = ask(&host, "orchestrator");
        assert_eq!(
            (reply.status, reply.header("x-pointsman-lane")),
            (200, Some(lane)),
            "{}",
            reply.text()
        );
        assert_eq!(reply.header("x-pointsman-attempts"), tries);
        assert_eq!(host.lane("orchestrator")["starts"], i32::from(tries.is_none()));
        assert_eq!(
            host.metric("pointsman_queue_refused_total", "too-late"),
            f64::from(i32::from(tries.is_some()))
        );
        host.assert_nothing_lost();
    }
}

/// A stream that was kept alive is answered by the second lane when the first one fails.
#[test]
fn a_fallback_works_after_the_first_sign_of_life() {
    let head = "server = { keep-alive = \"100ms\" }\n";
    let lanes = [
        vllm("a", "models = [\"a\", \"m\"]", "", "--load-ms 800 --oom"),
        llama(
            "b",
            "models = [\"b\", \"m\"]\nload = \"on-demand\"\nexpected-load-time = \"20s\"",
            "--load-ms 400",
        ),
    ];
    let host = start(&one_at_a_time(head, &lanes));
    let (reply, complete) = streaming(&host, "m").finish();
    let text = reply.text();
    assert!(
        complete && text.starts_with(": keep-alive\n\n") && text.ends_with("data: [DONE]\n\n"),
        "{text}"
    );
    assert_eq!(host.metric("pointsman_fell_back_total", ""), 1.0);
    host.assert_nothing_lost();
}

#[test]
fn health_tells_of_a_switch_and_nothing_restarts_us_for_it() {
    let slow = "--load-ms 500 --slow-exit-ms 300";
    let host = start(&one_at_a_time(AT_ONCE, &[vllm("a", "", "", slow), vllm("b", "", "", slow)]));
    let status = |path: &str| get(host.port, path).status;
    assert_eq!((status("/health"), status("/readyz"), status("/livez")), (200, 200, 200));
    assert_eq!(ask(&host, "a").status, 200);
    let next = asking(&host, "b", json!({}));
    let mut reasons = Vec::new();
    wait_until("lane b serves", || {
        assert_eq!((status("/livez"), status("/readyz")), (200, 200));
        let health = get(host.port, "/health");
        if health.status == 503 {
            assert!(health.header("retry-after").is_some());
            reasons.push(health.json()["reason"].as_str().unwrap().to_owned());
        }
        is_engine(&host, "b", "ready")
    });
    assert!(reasons.iter().any(|reason| reason.contains("a is draining")), "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("b is loading, about")), "{reasons:?}");
    assert_eq!(next.join().unwrap().status, 200);
    assert_eq!(status("/health"), 200);
    host.assert_nothing_lost();
}

#[test]
fn the_id_of_a_request_goes_all_the_way() {
    let host = start(&one_at_a_time("", &[vllm("a", "", "", "--load-ms 100")]));
    let given = [JSON, ("x-request-id", "it-is-me")];
    let reply = send(host.port, "POST", CHAT, &given, chat("a", json!({})).to_string().as_bytes());
    assert_eq!((reply.status, reply.header("x-request-id")), (200, Some("it-is-me")));
    assert_eq!(reply.json()["id"], "chatcmpl-it-is-me");
    let reply = post(host.port, CHAT, &chat("a", json!({})));
    let id = reply.header("x-request-id").unwrap();
    assert!(id.len() == 32 && reply.json()["id"] == format!("chatcmpl-{id}"), "{}", reply.text());
    let refused = send(host.port, "POST", CHAT, &given, b"{");
    assert_eq!((refused.status, refused.header("x-request-id")), (400, Some("it-is-me")));
    host.script("a", json!({ "status": 500 }));
    let failed = send(host.port, "POST", CHAT, &given, chat("a", json!({})).to_string().as_bytes());
    assert_eq!((failed.status, failed.header("x-request-id")), (502, Some("it-is-me")));
    assert!(host.log().contains("request=\"it-is-me\""));
    host.assert_nothing_lost();
}
