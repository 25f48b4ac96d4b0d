//! Requests with an `Idempotency-Key`: a retry joins the original, which the engine sees once.

use pointsman_tests::client::{ResponseStream, chat, open, send};
use pointsman_tests::host::Host;
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::{host, lane};

const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

fn open_with_key(host: &Host, key: &str, body: &Value) -> ResponseStream {
    let headers = [JSON, ("idempotency-key", key)];
    open(host.port, "POST", CHAT, &headers, body.to_string().as_bytes())
}

fn attempts(host: &Host) -> f64 {
    host.metric("pointsman_attempts_total", "")
}

/// Starts a host with a lane whose streams take about two seconds.
fn slow_host(server: &str) -> Host {
    let script = ["--script", r#"{"tokens": 40, "token-ms": 50}"#];
    host(&format!("[server]\n{server}\n{}", lane("a", &["a"], &script)))
}

#[test]
fn retry_joins_its_original_and_gets_the_same_bytes() {
    let host = slow_host("");
    for (key, more) in [("plain", json!({})), ("stream", json!({ "stream": true }))] {
        let body = chat("a", more);
        let before = attempts(&host);
        let mut original = open_with_key(&host, key, &body);
        if key == "stream" {
            assert!(original.read_until("word"));
        }
        let running = open_with_key(&host, key, &body);
        let (original, is_whole) = original.finish();
        let (running, running_is_whole) = running.finish();
        let (ended, ended_is_whole) = open_with_key(&host, key, &body).finish();
        assert!(is_whole && running_is_whole && ended_is_whole);
        assert_eq!(original.header("idempotent-replayed"), None);
        for retry in [running, ended] {
            assert_eq!((retry.status, &retry.body), (200, &original.body));
            assert_eq!(retry.header("idempotent-replayed"), Some("true"));
            for name in ["content-type", "x-request-id", "x-pointsman-lane"] {
                assert_eq!(retry.header(name), original.header(name), "{name}");
            }
        }
        assert!((attempts(&host) - before - 1.0).abs() < 0.1, "the engine sees it once");
        let other = chat("a", json!({ "seed": 1 }));
        let (reused, _) = open_with_key(&host, key, &other).finish();
        assert_eq!((reused.status, reused.error_code()), (422, "idempotency_key_reused".into()));
    }
    let key = "k".repeat(256);
    let (invalid, _) = open_with_key(&host, &key, &chat("a", json!({}))).finish();
    assert_eq!((invalid.status, invalid.error_code()), (400, "invalid_request".into()));
    host.assert_no_request_lost();
}

#[test]
fn request_goes_on_for_a_retry_after_its_client_has_left() {
    let host = slow_host("idempotency-grace = \"3s\"");
    let body = chat("a", json!({ "stream": true, "max_tokens": 40 }));
    let mut original = open_with_key(&host, "k", &body);
    assert!(original.read_until("word3"));
    drop(original);
    let (retry, is_whole) = open_with_key(&host, "k", &body).finish();
    assert!(is_whole && retry.text().ends_with("data: [DONE]\n\n"), "{}", retry.text());
    assert!((attempts(&host) - 1.0).abs() < 0.1);
    host.assert_no_request_lost();
    // Without a retry it ends after the grace time, and so does the work of the engine.
    host.set_script("a", json!({ "tokens": 2000, "token-ms": 50 }));
    let body = chat("a", json!({ "stream": true, "max_tokens": 2000 }));
    let mut original = open_with_key(&host, "left", &body);
    assert!(original.read_until("word3"));
    drop(original);
    assert!(host.metric("pointsman_in_flight", "") > 0.0);
    wait_until("the request has ended", || host.metric("pointsman_in_flight", "") < 0.5);
    host.assert_no_request_lost();
}

#[test]
fn failed_request_is_executed_again() {
    let host = slow_host("");
    let body = chat("a", json!({}));
    host.set_script("a", json!({ "status": 500 }));
    assert_eq!(open_with_key(&host, "k", &body).finish().0.status, 502);
    host.set_script("a", json!({ "tokens": 2 }));
    assert_eq!(open_with_key(&host, "k", &body).finish().0.status, 200);
    // An error in the middle of a stream is one as well.
    let body = chat("a", json!({ "stream": true }));
    host.set_script("a", json!({ "tokens": 9, "end-after": 3 }));
    let (broken, _) = open_with_key(&host, "s", &body).finish();
    assert!(broken.text().contains("engine_error"), "{}", broken.text());
    host.set_script("a", json!({ "tokens": 9 }));
    let (again, _) = open_with_key(&host, "s", &body).finish();
    assert!(again.text().ends_with("data: [DONE]\n\n"), "{}", again.text());
    host.assert_no_request_lost();
}

/// Two tenants that choose the same key have nothing in common, nor two endpoints.
#[test]
fn keys_are_scoped() {
    let folder = tempfile::tempdir().unwrap();
    let keys: String = ["one", "two"]
        .map(|tenant| {
            let file = folder.path().join(tenant);
            std::fs::write(&file, format!("key-{tenant}")).unwrap();
            format!("[[keys]]\ntenant = \"{tenant}\"\nfile = {:?}\n", file.display().to_string())
        })
        .concat();
    let host = host(&format!("{keys}{}", lane("a", &["a"], &[])));
    let ask = |tenant: &str, path: &str, body: &Value| {
        let key = format!("Bearer key-{tenant}");
        let headers = [JSON, ("idempotency-key", "same"), ("authorization", key.as_str())];
        send(host.port, "POST", path, &headers, body.to_string().as_bytes())
    };
    let (chat_body, prompt) = (chat("a", json!({})), json!({ "model": "a", "prompt": "hi" }));
    for (tenant, path, body, is_replayed) in [
        ("one", CHAT, &chat_body, false),
        ("two", CHAT, &chat_body, false),
        ("one", "/v1/completions", &prompt, false),
        ("one", CHAT, &chat_body, true),
        ("two", CHAT, &chat_body, true),
    ] {
        let response = ask(tenant, path, body);
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(
            response.header("idempotent-replayed").is_some(),
            is_replayed,
            "{tenant} {path}"
        );
    }
    host.assert_no_request_lost();
}
