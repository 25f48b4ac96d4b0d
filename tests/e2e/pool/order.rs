//! Priorities, in our queue and in the engine's own.

use std::fs;

use pointsman_tests::client::{chat, send};
use pointsman_tests::guests::{component, module};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use super::{CHAT, engine, one_at_a_time, queued, vllm};
use crate::FAKE_ENGINE;

/// A policy for which the number of tokens that a client wants is the priority of its request.
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
    Host::start_in(&program(FAKE_ENGINE), dir, &one_at_a_time(head, lanes), &[])
}

fn asking(host: &Host, priority: u64) -> std::thread::JoinHandle<u16> {
    let (port, id) = (host.port, format!("p{priority}"));
    let body = chat("a", json!({ "max_tokens": priority })).to_string();
    std::thread::spawn(move || {
        let headers = [("content-type", "application/json"), ("x-request-id", &*id)];
        send(port, "POST", CHAT, &headers, body.as_bytes()).status
    })
}

/// Who was served, in order.
fn served(host: &Host) -> Vec<String> {
    let served = engine(host, "a")["served"].clone();
    let id = |id: &Value| id.as_str().unwrap().trim_start_matches("chatcmpl-").to_owned();
    let ids = served.as_array().unwrap().iter().map(id);
    ids.filter(|id| id.starts_with('p')).collect()
}

#[test]
fn priorities_reach_the_engine_lower_first() {
    let lane = vllm("a", "", "max-num-seqs = 1", r#"--load-ms 100 --script '{"token-ms": 100}'"#);
    let host = start(&[lane]);
    let mut answers = Vec::new();
    for (index, priority) in [8, 3, 5, 9].into_iter().enumerate() {
        answers.push(asking(&host, priority));
        wait_until("the engine has it", || {
            host.lane("a")["engine"] == "ready"
                && engine(&host, "a")["priorities"].as_array().unwrap().len() == index + 1
        });
    }
    answers.into_iter().for_each(|answer| assert_eq!(answer.join().unwrap(), 200));
    assert_eq!(engine(&host, "a")["priorities"], json!([-8, -3, -5, -9]));
    assert_eq!(served(&host), ["p8", "p9", "p5", "p3"]);
    host.assert_nothing_lost();
}

#[test]
fn priorities_order_those_who_wait_for_a_lane() {
    let host = start(&[vllm("a", "slots = 1", "", "--load-ms 1200")]);
    let mut answers = Vec::new();
    for (index, priority) in [3, 5, 9].into_iter().enumerate() {
        answers.push(asking(&host, priority));
        wait_until("it waits", || queued(&host, "a") == index + 1);
    }
    answers.into_iter().for_each(|answer| assert_eq!(answer.join().unwrap(), 200));
    assert_eq!(served(&host), ["p9", "p5", "p3"]);
    host.assert_nothing_lost();
}
