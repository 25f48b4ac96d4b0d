//! The OpenAI API of the host.

use pointsman_tests::client::{chat, get, post, send, stream};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, host, lane, one_lane};

const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn chat_and_completions_have_routing_headers() {
    let host = host(&[lane("a", &["a", "gpt"], &[]), lane("b", &["b"], &[])].concat());
    for (path, body, text) in [
        (CHAT, chat("gpt", json!({})), "/choices/0/message/content"),
        ("/v1/completions", json!({ "model": "gpt", "prompt": "hi" }), "/choices/0/text"),
    ] {
        let response = post(host.port, path, &body);
        assert_eq!(response.status, 200, "{}", response.text());
        assert!(response.json().pointer(text).unwrap().as_str().unwrap().starts_with("word0"));
        assert_eq!(response.json()["x_unknown"], json!({ "kept": [1.50, null] }));
        assert_eq!(response.header("x-pointsman-lane"), Some("a"));
        assert_eq!(response.header("x-pointsman-policy"), Some("built-in"));
        assert!(response.header("x-request-id").is_some_and(|id| id.len() == 32));
    }
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn request_bytes_reach_engine_unchanged() {
    let host = one_lane(&["--script", r#"{"echo": true}"#]);
    let body = concat!(
        r#" {"model":"a" , "messages":[{"role":"user","content":"caf\u00e9","x":1}],"#,
        r#""temperature":1.50,"vendor":{"b":1,"a":[]}} "#
    );
    let headers = [
        JSON,
        ("x-request-id", "abc-123"),
        ("authorization", "Bearer secret"),
        ("x-task", "t"),
        ("te", "gzip"),
        ("cookie", "c=1"),
    ];
    let response = send(host.port, "POST", CHAT, &headers, body.as_bytes());
    let echoed = response.json();
    assert_eq!(echoed["body"], body);
    // The engine gets an id that no other client can have chosen.
    let engine_id = echoed["headers"]["x-request-id"].as_str().unwrap();
    assert!(engine_id.starts_with("abc-123-") && engine_id.len() > 20, "{engine_id}");
    assert_eq!(echoed["headers"]["x-task"], "t");
    for dropped in ["authorization", "te", "cookie", "connection"] {
        assert_eq!(echoed["headers"].get(dropped), None, "{dropped}");
    }
    assert_eq!(response.header("x-request-id"), Some("abc-123"));
    host.assert_no_request_lost();
}

#[test]
fn engine_gets_its_own_model_name() {
    let lane = pointsman_tests::host::fake_lane(
        FAKE_ENGINE,
        "a",
        &["a"],
        "engine-model = \"served \\\"x\\\"\"",
        &["--script", r#"{"echo": true}"#],
    );
    let host = host(&lane);
    let response =
        send(host.port, "POST", CHAT, &[JSON], br#"{"x":1e5,"model":"a","messages":[]}"#);
    assert_eq!(response.json()["body"], r#"{"x":1e5,"model":"served \"x\"","messages":[]}"#);
}

/// Every error has OpenAI's body, the right status and a code.
#[test]
fn errors_have_openai_format() {
    let config = format!("server = {{ max-body = \"1KiB\" }}\n{}", lane("a", &["a", "b"], &[]));
    let host = host(&config);
    let large = chat("a", json!({ "x": "y".repeat(2000) })).to_string();
    type Headers = &'static [(&'static str, &'static str)];
    type Row = (&'static str, &'static str, Headers, &'static str, u16, &'static str, &'static str);
    let large: &'static str = Box::leak(large.into_boxed_str());
    let table: [Row; 11] = [
        ("POST", CHAT, &[JSON], "{", 400, "invalid_json", "line 1 column 1"),
        ("POST", CHAT, &[JSON], "[]", 400, "invalid_json", ""),
        ("POST", CHAT, &[JSON], r#"{"model":7,"messages":[]}"#, 400, "invalid_request", "model"),
        ("POST", CHAT, &[JSON], r#"{"model":"a"}"#, 400, "invalid_request", "messages"),
        (
            "POST",
            CHAT,
            &[("content-type", "text/plain")],
            "{}",
            415,
            "unsupported_media_type",
            "text/plain",
        ),
        ("POST", CHAT, &[], "{}", 415, "unsupported_media_type", ""),
        ("POST", CHAT, &[JSON], large, 413, "request_too_large", "1024"),
        (
            "POST",
            CHAT,
            &[JSON],
            r#"{"model":"nope","messages":[]}"#,
            404,
            "model_not_found",
            "a, b",
        ),
        ("GET", CHAT, &[], "", 405, "method_not_allowed", "POST"),
        ("GET", "/v1/nothing", &[], "", 404, "not_found", "/v1/nothing"),
        ("GET", "/v1/models/nope", &[], "", 404, "model_not_found", "a, b"),
    ];
    // The last column is a value that the message must contain.
    for (method, path, headers, body, status, code, value) in table {
        let response = send(host.port, method, path, headers, body.as_bytes());
        assert_eq!(response.status, status, "{method} {path} {body}: {}", response.text());
        let error = &response.json()["error"];
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().unwrap().contains(value), "{error}");
        assert!(error["type"].is_string() && error.get("param").is_some());
        if code == "invalid_request" {
            assert_eq!(error["param"], value, "{error}");
        }
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert!(response.header("x-request-id").is_some());
    }
    host.assert_no_request_lost();
}

#[test]
fn engine_failures_have_distinct_codes() {
    let host = one_lane(&[]);
    for (script, status, code) in [
        (json!({ "status": 500 }), 502, "engine_error"),
        (json!({ "status": 503 }), 503, "engine_overloaded"),
        (json!({ "status": 429 }), 503, "engine_overloaded"),
    ] {
        host.set_script("a", script);
        let response = post(host.port, CHAT, &chat("a", json!({})));
        assert_eq!(response.status, status, "{}", response.text());
        assert_eq!(response.json()["error"]["code"], code);
        assert!(
            response.json()["error"]["message"].as_str().unwrap().contains("as the script says")
        );
        assert!(response.header("retry-after").is_some());
        assert_eq!(response.header("x-pointsman-lane"), Some("a"));
    }
    // A 4xx concerns the client and is forwarded unchanged.
    host.set_script("a", json!({ "status": 422 }));
    let response = post(host.port, CHAT, &chat("a", json!({})));
    assert_eq!((response.status, &response.json()["error"]["code"]), (422, &json!(422)));
    host.assert_no_request_lost();
}

#[test]
fn engine_without_response_is_gateway_timeout() {
    let config = lane("a", &["a"], &["--script", r#"{"hang": true}"#])
        + "[lanes.timeouts]\nfirst-byte = \"200ms\"\n";
    let host = host(&config);
    let response = post(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert_eq!(
        (response.status, &response.json()["error"]["code"]),
        (504, &json!("engine_timeout"))
    );
    host.assert_no_request_lost();
}

/// A response that is not streamed has no byte until it is complete: only the deadline limits it.
#[test]
fn whole_response_is_not_limited_by_its_first_byte() {
    let script = r#"{"token-ms": 200, "tokens": 5}"#;
    let config = lane("a", &["a"], &["--script", script])
        + "[lanes.timeouts]\nfirst-byte = \"200ms\"\nidle = \"200ms\"\n";
    let host = host(&config);
    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200);
    host.assert_no_request_lost();
}

#[test]
fn unavailable_lane_is_503_with_retry_after() {
    let config = lane("a", &["a"], &["--exit-code", "3"]);
    let host = Host::start(&program(FAKE_ENGINE), &config);
    wait_until("the lane is down", || host.lane("a")["state"] == "down");
    // Every client learns the reason, and when to come back.
    for _ in 0..2 {
        let response = post(host.port, CHAT, &chat("a", json!({})));
        assert_eq!(response.status, 503, "{}", response.text());
        let seconds: u64 = response.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{seconds}");
        let error = &response.json()["error"];
        assert_eq!(error["code"], "no_lane_available");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("`a`") && message.contains("exit code 3"), "{message}");
        assert!(message.contains("[engine_ended]"), "{message}");
    }
    assert_eq!(host.lane("a")["problem_code"], "engine_ended");
    assert_eq!(get(host.port, "/livez").status, 200);
    assert_eq!((get(host.port, "/readyz").status, get(host.port, "/health").status), (503, 503));
    assert!(
        host.lane("a")["problem"].as_str().unwrap().contains("exit code 3"),
        "{}",
        host.lane("a")
    );
    host.assert_no_request_lost();
}

#[test]
fn health_is_that_of_all_lanes_or_of_one() {
    let lanes = [lane("a", &["a"], &[]), lane("b", &["b"], &["--exit-code", "3"])].concat();
    let config = format!("server = {{ health = \"all-lanes\" }}\n{lanes}");
    let host = Host::start(&program(FAKE_ENGINE), &config);
    wait_until("lane a serves and lane b is down", || {
        host.lane("a")["state"] == "ready" && host.lane("b")["state"] == "down"
    });
    let health = get(host.port, "/health");
    let reason = health.json()["reason"].as_str().unwrap_or_default().to_owned();
    assert_eq!(health.status, 503);
    assert!(reason.starts_with("b is down") && reason.contains("[engine_ended]"), "{reason}");
    assert_eq!(get(host.port, "/health?lane=a").json(), json!({ "status": "ok" }));
    assert_eq!(get(host.port, "/health?lane=b").status, 503);
    let unknown = get(host.port, "/health?lane=c");
    assert_eq!((unknown.status, &unknown.json()["error"]["code"]), (404, &json!("lane_not_found")));
}

#[test]
fn queue_rejects_when_full_and_queued_request_gets_next_slot() {
    let engine = pointsman_tests::host::fake_lane(
        FAKE_ENGINE,
        "a",
        &["a"],
        "slots = 1",
        &["--script", r#"{"token-ms": 50, "tokens": 20}"#],
    );
    let host = host(&format!("queue = {{ per-lane = 1 }}\n{engine}"));
    let mut first = stream(host.port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(first.read_until("word0"));
    std::thread::scope(|scope| {
        let second = scope.spawn(|| post(host.port, CHAT, &chat("a", json!({ "max_tokens": 1 }))));
        wait_until("one request is queued", || {
            host.metric("pointsman_lane_queued", "lane=\"a\"") == 1.0
        });
        let third = post(host.port, CHAT, &chat("a", json!({})));
        assert_eq!((third.status, &third.json()["error"]["code"]), (429, &json!("queue_full")));
        assert!(third.header("retry-after").is_some());
        let (response, complete) = first.finish();
        assert!(complete && response.text().ends_with("data: [DONE]\n\n"));
        assert_eq!(second.join().unwrap().status, 200);
    });
    host.assert_no_request_lost();
}

#[test]
fn models_are_listed_and_looked_up() {
    let host = host(&[lane("a", &["a", "auto"], &[]), lane("b", &["org/b", "auto"], &[])].concat());
    let list = get(host.port, "/v1/models").json();
    let ids: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!((list["object"].as_str(), ids), (Some("list"), vec!["a", "auto", "b", "org/b"]));
    assert_eq!(get(host.port, "/v1/models/auto").json()["lanes"], json!(["a", "b"]));
    assert_eq!(get(host.port, "/v1/models/org/b").json()["id"], "org/b");
    assert_eq!(get(host.port, "/health").json(), json!({ "status": "ok" }));
}

#[test]
fn configured_keys_are_required() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("b.key"), "key-b\n").unwrap();
    let keys = "[[keys]]\ntenant = \"a\"\nenv = \"TEST_KEY_A\"\n[[keys]]\ntenant = \"b\"\n\
        file = \"b.key\"\n";
    let config = format!("{keys}{}", lane("a", &["a"], &[]));
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[("TEST_KEY_A", "key-a")])
        .wait_until_ready();
    let ask = |key: Option<&str>| {
        let header = key.map(|key| format!("Bearer {key}"));
        let mut headers = vec![JSON];
        headers.extend(header.as_deref().map(|header| ("authorization", header)));
        send(host.port, "POST", CHAT, &headers, chat("a", Value::Null).to_string().as_bytes())
    };
    assert_eq!((ask(Some("key-a")).status, ask(Some("key-b")).status), (200, 200));
    for wrong in [None, Some("key-c"), Some("")] {
        let response = ask(wrong);
        assert_eq!(
            (response.status, &response.json()["error"]["code"]),
            (401, &json!("invalid_api_key")),
            "{wrong:?}"
        );
    }
    assert_eq!(get(host.port, "/v1/models").status, 401);
    assert_eq!(get(host.port, "/health").status, 200);
    assert!(!host.log_text().contains("key-a") && !host.log_text().contains("key-c"));
    host.assert_no_request_lost();
}

#[test]
fn failed_attempt_falls_back_to_other_lane() {
    let host = host(&[lane("a", &["m"], &[]), lane("b", &["m"], &[])].concat());
    host.set_script("a", json!({ "status": 500 }));
    let response = post(host.port, CHAT, &chat("m", json!({})));
    assert_eq!((response.status, response.header("x-pointsman-lane")), (200, Some("b")));
    assert_eq!(response.header("x-pointsman-attempts"), Some("2"));
    assert_eq!(host.metric("pointsman_fell_back_total", ""), 1.0);
    assert_eq!(host.metric("pointsman_attempts_total", "result=\"server-error\""), 1.0);
    host.assert_no_request_lost();
}
