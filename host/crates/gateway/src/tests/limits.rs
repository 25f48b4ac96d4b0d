//! Limits of keys: what counts, and what clients learn of them.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Request};
use http_body_util::BodyExt as _;
use pointsman_access::{
    AccountId, AccountLimits, Accounts, Budget, Identity, KeySet, Keys, Limits, Moment, Period,
    Rights,
};
use pointsman_domain::{Allowance, BuiltIn};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{API_KEY, Reply, TestGateway, json as reply, stream};

const CHAT: &str = "/v1/chat/completions";
const ONCE: &str =
    r#"{"model":"m","max_tokens":50,"messages":[{"role":"user","content":"hello"}]}"#;
const STREAM: &str = r#"{"model":"m","max_tokens":50,"stream":true,
    "messages":[{"role":"user","content":"hello"}]}"#;
const USAGE: &str = r#"{"id":"c","object":"chat.completion","created":5,"model":"m",
    "choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hi"}}],
    "usage":{"prompt_tokens":100,"completion_tokens":5,"total_tokens":105,
    "prompt_tokens_details":{"cached_tokens":90}}}"#;
const EVENTS: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n\
    data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"}}]}\n\n";
const LIMIT: u64 = 10_000;

/// A gateway whose clients have one key with these limits.
struct Limited {
    gateway: TestGateway,
    accounts: Arc<Accounts>,
    identity: Identity,
}

async fn limited(limits: Limits) -> Limited {
    let accounts = Arc::<Accounts>::default();
    let identity = Identity {
        tenant: Some("acme".into()),
        key: 7,
        rights: Rights { engine_admin: true, ..Rights::default() },
        accounts: vec![AccountLimits { id: AccountId::Key(7), limits }],
        ..Identity::default()
    };
    let mut keys = KeySet::default();
    keys.add_digest(Sha256::digest(API_KEY.as_bytes()).into(), identity.clone());
    let gateway = TestGateway::with(BuiltIn, |parts| {
        parts.keys = Keys::default();
        parts.keys.replace(keys);
        parts.accounts = Arc::clone(&accounts);
    })
    .await;
    Limited { gateway, accounts, identity }
}

fn tokens() -> Limits {
    Limits { tokens_per_minute: Some(LIMIT), requests_per_minute: Some(100), ..Limits::default() }
}

impl Limited {
    fn left(&self) -> Allowance {
        self.accounts.allowance(&self.identity, Moment::now(Duration::ZERO))
    }

    /// Returns the requests and the tokens that are counted.
    fn used(&self) -> (u64, u64) {
        let Allowance { requests, tokens, .. } = self.left();
        (100 - requests.unwrap().left, LIMIT - tokens.unwrap().left)
    }

    async fn post(&self, path: &str, body: &str) -> (u16, HeaderMap, Value) {
        let request = Request::post(path)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {API_KEY}"))
            .body(Body::from(body.to_owned()))
            .unwrap();
        let (head, body) = self.gateway.routes().serve(request).await.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        (head.status.as_u16(), head.headers, serde_json::from_slice(&body).unwrap_or_default())
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn headers_tell_what_is_left() {
    let limits = Limits { requests_per_minute: Some(3), ..tokens() };
    let test = limited(limits).await;
    let headers = &[("x-ratelimit-limit-requests", "9"), ("x-ratelimit-limit-project", "9")];
    test.gateway.script("a", &[Reply { headers, ..reply(200, USAGE) }]);
    for (left, body, status) in [("2", ONCE, 200), ("1", "{", 400), ("0", ONCE, 200)] {
        let (found, headers, _) = test.post(CHAT, body).await;
        assert_eq!(found, status);
        assert_eq!(text(&headers, "x-ratelimit-limit-requests"), Some("3"));
        assert_eq!(text(&headers, "x-ratelimit-remaining-requests"), Some(left));
        assert_eq!(text(&headers, "x-ratelimit-limit-tokens"), Some("10000"));
        assert_eq!(text(&headers, "x-ratelimit-limit-project"), None);
        let reset = text(&headers, "x-ratelimit-reset-requests").unwrap();
        assert!(reset.starts_with("1m0") || reset.starts_with("59."), "{reset}");
    }
    let (status, headers, body) = test.post(CHAT, ONCE).await;
    assert_eq!((status, &body["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    assert_eq!(body["error"]["type"], "rate_limit_error");
    assert_eq!(text(&headers, "x-ratelimit-remaining-requests"), Some("0"));
    let after: u64 = text(&headers, "retry-after").unwrap().parse().unwrap();
    assert!((59..=61).contains(&after), "{after}");
    assert_eq!(text(&headers, "x-should-retry"), None);

    let messages = r#"{"model":"m","max_tokens":5,"messages":[{"role":"user","content":"hi"}]}"#;
    let (status, headers, body) = test.post("/v1/messages", messages).await;
    assert_eq!((status, &body["error"]["type"]), (429, &json!("rate_limit_error")));
    assert_eq!(text(&headers, "anthropic-ratelimit-requests-limit"), Some("3"));
    assert_eq!(text(&headers, "anthropic-ratelimit-tokens-limit"), Some("10000"));
    assert_eq!(text(&headers, "x-ratelimit-limit-requests"), None);
    let reset = text(&headers, "anthropic-ratelimit-requests-reset").unwrap();
    assert!(humantime::parse_rfc3339(reset).is_ok(), "{reset}");
    // A key without limits gets those of the engine.
    let gateway = TestGateway::new(BuiltIn).await;
    gateway.script(
        "a",
        &[Reply { headers: &[("x-ratelimit-limit-requests", "9")], ..reply(200, USAGE) }],
    );
    let (_, headers, _) = gateway.send(ONCE).await;
    assert_eq!(text(&headers, "x-ratelimit-limit-requests"), Some("9"));
}

#[tokio::test]
async fn tokens_are_those_that_the_engine_reports() {
    let prompt = {
        let test = limited(tokens()).await;
        test.gateway.script("a", &[reply(200, "{}")]);
        test.post(CHAT, ONCE).await;
        test.used().1
    };
    assert!((1..30).contains(&prompt), "the estimate of the host: {prompt}");
    let embeddings = r#"{"model":"m","input":"hello"}"#;
    let usage = r#"{"usage":{"prompt_tokens":9,"total_tokens":9}}"#;
    let streamed: &str = format!(
        "{EVENTS}data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":8,\"completion_tokens\":2}}}}\
         \n\ndata: [DONE]\n\n"
    )
    .leak();
    for (path, body, replies, expected) in [
        (CHAT, ONCE, &[reply(200, USAGE)][..], 15),
        (CHAT, STREAM, &[stream(streamed, false)], 10),
        // A stream that breaks: what was seen of it, and the prompt.
        (CHAT, STREAM, &[stream(EVENTS, false)], prompt + 2),
        // The engine refuses the request, or the host does.
        (CHAT, ONCE, &[reply(400, r#"{"error":{"message":"m"}}"#)], 0),
        (CHAT, r#"{"model":"unknown","messages":[]}"#, &[], 0),
        (CHAT, r#"{"model":"m","messages":7}"#, &[], 0),
        ("/v1/embeddings", embeddings, &[reply(200, usage)], 9),
        ("/tokenize", r#"{"model":"m","prompt":"hello"}"#, &[reply(200, usage)], 0),
        ("/upstream/a/v1/chat/completions", ONCE, &[reply(200, USAGE)], 15),
        ("/upstream/none/v1/chat/completions", ONCE, &[], 0),
    ] {
        let test = limited(tokens()).await;
        test.gateway.script("a", replies);
        let (_, headers, _) = test.post(path, body).await;
        assert_eq!(test.used(), (1, expected), "{path} {body} {replies:?}");
        assert_eq!(text(&headers, "x-ratelimit-remaining-requests"), Some("99"), "{path} {body}");
    }
    // A lane that fails does not count, and the next one does.
    let test = limited(tokens()).await;
    test.gateway.script("a", &[reply(500, USAGE)]);
    test.gateway.script("b", &[reply(200, USAGE)]);
    assert_eq!(test.post(CHAT, ONCE).await.0, 200);
    assert_eq!((test.gateway.attempted_lanes(), test.used()), ("ab".into(), (1, 15)));
}

#[tokio::test]
async fn stream_that_the_client_leaves_counts_what_it_had() {
    let test = limited(tokens()).await;
    test.gateway.script("a", &[stream(EVENTS, true)]);
    let mut response = test.gateway.begin(STREAM).await;
    let (_, reserved) = test.used();
    assert!((51..90).contains(&reserved), "{reserved}");
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    let (requests, used) = test.used();
    assert!(requests == 1 && (3..32).contains(&used), "{used}");
    assert_eq!(reserved - 50 + 2, used);
}

#[tokio::test]
async fn requests_at_a_time_and_queue_places_are_limited() {
    let limits = Limits { concurrent: Some(3), queued: Some(1), ..Limits::default() };
    let test = limited(limits).await;
    let other: &str = STREAM.replace("\"m\"", "\"other\"").leak();
    test.gateway.script("c", &[stream(EVENTS, true), stream(EVENTS, true)]);
    let first = test.gateway.begin(other).await;
    let mut second = Box::pin(test.gateway.begin(other));
    tokio::select! {
        _ = &mut second => panic!("the lane has one slot"),
        () = test.gateway.wait_for_queued("c") => {}
    }
    // The lane has a slot for neither of them, but the key a queue place for one of them only.
    let (refused, ()) = tokio::join!(test.gateway.send(other), async {
        tokio::time::timeout(Duration::from_millis(300), second.as_mut()).await.ok();
    });
    let (status, headers, body) = refused;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["error"]["code"]), (429, &json!("queue_limit")));
    assert!(text(&headers, "retry-after").is_some());
    // A free slot needs no place.
    test.gateway.script("a", &[stream(EVENTS, true)]);
    let third = test.gateway.begin(STREAM).await;
    assert_eq!(third.status(), 200);
    let (status, headers, body) = test.gateway.send(ONCE).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &body["error"]["code"]), (429, &json!("concurrency_limit")));
    assert!(text(&headers, "retry-after").is_some());
    drop(first);
    let second = second.await;
    assert_eq!(second.status(), 200);
    drop((second, third));
    assert_eq!(test.gateway.send(ONCE).await.0, 200);
}

#[tokio::test]
async fn budgets_and_large_requests_are_not_retried_by_libraries() {
    let budget =
        Budget { period: Period::Month, tokens: None, requests: Some(1), engine_seconds: None };
    let limits =
        Limits { tokens_per_minute: Some(500), budgets: vec![budget], ..Limits::default() };
    let test = limited(limits).await;
    let large = ONCE.replace("50", "5000");
    let (status, headers, body) = test.post(CHAT, &large).await;
    assert_eq!((status, &body["error"]["code"]), (429, &json!("request_exceeds_limit")));
    assert_eq!(text(&headers, "retry-after"), None);
    assert_eq!(text(&headers, "x-should-retry"), Some("false"));
    assert_eq!(text(&headers, "x-ratelimit-remaining-tokens"), Some("500"));
    assert_eq!(test.post(CHAT, ONCE).await.0, 200);
    let (status, headers, body) = test.post(CHAT, ONCE).await;
    assert_eq!((status, &body["error"]["code"]), (429, &json!("budget_exceeded")));
    assert_eq!(body["error"]["type"], "insufficient_quota");
    assert_eq!(text(&headers, "x-should-retry"), Some("false"));
    let after: u64 = text(&headers, "retry-after").unwrap().parse().unwrap();
    assert!(after <= 31 * 24 * 3600, "until the next month: {after}");
    // Refused requests did not change anything.
    assert_eq!(test.gateway.attempted_lanes(), "a");
}

#[tokio::test]
async fn retry_that_joins_its_original_does_not_count() {
    let test = limited(tokens()).await;
    test.gateway.script("a", &[reply(200, USAGE)]);
    for _ in 0..3 {
        let request = Request::post(CHAT)
            .header("content-type", "application/json")
            .header("authorization", format!("Bearer {API_KEY}"))
            .header("idempotency-key", "one")
            .body(Body::from(ONCE))
            .unwrap();
        let response = test.gateway.routes().serve(request).await;
        assert_eq!(response.status(), 200);
        response.into_body().collect().await.unwrap();
    }
    assert_eq!(test.used(), (1, 15));
}
