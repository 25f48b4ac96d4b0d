//! A changed configuration: each request has one, and what requests share goes on.

use super::listener::{Client, Served, serve_listener, status_of};
use super::*;
use crate::{GatewayConfig, ListenerSettings};

const BODY: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

fn chat(path: &str, connection: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: {connection}\r\ncontent-length: \
         {}\r\ncontent-type: application/json\r\n\r\n{BODY}",
        BODY.len()
    )
}

async fn serve() -> Served {
    let settings =
        ListenerSettings { addresses: vec!["one".to_owned()], ..ListenerSettings::default() };
    serve_listener(settings, |_| ()).await
}

/// Applies a changed configuration.
fn reconfigure(
    test: &TestGateway,
    change: impl FnOnce(&mut Settings),
    listeners: Vec<ListenerSettings>,
) {
    let mut settings = test.gateway.pipeline().settings.clone();
    change(&mut settings);
    test.gateway.reconfigure(GatewayConfig { settings, recorder: None, listeners });
}

async fn status(port: u16, path: &str) -> String {
    let mut client = Client::connect(port).await;
    client.send(&chat(path, "close")).await;
    status_of(&client.read_to_end().await).to_owned()
}

#[tokio::test]
async fn request_keeps_the_configuration_with_which_it_began() {
    let Served { test, port, server: _server } = serve().await;
    let mut client = Client::connect(port).await;
    let request = chat("/v1/chat/completions", "keep-alive");
    let (begin, rest) = request.split_at(request.len() - 5);
    client.send(begin).await;
    while !test.metric("pointsman_in_flight").ends_with(" 1") {
        tokio::task::yield_now().await;
    }
    reconfigure(&test, |settings| settings.max_body = 10, Vec::new());
    client.send(rest).await;
    let response = client.read_until("{}").await;
    assert_eq!(status_of(&response), "200", "{response}");
    // The next one on the same connection.
    client.send(&request).await;
    let response = client.read_to_end().await;
    assert_eq!(status_of(&response), "413", "{response}");
    reconfigure(&test, |settings| settings.max_body = 1 << 20, Vec::new());
    assert_eq!(status(port, "/v1/chat/completions").await, "200");
}

#[tokio::test]
async fn listener_gets_the_settings_of_its_own_address() {
    let Served { test, port, server: _server } = serve().await;
    let listener = |address: &str, prefix: &str| ListenerSettings {
        addresses: vec![address.to_owned()],
        path_prefix: prefix.to_owned(),
        ..ListenerSettings::default()
    };
    reconfigure(&test, |_| (), vec![listener("other", "/other"), listener("one", "/llm")]);
    assert_eq!(status(port, "/v1/chat/completions").await, "404");
    assert_eq!(status(port, "/llm/v1/chat/completions").await, "200");
    // Without settings of its own, it keeps them.
    reconfigure(&test, |_| (), vec![listener("other", "/other")]);
    assert_eq!(status(port, "/llm/v1/chat/completions").await, "200");
}

#[tokio::test]
async fn retries_find_their_originals_after_a_change() {
    let Served { test, port, server: _server } = serve().await;
    let ask = async || {
        let request = chat("/v1/chat/completions", "close");
        let request = request.replacen("\r\n", "\r\nidempotency-key: k\r\n", 1);
        let mut client = Client::connect(port).await;
        client.send(&request).await;
        client.read_to_end().await
    };
    assert_eq!(status_of(&ask().await), "200");
    let requests = || test.attempted_lanes().len();
    assert_eq!(requests(), 1);
    reconfigure(&test, |settings| settings.idempotency.memory = 32 << 20, Vec::new());
    assert_eq!((status_of(&ask().await), requests()), ("200", 1));
    reconfigure(&test, |settings| settings.idempotency.memory = 0, Vec::new());
    assert_eq!((status_of(&ask().await), requests()), ("200", 2));
}
