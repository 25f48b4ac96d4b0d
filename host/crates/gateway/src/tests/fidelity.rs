//! What of a response is changed on its way to the client, and that nothing else is.

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt as _;
use pointsman_domain::{Advised, Advisor, BuiltIn, Facts, FleetView, Outcome, Trace};
use serde_json::{Value, json};

use super::{Reply, TestGateway, json as reply_json, stream};
use crate::ResponseModel;

const WHOLE: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
const STREAM: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true}"#;
const CHUNK: &str = concat!(
    r#"data: {"model":"served","choices":[{"index":0,"delta":{"content":"word"}}]}"#,
    "\n\n",
);
const LAST: &str = concat!(
    r#"data: {"model":"served","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
    "\n\n",
);
const USAGE: &str = concat!(
    r#"data: {"model":"served","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}"#,
    "\n\n",
);
const DONE: &str = "data: [DONE]\n\n";

/// Returns the text with the name that the client asked for.
fn asked(text: &str) -> String {
    text.replace("\"served\"", "\"m\"")
}

/// An advisor that notes the tokens of prompt and response of each request.
#[derive(Debug, Default)]
struct Observer(Mutex<Vec<(u32, u32)>>);

impl Advisor for Observer {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Advised {
        BuiltIn.advise(facts, fleet, trace)
    }

    fn observes_outcomes(&self) -> bool {
        true
    }

    fn ended(&self, outcome: &Outcome) {
        self.0.lock().unwrap().push((outcome.prompt_tokens, outcome.output_tokens));
    }
}

#[tokio::test]
async fn name_that_the_client_asked_for_comes_back() {
    let whole = r#" {"id":"1","x":[1.50,{"model":"served"}],"model" : "served", "n":1E5}"#;
    let expected = r#" {"id":"1","x":[1.50,{"model":"served"}],"model" : "m", "n":1E5}"#;
    let gateway = TestGateway::new(BuiltIn).await;
    gateway.script("a", &[reply_json(200, whole)]);
    let (status, headers, body) = gateway.send(WHOLE).await;
    assert_eq!((status, body.as_str()), (200, expected));
    let length = headers.get("content-length").map(|length| length.to_str().unwrap().to_owned());
    assert!(length.is_none_or(|length| length == expected.len().to_string()));

    let events: &str = format!("{CHUNK}: ping\n\n{LAST}{USAGE}{DONE}").leak();
    gateway.script("a", &[stream(events, false)]);
    assert_eq!(gateway.send(STREAM).await.2, asked(events));
}

#[tokio::test]
async fn other_bodies_are_passed_on_as_they_are() {
    let same = r#"{"model":"m","choices":[{"model":"served"}]}"#;
    let error = r#"{"error":{"message":"x"},"model":"served"}"#;
    let other = r#"{"model":"served"}"#;
    for reply in [
        reply_json(200, same),
        reply_json(400, error),
        Reply { content_type: "text/plain", ..reply_json(200, other) },
        Reply { encoding: Some("compress"), ..reply_json(200, other) },
        reply_json(200, r#"[{"model":"served"}]"#),
        Reply { encoding: Some("compress"), ..stream(CHUNK, false) },
    ] {
        let gateway = TestGateway::new(BuiltIn).await;
        gateway.script("a", &[reply]);
        assert_eq!(gateway.send(WHOLE).await.2.as_bytes(), reply.body, "{reply:?}");
    }
    let gateway = TestGateway::with(BuiltIn, |parts| {
        parts.settings.response_model = ResponseModel::Engine;
    })
    .await;
    let events: &str = format!("{CHUNK}{LAST}{DONE}").leak();
    gateway.script("a", &[reply_json(200, other), stream(events, false)]);
    assert_eq!(gateway.send(WHOLE).await.2, other);
    assert_eq!(gateway.send(STREAM).await.2, events);
}

#[tokio::test]
async fn usage_of_streams_is_asked_for_and_hidden() {
    let observer = Arc::<Observer>::default();
    let gateway =
        TestGateway::with_lanes(Arc::clone(&observer), |lane| lane.stream_usage = true, |_| ())
            .await;
    let events: &str = format!("{CHUNK}{LAST}{USAGE}{DONE}").leak();
    let options = |body: &str, options: &str| -> &'static str {
        body.replace("\"stream\":true", &format!("\"stream\":true,\"stream_options\":{options}"))
            .leak()
    };
    for (request, sent, is_hidden) in [
        (STREAM, json!({"include_usage": true}), true),
        (options(STREAM, "null"), json!({"include_usage": true}), true),
        (options(STREAM, "{}"), json!({"include_usage": true}), true),
        (options(STREAM, r#"{"x":1}"#), json!({"include_usage": true, "x": 1}), true),
        (options(STREAM, r#"{"include_usage":false}"#), json!({"include_usage": true}), true),
        (options(STREAM, r#"{"include_usage":true}"#), json!({"include_usage": true}), false),
        (options(STREAM, "7"), json!(7), false),
        (
            options(STREAM, r#"{"continuous_usage_stats":true}"#),
            { json!({"continuous_usage_stats": true}) },
            false,
        ),
        (WHOLE, Value::Null, false),
    ] {
        gateway.script("a", &[stream(events, false)]);
        let (_, _, body) = gateway.send(request).await;
        let hidden = events.replace(USAGE, "");
        assert_eq!(body, asked(if is_hidden { &hidden } else { events }), "{request}");
        let received = gateway.engines.received.lock().unwrap().pop().unwrap().1;
        assert_eq!(received["stream_options"], sent, "{request}");
        assert_eq!(observer.0.lock().unwrap().pop(), Some((3, 5)), "{request}");
    }
}

#[tokio::test]
async fn engine_that_rejects_the_option_gets_the_request_without_it() {
    let gateway = TestGateway::with_lanes(BuiltIn, |lane| lane.stream_usage = true, |_| ()).await;
    let events: &str = format!("{CHUNK}{LAST}{DONE}").leak();
    let rejected = r#"{"error":{"message":"extra field: stream_options"}}"#;
    gateway.script("a", &[reply_json(422, rejected), stream(events, false)]);
    let (status, _, body) = gateway.send(STREAM).await;
    assert_eq!((status, body), (200, asked(events)));
    let received: Vec<Value> = {
        let mut received = gateway.engines.received.lock().unwrap();
        received.drain(..).map(|(_, body)| body["stream_options"].clone()).collect()
    };
    assert_eq!(received, [json!({"include_usage": true}), Value::Null]);
    // What the client asked for is the client's to hear.
    let own = STREAM.replace("\"stream\":true", "\"stream\":true,\"stream_options\":7").leak();
    gateway.script("a", &[reply_json(422, rejected)]);
    let (status, _, body) = gateway.send(own).await;
    assert_eq!((status, body.as_str()), (422, rejected));
}

#[tokio::test]
async fn events_are_counted_without_a_usage() {
    let observer = Arc::<Observer>::default();
    let gateway = TestGateway::new(Arc::clone(&observer)).await;
    let role = r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
    let events: &str = format!("{role}\n\n{CHUNK}{CHUNK}{LAST}{DONE}").leak();
    gateway.script("a", &[stream(events, false)]);
    gateway.send(STREAM).await;
    let (prompt, output) = observer.0.lock().unwrap().pop().unwrap();
    assert_eq!((prompt > 0, output), (true, 2));
    // The client leaves in the middle.
    gateway.script("a", &[stream(events.strip_suffix(DONE).unwrap(), true)]);
    let mut body = gateway.begin(STREAM).await.into_body();
    body.frame().await.unwrap().unwrap();
    drop(body);
    assert_eq!(observer.0.lock().unwrap().pop(), Some((prompt, 2)));
}

#[tokio::test]
async fn stream_that_breaks_off_loses_no_event() {
    let gateway = TestGateway::with_lanes(BuiltIn, |lane| lane.stream_usage = true, |_| ()).await;
    // The last event of the choice waits for the usage, and the next one is not whole.
    let events: &str = format!("{CHUNK}{}data: {{\"model\":\"served\",\"cho", {
        LAST.replace("\"index\":0", "\"index\":7")
    })
    .leak();
    gateway.script("a", &[stream(events, false)]);
    let (_, _, body) = gateway.send(STREAM).await;
    let (whole, cut) = events.rsplit_once("data: ").unwrap();
    let expected = format!("{}data: {cut}\n\n", asked(whole));
    assert!(body.starts_with(&expected), "{body}");
    assert!(body.contains("\"engine_error\"") && !body.contains("[DONE]"));
}

#[tokio::test]
async fn errors_keep_what_the_engine_says() {
    let error = concat!(
        r#"{"error":{"message":"no","type":"insufficient_quota","param":"model","#,
        r#""code":"insufficient_quota"}}"#,
    );
    let vllm = r#"{"error":{"message":"no","type":"InternalServerError","param":null,"code":500}}"#;
    for (reply, kind, param, code, own) in [
        (reply_json(429, error), "insufficient_quota", json!("model"), "insufficient_quota", {
            "engine_rate_limited"
        }),
        (reply_json(500, vllm), "InternalServerError", Value::Null, "engine_error", "engine_error"),
        (reply_json(500, "oops"), "server_error", Value::Null, "engine_error", "engine_error"),
    ] {
        let gateway = TestGateway::new(BuiltIn).await;
        gateway.script("a", &[reply]);
        gateway.script("b", &[reply]);
        let (_, headers, body) = gateway.send(WHOLE).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        let error = &body["error"];
        assert_eq!((&error["type"], &error["param"]), (&json!(kind), &param), "{reply:?}");
        assert_eq!(error["code"], code, "{reply:?}");
        assert_eq!(headers["x-pointsman-code"], own, "{reply:?}");
        let stable = error.get("pointsman_code").unwrap_or(&error["code"]);
        assert_eq!(stable, own, "{reply:?}");
    }
}

#[tokio::test]
async fn each_attempt_has_an_id_of_its_own() {
    let gateway = TestGateway::new(BuiltIn).await;
    gateway.script("a", &[reply_json(500, "{}")]);
    let response = gateway.begin_with_id("the-client", WHOLE).await;
    assert_eq!(response.headers()["x-request-id"], "the-client");
    assert_eq!(gateway.attempted_lanes(), "ab");
    let ids = gateway.engines.ids.lock().unwrap().clone();
    assert!(ids.len() == 2 && ids[0] != ids[1], "{ids:?}");
    assert!(ids.iter().all(|id| id.starts_with("the-client-")), "{ids:?}");
}
