//! Request priorities, in the host's queue and in the engine's scheduler.

use std::fs;

use pointsman_tests::client::{chat, send};
use pointsman_tests::guests::{component, module};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use super::{CHAT, engine_state, queue_length, single_lane_group, vllm_lane};
use crate::FAKE_ENGINE;

/// The code of a policy that uses the requested number of tokens as the priority of the request.
const PRIORITY: &str = "(ADVISE
  (i32.store8 (i32.const 2100) (i32.const 1))
  (i32.store (i32.const 2104) (local.get 10))
  (i32.store8 (i32.const 2128) (i32.const 1))
  (i32.const 2048))";

fn start(lanes: &[String]) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("policies/priority");
    fs::create_dir_all(&folder).unwrap();
    let manifest = "name = \"priority\"
version = \"1\"
api = \"0.1\"
[allow]
priority = [-10, 10]
";
    fs::write(folder.join("policy.toml"), manifest).unwrap();
    fs::write(
        folder.join("policy.wasm"),
        component(&module("priority", PRIORITY), "policy", |wit| wit),
    )
    .unwrap();
    let head = "policies = { cache = \"cache\", chain = [{ name = \"priority\" }] }\n";
    Host::start_in(&program(FAKE_ENGINE), dir, &single_lane_group(head, lanes), &[])
}

fn spawn_chat(host: &Host, priority: u64) -> std::thread::JoinHandle<u16> {
    let (port, id) = (host.port, format!("p{priority}"));
    let body = chat("a", json!({ "max_tokens": priority })).to_string();
    std::thread::spawn(move || {
        let headers = [("content-type", "application/json"), ("x-request-id", &*id)];
        send(port, "POST", CHAT, &headers, body.as_bytes()).status
    })
}

/// Returns the ids of the requests in the order in which the engine served them.
fn served(host: &Host) -> Vec<String> {
    let served = engine_state(host, "a")["served"].clone();
    // The host appends a random part to each id.
    let id = |id: &Value| id.as_str().unwrap().split('-').nth(1).unwrap_or_default().to_owned();
    let ids = served.as_array().unwrap().iter().map(id);
    ids.filter(|id| id.starts_with('p')).collect()
}

#[test]
fn priorities_reach_engine_inverted() {
    let lane =
        vllm_lane("a", "", "max-num-seqs = 1", r#"--load-ms 100 --script '{"token-ms": 100}'"#);
    let host = start(&[lane]);
    let mut responses = Vec::new();
    for (index, priority) in [8, 3, 5, 9].into_iter().enumerate() {
        responses.push(spawn_chat(&host, priority));
        wait_until("the engine has the request", || {
            host.lane("a")["engine"] == "ready"
                && engine_state(&host, "a")["priorities"].as_array().unwrap().len() == index + 1
        });
    }
    responses.into_iter().for_each(|response| assert_eq!(response.join().unwrap(), 200));
    assert_eq!(engine_state(&host, "a")["priorities"], json!([-8, -3, -5, -9]));
    assert_eq!(served(&host), ["p8", "p9", "p5", "p3"]);
    host.assert_no_request_lost();
}

#[test]
fn priorities_order_queue_of_lane() {
    let host = start(&[vllm_lane("a", "slots = 1", "", "--load-ms 1200")]);
    let mut responses = Vec::new();
    for (index, priority) in [3, 5, 9].into_iter().enumerate() {
        responses.push(spawn_chat(&host, priority));
        wait_until("the request is queued", || queue_length(&host, "a") == index + 1);
    }
    responses.into_iter().for_each(|response| assert_eq!(response.join().unwrap(), 200));
    assert_eq!(served(&host), ["p9", "p5", "p3"]);
    host.assert_no_request_lost();
}
