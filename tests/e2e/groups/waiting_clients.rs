//! Waiting clients: they are kept alive, their waits are bounded, and every request gets a
//! response.

use pointsman_tests::client::{chat, get, open, post, send};
use pointsman_tests::host::root;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{
    CHAT, SWITCH_IMMEDIATELY, engine_is, final_error, llama_lane, queue_length, send_chat,
    single_lane_group, spawn_chat, spawn_stream, start, start_stream, vllm_lane,
};

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn streaming_clients_get_keep_alive_comments() {
    let head = "server = { keep-alive = \"150ms\" }\n";
    let host = start(&single_lane_group(head, &[vllm_lane("a", "", "", "--load-ms 1000")]));
    let body = chat("a", json!({ "stream": true })).to_string();
    let mut event_stream =
        open(host.port, "POST", CHAT, &[JSON, ("x-request-id", "mine")], body.as_bytes());
    let header = |name: &str| {
        event_stream
            .headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    };
    assert_eq!((event_stream.status, header("x-request-id")), (200, Some("mine")));
    assert!(header("content-type").unwrap().starts_with("text/event-stream"));
    assert_eq!(
        (header("cache-control"), header("x-accel-buffering")),
        (Some("no-cache"), Some("no"))
    );
    assert!(event_stream.read_until(": keep-alive\n\n: keep-alive\n\n"));
    assert!(engine_is(&host, "a", "starting") || engine_is(&host, "a", "ready"));
    let (response, complete) = event_stream.finish();
    let text = response.text();
    assert!(
        complete && text.starts_with(": keep-alive\n\n") && text.ends_with("data: [DONE]\n\n"),
        "{text}"
    );
    assert!(text.contains("chatcmpl-mine"), "{text}");
    let events = &text[text.find("data: ").unwrap()..];
    assert!(!events.contains("keep-alive"), "{text}");
    host.assert_no_request_lost();
}

#[test]
fn failure_after_keep_alive_ends_with_error_event() {
    let head = "server = { keep-alive = \"100ms\" }\nqueue = { max-wait = \"900ms\" }\n";
    let lanes = [
        vllm_lane("fails", "", "", "--load-ms 1000 --fail-load 3"),
        vllm_lane("slow", "", "", "--load-ms 3600000"),
        llama_lane("mute", "timeouts = { first-byte = \"400ms\" }", r#"--script '{"hang": true}'"#),
        llama_lane("sick", "", r#"--script '{"status": 400}'"#),
    ];
    let host = start(&single_lane_group(head, &lanes));
    host.wait_for_lane("mute", "ready");
    for (lane, code) in
        [("fails", "no_lane_available"), ("slow", "queue_timeout"), ("mute", "engine_timeout")]
    {
        let (response, complete) = start_stream(&host, lane).finish();
        let text = response.text();
        assert!(
            response.status == 200 && complete && text.starts_with(": keep-alive\n\n"),
            "{lane}: {text}"
        );
        assert_eq!(final_error(&text)["code"], code, "{lane}: {text}");
        if lane == "fails" {
            wait_until("the load has failed", || !engine_is(&host, "fails", "starting"));
        }
    }
    assert_eq!(host.metric("pointsman_errors_total", ""), 3.0);
    host.assert_no_request_lost();
}

/// An error of the request itself has its own status if it is known early enough, and is reported
/// in an error event if it is not.
#[test]
fn client_error_after_keep_alive_is_error_event() {
    let head = "server = { keep-alive = \"100ms\" }\n";
    let host = start(&single_lane_group(
        head,
        &[vllm_lane("a", "", "", r#"--load-ms 500 --script '{"status": 400}'"#)],
    ));
    let (response, complete) = start_stream(&host, "a").finish();
    let error = final_error(&response.text());
    assert!(response.status == 200 && complete, "{}", response.text());
    assert_eq!(error["status"], 400, "{error}");
    assert_eq!(start_stream(&host, "a").finish().0.status, 400);
    host.assert_no_request_lost();
}

#[test]
fn queue_timeout_has_retry_after() {
    let head = "queue = { max-wait = \"500ms\" }\nserver = { keep-alive = \"100ms\" }\n";
    let host = start(&single_lane_group(head, &[vllm_lane("a", "", "", "--load-ms 2500")]));
    let response = send_chat(&host, "a");
    assert_eq!(
        (response.status, &response.json()["error"]["code"]),
        (503, &json!("queue_timeout")),
        "{}",
        response.text()
    );
    assert!(response.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    assert!(response.text().contains("still loading"), "{}", response.text());
    assert!(response.header("x-request-id").is_some_and(|id| id.len() == 32));
    assert_eq!(response.header("x-pointsman-lane"), Some("a"));
    // The load goes on without the client.
    host.wait_for_lane("a", "ready");
    assert_eq!((send_chat(&host, "a").status, &host.lane("a")["starts"]), (200, &json!(1)));
    host.assert_no_request_lost();
}

#[test]
fn queue_limits_reject_and_every_request_ends() {
    let head =
        format!("{SWITCH_IMMEDIATELY}queue = {{ per-lane = 3, total = 5, max-wait = \"3s\" }}\n");
    let stalls = r#"--load-ms 100 --script '{"stall-after": 2}'"#;
    let lanes =
        [vllm_lane("a", "", "", stalls), vllm_lane("b", "", "", ""), vllm_lane("c", "", "", "")];
    let host = start(&single_lane_group(&head, &lanes));
    let mut held = start_stream(&host, "a");
    assert!(held.read_until("data: "));
    let full = |lane: &str| {
        let response = send_chat(&host, lane);
        assert_eq!(
            (response.status, &response.json()["error"]["code"]),
            (429, &json!("queue_full")),
            "{}",
            response.text()
        );
        assert!(response.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    };
    let mut waiting: Vec<_> = (0..3).map(|_| spawn_chat(&host, "b", json!({}))).collect();
    wait_until("three requests are queued", || queue_length(&host, "b") == 3);
    full("b");
    waiting.extend((0..2).map(|_| spawn_chat(&host, "c", json!({}))));
    wait_until("five requests are queued", || host.metric("pointsman_lane_queued", "") == 5.0);
    full("c");
    for waiting in waiting {
        let response = waiting.join().unwrap();
        assert_eq!(
            (response.status, &response.json()["error"]["code"]),
            (503, &json!("queue_timeout")),
            "{}",
            response.text()
        );
    }
    assert_eq!(host.metric("pointsman_queue_rejected_total", "queue-full"), 2.0);
    assert_eq!(host.metric("pointsman_queue_rejected_total", "timed-out"), 5.0);
    // No request needs another lane any more, so this one serves again.
    wait_until("lane a serves", || engine_is(&host, "a", "ready"));
    assert_eq!(send_chat(&host, "a").status, 200);
    drop(held);
    host.assert_no_request_lost();
}

#[test]
fn queued_requests_get_response_when_host_stops() {
    let head = "server = { keep-alive = \"100ms\", drain-timeout = \"300ms\" }\n";
    let mut host =
        start(&single_lane_group(head, &[vllm_lane("a", "", "", "--load-ms 3600000 --fork-core")]));
    let whole: Vec<_> = (0..2).map(|_| spawn_chat(&host, "a", json!({}))).collect();
    let streamed = spawn_stream(&host, "a");
    wait_until("the requests are queued", || queue_length(&host, "a") == 3);
    let children = host.descendants();
    host.signal(Signal::TERM);
    let (response, complete) = streamed.join().unwrap();
    assert!(complete, "{}", response.text());
    assert_eq!(final_error(&response.text())["code"], "stopping", "{}", response.text());
    assert!(host.wait_for_exit().success());
    wait_until("no process is left", || {
        children.iter().all(|child| !pointsman_tests::host::is_alive(*child))
    });
    for waiter in whole {
        let response = waiter.join().expect("a response before the connection ends");
        assert_eq!((response.status, &response.json()["error"]["code"]), (503, &json!("stopping")));
    }
}

/// A request that would exceed its maximum wait uses its fallback immediately.
#[test]
fn request_with_fallback_skips_wait_that_would_time_out() {
    let policies = root().join("policies");
    for (max_wait, lane, attempts) in
        [("2s", "super_reader", Some("2")), ("50s", "orchestrator", None)]
    {
        let head = format!(
            "queue = {{ max-wait = {max_wait:?} }}\npolicies = {{ dir = {policies:?}, cache = \
             \"cache\", chain = [{{ name = \
             \"cortex\" }}] }}\n"
        );
        let lanes = [
            vllm_lane("orchestrator", "", "", "--load-ms 200")
                .replace("expected-load-time = \"1s\"", "expected-load-time = \"30s\""),
            llama_lane("super_reader", "", ""),
        ];
        let host = start(&single_lane_group(&head, &lanes));
        host.wait_for_lane("super_reader", "ready");
        let response = send_chat(&host, "orchestrator");
        assert_eq!(
            (response.status, response.header("x-pointsman-lane")),
            (200, Some(lane)),
            "{}",
            response.text()
        );
        assert_eq!(response.header("x-pointsman-attempts"), attempts);
        assert_eq!(host.lane("orchestrator")["starts"], i32::from(attempts.is_none()));
        assert_eq!(
            host.metric("pointsman_queue_rejected_total", "too-late"),
            f64::from(i32::from(attempts.is_some()))
        );
        host.assert_no_request_lost();
    }
}

/// A stream that was kept alive is served by the second lane when the first one fails.
#[test]
fn fallback_works_after_keep_alive() {
    let head = "server = { keep-alive = \"100ms\" }\n";
    let lanes = [
        vllm_lane("a", "models = [\"a\", \"m\"]", "", "--load-ms 800 --oom"),
        llama_lane(
            "b",
            "models = [\"b\", \"m\"]\nload = \"on-demand\"\nexpected-load-time = \"20s\"",
            "--load-ms 400",
        ),
    ];
    let host = start(&single_lane_group(head, &lanes));
    let (response, complete) = start_stream(&host, "m").finish();
    let text = response.text();
    assert!(
        complete && text.starts_with(": keep-alive\n\n") && text.ends_with("data: [DONE]\n\n"),
        "{text}"
    );
    assert_eq!(host.metric("pointsman_fell_back_total", ""), 1.0);
    host.assert_no_request_lost();
}

#[test]
fn health_reports_switch_while_liveness_and_readiness_stay_ok() {
    let slow = "--load-ms 500 --slow-exit-ms 300";
    let host = start(&single_lane_group(
        SWITCH_IMMEDIATELY,
        &[vllm_lane("a", "", "", slow), vllm_lane("b", "", "", slow)],
    ));
    let status = |path: &str| get(host.port, path).status;
    assert_eq!((status("/health"), status("/readyz"), status("/livez")), (200, 200, 200));
    assert_eq!(send_chat(&host, "a").status, 200);
    let next = spawn_chat(&host, "b", json!({}));
    let mut reasons = Vec::new();
    wait_until("lane b serves", || {
        assert_eq!((status("/livez"), status("/readyz")), (200, 200));
        let health = get(host.port, "/health");
        if health.status == 503 {
            assert!(health.header("retry-after").is_some());
            reasons.push(health.json()["reason"].as_str().unwrap().to_owned());
        }
        engine_is(&host, "b", "ready")
    });
    let mentions = |reason: &String, word: &str| {
        reason.split(|letter: char| !letter.is_alphanumeric()).any(|part| part == word)
    };
    for (lane, state) in [("a", "draining"), ("b", "loading")] {
        let found = reasons.iter().any(|reason| mentions(reason, lane) && mentions(reason, state));
        assert!(found, "lane {lane} is {state}: {reasons:?}");
    }
    assert_eq!(next.join().unwrap().status, 200);
    assert_eq!(status("/health"), 200);
    host.assert_no_request_lost();
}

#[test]
fn request_id_reaches_engine_client_and_log() {
    let host = start(&single_lane_group("", &[vllm_lane("a", "", "", "--load-ms 100")]));
    let given = [JSON, ("x-request-id", "it-is-me")];
    let response =
        send(host.port, "POST", CHAT, &given, chat("a", json!({})).to_string().as_bytes());
    assert_eq!((response.status, response.header("x-request-id")), (200, Some("it-is-me")));
    let id = response.json()["id"].as_str().unwrap().to_owned();
    assert!(id.starts_with("chatcmpl-it-is-me-"), "{id}");
    let response = post(host.port, CHAT, &chat("a", json!({})));
    let id = response.header("x-request-id").unwrap();
    assert!(
        id.len() == 32
            && response.json()["id"].as_str().unwrap().starts_with(&format!("chatcmpl-{id}-")),
        "{}",
        response.text()
    );
    let rejected = send(host.port, "POST", CHAT, &given, b"{");
    assert_eq!((rejected.status, rejected.header("x-request-id")), (400, Some("it-is-me")));
    host.set_script("a", json!({ "status": 500 }));
    let failed = send(host.port, "POST", CHAT, &given, chat("a", json!({})).to_string().as_bytes());
    assert_eq!((failed.status, failed.header("x-request-id")), (502, Some("it-is-me")));
    let events = host.all_events();
    assert!(events.iter().any(|event| event.text("request_id") == "it-is-me"), "{events:#?}");
    host.assert_no_request_lost();
}
