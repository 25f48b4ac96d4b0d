//! Clients and policies against each other: no client switches a policy off, and no policy holds up
//! other clients.

use pointsman_tests::attack::{HostileEngine, external_lane, launcher};
use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, program, root};
use serde_json::{Value, json};

use super::CHAT;
use crate::FAKE_ENGINE;

const ADDRESS: &str = "jane.doe@example.com";

/// Starts a host with a policy of the project, and one lane with this engine.
fn host_with_policy(name: &str, keys: &str, engine: &HostileEngine) -> Host {
    let config = config_with_policy(name, keys, engine);
    Host::start(&program(FAKE_ENGINE), &config).wait_until_ready()
}

fn config_with_policy(name: &str, keys: &str, engine: &HostileEngine) -> String {
    let policies = root().join("policies");
    let lane = external_lane("a", &["a"], engine, "");
    format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \
         {name:?}\n{keys}\n{lane}"
    )
}

/// A chat with this many messages, one of which has an address.
fn long_chat(messages: usize) -> Value {
    let filler = json!({ "role": "user", "content": "abcd" });
    let mut messages = vec![filler; messages];
    messages.push(json!({ "role": "user", "content": format!("write to {ADDRESS}") }));
    json!({ "model": "a", "messages": messages })
}

/// Long conversations are read in time, and those of one client do not switch the policy off for
/// others.
#[test]
fn long_conversations_do_not_switch_redaction_off() {
    let engine = HostileEngine::honest();
    let host = host_with_policy("redact", "", &engine);
    for _ in 0..8 {
        post(host.port, CHAT, &long_chat(2000));
        let response = post(host.port, CHAT, &long_chat(1));
        assert_eq!(response.status, 200, "{}", response.text());
    }
    let requests = engine.requests();
    assert!(requests.len() >= 8);
    assert!(requests.iter().all(|request| !request.text().contains(ADDRESS)));
    assert_eq!(host.metric("pointsman_policy_faults_total", "policy=\"redact\""), 0.0);
    host.assert_no_request_lost();
}

/// A limit of the output is one under each of its names.
#[test]
fn quota_counts_every_name_of_the_output_limit() {
    let engine = HostileEngine::honest();
    let quota = "config = { default = { tokens = 3000 } }";
    let host = host_with_policy("quota", quota, &engine);
    for limit in [
        json!({ "max_tokens": 100_000 }),
        json!({ "max_completion_tokens": 100_000 }),
        json!({ "n_predict": 100_000 }),
        json!({ "max_tokens": 5, "n_predict": 100_000 }),
        json!({ "max_tokens": 100_000.0 }),
        json!({ "max_tokens": 100, "n": 100 }),
        json!({ "max_tokens": 5, "min_tokens": 100_000 }),
    ] {
        let response = post(host.port, CHAT, &chat("a", limit.clone()));
        assert!(matches!(response.status, 400 | 413 | 429), "{limit}: {}", response.text());
    }
    assert!(engine.requests().is_empty());
    host.assert_no_request_lost();
}

/// Containers and shells limit the address space; policies reserve little of it.
#[test]
fn policies_work_in_a_small_address_space() {
    let engine = HostileEngine::honest();
    let dir = tempfile::tempdir().unwrap();
    let limited = launcher(dir.path(), &program(FAKE_ENGINE), "ulimit -v 4194304");
    let config = config_with_policy("redact", "", &engine);
    let host = Host::start_in(&limited, dir, &config, &[]).wait_until_ready();
    let response = post(host.port, CHAT, &long_chat(1));
    assert_eq!(response.status, 200, "{}", response.text());
    assert!(!engine.requests()[0].text().contains(ADDRESS));
    host.assert_no_request_lost();
}
