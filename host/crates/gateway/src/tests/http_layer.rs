//! What a listener makes of requests and responses: paths, origins, encodings and model names.

use http::{HeaderMap, Method, header};
use pointsman_access::Keys;
use pointsman_domain::BuiltIn;

use super::listener::{Client, Served, serve_listener, status_of};
use super::*;
use crate::{Cors, compression};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

impl TestGateway {
    /// Sends a request to a listener with these settings.
    async fn on(
        &self,
        settings: &ListenerSettings,
        request: http::request::Builder,
        body: impl Into<Body>,
    ) -> (u16, HeaderMap, Bytes) {
        let routes = self.routes_with(settings.clone());
        let request = request.header("content-type", "application/json").body(body.into()).unwrap();
        let (head, body) = routes.serve(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), head.headers, body)
    }

    /// Returns the last request that an engine received.
    fn last_received(&self) -> Value {
        self.engines.received.lock().unwrap().last().unwrap().1.clone()
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn all_forms_of_a_path_are_served_below_the_prefix() {
    let gateway = TestGateway::new(BuiltIn).await;
    let root = ListenerSettings::default();
    let prefixed = ListenerSettings { path_prefix: "/llm".to_owned(), ..root.clone() };
    let body = format!(r#"{{"model":"m",{MESSAGES}}}"#);
    for (settings, path, expected) in [
        (&root, "/v1/chat/completions?api-version=1", 200),
        (&root, "/chat/completions/", 200),
        (&root, "//v1//v1/chat/completions", 200),
        (&root, "/v1/x/../chat/completions", 404),
        (&root, "/llm/v1/chat/completions", 404),
        (&prefixed, "/llm/v1/chat/completions", 200),
        (&prefixed, "/llm/chat/completions", 200),
        (&prefixed, "/v1/chat/completions", 404),
    ] {
        let (status, ..) = gateway.on(settings, Request::post(path), body.clone()).await;
        assert_eq!(status, expected, "{path}");
    }
    for (settings, path, expected) in [
        (&root, "/models/m", 200),
        (&root, "/v1/models/org%2Fm", 200),
        (&root, "/v1/models/org%2Fx", 404),
        (&prefixed, "/llm/models/", 200),
        (&prefixed, "/health", 200),
        (&prefixed, "/readyz", 200),
        (&prefixed, "/status", 404),
        (&prefixed, "/llm/status", 200),
    ] {
        let (status, _, body) = gateway.on(settings, Request::get(path), Body::empty()).await;
        assert_eq!(status, expected, "{path} {body:?}");
    }
}

#[tokio::test]
async fn options_names_the_methods() {
    let gateway = TestGateway::new(BuiltIn).await;
    let settings = ListenerSettings::default();
    for (path, methods) in [
        (CHAT, "POST, OPTIONS"),
        ("/models", "GET, HEAD, OPTIONS"),
        ("*", "GET, HEAD, POST, OPTIONS"),
    ] {
        let request = Request::builder().method(Method::OPTIONS).uri(path);
        let (status, headers, body) = gateway.on(&settings, request, Body::empty()).await;
        assert_eq!((status, text(&headers, "allow"), body.len()), (204, methods, 0), "{path}");
    }
    let (status, headers, _) = gateway.on(&settings, Request::get(CHAT), Body::empty()).await;
    assert_eq!((status, text(&headers, "allow")), (405, "POST"));
}

#[tokio::test]
async fn listener_has_names_and_a_default_of_its_own() {
    let gateway = TestGateway::new(BuiltIn).await;
    let plain = ListenerSettings::default();
    let named = ListenerSettings {
        default_model: Some("m".to_owned()),
        models: HashMap::from([("gpt-4o".to_owned(), "other".to_owned())]),
        ..plain.clone()
    };
    for (settings, model, expected) in [
        (&named, "", Ok("m")),
        (&named, r#""model":null,"#, Ok("m")),
        (&named, r#""model":"","#, Ok("m")),
        (&named, r#""model":"m","#, Ok("m")),
        (&named, r#""model":"gpt-4o","#, Ok("other")),
        (&named, r#""model":"x","#, Err(404)),
        (&named, r#""model":"m","model":"m","#, Err(400)),
        (&plain, r#""model":"gpt-4o","#, Err(404)),
        (&plain, "", Err(400)),
        (&plain, r#""model":"","#, Err(400)),
    ] {
        let body = format!("{{{model}{MESSAGES}}}");
        let (status, _, response) = gateway.on(settings, Request::post(CHAT), body.clone()).await;
        match expected {
            Ok(model) => {
                assert_eq!(status, 200, "{body} {response:?}");
                assert_eq!(gateway.last_received()["model"], model, "{body}");
            }
            Err(expected) => {
                assert_eq!(status, expected, "{body}");
                let response: Value = serde_json::from_slice(&response).unwrap();
                let is_invalid = response["error"]["code"] == "invalid_json";
                assert!(is_invalid || response["error"]["param"] == "model", "{response}");
            }
        }
    }
}

#[tokio::test]
async fn encoded_request_reaches_the_engine_decoded() {
    let gateway = TestGateway::new(BuiltIn).await;
    let settings = ListenerSettings::default();
    let body = format!(r#"{{"model":"m","seed":7,{MESSAGES}}}"#);
    for encoding in ["gzip", "deflate", "br", "zstd"] {
        let encoded = compression::encode(encoding, Body::from(body.clone())).await;
        let request = Request::post(CHAT).header("content-encoding", encoding);
        let (status, ..) = gateway.on(&settings, request, encoded).await;
        assert_eq!(status, 200, "{encoding}");
        assert_eq!(gateway.last_received()["seed"], 7, "{encoding}");
    }
    let request = Request::post(CHAT).header("content-encoding", "compress");
    let (status, headers, _) = gateway.on(&settings, request, body).await;
    assert_eq!((status, text(&headers, "accept-encoding")), (415, "gzip, deflate, br, zstd"));
}

#[tokio::test]
async fn large_responses_are_compressed_on_request() {
    let gateway = TestGateway::new(BuiltIn).await;
    let (on, plain) = (ListenerSettings::default(), "{\"choices\":[]}");
    let off = ListenerSettings { compression: false, ..on.clone() };
    let large: &'static str = Box::leak(format!("{{{:2000}}}", "").into_boxed_str());
    let events = "data: {\"choices\":[]}\n\ndata: [DONE]\n\n";
    let events: &'static str = Box::leak(events.repeat(100).into_boxed_str());
    let reply = |body: &'static str| Reply { length: true, ..json(200, body) };
    let body = format!(r#"{{"model":"m",{MESSAGES}}}"#);
    for (settings, accepted, reply, encoding) in [
        (&on, "gzip, zstd;q=0.1", reply(large), "gzip"),
        (&on, "zstd", reply(large), "zstd"),
        (&on, "identity;q=0", reply(large), ""),
        (&off, "gzip", reply(large), ""),
        (&on, "gzip", reply(plain), ""),
        (&on, "gzip", stream(events, false), ""),
    ] {
        gateway.script("a", &[reply]);
        let request = Request::post(CHAT).header("accept-encoding", accepted);
        let (status, headers, got) = gateway.on(settings, request, body.clone()).await;
        assert_eq!((status, text(&headers, "content-encoding")), (200, encoding), "{accepted}");
        assert_eq!(got == reply.body, encoding.is_empty(), "{accepted}");
    }
    assert_eq!(gateway.metric("pointsman_answered_total"), "pointsman_answered_total 6");
}

#[tokio::test]
async fn pages_of_listed_origins_may_read_every_response() {
    let cors = Cors {
        origins: vec!["https://chat.example.org".to_owned()],
        credentials: false,
        headers: None,
        max_age: Duration::from_secs(600),
    };
    let settings = ListenerSettings { cors: Some(cors), ..ListenerSettings::default() };
    let Served { test, port, .. } = &serve_listener(settings, |parts| {
        parts.keys = Keys::new([pointsman_access::ApiKey::new(API_KEY, "team")]);
    })
    .await;
    let send = async |line: &str, host: &str, headers: &str| {
        let mut client = Client::connect(*port).await;
        let origin = "origin: https://chat.example.org\r\nconnection: close\r\n";
        client.send(&format!("{line} HTTP/1.1\r\nhost: {host}\r\n{origin}{headers}\r\n")).await;
        client.read_to_end().await
    };
    let asks = "access-control-request-method: POST\r\n\
        access-control-request-headers: authorization\r\n";
    let preflight = send("OPTIONS /v1/chat/completions", "localhost", asks).await;
    assert_eq!(status_of(&preflight), "204", "{preflight}");
    assert!(preflight.contains("access-control-allow-headers: authorization"), "{preflight}");
    for (line, host, status) in [
        ("GET /v1/models", "localhost", "401"),
        ("GET /unknown", "localhost", "404"),
        ("GET /v1/models", "evil.example", "421"),
        ("OPTIONS /v1/models", "localhost", "204"),
    ] {
        let response = send(line, host, "").await;
        assert_eq!(status_of(&response), status, "{response}");
        let allowed = "access-control-allow-origin: https://chat.example.org";
        assert!(response.contains(allowed), "{response}");
        let is_exposed = response.lines().any(|line| {
            line.starts_with("access-control-expose-headers: ") && line.contains("x-request-id")
        });
        assert!(is_exposed || status == "204", "{response}");
    }
    test.drain.begin();
    let stopping = send("POST /v1/chat/completions", "localhost", "content-length: 0\r\n").await;
    assert_eq!(status_of(&stopping), "503", "{stopping}");
    let exposed = "access-control-expose-headers: ";
    let exposed = stopping.lines().find_map(|line| line.strip_prefix(exposed)).unwrap();
    assert!(exposed.contains("retry-after"), "{stopping}");
    assert!(stopping.contains("vary: origin"), "{stopping}");
    assert!(!stopping.contains(header::ACCESS_CONTROL_ALLOW_METHODS.as_str()), "{stopping}");
}
