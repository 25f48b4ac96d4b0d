//! Every event about a request is logged inside one span with the request's fields.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::BodyExt as _;
use pointsman_access::Keys;
use pointsman_domain::BuiltIn;
use serde_json::Value;
use tokio::sync::Notify;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::format::FmtSpan;

use super::{API_KEY, TestGateway, json, stream};

const BODY: &str = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
const STREAM: &str =
    r#"{"model":"m","messages":[{"role":"user","content":"hello"}],"stream":true}"#;
const REPLY: &str = "data: {\"choices\":[{\"finish_reason\":\"stop\"}],\
    \"usage\":{\"prompt_tokens\":70,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n";
/// Fields that belong to the span and are not repeated by events.
const SPAN_FIELDS: [&str; 7] =
    ["request_id", "tenant", "endpoint", "model", "policy", "lane", "attempt"];

/// Collects the log of this thread as JSON lines, with events for opened and closed spans.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::NEW | FmtSpan::CLOSE)
            .with_writer(move || writer.clone())
            .finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    fn events(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Returns the events of a request, in order.
    fn events_of(&self, id: &str) -> Vec<Value> {
        let is_of = |event: &Value| request_span(event)["request_id"] == id;
        self.events().into_iter().filter(is_of).collect()
    }

    /// Returns the gateway's warnings about a request.
    fn warnings_of(&self, id: &str) -> Vec<Value> {
        let mut events = self.events_of(id);
        events.retain(|event| is_ours(event) && event["level"] == "WARN");
        events
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Creates a gateway with one API key, which all requests of the tests carry.
async fn gateway(keep_alive: Duration) -> TestGateway {
    TestGateway::with(BuiltIn, |parts| {
        parts.keys = Keys::new([pointsman_access::ApiKey::new(API_KEY, "team-a")]);
        parts.settings.keep_alive = keep_alive;
    })
    .await
}

/// Returns the outermost span of an event. An event about an opened or closed span has that span
/// in `span` and is not inside of it.
fn request_span(event: &Value) -> &Value {
    let outermost = &event["spans"][0];
    if outermost.is_object() { outermost } else { &event["span"] }
}

/// Returns true if the event was logged by this crate.
fn is_ours(event: &Value) -> bool {
    event["target"].as_str().unwrap().starts_with("pointsman_gateway")
}

fn with_message<'a>(events: &'a [Value], message: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["message"] == message).collect()
}

/// Asserts that an event is inside the request's span, which has these fields.
#[track_caller]
fn assert_span(event: &Value, lane: &str, attempt: u64) {
    let span = request_span(event);
    assert_eq!(span["name"], "request", "{event}");
    assert_eq!((&span["tenant"], &span["model"]), (&"team-a".into(), &"m".into()), "{event}");
    assert_eq!(span["policy"], "built-in", "{event}");
    assert!(span["endpoint"].is_string(), "{event}");
    assert_eq!((&span["lane"], &span["attempt"]), (&lane.into(), &attempt.into()), "{event}");
}

/// Sends a request that is queued on lane `a`, fails there, and streams from lane `b`.
async fn queued_request_with_fallback(keep_alive: Duration) -> (Log, String) {
    let (log, _guard) = Log::start();
    let gateway = gateway(keep_alive).await;
    let busy = stream("data: {}\n\n", true);
    gateway.script("a", &[busy, busy, busy, json(503, "{}")]);
    gateway.script("b", &[busy, busy, stream(REPLY, false)]);
    let mut on_a = Vec::new();
    let mut on_b = Vec::new();
    for index in 0..5 {
        let response = gateway.begin_with_id(&format!("busy-{index}"), STREAM).await;
        let is_on_a = response.headers()["x-pointsman-lane"] == "a";
        if is_on_a { on_a.push(response) } else { on_b.push(response) }
    }
    assert_eq!((on_a.len(), on_b.len()), (3, 2));
    let waits = Notify::new();
    let request = async {
        let response = gateway.begin_with_id("the-request", STREAM).await;
        waits.notify_one();
        response.into_body().collect().await.unwrap().to_bytes()
    };
    let release_slots = async {
        if keep_alive.is_zero() {
            gateway.wait_for_queued("a").await;
        } else {
            // The first comment brings the head of the response.
            waits.notified().await;
        }
        // Lane `b` first, so that its slot is free for the fallback.
        on_b.pop();
        on_a.pop();
    };
    let (body, ()) = tokio::join!(request, release_slots);
    let lanes = gateway.attempted_lanes();
    assert!(lanes.len() == 7 && lanes.ends_with("ab"), "{lanes}");
    (log, String::from_utf8(body.to_vec()).unwrap())
}

#[track_caller]
fn assert_one_span(log: &Log, waited: Duration) {
    let events = log.events_of("the-request");
    for message in ["new", "close"] {
        let mut spans = with_message(&events, message);
        spans.retain(|event| event["span"]["name"] == "request");
        assert_eq!(spans.len(), 1, "{message}: {events:#?}");
    }
    assert_eq!(events.last().unwrap()["message"], "close");
    let [failed] = with_message(&events, "attempt failed")[..] else { panic!("{events:#?}") };
    assert_span(failed, "a", 1);
    assert_eq!((&failed["result"], &failed["next_lane"]), (&"overloaded".into(), &"b".into()));
    let [finished] = with_message(&events, "request finished")[..] else { panic!("{events:#?}") };
    assert_span(finished, "b", 2);
    assert_eq!(finished["level"], "INFO");
    assert_eq!((&finished["status"], &finished["attempts"]), (&200.into(), &2.into()));
    assert_eq!(finished["outcome"], "fell-back");
    assert_eq!(
        (&finished["prompt_tokens"], &finished["output_tokens"]),
        (&70.into(), &5.into()),
        "{finished}"
    );
    let millis = |field: &str| finished[field].as_u64().unwrap();
    assert!(millis("duration_ms") >= millis("ttft_ms"), "{finished}");
    assert!(u128::from(millis("ttft_ms")) >= waited.as_millis(), "{finished}");
    for event in events.iter().filter(|event| is_ours(event)) {
        let repeated = SPAN_FIELDS.iter().find(|field| event.get(**field).is_some());
        assert_eq!(repeated, None, "{event}");
    }
    for event in log.events().iter().filter(|event| is_ours(event)) {
        assert_eq!(request_span(event)["name"], "request", "{event}");
    }
    let text = log.text().to_ascii_lowercase();
    for secret in [API_KEY, "bearer", "authorization"] {
        assert!(!text.contains(secret), "{secret} is in the log: {text}");
    }
}

#[tokio::test]
async fn one_span_covers_queue_attempts_and_stream() {
    let (log, body) = queued_request_with_fallback(Duration::ZERO).await;
    assert_eq!(body, REPLY);
    assert_one_span(&log, Duration::ZERO);
}

#[tokio::test]
async fn one_span_covers_keep_alive_comments() {
    // The requests that take the slots have to begin within this time, without a comment.
    let keep_alive = Duration::from_secs(2);
    let (log, body) = queued_request_with_fallback(keep_alive).await;
    assert!(body.starts_with(": keep-alive\n\n") && body.ends_with(REPLY), "{body}");
    assert_one_span(&log, keep_alive);
}

#[tokio::test]
async fn failed_request_is_logged_once_with_its_code() {
    let (log, _guard) = Log::start();
    let gateway = gateway(Duration::ZERO).await;
    let error = json(500, r#"{"error":{"message":"quotes the prompt"}}"#);
    gateway.script("a", &[error]);
    gateway.script("b", &[error]);
    let (status, _, body) = gateway.send(BODY).await;
    assert!(status == 502 && body.contains("quotes the prompt"), "{body}");
    let events = log.events_of("the-id");
    let [failed] = &log.warnings_of("the-id")[..] else { panic!("{events:#?}") };
    assert_span(failed, "b", 2);
    assert_eq!(failed["event"], "request_failed");
    assert_eq!((&failed["status"], &failed["code"]), (&502.into(), &"engine_error".into()));
    assert_eq!((&failed["outcome"], &failed["result"]), (&"error".into(), &"server-error".into()));
    assert_eq!(with_message(&events, "attempt failed").len(), 2);
    assert!(!log.text().contains("quotes the prompt"), "prompts do not belong into the log");
}

#[tokio::test]
async fn rejected_request_is_logged_once_as_information() {
    let (log, _guard) = Log::start();
    let gateway = gateway(Duration::ZERO).await;
    assert_eq!(gateway.send(r#"{"model":"unknown","messages":[]}"#).await.0, 404);
    let events = log.events_of("the-id");
    let [failed] = with_message(&events, "request failed")[..] else { panic!("{events:#?}") };
    assert_eq!((&failed["level"], &failed["code"]), (&"INFO".into(), &"model_not_found".into()));
    assert_eq!(failed["attempts"], 0);
    assert!(log.warnings_of("the-id").is_empty(), "{events:#?}");
}

#[tokio::test]
async fn aborted_stream_is_logged_once_with_its_cause() {
    let (log, _guard) = Log::start();
    let gateway = gateway(Duration::ZERO).await;
    gateway.script("a", &[stream("data: {}\n\n", true)]);
    let response = gateway.begin(STREAM).await;
    gateway.drain.abort();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains(r#""code":"stopping""#), "{body:?}");
    let [aborted] = &log.warnings_of("the-id")[..] else { panic!("{}", log.text()) };
    assert_span(aborted, "a", 1);
    assert_eq!(
        (&aborted["event"], &aborted["cause"]),
        (&"response_aborted".into(), &"aborted".into())
    );
    assert_eq!((&aborted["status"], &aborted["code"]), (&200.into(), &"stopping".into()));
}

#[tokio::test]
async fn health_and_metrics_are_not_logged() {
    let gateway = gateway(Duration::ZERO).await;
    let (log, _guard) = Log::start();
    let routes = gateway.routes();
    for path in ["/health", "/livez", "/readyz", "/status", "/metrics"] {
        let request = http::Request::get(path)
            .header("authorization", format!("Bearer {API_KEY}"))
            .body(axum::body::Body::empty())
            .unwrap();
        assert!(routes.serve(request).await.status().is_success(), "{path}");
    }
    assert!(!log.events().iter().any(is_ours), "{}", log.text());
}
