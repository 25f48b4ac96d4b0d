//! Engines and their processes: none is killed without reason, and none is impersonated.

use std::time::Duration;

use pointsman_tests::attack::{HostileEngine, client_that_does_not_read};
use pointsman_tests::client::{chat, open, post};
use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::{pause, wait_until};
use serde_json::json;

use super::CHAT;
use crate::{FAKE_ENGINE, host};

/// A time in which a hanging engine would be found.
const WATCHED: &str = "liveness = { stall-timeout = \"1s\" }";

/// The counters of an engine that works may move only at the end of a request.
#[test]
fn slow_plain_response_does_not_get_its_engine_killed() {
    let script = r#"{"token-ms": 100, "tokens": 30}"#;
    let command = format!("[{FAKE_ENGINE:?}, \"--port\", \"{{port}}\", \"--script\", '{script}']");
    let lanes = [
        fake_lane(FAKE_ENGINE, "a", &["a"], WATCHED, &["--script", script]),
        format!(
            "[[lanes]]\nname = \"b\"\n{WATCHED}\n[lanes.engine]\ndriver = \"command\"\ncommand = \
             {command}\n"
        ),
    ];
    let host = host(&lanes.concat());
    let engines = host.descendants();
    for model in ["a", "b"] {
        let response = post(host.port, CHAT, &chat(model, json!({ "max_tokens": 30 })));
        assert_eq!(response.status, 200, "{model}: {}", response.text());
    }
    assert_eq!(host.descendants(), engines, "no engine was started again");
    host.assert_no_request_lost();
}

/// The client's silence is not the engine's.
#[test]
fn client_that_does_not_read_does_not_get_the_engine_killed() {
    let arguments = ["--script", r#"{"echo": true}"#];
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], WATCHED, &arguments);
    let host = host(&lane);
    let engines = host.descendants();
    let client = client_that_does_not_read(host.port, "a");
    wait_until("the engine has the request", || host.metric("pointsman_lane_running", "") == 1.0);
    // The attack: nothing is read for longer than the engine may be silent.
    pause(Duration::from_secs(4));
    assert_eq!(host.descendants(), engines, "no engine was started again");
    drop(client);
    host.assert_no_request_lost();
    host.stop();
}

/// Another process has the port of a lane before its engine.
#[test]
fn listener_of_another_process_gets_no_prompt() {
    let squatter = HostileEngine::honest();
    let config = format!(
        "server = {{ deadline = \"3s\" }}\n[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \
         \"command\"\ncommand = [\"sleep\", \"30\"]\nport = {}\nready = \"/v1/models\"\n",
        squatter.port
    );
    let host = Host::start(&program(FAKE_ENGINE), &config);
    host.wait_for_event("engine_starting", &[("lane", "a")]);
    for _ in 0..2 {
        let response = post(host.port, CHAT, &chat("a", json!({})));
        assert!(response.status >= 500, "{}", response.text());
    }
    assert!(squatter.requests().is_empty());
    host.assert_no_request_lost();
}

#[test]
fn noisy_engine_does_not_fill_the_log() {
    let noise = format!(
        "yes 'a line of an engine that says too much' | head -c 40000000; exec {FAKE_ENGINE} \
         --port $0"
    );
    let config = format!(
        "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"command\"\ncommand = [\"sh\", \"-c\", \
         {noise:?}, \"{{port}}\"]\n"
    );
    let host = host(&config);
    let written = host.log_text().len();
    assert!(written < 8 << 20, "{written} bytes of log");
    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200);
    host.stop();
}

/// Priority and cache of vLLM are the operator's, in headers and in the body.
#[test]
fn client_sets_no_priority_at_vllm() {
    let config = format!(
        "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"vllm\"\nprogram = \
         [{FAKE_ENGINE:?}]\nmodel = \"/m/a\"\nenv = {{ FAKE_ENGINE = {:?} }}\n",
        r#"--script '{"echo": true}'"#
    );
    let host = host(&config);
    let body = chat("a", json!({ "priority": -999, "cache_salt": "mine" })).to_string();
    let headers = [("content-type", "application/json"), ("x-vllm-priority", "-999")];
    let response = open(host.port, "POST", CHAT, &headers, body.as_bytes()).finish().0;
    assert_eq!(response.status, 200, "{}", response.text());
    let text = response.text();
    assert!(!text.contains("-999") && !text.contains("mine"), "{text}");
    host.assert_no_request_lost();
}
