//! vLLM answers.

use std::time::{Duration, Instant};

use pointsman_tests::client::{get, post, send, stream};
use pointsman_tests::host::Host;
use serde_json::json;

use crate::talk::{CHAT, ask, asking, asking_for_stream};
use crate::wait_long;
use crate::world::{VLLM, World};

pub(crate) fn plain(world: &mut World) {
    let running = world.ready();
    let begun = Instant::now();
    let reply = post(running.host.port, CHAT, &asking(VLLM, 8, &json!({})));
    let took = begun.elapsed();
    assert_eq!(
        (reply.status, reply.header("x-pointsman-lane")),
        (200, Some(VLLM)),
        "{}",
        reply.text()
    );
    let answer = reply.json();
    let seen = format!("200, usage {}", answer["usage"]);
    world.report.row("plain chat, 8 tokens", &seen, Some(took));
    assert_eq!(
        (&answer["usage"]["completion_tokens"], &answer["model"]),
        (&json!(8), &json!(VLLM)),
        "{answer}"
    );
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer}");
    let text = json!({ "model": VLLM, "prompt": "hello", "max_tokens": 4, "ignore_eos": true });
    let text = post(running.host.port, "/v1/completions", &text);
    assert!(text.status == 200 && text.json()["choices"][0]["text"].is_string(), "{}", text.text());
}

pub(crate) fn streaming(world: &mut World) {
    let running = world.ready();
    let host = &running.host;
    let answer = ask(host.port, asking_for_stream(VLLM, 200));
    // What the host reads from the engine's metrics meanwhile.
    let (mut fastest, mut fullest) = (0.0, 0.0);
    while !answer.is_finished() {
        let lane = host.lane(VLLM);
        fastest = lane["decode_tokens_per_second"].as_f64().unwrap_or(0.0).max(fastest);
        fullest = lane["kv_used_permille"].as_f64().unwrap_or(0.0).max(fullest);
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let told = answer.join().unwrap();
    assert!(told.done() && told.last().contains("\"completion_tokens\":200"), "{told:?}");
    let rate = 200.0 / told.took.as_secs_f64();
    let seen = format!("{} pieces, usage, [DONE]; {rate:.0} tokens/s", told.pieces());
    world.report.row("stream of 200 tokens", &seen, Some(told.took));
    world.report.row("first token of it", "", told.first);
    let seen = format!("at most {fastest} tokens/s, {fullest} permille of the KV cache");
    world.report.row("the host's figures meanwhile", &seen, None);
    assert!(fastest > 0.0 && fullest > 0.0, "{fastest} tokens/s, {fullest} permille");
}

pub(crate) fn the_request_id_is_passed_on(world: &mut World) {
    let running = world.ready();
    let headers = [("content-type", "application/json"), ("x-request-id", "abc-123")];
    let body = asking(VLLM, 1, &json!({})).to_string();
    let reply = send(running.host.port, "POST", CHAT, &headers, body.as_bytes());
    let id = reply.json()["id"].as_str().unwrap_or_default().to_owned();
    let back = reply.header("x-request-id").unwrap_or_default();
    world.report.row("X-Request-Id: abc-123", &format!("id {id}, header {back}"), None);
    assert_eq!((id.as_str(), back), ("chatcmpl-abc-123", "abc-123"));
}

pub(crate) fn parameters_pass(world: &mut World) {
    let running = world.ready();
    let more = json!({ "top_k": 5, "min_tokens": 2, "no_such_parameter": { "a": [1] } });
    let reply = post(running.host.port, CHAT, &asking(VLLM, 4, &more));
    world.report.row(
        "parameters of vLLM's own, and one of nobody's",
        &reply.status.to_string(),
        None,
    );
    assert_eq!(reply.status, 200, "{}", reply.text());
    // vLLM refuses this one unless it schedules by priority.
    let reply = post(running.host.port, CHAT, &asking(VLLM, 4, &json!({ "priority": 3 })));
    world.report.row("priority 3", &reply.status.to_string(), None);
    assert_eq!(reply.status, 200, "{}", reply.text());
}

pub(crate) fn a_client_leaves(world: &mut World) {
    let running = world.ready();
    let host = &running.host;
    let mut answer = stream(host.port, CHAT, &asking_for_stream(VLLM, 800));
    assert!(answer.until("\"content\":"));
    wait_long("vLLM says that one is running", || in_vllm(host) == 1.0);
    drop(answer);
    let engine = wait_long("vLLM says that none is running", || in_vllm(host) == 0.0);
    let lane = wait_long("the host says so", || host.lane(VLLM)["running"] == 0);
    let seen = "vllm:num_requests_running 1 > 0, the lane's too".to_owned();
    world.report.row("client leaves in mid-stream", &seen, Some(engine + lane));
    assert!(engine < Duration::from_secs(3), "it took {engine:?}");
    assert_eq!(post(host.port, CHAT, &asking(VLLM, 1, &json!({}))).status, 200);
}

/// Requests that vLLM says it works on.
fn in_vllm(host: &Host) -> f64 {
    let text = get(host.engine_port(VLLM), "/metrics").text();
    let lines = text.lines().filter(|line| line.starts_with("vllm:num_requests_running"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
