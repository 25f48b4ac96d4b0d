//! The listener for clients: what it shows, its limits, and the drain.

use pointsman_access::Keys;
use pointsman_domain::BuiltIn;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::ListenerSettings;

/// A gateway that serves a port.
pub(super) struct Served {
    pub(super) test: TestGateway,
    pub(super) port: u16,
    pub(super) server: JoinSet<()>,
}

async fn serve_port(configure: impl FnOnce(&mut GatewayParts)) -> Served {
    serve_listener(ListenerSettings::default(), configure).await
}

pub(super) async fn serve_listener(
    settings: ListenerSettings,
    configure: impl FnOnce(&mut GatewayParts),
) -> Served {
    let test = TestGateway::with(BuiltIn, configure).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway = test.gateway.clone();
    let mut server = JoinSet::new();
    server.spawn(async move { gateway.serve(listener, settings).await });
    Served { test, port, server }
}

/// A connection of a client.
pub(super) struct Client(TcpStream);

impl Client {
    pub(super) async fn connect(port: u16) -> Self {
        Self(TcpStream::connect(("127.0.0.1", port)).await.unwrap())
    }

    pub(super) async fn send(&mut self, request: &str) {
        self.0.write_all(request.as_bytes()).await.unwrap();
    }

    /// Reads until the response contains `end`, or the connection ends.
    pub(super) async fn read_until(&mut self, end: &str) -> String {
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains(end) {
            match self.0.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(length) => text.push_str(&String::from_utf8_lossy(&buffer[..length])),
            }
        }
        text
    }

    /// Reads until the server closes the connection.
    pub(super) async fn read_to_end(&mut self) -> String {
        let mut text = String::new();
        self.0.read_to_string(&mut text).await.ok();
        text
    }
}

fn get(path: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n")
}

fn chat(body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\
         content-type: application/json\r\n\r\n{body}",
        body.len()
    )
}

pub(super) fn status_of(response: &str) -> &str {
    response.split(' ').nth(1).unwrap_or_default()
}

const MESSAGES: &str = r#""messages":[{"role":"user","content":"hi"}]"#;

#[tokio::test]
async fn drain_keeps_answering_until_it_is_closed() {
    let Served { test, port, mut server } = serve_port(|_| ()).await;
    test.script("a", &[stream("data: {\"choices\":[]}\n\n", true)]);
    let mut streaming = Client::connect(port).await;
    let mut idle = Client::connect(port).await;
    streaming.send(&chat(&format!(r#"{{"model":"m","stream":true,{MESSAGES}}}"#))).await;
    streaming.read_until("choices").await;
    // A body that never arrives must not hold up the drain.
    let mut uploading = Client::connect(port).await;
    let half = chat(&format!(r#"{{"model":"m",{MESSAGES}}}"#));
    uploading.send(&half[..half.len() - 5]).await;
    while !test.metric("pointsman_in_flight").ends_with(" 2") {
        tokio::task::yield_now().await;
    }

    test.drain.begin();
    let rejected = uploading.read_to_end().await;
    assert_eq!(status_of(&rejected), "503", "{rejected}");
    assert!(rejected.contains("\"stopping\"") && rejected.contains("retry-after: "), "{rejected}");
    for (path, status) in [("/livez", "200"), ("/readyz", "503"), ("/health", "503")] {
        let mut client = Client::connect(port).await;
        client.send(&get(path, "")).await;
        let response = client.read_to_end().await;
        assert_eq!(status_of(&response), status, "{path}: {response}");
        assert!(response.contains("connection: close"), "{response}");
    }
    // On a new connection, and on one from before.
    let mut new = Client::connect(port).await;
    for client in [&mut new, &mut idle] {
        client.send(&chat(&format!(r#"{{"model":"m",{MESSAGES}}}"#))).await;
        let response = client.read_to_end().await;
        assert_eq!(status_of(&response), "503");
        assert!(response.contains("\"stopping\""), "{response}");
        assert!(response.contains("retry-after: "), "{response}");
    }
    let drained = tokio::time::timeout(Duration::from_millis(100), test.drain.drained()).await;
    assert!(drained.is_err(), "a stream is in flight");
    test.drain.abort();
    test.drain.drained().await;
    let rest = streaming.read_until("error").await;
    assert!(rest.contains("\"error\"") && !rest.contains("[DONE]"), "{rest}");
    test.drain.close();
    server.join_next().await.unwrap().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}

#[tokio::test]
async fn cut_closes_connections_that_are_open() {
    let Served { test, port, server: _server } = serve_port(|_| ()).await;
    let mut idle = Client::connect(port).await;
    idle.send(&get("/livez", "")).await;
    idle.read_until("ok").await;
    test.drain.begin();
    test.drain.cut();
    assert_eq!(idle.read_to_end().await, "");
    let mut new = Client::connect(port).await;
    new.send(&get("/livez", "")).await;
    assert_eq!(status_of(&new.read_to_end().await), "200");
}

#[tokio::test]
async fn status_for_clients_has_no_details() {
    let policy = json!({
        "name": "p", "state": "active", "version": "1@ab", "fingerprint": "ab",
        "component_sha256": "cd", "calls": 3, "faults": 1, "slow": 0,
        "config": { "secret": 1 }, "error": { "message": "secret" }, "candidate": "secret",
    });
    let Served { port, server: _server, .. } = serve_port(move |parts| {
        parts.policies = Box::new(move || json!([policy]));
        parts.config = Box::new(|| json!({ "error": "secret" }));
    })
    .await;
    let mut client = Client::connect(port).await;
    client.send(&get("/status", "connection: close\r\n")).await;
    let response = client.read_to_end().await;
    let body: Value = serde_json::from_str(response.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let keys =
        |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&body), "version stopping lanes policies");
    assert_eq!(keys(&body["lanes"][0]), "name state running queued slots_free");
    assert_eq!(
        keys(&body["policies"][0]),
        "name state version fingerprint component_sha256 calls faults slow"
    );
    assert!(!response.contains("secret"), "{response}");
}

#[tokio::test]
async fn status_and_metrics_require_a_key_if_there_is_one() {
    let Served { port, server: _server, .. } = serve_port(|parts| {
        parts.keys = Keys::new([pointsman_access::ApiKey::new(API_KEY, "team")]);
    })
    .await;
    let key = format!("authorization: Bearer {API_KEY}\r\n");
    for (path, header, status) in [
        ("/status", "", "401"),
        ("/metrics", "", "401"),
        ("/status", &*key, "200"),
        ("/metrics", &*key, "200"),
        ("/livez", "", "200"),
        ("/readyz", "", "200"),
        ("/health", "", "200"),
    ] {
        let mut client = Client::connect(port).await;
        client.send(&get(path, &format!("{header}connection: close\r\n"))).await;
        let response = client.read_to_end().await;
        assert_eq!(status_of(&response), status, "{path} {header}");
        assert_eq!(response.contains("invalid_api_key"), status == "401", "{response}");
    }
}

#[tokio::test]
async fn requests_for_other_hosts_are_refused() {
    let Served { port, server: _server, .. } = serve_port(|parts| {
        parts.settings.connections.hosts = vec!["router.example".to_owned()];
    })
    .await;
    for (head, status, code) in [
        ("GET /livez HTTP/1.1\r\nhost: evil.example\r\n", "200", "ok"),
        ("GET /health HTTP/1.1\r\nhost: evil.example\r\n", "421", "host_not_allowed"),
        ("GET /status HTTP/1.1\r\nhost: evil.example\r\n", "421", "host_not_allowed"),
        ("GET /livez HTTP/1.1\r\n", "400", "invalid_request"),
        ("GET /livez HTTP/1.1\r\nhost: a\r\nhost: b\r\n", "400", "invalid_request"),
        ("GET /livez HTTP/1.1\r\nhost: router.example\r\n", "200", "ok"),
        ("GET /livez HTTP/1.0\r\n", "200", "ok"),
    ] {
        let mut client = Client::connect(port).await;
        client.send(&format!("{head}connection: close\r\n\r\n")).await;
        let response = client.read_to_end().await;
        assert_eq!(status_of(&response), status, "{head}");
        assert!(response.contains(&format!("\"{code}\"")), "{response}");
    }
}

#[tokio::test]
async fn longest_idle_connection_makes_room() {
    let Served { port, server: _server, .. } =
        serve_port(|parts| parts.settings.connections.max = 2).await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = Client::connect(port).await;
        client.send(&get("/livez", "")).await;
        assert!(client.read_until("ok").await.contains("keep-alive: timeout=75"));
        clients.push(client);
    }
    // The first one is used again, so the second one has been idle for longer.
    clients[0].send(&get("/livez", "")).await;
    clients[0].read_until("ok").await;
    let mut third = Client::connect(port).await;
    third.send(&get("/livez", "")).await;
    assert_eq!(status_of(&third.read_until("ok").await), "200");
    assert_eq!(clients[1].read_to_end().await, "", "closed");
    clients[0].send(&get("/livez", "")).await;
    assert_eq!(status_of(&clients[0].read_until("ok").await), "200");
}

#[tokio::test]
async fn client_that_does_not_read_frees_the_lane() {
    let Served { test, port, server: _server } = serve_port(|parts| {
        parts.settings.connections.write_timeout = Duration::from_millis(200);
    })
    .await;
    let big: &'static str = Box::leak(" ".repeat(16 << 20).into_boxed_str());
    test.script("c", &[json(200, big)]);
    let mut client = Client::connect(port).await;
    client.send(&chat(&format!(r#"{{"model":"other",{MESSAGES}}}"#))).await;
    while !test.metric("pointsman_client_gone_total").ends_with(" 1") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let pipeline = test.gateway.pipeline();
    let idle = pipeline.fleet.wait_for(|view| view.stats().all(|stat| stat.running == 0));
    tokio::time::timeout(Duration::from_secs(5), idle).await.unwrap();
}

#[tokio::test]
async fn upload_that_is_too_large_is_refused_at_once() {
    let Served { test, port, server: _server } = serve_port(|parts| {
        parts.keys = Keys::new([pointsman_access::ApiKey::new(API_KEY, "team")]);
    })
    .await;
    let head = |authorization: &str| {
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{authorization}\
             content-type: application/json\r\ncontent-length: 2000000\r\n\r\n"
        )
    };
    let key = format!("authorization: Bearer {API_KEY}\r\n");
    for (authorization, status) in [("", "401"), (&*key, "413")] {
        let mut client = Client::connect(port).await;
        client.send(&head(authorization)).await;
        let response = client.read_to_end().await;
        assert_eq!(status_of(&response), status, "{response}");
    }
    drop(test);
}

#[tokio::test]
async fn connection_is_only_kept_if_the_body_was_read() {
    let Served { test, port, server: _server } = serve_port(|_| ()).await;
    test.script("c", &[json(200, "{}")]);
    let head = "HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n";
    for (line, status) in [
        ("POST /v1/unknown", "404"),
        ("PUT /v1/chat/completions", "405"),
        ("POST /v1/chat/completions", "415"),
    ] {
        let mut client = Client::connect(port).await;
        client.send(&format!("{line} {head}")).await;
        let response = client.read_to_end().await;
        assert!(response.contains("connection: close"), "{line}: {response}");
        assert!(!response.contains("keep-alive"), "{line}: {response}");
        assert_eq!(status_of(&response), status, "{response}");
    }
    let mut client = Client::connect(port).await;
    client.send(&chat("[]")).await;
    assert!(client.read_until("error").await.contains("keep-alive: timeout="));
    client.send(&chat(&format!(r#"{{"model":"other",{MESSAGES}}}"#))).await;
    let response = client.read_until("{}").await;
    assert!(response.contains("keep-alive: timeout="), "{response}");
}
