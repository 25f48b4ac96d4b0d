//! What counts as the beginning and the end of an engine's stream, and what is refused before.

use std::time::Duration;

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt as _;
use pointsman_access::Keys;
use pointsman_domain::BuiltIn;
use serde_json::{Value, json};

use super::{Reply, TestGateway, json as reply_json, stream};

const STREAM: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true}"#;
const WHOLE: &str =
    "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";

async fn gateway() -> TestGateway {
    TestGateway::new(BuiltIn).await
}

fn code(body: &str) -> Value {
    let data = body.rsplit("data: ").next().unwrap_or_default();
    let body: Value = serde_json::from_str(data.trim_end()).unwrap_or_default();
    body["error"]["code"].clone()
}

#[tokio::test]
async fn stream_without_content_is_a_failed_attempt() {
    for first in [
        ": ping\n\n:\n\n",
        "",
        "event: message\n",
        "data: {\"error\":{\"message\":\"m\",\"code\":500}}\n\ndata: [DONE]\n\n",
        "data: {\"error\":{\"message\":\"m\"}}\n\n",
        "data: {\"error\":{\"message\":\"m\",\"code\":\"429\"}}\n\n",
        ": PROCESSING\n\ndata: {\"error\":\"m\"}\n\n",
        "event: error\ndata: {\"message\":\"m\"}\n\n",
        "data: {\"error\":{}}",
    ] {
        let gateway = gateway().await;
        gateway.script("a", &[stream(first, false)]);
        gateway.script("b", &[stream(WHOLE, false)]);
        let (status, headers, body) = gateway.send(STREAM).await;
        assert_eq!((status, body.as_str()), (200, WHOLE), "{first}");
        assert_eq!(headers["x-pointsman-lane"], "b", "{first}");
        assert_eq!(gateway.attempted_lanes(), "ab", "{first}");
    }
}

#[tokio::test]
async fn comments_before_the_first_event_change_nothing() {
    let gateway = gateway().await;
    let whole: &str = format!(": ping\n\n:\n\n{WHOLE}").leak();
    gateway.script("a", &[stream(whole, false)]);
    let (status, _, body) = gateway.send(STREAM).await;
    assert_eq!(status, 200);
    assert!(body.ends_with(WHOLE), "{body}");
    assert_eq!(gateway.metric("pointsman_answered_total"), "pointsman_answered_total 1");
}

#[tokio::test]
async fn clients_error_as_first_event_is_its_response() {
    let gateway = gateway().await;
    let error = "data: {\"error\":{\"message\":\"too long\",\"code\":400}}\n\ndata: [DONE]\n\n";
    gateway.script("a", &[stream(error, false)]);
    let (status, headers, body) = gateway.send(STREAM).await;
    assert_eq!(status, 400);
    assert_eq!(headers["content-type"], "application/json");
    assert_eq!(body, r#"{"error":{"message":"too long","code":400}}"#);
    assert_eq!(gateway.attempted_lanes(), "a");
}

#[tokio::test]
async fn ends_of_streams_are_recognised() {
    let event = "data: {\"choices\":[{\"index\":0,\"finish_reason\":\"stop\"}]}";
    let two = r#"{"model":"m","messages":[],"stream":true,"n":2}"#;
    for (request, body, is_complete) in [
        (STREAM, format!("{event}\n\n"), true),
        (STREAM, event.to_owned(), true),
        (STREAM, format!("{event}\n\ndata: [DONE]"), true),
        (STREAM, event.replace("stop", "") + "\n\n", false),
        (STREAM, event.replace("\"stop\"", "\"null\"") + "\n\n", false),
        (two, format!("{event}\n\n"), false),
        (two, format!("{event}\n\n{}", event.replace(":0", ":1")), true),
    ] {
        let gateway = gateway().await;
        let body: &'static str = body.leak();
        for content_type in ["text/event-stream", "Text/Event-Stream; charset=utf-8"] {
            gateway.script("a", &[Reply { content_type, ..stream(body, false) }]);
            let (status, _, sent) = gateway.send(request).await;
            let expected = if is_complete { Value::Null } else { json!("engine_error") };
            assert_eq!((status, code(&sent)), (200, expected), "{body}");
            assert!(sent.starts_with(body));
        }
    }
}

#[tokio::test]
async fn stream_of_unknown_encoding_is_passed_on_as_it_is() {
    let gateway = gateway().await;
    let reply = Reply { encoding: Some("compress"), ..stream("not observed", false) };
    gateway.script("a", &[reply]);
    let (status, headers, body) = gateway.send(STREAM).await;
    assert_eq!((status, body.as_str()), (200, "not observed"));
    assert_eq!(headers["content-encoding"], "compress");
    assert_eq!(gateway.metric("pointsman_answered_total"), "pointsman_answered_total 1");
    assert_eq!(*gateway.engines.accepted.lock().unwrap(), ["identity"]);
}

/// An event with content, one with a `finish_reason`, and `[DONE]`.
const ENCODED: &[u8] =
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\x4a\x49\x2c\x49\xb4\x52\xa8\x56\x4a\xce\xc8\xcf\
    \x4c\x4e\x2d\x56\xb2\x8a\xae\x56\xca\xcc\x4b\x49\xad\x50\xb2\x32\xd0\x51\x4a\x49\xcd\x29\x49\
    \x54\xb2\x02\x4a\xe7\xe7\x95\xa4\xe6\x95\x28\x59\x29\x25\x2a\xd5\xd6\xc6\xd6\x72\x71\x01\x00\
    \x00\x00\xff\xff\
    \x4b\x21\x4a\x63\xad\x8e\x52\x5a\x66\x5e\x66\x71\x46\x7c\x51\x6a\x62\x71\x7e\x1e\xd0\x80\xe2\
    \x92\xfc\x02\x25\x24\x23\xa2\x5d\xfc\xfd\x5c\x63\xb9\xb8\x00\x06\xf1\xee\xa9\x8a\x00\x00\x00";

#[tokio::test]
async fn encoded_stream_is_decoded_and_observed() {
    let gateway = gateway().await;
    let whole = Reply { encoding: Some("GZIP"), body: ENCODED, ..stream("", false) };
    let cut = Reply { body: &ENCODED[..72], ..whole };
    gateway.script("a", &[whole, cut]);
    let (status, headers, body) = gateway.send(STREAM).await;
    assert_eq!((status, headers.get("content-encoding")), (200, None));
    assert!(body.starts_with("data: {") && body.ends_with("data: [DONE]\n\n"), "{body}");
    assert_eq!(gateway.metric("pointsman_answered_total"), "pointsman_answered_total 1");
    let (status, _, body) = gateway.send(STREAM).await;
    assert_eq!((status, code(&body)), (200, Value::from("engine_error")), "{body}");
}

#[tokio::test]
async fn engines_error_keeps_its_fields_after_keep_alive_comments() {
    let gateway = TestGateway::with(BuiltIn, |parts| {
        parts.settings.keep_alive = Duration::from_millis(50);
    })
    .await;
    // All slots are taken, so that the client waits.
    gateway.script("a", &[stream("data: {}\n\n", true); 3]);
    gateway.script("b", &[stream("data: {}\n\n", true); 2]);
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(gateway.begin(STREAM).await);
    }
    let response = gateway.begin(STREAM).await;
    let error = concat!(
        r#"{"error":{"message":"too long","type":"BadRequestError","#,
        r#""param":"input_tokens","code":400}}"#
    );
    gateway.script("a", &[reply_json(400, error)]);
    gateway.script("b", &[reply_json(400, error)]);
    drop(held);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    let event: Value = serde_json::from_str(body.split("data: ").nth(1).unwrap()).unwrap();
    let expected = json!({"message": "too long", "type": "BadRequestError",
        "param": "input_tokens", "code": 400, "status": 400});
    assert_eq!(event["error"], expected);
}

#[tokio::test]
async fn host_that_stops_says_so() {
    let gateway = gateway().await;
    gateway.script("a", &[stream("data: {}\n\n", true)]);
    let response = gateway.begin(STREAM).await;
    gateway.drain.begin();
    gateway.drain.abort();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(code(std::str::from_utf8(&body).unwrap()), "stopping");
    let (status, _, body) = gateway.send(STREAM).await;
    assert_eq!((status, code(&body)), (503, json!("stopping")));
}

#[tokio::test]
async fn stream_that_is_over_gets_no_error_event() {
    let gateway = gateway().await;
    gateway.script("a", &[stream(WHOLE, true)]);
    let mut body = gateway.begin(STREAM).await.into_body();
    let mut sent = Vec::new();
    while !sent.ends_with(b"[DONE]\n\n") {
        sent.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    gateway.drain.begin();
    gateway.drain.abort();
    assert!(body.frame().await.is_none());
    assert_eq!(sent, WHOLE.as_bytes());
}

#[tokio::test]
async fn error_event_ends_the_stream_of_an_engine_that_hangs() {
    let gateway = gateway().await;
    let events = "data: {}\n\ndata: {\"error\":{\"message\":\"m\"}}\n\n";
    gateway.script("a", &[stream(events, true)]);
    let sent = tokio::time::timeout(Duration::from_secs(10), gateway.send(STREAM)).await;
    let (status, _, body) = sent.expect("the stream ends before the idle timeout");
    assert_eq!((status, body.as_str()), (200, events));
}

#[tokio::test]
async fn endless_lines_without_an_event_are_a_failed_attempt() {
    let gateway = gateway().await;
    gateway.script("a", &[stream("event: x\n\n".repeat(300_000).leak(), true)]);
    gateway.script("b", &[stream(WHOLE, false)]);
    let (status, _, body) = gateway.send(STREAM).await;
    assert_eq!((status, body.as_str()), (200, WHOLE));
    assert_eq!(gateway.attempted_lanes(), "ab");
}

#[tokio::test]
async fn large_bodies_are_parsed_and_limited() {
    let gateway = gateway().await;
    let text: &str =
        json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(300 << 10)}]})
            .to_string()
            .leak();
    assert_eq!(gateway.send(text).await.0, 200);
    let many: &str = format!(r#"{{"model":"m","messages":[],"x":{{{}}}}}"#, {
        vec!["\"\":0"; 100_000].join(",")
    })
    .leak();
    assert_eq!(gateway.send(many).await.0, 200);
    let items = vec!["{}"; 100_001].join(",");
    let items: &str =
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":[{items}]}}]}}"#).leak();
    let deep: &str =
        format!(r#"{{"model":"m","messages":[],"x":{}{}}}"#, "[".repeat(200), "]".repeat(200))
            .leak();
    for (body, expected) in [(items, "too_many_items"), (deep, "too_deeply_nested")] {
        let (status, _, body) = gateway.send(body).await;
        assert_eq!((status, code(&body)), (400, json!(expected)));
    }
}

#[tokio::test]
async fn model_that_is_not_utf8_is_unknown() {
    for (key, expected) in [("secret-key-1", "model_not_found"), ("other", "invalid_api_key")] {
        let keys = Keys::new([pointsman_access::ApiKey::new("secret-key-1", "acme")]);
        let gateway = TestGateway::with(BuiltIn, |parts| parts.keys = keys).await;
        let request = Request::get("/v1/models/%ff%0a")
            .header("authorization", format!("Bearer {key}"))
            .body(Body::empty())
            .unwrap();
        let response = gateway.routes().serve(request).await;
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(code(std::str::from_utf8(&body).unwrap()), expected);
    }
}
