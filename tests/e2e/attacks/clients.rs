//! Clients that send too much, too slowly, or nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pointsman_tests::attack::{
    HostileEngine, RawClient, answer, client_that_does_not_read, external_lane, idle_connections,
    launcher, request_head,
};
use pointsman_tests::client::{chat, post, send};
use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::{pause, wait_until};
use serde_json::json;

use super::{CHAT, MODELS, host_with};
use crate::{FAKE_ENGINE, host, lane, one_lane};

/// How long a response that is due at once may take on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// The length is known from the head, so nothing of the body is waited for.
#[test]
fn long_body_is_refused_by_its_length() {
    let host = one_lane(&[]);
    for length in [33 << 20, 100_usize << 30] {
        let mut client = RawClient::connect(host.port);
        client.send(request_head(CHAT, length, ""));
        let response = client.read_response(SOON);
        assert_eq!(response.status(), Some(413), "{}", response.text());
        assert_eq!(response.error_code(), "request_too_large");
    }
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn body_of_too_many_pieces_is_refused() {
    let host = one_lane(&[]);
    let many = |piece: &str| vec![piece; 200_000].join(",");
    let chat = |messages: String| format!(r#"{{"model":"a","messages":[{messages}]}}"#);
    let parts = format!(r#"{{"role":"user","content":[{}]}}"#, many("{}"));
    let bodies = [
        ("/v1/completions", format!(r#"{{"model":"a","prompt":[{}]}}"#, many("\"\""))),
        (CHAT, chat(many(r#"{"role":"a"}"#))),
        (CHAT, chat(parts)),
    ];
    for (path, body) in bodies {
        let headers = [("content-type", "application/json")];
        let response = send(host.port, "POST", path, &headers, body.as_bytes());
        assert!(matches!(response.status, 400 | 413), "{} {}", response.status, response.text());
        assert!(response.body.len() < 4096, "the response does not repeat the request");
    }
    host.assert_no_request_lost();
    host.stop();
}

/// Returns an engine that answers only once the flag is set.
fn held_engine() -> (HostileEngine, Arc<AtomicBool>) {
    let released = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&released);
    let engine = HostileEngine::start(move |request, stream| {
        while !flag.load(Ordering::Relaxed) {
            pause(Duration::from_millis(10));
        }
        answer(request, stream)
    });
    (engine, released)
}

#[test]
fn full_queue_has_a_place_for_every_tenant() {
    let (engine, released) = held_engine();
    let lane = external_lane("a", &["a"], &engine, "").replace("slots = 16", "slots = 1");
    let key = |tenant: &str| format!("[[keys]]\ntenant = \"{tenant}\"\nfile = \"{tenant}.key\"\n");
    let dir = tempfile::tempdir().unwrap();
    for tenant in ["greedy", "modest"] {
        let file = dir.path().join(format!("{tenant}.key"));
        std::fs::write(file, format!("the-key-of-{tenant}")).unwrap();
    }
    let config = format!("queue = {{ per-lane = 4 }}\n{}{}{lane}", key("greedy"), key("modest"));
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready();
    let ask = |tenant: &str| {
        let body = chat("a", json!({})).to_string();
        let key = format!("authorization: Bearer the-key-of-{tenant}\r\nconnection: close\r\n");
        let mut client = RawClient::connect(host.port);
        client.send(request_head(CHAT, body.len(), &key));
        client.send(body);
        client
    };
    let mut greedy = vec![ask("greedy")];
    wait_until("the only slot is taken", || engine.requests().len() == 1);
    // One more than there are places, so that one of them is refused and the queue is full.
    greedy.extend((0..5).map(|_| ask("greedy")));
    let refused = |greedy: &mut Vec<RawClient>| {
        let mut codes = Vec::new();
        greedy.retain_mut(|client| {
            let response = client.read_response(Duration::from_millis(20));
            codes.extend(response.status());
            response.status().is_none()
        });
        codes
    };
    let mut codes = Vec::new();
    wait_until("the queue is full", || {
        codes.extend(refused(&mut greedy));
        codes == [429]
    });
    let mut modest = ask("modest");
    wait_until("the flow with most requests loses one", || {
        codes.extend(refused(&mut greedy));
        codes == [429, 429]
    });
    released.store(true, Ordering::Relaxed);
    let response = modest.read_response(SOON);
    assert_eq!(response.status(), Some(200), "{}", response.text());
    for mut client in greedy {
        assert_eq!(client.read_response(SOON).status(), Some(200));
    }
}

/// Connections that send nothing use up neither the descriptors nor the patience of the host.
#[test]
fn idle_connections_do_not_use_up_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let limited = launcher(dir.path(), &program(FAKE_ENGINE), "ulimit -n 1024");
    let host = Host::start_in(&limited, dir, &lane("a", &["a"], &[]), &[]).wait_until_ready();
    let idle = idle_connections(host.port, 1500);
    for _ in 0..20 {
        let mut client = RawClient::try_connect(host.port, SOON).unwrap();
        client.send("GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let response = client.read_response(SOON);
        assert_eq!(response.status(), Some(200), "{}", response.text());
        assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200);
    }
    drop(idle);
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn name_that_is_not_utf8_gets_a_json_error() {
    let host = one_lane(&[]);
    let mut client = RawClient::connect(host.port);
    client.send(format!("GET {MODELS}/%ff HTTP/1.1\r\nhost: localhost\r\n\r\n"));
    let response = client.read_response(SOON);
    assert!(matches!(response.status(), Some(400 | 404)), "{}", response.text());
    assert!(response.error_code().is_string(), "{}", response.text());
}

/// Bodies end before a slot is taken, so a client that stops in the middle holds none.
#[test]
fn stalled_upload_holds_no_slot() {
    let engine = HostileEngine::honest();
    let host = host_with(&engine);
    let mut clients: Vec<RawClient> = (0..32).map(|_| RawClient::connect(host.port)).collect();
    for client in &mut clients {
        client.send(request_head(CHAT, 1000, ""));
        client.send("{\"model\":");
    }
    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200);
    drop(clients);
    host.assert_no_request_lost();
}

#[test]
fn stalled_upload_gets_a_timeout() {
    let lane = lane("a", &["a"], &[]);
    let host = host(&format!("server = {{ body-timeout = \"500ms\" }}\n{lane}"));
    let mut client = RawClient::connect(host.port);
    client.send(request_head(CHAT, 1000, ""));
    client.send("{\"model\":");
    let response = client.read_response(SOON);
    assert_eq!(response.status(), Some(408), "{}", response.text());
    assert_eq!(response.error_code(), "request_timeout");
    host.assert_no_request_lost();
}

/// Bodies of all clients together have a limit, which is free again when they are gone.
#[test]
fn bodies_in_flight_have_a_limit() {
    let config = format!(
        "server = {{ max-body = \"1MiB\", body-memory = \"1MiB\" }}\n{}",
        lane("a", &["a"], &[])
    );
    let host = host(&config);
    let mut stalled = RawClient::connect(host.port);
    stalled.send(request_head(CHAT, 900_000, ""));
    stalled.send(vec![b' '; 890_000]);
    // The host reads it first: otherwise the other body may take the memory.
    let held = || host.metric("pointsman_body_bytes", "");
    wait_until("the body in flight holds its memory", || held() >= 890_000.0);
    let large = chat("a", json!({ "x": "y".repeat(800_000) }));
    let refused = post(host.port, CHAT, &large);
    assert_eq!((refused.status, refused.error_code()), (503, json!("host_overloaded")));
    assert!(refused.header("retry-after").is_some());
    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200, "a small body");
    drop(stalled);
    wait_until("the memory is free again", || post(host.port, CHAT, &large).status == 200);
    host.assert_no_request_lost();
}

#[test]
fn client_that_does_not_read_is_cut() {
    let arguments = ["--script", r#"{"echo": true}"#];
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], "slots = 1", &arguments);
    let host = host(&format!("server = {{ write-timeout = \"500ms\" }}\n{lane}"));
    let engine = host.engine_pid("a");
    let client = client_that_does_not_read(host.port, "a");
    let running = || host.metric("pointsman_lane_running", "");
    let accepted = || host.metric("pointsman_accepted_total", "");
    wait_until("the request is accepted", || accepted() == 1.0);
    wait_until("the client is cut", || {
        running() == 0.0 && host.metric("pointsman_in_flight", "") == 0.0
    });
    assert_eq!(host.metric("pointsman_client_gone_total", ""), 1.0);
    host.assert_no_request_lost();
    assert_eq!(host.engine_pid("a"), engine, "the engine was not started again");
    drop(client);
    host.stop();
}

#[test]
fn idle_connection_is_closed() {
    let lane = lane("a", &["a"], &[]);
    let host = host(&format!("server = {{ idle-timeout = \"300ms\" }}\n{lane}"));
    let mut client = RawClient::connect(host.port);
    client.send("GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let response = client.read_to_end(SOON);
    assert_eq!((response.status(), response.closed), (Some(200), true));
}

/// Errors do not repeat what the client sent, whatever its length.
#[test]
fn long_model_name_is_cut_in_errors() {
    let host = host(&lane("a", &["a"], &[]));
    let name = "x".repeat(1 << 20);
    let response = post(host.port, CHAT, &chat(&name, json!({})));
    assert_eq!((response.status, response.body.len() < 2048), (404, true));
    assert!(host.log_text().len() < 1 << 19, "the log does not repeat it either");
    host.assert_no_request_lost();
}
