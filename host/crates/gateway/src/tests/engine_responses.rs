//! What of an engine's response reaches a client, and what of a client's request an engine.

use pointsman_domain::BuiltIn;
use serde_json::Value;

use super::{Reply, TestGateway, json};

const BODY: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;

/// Sends a request to which the lanes `a` and `b` respond like this. Returns status, code and
/// headers of the response, and the lanes that were attempted.
async fn send(reply: Reply) -> (u16, Value, http::HeaderMap, String) {
    let gateway = TestGateway::new(BuiltIn).await;
    gateway.script("a", &[reply]);
    gateway.script("b", &[reply]);
    let (status, headers, body) = gateway.send(BODY).await;
    let body: Value = serde_json::from_str(&body).unwrap_or_default();
    (status, body["error"]["code"].clone(), headers, gateway.attempted_lanes())
}

#[tokio::test]
async fn statuses_of_engines_are_translated() {
    let image = concat!(
        r#"{"error":{"code":500,"message":"image input is not supported - hint: if this is "#,
        r#"unexpected, you may need to provide the mmproj","type":"server_error"}}"#,
    );
    let unsupported = r#"{"error":{"code":501,"message":"no","type":"not_supported_error"}}"#;
    for (reply, status, code, lanes) in [
        // The client's failure: no other lane is attempted.
        (json(500, image), 400, "invalid_request", "a"),
        (json(501, unsupported), 501, "not_supported", "a"),
        // The operator's.
        (json(401, "{}"), 502, "engine_key_refused", "ab"),
        // The engine's.
        (json(429, "{}"), 429, "engine_rate_limited", "ab"),
        (json(503, "{}"), 503, "engine_overloaded", "ab"),
        (json(500, "{}"), 502, "engine_error", "ab"),
        (json(301, "{}"), 502, "engine_error", "ab"),
        (json(307, "{}"), 502, "engine_error", "ab"),
        (json(600, "{}"), 502, "engine_error", "ab"),
        (json(999, "{}"), 502, "engine_error", "ab"),
    ] {
        let context = format!("{reply:?}");
        let (got, got_code, _, attempted) = send(reply).await;
        assert_eq!((got, got_code, &*attempted), (status, code.into(), lanes), "{context}");
    }
    // Without a key of the host, 403 is about the request.
    assert_eq!(send(json(403, "{}")).await.0, 403);
}

#[tokio::test]
async fn declined_request_goes_to_another_lane_before_the_client_sees_the_error() {
    let gone = r#"{"error":{"message":"The model `m` does not exist.","code":404}}"#;
    let pinned = r#"{"error":{"code":"slots_pinned_error","message":"All models are pinned."}}"#;
    let spent = r#"{"error":{"code":402,"message":"Insufficient credits"}}"#;
    let too_long = concat!(
        r#"{"error":{"message":"This model's maximum context length is 1000 tokens. However, "#,
        r#"your prompt contains 1001 input tokens.","type":"BadRequestError","code":400}}"#,
    );
    for (status, body) in [(404, gone), (409, pinned), (402, spent), (400, too_long)] {
        let gateway = TestGateway::new(BuiltIn).await;
        gateway.script("a", &[json(status, body)]);
        let (got, headers, _) = gateway.send(BODY).await;
        assert_eq!((got, &*gateway.attempted_lanes()), (200, "ab"), "{status}");
        assert_eq!(headers["x-pointsman-attempts"], "2");
        assert_eq!(headers["x-pointsman-lane"], "b");
        let declined = gateway.metric("pointsman_attempts_total{lane=\"a\",result=\"declined\"}");
        assert!(declined.ends_with(" 1"), "{declined}");
        // No other lane is left: the response of the last engine is the client's.
        let gateway = TestGateway::new(BuiltIn).await;
        let last = [json(status, body)];
        gateway.script("a", &last);
        gateway.script("b", &last);
        let (got, headers, text) = gateway.send(BODY).await;
        assert_eq!((got, text.as_str()), (status, body));
        assert_eq!(
            (&*gateway.attempted_lanes(), &headers["x-pointsman-lane"]),
            ("ab", &"b".parse().unwrap())
        );
    }
}

#[tokio::test]
async fn request_that_is_too_long_only_goes_to_a_longer_context() {
    // The engine's context is longer than that of the other lane.
    let error = r#"{"error":{"code":400,"type":"exceed_context_size_error","n_ctx":5000}}"#;
    assert_eq!(send(json(400, error)).await.3, "a");
    let gateway = TestGateway::new(BuiltIn).await;
    let text = "word ".repeat(1200);
    let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}"#);
    assert_eq!(gateway.send(body.leak()).await.0, 200);
    assert_eq!(gateway.attempted_lanes(), "b", "the prompt is too long for the first lane");
}

#[tokio::test]
async fn key_of_the_host_is_not_quoted() {
    let gateway = TestGateway::new(BuiltIn).await;
    let reply = json(401, r#"{"error":{"message":"Incorrect API key provided: sk-up"}}"#);
    gateway.script("a", &[reply]);
    gateway.script("b", &[reply]);
    let (_, _, body) = gateway.send(BODY).await;
    assert!(!body.contains("sk-up"), "{body}");
}

#[tokio::test]
async fn limits_of_a_remote_engine_reach_the_client() {
    let headers = &[
        ("retry-after", "7"),
        ("retry-after-ms", "6500"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-should-retry", "true"),
        ("set-cookie", "a=b"),
    ];
    let (status, _, got, _) = send(Reply { headers, ..json(429, "{}") }).await;
    let text = |name: &str| got.get(name).map(|value| value.to_str().unwrap());
    assert_eq!((status, text("retry-after"), text("set-cookie")), (429, Some("7"), None));
    for (name, value) in &headers[1..4] {
        assert_eq!(text(name), Some(*value), "{name}");
    }
}

#[tokio::test]
async fn headers_of_an_engine_cannot_pose_as_the_hosts() {
    let headers = &[
        ("x-pointsman-attempts", "99"),
        ("x-pointsman-lane", "z"),
        ("x-request-id", "forged"),
        ("set-cookie", "a=b"),
        ("access-control-allow-origin", "*"),
        ("openai-processing-ms", "3"),
    ];
    let (status, _, got, _) = send(Reply { headers, ..json(200, "{}") }).await;
    let text = |name: &str| got.get(name).map(|value| value.to_str().unwrap());
    let ours = (text("x-pointsman-lane"), text("x-request-id"));
    assert_eq!((status, ours), (200, (Some("a"), Some("the-id"))));
    assert_eq!(text("openai-processing-ms"), Some("3"));
    for name in ["x-pointsman-attempts", "set-cookie", "access-control-allow-origin"] {
        assert_eq!(text(name), None, "{name}");
    }
}

#[tokio::test]
async fn fields_of_the_operator_do_not_reach_engines() {
    let gateway = TestGateway::new(BuiltIn).await;
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"priority":-9,
        "id_slot":0,"temperature":0}"#;
    gateway.send(body).await;
    let received = gateway.engines.received.lock().unwrap().clone();
    let sent = &received[0].1;
    assert_eq!(sent["temperature"], 0);
    assert_eq!((sent.get("priority"), sent.get("id_slot")), (None, None));
}
