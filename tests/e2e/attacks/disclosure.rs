//! What clients, engines and others learn that they should not.

use std::fs;

use pointsman_tests::attack::{HostileEngine, RawClient, external_lane};
use pointsman_tests::client::{chat, get, open, post};
use pointsman_tests::host::{Host, program, root};
use serde_json::json;

use super::{CHAT, MODELS, host_with};
use crate::{FAKE_ENGINE, lane};

const SOON: std::time::Duration = std::time::Duration::from_secs(10);

/// Sends a `GET` with these header lines; returns status and body.
fn get_with(host: &Host, path: &str, headers: &str) -> (Option<u16>, String) {
    let mut client = RawClient::connect(host.port);
    client.send(format!("GET {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n"));
    let response = client.read_to_end(SOON);
    (response.status(), response.text())
}

#[test]
fn status_and_metrics_need_a_key_once_there_are_keys() {
    let lane = external_lane("a", &["a"], &HostileEngine::honest(), "");
    let config = format!("[[keys]]\ntenant = \"t\"\nenv = \"A_KEY\"\n{lane}");
    let dir = tempfile::tempdir().unwrap();
    let env = [("A_KEY", "the-key-of-the-tenant")];
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &env).wait_until_ready();
    for path in ["/status", "/metrics", MODELS, "/v1/models/%ff"] {
        let (status, text) = get_with(&host, path, "host: localhost\r\n");
        assert_eq!(status, Some(401), "{path}: {text}");
        let wrong = "host: localhost\r\nauthorization: Bearer wrong\r\n";
        assert_eq!(get_with(&host, path, wrong).0, Some(401), "{path}");
    }
    for path in ["/livez", "/readyz", "/health"] {
        let (status, text) = get_with(&host, path, "host: localhost\r\n");
        assert!(matches!(status, Some(200 | 503)), "{path}: {text}");
    }
}

/// The status for clients has names, states and counts: no settings of policies, no process ids, no
/// ports of engines.
#[test]
fn status_for_clients_has_no_settings_of_policies() {
    let policies = root().join("policies");
    let config = format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \
         \"redact\"\nconfig = {{ words = [\"project-bluebird\"] }}\n{}",
        lane("a", &["a"], &[])
    );
    let host = Host::start(&program(FAKE_ENGINE), &config).wait_until_ready();
    post(host.port, CHAT, &chat("a", json!({})));
    for path in ["/status", "/metrics", MODELS] {
        let text = get(host.port, path).text();
        for secret in ["project-bluebird", "\"config\"", "\"pid\"", "\"port\"", "\"problem\""] {
            assert!(!text.contains(secret), "{path}: {secret}: {text}");
        }
    }
}

/// A browser that a page has led to this address by DNS sends the name of the page.
#[test]
fn foreign_host_names_are_refused() {
    let engine = HostileEngine::honest();
    let host = host_with(&engine);
    for path in ["/status", MODELS, "/metrics"] {
        for name in ["evil.example", "evil.example:80", "127.0.0.1.evil.example"] {
            let (status, text) = get_with(&host, path, &format!("host: {name}\r\n"));
            assert!(matches!(status, Some(400 | 403 | 421)), "{path} {name}: {text}");
        }
        for name in ["localhost", "127.0.0.1", &format!("127.0.0.1:{}", host.port)] {
            let (status, text) = get_with(&host, path, &format!("host: {name}\r\n"));
            assert_eq!(status, Some(200), "{path} {name}: {text}");
        }
    }
    let body = chat("a", json!({})).to_string();
    let mut client = RawClient::connect(host.port);
    client.send(format!(
        "POST {CHAT} HTTP/1.1\r\nhost: evil.example\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ));
    let response = client.read_to_end(SOON);
    assert!(matches!(response.status(), Some(400 | 403 | 421)), "{}", response.text());
    assert!(engine.requests().is_empty());
}

#[test]
fn missing_and_double_host_are_refused() {
    let host = host_with(&HostileEngine::honest());
    for headers in ["", "host: localhost\r\nhost: localhost\r\n"] {
        let (status, text) = get_with(&host, "/livez", headers);
        assert!(matches!(status, Some(400 | 403 | 421)), "{headers}: {text}");
    }
}

/// Neither engines nor the keeper see the keys of clients, the admin token, or the key of another
/// lane.
#[test]
fn processes_inherit_no_secrets() {
    let external = external_lane("b", &["b"], &HostileEngine::honest(), "");
    let config = format!(
        "[[keys]]\ntenant = \"t\"\nenv = \"A_KEY\"\n[admin]\nlisten = \"127.0.0.1:0\"\ntoken-env = \
         \"A_TOKEN\"\n{}{external}key-env = \"AN_ENGINES_KEY\"\n",
        lane("a", &["a"], &[])
    );
    let env = [
        ("A_KEY", "secret-of-a-client"),
        ("A_TOKEN", "secret-of-the-operator"),
        ("AN_ENGINES_KEY", "secret-of-an-engine"),
        ("HARMLESS", "harmless-value"),
    ];
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &env).wait_until_ready();
    let processes = host.descendants();
    assert!(processes.len() >= 2, "the engine and the keeper: {processes:?}");
    let environments: Vec<String> = processes
        .iter()
        .filter_map(|pid| fs::read(format!("/proc/{pid}/environ")).ok())
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .collect();
    assert!(environments.iter().any(|text| text.contains("harmless-value")));
    for text in environments {
        assert!(!text.contains("secret-of"), "{text}");
    }
}

#[test]
fn short_admin_token_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pointsman.toml");
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"\ntoken-env = \"A_TOKEN\"\n";
    fs::write(&file, format!("{admin}{}", lane("a", &["a"], &[]))).unwrap();
    for (token, is_valid) in [("short", false), ("long-enough-for-an-admin-token-0123", true)] {
        let mut check = std::process::Command::new(program(FAKE_ENGINE));
        let output = check.arg("check").arg(&file).env("A_TOKEN", token).output().unwrap();
        assert_eq!(output.status.success(), is_valid, "{token}: {output:?}");
    }
}

/// Which requests are recorded is not up to the clients: the id that a client sends decides
/// nothing.
#[test]
fn clients_id_does_not_decide_what_is_recorded() {
    let config = format!(
        "[records]\ndir = \"records\"\nsample = \"50%\"\n{}",
        external_lane("a", &["a"], &HostileEngine::honest(), "")
    );
    let mut host = Host::start(&program(FAKE_ENGINE), &config).wait_until_ready();
    let headers = [("content-type", "application/json"), ("x-request-id", "mine")];
    let body = chat("a", json!({})).to_string();
    for _ in 0..64 {
        assert_eq!(open(host.port, "POST", CHAT, &headers, body.as_bytes()).finish().0.status, 200);
    }
    host.signal(rustix::process::Signal::TERM);
    assert!(host.wait_for_exit().success());
    let file = host.dir.path().join("records/decisions.jsonl");
    let text = fs::read_to_string(file).unwrap();
    // The other lines describe the host.
    let recorded = text.lines().filter(|line| line.contains("\"mine\"")).count();
    assert!((1..64).contains(&recorded), "{recorded}");
}
