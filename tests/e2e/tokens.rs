//! Tokens of an issuer, on the real host: discovery, rotation, an issuer that cannot be reached or
//! sends nonsense, and what clients and operators see.

use std::process::Command;

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::client::{Response, chat, send};
use pointsman_tests::host::{Host, program};
use pointsman_tests::issuer::{AUDIENCE, Behaviour, Issuer, base64url};
use pointsman_tests::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FAKE_ENGINE;

const CHAT: &str = "/v1/chat/completions";

/// Returns a configuration that accepts the tokens of this issuer, and one key.
fn config(issuer: &Issuer, keys: &str) -> String {
    let lane = external_lane("a", &["a"], &HostileEngine::honest(), "");
    format!(
        "[[keys]]\ntenant = \"t\"\nenv = \"TEST_KEY\"\n[access.tokens]\nissuer = {:?}\n\
         audience = [{AUDIENCE:?}]\n{keys}\n{lane}",
        issuer.url()
    )
}

fn start_in(dir: TempDir, config: &str) -> Host {
    let env = [("TEST_KEY", "sesame")];
    Host::start_in(&program(FAKE_ENGINE), dir, config, &env).wait_until_ready()
}

/// Starts a host that has fetched the keys.
fn start(issuer: &Issuer, keys: &str) -> Host {
    let host = start_in(tempfile::tempdir().unwrap(), &config(issuer, keys));
    host.wait_for_event("token_keys_fetched", &[]);
    host
}

fn ask_at(host: &Host, path: &str, credential: &str) -> Response {
    let bearer = format!("Bearer {credential}");
    let headers = [("content-type", "application/json"), ("authorization", bearer.as_str())];
    let body = chat("a", json!({ "max_tokens": 5 })).to_string();
    send(host.port, "POST", path, &headers, body.as_bytes())
}

/// Returns the status and the code of a request with this credential; the code is null for success.
fn ask(host: &Host, credential: &str) -> (u16, Value) {
    let response = ask_at(host, CHAT, credential);
    let code = if response.status == 200 { Value::Null } else { response.error_code() };
    (response.status, code)
}

const GOOD: (u16, Value) = (200, Value::Null);

#[test]
fn tokens_are_accepted_beside_keys() {
    let issuer = Issuer::start();
    let host = start(&issuer, "");
    let other = Issuer::start();
    let token = |changes: Value| issuer.token(&changes);
    let valid = token(json!({}));
    let unsigned = format!("{}.{}.", base64url(br#"{"alg":"none"}"#), base64url(b"{}"));
    let invalid = (401, json!("invalid_token"));
    for (credential, expected) in [
        (valid.clone(), GOOD),
        ("sesame".to_owned(), GOOD),
        ("sesame2".to_owned(), (401, json!("invalid_api_key"))),
        (token(json!({ "aud": "another-service" })), invalid.clone()),
        (token(json!({ "iss": "http://127.0.0.1/realm" })), invalid.clone()),
        (token(json!({ "nbf": 4_000_000_000_u64 })), invalid.clone()),
        (token(json!({ "exp": null })), invalid.clone()),
        (other.token(&json!({ "iss": issuer.url() })), invalid.clone()),
        (issuer.sign(&json!({ "alg": "HS256" }), &json!({})), invalid.clone()),
        (unsigned, invalid.clone()),
        (format!("{valid}x"), invalid.clone()),
        (format!("{valid}.{valid}"), invalid.clone()),
        ("eyJ".to_owned(), invalid.clone()),
        (token(json!({ "padding": "x".repeat(8192) })), invalid),
        (token(json!({ "exp": 1_000_000_000 })), (401, json!("token_expired"))),
        (token(json!({ "tenant": null })), (403, json!("token_not_allowed"))),
    ] {
        assert_eq!(ask(&host, &credential), expected, "{credential}");
    }
    for credential in [token(json!({ "aud": "x" })), token(json!({ "exp": 1 }))] {
        let response = ask_at(&host, CHAT, &credential);
        let challenge = response.header("www-authenticate");
        assert_eq!(challenge, Some(r#"Bearer error="invalid_token""#));
        let response = ask_at(&host, "/v1/messages", &credential);
        let kind = response.json()["error"]["type"].clone();
        assert_eq!((response.status, kind), (401, json!("authentication_error")));
    }
    let response = ask_at(&host, "/v1/messages", &token(json!({ "tenant": null })));
    let kind = response.json()["error"]["type"].clone();
    assert_eq!((response.status, kind), (403, json!("permission_error")));
    // The log has the causes, and nothing of the tokens.
    host.wait_for_event("token_refused", &[("error", "missing or invalid claim `aud`")]);
    host.wait_for_event("token_refused", &[("error", "invalid signature")]);
    let log = host.log_text();
    for part in valid.split('.').skip(1) {
        assert!(!log.contains(part));
    }
}

#[test]
fn operators_see_the_age_of_the_keys() {
    let issuer = Issuer::start();
    let host = start(&issuer, "");
    let status = host.status()["tokens"].clone();
    assert_eq!((&status["issuer"], &status["keys"]), (&json!(issuer.url()), &json!(1)));
    assert_eq!((&status["usable"], &status["problem"]), (&json!(true), &Value::Null));
    assert!(status["age_s"].as_u64().is_some_and(|age| age < 60), "{status}");
    ask(&host, "a.b.c");
    let metrics = host.get("/metrics").text();
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
    };
    assert!(value("pointsman_token_keys_age_seconds").is_some_and(|age| age < 60.0), "{metrics}");
    assert_eq!(value("pointsman_tokens_refused_total"), Some(1.0));
    assert_eq!(value("pointsman_token_keys_failures_total"), Some(0.0));
    // Clients do not see the issuer.
    let headers = [("authorization", "Bearer sesame")];
    let public = send(host.port, "GET", "/status", &headers, b"").json();
    assert_eq!(public["tokens"], Value::Null);
    let (out, _) = check(&host);
    assert!(out.contains(&format!("tokens: issuer {}", issuer.url())), "{out}");
    assert!(out.contains("key set: 1, "), "{out}");
}

/// Runs `pointsman check`; returns its output and its exit status.
fn check(host: &Host) -> (String, bool) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("check").arg(host.dir.path().join("pointsman.toml"));
    command.env("XDG_STATE_HOME", host.dir.path().join("state")).env("TEST_KEY", "sesame");
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), output.status.success())
}

#[test]
fn rotated_keys_take_effect_with_the_refresh() {
    let issuer = Issuer::start();
    let host = start(&issuer, "refresh = \"1s\"");
    let old = issuer.token(&json!({}));
    assert_eq!(ask(&host, &old), GOOD);
    issuer.add_key("k2");
    let new = issuer.token(&json!({}));
    wait_until("the new key is known", || ask(&host, &new) == GOOD);
    assert_eq!(ask(&host, &old), GOOD);
    issuer.remove_old_keys();
    let invalid = (401, json!("invalid_token"));
    wait_until("the old key is gone", || ask(&host, &old) == invalid);
    assert_eq!(ask(&host, &new), GOOD);
}

#[test]
fn unknown_keys_do_not_flood_the_issuer() {
    let issuer = Issuer::start();
    let host = start(&issuer, "");
    let token = issuer.sign(&json!({ "alg": "EdDSA", "kid": "k9" }), &json!({}));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..40 {
                    assert_eq!(ask(&host, &token), (401, json!("invalid_token")));
                }
            });
        }
    });
    let requests = issuer.requests();
    assert_eq!(requests, ["/realm/.well-known/openid-configuration", "/realm/keys"]);
}

#[test]
fn stored_keys_serve_a_start_without_the_issuer() {
    let issuer = Issuer::start();
    let config = config(&issuer, "refresh = \"1s\"\ngrace = \"1h\"");
    let host = start_in(tempfile::tempdir().unwrap(), &config);
    host.wait_for_event("token_keys_fetched", &[]);
    let token = issuer.token(&json!({}));
    wait_until("the keys are stored", || check(&host).0.contains("key set: 1"));
    issuer.behave(Behaviour::Closed);
    let host = start_in(host.into_dir(), &config);
    host.wait_for_event("token_keys_unavailable", &[("usable", "true")]);
    assert_eq!(ask(&host, &token), GOOD);
    assert_ne!(host.status()["tokens"]["problem"], Value::Null);
    issuer.behave(Behaviour::Good);
    wait_until("the issuer is reached", || host.status()["tokens"]["problem"] == Value::Null);
    // Keys of another issuer are not used for it.
    issuer.behave(Behaviour::Closed);
    let moved = config.replace("/realm\"", "/other\"");
    let host = start_in(host.into_dir(), &moved);
    assert_eq!(ask(&host, &token), (503, json!("token_keys_unavailable")));
}

#[test]
fn keys_are_not_used_after_the_grace_time() {
    let issuer = Issuer::start();
    let host = start(&issuer, "refresh = \"1s\"\ngrace = \"2s\"");
    let token = issuer.token(&json!({}));
    assert_eq!(ask(&host, &token), GOOD);
    issuer.behave(Behaviour::Closed);
    let unavailable = (503, json!("token_keys_unavailable"));
    wait_until("the keys are too old", || ask(&host, &token) == unavailable);
    assert!(ask_at(&host, CHAT, &token).header("retry-after").is_some());
    assert_eq!(ask(&host, "sesame"), GOOD);
    host.wait_for_event("token_keys_unavailable", &[("usable", "false")]);
    issuer.behave(Behaviour::Good);
    wait_until("the keys are fetched again", || ask(&host, &token) == GOOD);
}

/// What an issuer, or an attacker between it and the host, may send. None of it is used.
#[test]
fn bad_issuers_are_refused() {
    let attacker = Issuer::start();
    let issuer = Issuer::start();
    let (url, theirs) = (issuer.url(), attacker.key_set().to_string());
    let document = |issuer: &str, keys: &str| {
        Behaviour::Document(json!({ "issuer": issuer, "jwks_uri": keys }).to_string())
    };
    let attackers_keys = format!("{}/keys", attacker.url());
    let huge = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(300 << 10));
    let redirect = format!("HTTP/1.1 302 Found\r\nlocation: {attackers_keys}");
    for behaviour in [
        Behaviour::Closed,
        Behaviour::Head(redirect),
        Behaviour::Head("HTTP/1.1 500 Internal Server Error".to_owned()),
        document(&attacker.url(), &attackers_keys),
        document(&url, "http://login.example.org/keys"),
        document(&url, "file:///dev/zero"),
        document(&url, "keys"),
        Behaviour::Document("<html>".to_owned()),
        Behaviour::Document("{}".to_owned()),
        Behaviour::KeySet("{\"keys\":[]}".to_owned()),
        Behaviour::KeySet(huge),
        Behaviour::KeySet(format!("{theirs}{theirs}")),
    ] {
        issuer.behave(behaviour.clone());
        let host = start_in(tempfile::tempdir().unwrap(), &config(&issuer, ""));
        host.wait_for_event("token_keys_unavailable", &[("usable", "false")]);
        for token in [issuer.token(&json!({})), attacker.token(&json!({ "iss": url }))] {
            assert_eq!(ask(&host, &token).0, 503, "{behaviour:?}");
        }
    }
    assert!(attacker.requests().is_empty(), "redirects are not followed");
}

#[test]
fn keys_are_read_from_a_file() {
    let issuer = Issuer::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.json");
    let write = |text: &str| pointsman_tests::guests::replace_file(&file, text.as_bytes());
    write(&issuer.key_set().to_string());
    let config = config(&issuer, "jwks-file = \"keys.json\"\nrefresh = \"1s\"");
    let host = start_in(dir, &config);
    let old = issuer.token(&json!({}));
    assert_eq!(ask(&host, &old), GOOD);
    issuer.add_key("k2");
    issuer.remove_old_keys();
    write(&issuer.key_set().to_string());
    let new = issuer.token(&json!({}));
    wait_until("the file is read again", || ask(&host, &new) == GOOD);
    assert_eq!(ask(&host, &old), (401, json!("invalid_token")));
    assert!(issuer.requests().is_empty());
    write("{}");
    host.wait_for_event("token_keys_unavailable", &[("usable", "true")]);
    assert_eq!(ask(&host, &new), GOOD);
    let (text, is_valid) = check(&host);
    assert!(!is_valid && text.contains("keys.json"), "{text}");
}
