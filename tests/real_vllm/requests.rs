//! Requests to a loaded vLLM.

use std::time::{Duration, Instant};

use pointsman_tests::client::{get, post, send, stream};
use pointsman_tests::host::Host;
use serde_json::json;

use crate::client::{CHAT, chat_body, spawn_stream, stream_body};
use crate::environment::{TestEnvironment, VLLM};
use crate::wait_long;

pub(crate) fn plain_chat(environment: &mut TestEnvironment) {
    let running = environment.ready_host();
    let start = Instant::now();
    let response = post(running.host.port, CHAT, &chat_body(VLLM, 8, &json!({})));
    let took = start.elapsed();
    assert_eq!(
        (response.status, response.header("x-pointsman-lane")),
        (200, Some(VLLM)),
        "{}",
        response.text()
    );
    let response = response.json();
    let seen = format!("200, usage {}", response["usage"]);
    environment.report.row("plain chat, 8 tokens", &seen, Some(took));
    assert_eq!(
        (&response["usage"]["completion_tokens"], &response["model"]),
        (&json!(8), &json!(VLLM)),
        "{response}"
    );
    assert_eq!(response["choices"][0]["finish_reason"], "length", "{response}");
    let text = json!({ "model": VLLM, "prompt": "hello", "max_tokens": 4, "ignore_eos": true });
    let text = post(running.host.port, "/v1/completions", &text);
    assert!(text.status == 200 && text.json()["choices"][0]["text"].is_string(), "{}", text.text());
}

pub(crate) fn stream_and_metrics(environment: &mut TestEnvironment) {
    let running = environment.ready_host();
    let host = &running.host;
    let response = spawn_stream(host.port, stream_body(VLLM, 200));
    // What the host reads from the engine's metrics during the stream.
    let (mut fastest, mut fullest) = (0.0, 0.0);
    while !response.is_finished() {
        let lane = host.lane(VLLM);
        fastest = lane["decode_tokens_per_second"].as_f64().unwrap_or(0.0).max(fastest);
        fullest = lane["kv_used_permille"].as_f64().unwrap_or(0.0).max(fullest);
        pointsman_tests::pause(Duration::from_millis(100));
    }
    let outcome = response.join().unwrap();
    assert!(
        outcome.is_done() && outcome.last_event().contains("\"completion_tokens\":200"),
        "{outcome:?}"
    );
    let rate = 200.0 / outcome.took.as_secs_f64();
    let seen = format!("{} chunks, usage, [DONE]; {rate:.0} tokens/s", outcome.chunks());
    environment.report.row("stream of 200 tokens", &seen, Some(outcome.took));
    environment.report.row("its first token", "", outcome.first);
    let seen = format!("at most {fastest} tokens/s, {fullest} permille of the KV cache");
    environment.report.row("the host's metrics meanwhile", &seen, None);
    assert!(fastest > 0.0 && fullest > 0.0, "{fastest} tokens/s, {fullest} permille");
}

pub(crate) fn request_id_is_forwarded(environment: &mut TestEnvironment) {
    let running = environment.ready_host();
    let headers = [("content-type", "application/json"), ("x-request-id", "abc-123")];
    let body = chat_body(VLLM, 1, &json!({})).to_string();
    let response = send(running.host.port, "POST", CHAT, &headers, body.as_bytes());
    let id = response.json()["id"].as_str().unwrap_or_default().to_owned();
    let back = response.header("x-request-id").unwrap_or_default();
    environment.report.row("X-Request-Id: abc-123", &format!("id {id}, header {back}"), None);
    assert!(id.starts_with("chatcmpl-abc-123-"), "{id}");
    assert_eq!(back, "abc-123");
}

pub(crate) fn parameters_are_forwarded(environment: &mut TestEnvironment) {
    let running = environment.ready_host();
    let more = json!({ "top_k": 5, "min_tokens": 2, "no_such_parameter": { "a": [1] } });
    let response = post(running.host.port, CHAT, &chat_body(VLLM, 4, &more));
    environment.report.row(
        "parameters of vLLM, and an unknown one",
        &response.status.to_string(),
        None,
    );
    assert_eq!(response.status, 200, "{}", response.text());
    // vLLM rejects this parameter unless it schedules by priority.
    let response = post(running.host.port, CHAT, &chat_body(VLLM, 4, &json!({ "priority": 3 })));
    environment.report.row("priority 3", &response.status.to_string(), None);
    assert_eq!(response.status, 200, "{}", response.text());
}

pub(crate) fn client_disconnect_frees_slot(environment: &mut TestEnvironment) {
    let running = environment.ready_host();
    let host = &running.host;
    let mut response = stream(host.port, CHAT, &stream_body(VLLM, 800));
    assert!(response.read_until("\"content\":"));
    wait_long("vLLM reports one running request", || running_in_vllm(host) == 1.0);
    drop(response);
    let engine = wait_long("vLLM reports no running request", || running_in_vllm(host) == 0.0);
    let lane = wait_long("the host reports no running request", || host.lane(VLLM)["running"] == 0);
    let seen = "vllm:num_requests_running 1 > 0, the lane's too".to_owned();
    environment.report.row("client disconnects in mid-stream", &seen, Some(engine + lane));
    assert!(engine < Duration::from_secs(3), "it took {engine:?}");
    assert_eq!(post(host.port, CHAT, &chat_body(VLLM, 1, &json!({}))).status, 200);
}

/// Returns the number of running requests that vLLM reports.
fn running_in_vllm(host: &Host) -> f64 {
    let text = get(host.engine_port(VLLM), "/metrics").text();
    let lines = text.lines().filter(|line| line.starts_with("vllm:num_requests_running"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}
