//! What passes unchanged, and the little that does not: the name of the model, the usage that the
//! host asks for, and what policies edit.

use pointsman_tests::attack::{GOOD_BODY, HostileEngine, external_lane};
use pointsman_tests::client::{chat, post, send, stream};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{Host, fake_lane, program, root};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::policies::chain;
use crate::{FAKE_ENGINE, host, lane};

const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

/// A policy that keeps the last two messages.
const KEEP_TWO: &str = "(ADVISE
  (i32.store8 (i32.const 3000) (i32.const 5))
  (i32.store (i32.const 3004) (i32.const 2))
  (call $pair (i32.const 2156) (i32.const 3000) (i32.const 1))
  (i32.const 2048))";
/// A policy that lowers the output limit to five tokens.
const CAP_FIVE: &str = "(ADVISE
  (i32.store8 (i32.const 3000) (i32.const 1))
  (i32.store (i32.const 3004) (i32.const 5))
  (call $pair (i32.const 2156) (i32.const 3000) (i32.const 1))
  (i32.const 2048))";
const ALLOW: &str = "[allow]\nsystem = true\nfields = [\"/max_tokens\", \
    \"/max_completion_tokens\", \"/n_predict\", \"/max_output_tokens\", \"/num_predict\"]\n";

/// Returns a lane whose engine calls the model `engine`, whatever the client asked for.
fn renaming_lane(flavour: &str, more: &str) -> String {
    let arguments = ["--flavour", flavour, "--served-model-name", "engine"];
    fake_lane(
        FAKE_ENGINE,
        "a",
        &["a", "asked"],
        &format!("engine-model = \"engine\"\n{more}"),
        &arguments,
    )
}

/// Returns the values of `model` in all chunks of a stream.
fn models(text: &str) -> Vec<Value> {
    let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: {"));
    let chunks = events.map(|rest| serde_json::from_str::<Value>(&format!("{{{rest}")).unwrap());
    chunks.map(|chunk| chunk["model"].clone()).collect()
}

#[test]
fn model_comes_back_as_asked() {
    for flavour in ["vllm", "llama-cpp"] {
        let host = host(&renaming_lane(flavour, ""));
        for size in [Value::Null, json!(1), json!(7)] {
            host.set_script("a", json!({ "chunk-size": size }));
            let plain = post(host.port, CHAT, &chat("asked", json!({})));
            assert_eq!(plain.json()["model"], "asked", "{flavour}");
            let body = json!({ "model": "asked", "prompt": "hi" });
            let text = post(host.port, "/v1/completions", &body);
            assert_eq!(text.json()["model"], "asked", "{flavour}");
            let body = chat("asked", json!({ "stream": true }));
            let (response, complete) = stream(host.port, CHAT, &body).finish();
            let models = models(&response.text());
            assert!(complete && models.len() > 5, "{}", response.text());
            assert!(models.iter().all(|model| model == "asked"), "{flavour}: {models:?}");
        }
        host.assert_no_request_lost();
    }
}

#[test]
fn model_may_stay_the_engines() {
    let host =
        host(&["[server]\nresponse-model = \"engine\"\n", &renaming_lane("vllm", "")].concat());
    let plain = post(host.port, CHAT, &chat("asked", json!({})));
    assert_eq!(plain.json()["model"], "engine");
    let (response, _) = stream(host.port, CHAT, &chat("asked", json!({ "stream": true }))).finish();
    assert!(models(&response.text()).iter().all(|model| model == "engine"));
    host.assert_no_request_lost();
}

/// After a fallback, the name is still that which was asked for.
#[test]
fn model_of_another_lane_comes_back_as_asked() {
    let host = host(&[lane("a", &["m"], &[]), lane("b", &["m"], &[])].concat());
    host.set_script("a", json!({ "status": 500 }));
    let response = post(host.port, CHAT, &chat("m", json!({})));
    assert_eq!(response.header("x-pointsman-lane"), Some("b"));
    assert_eq!(response.json()["model"], "m");
    host.assert_no_request_lost();
}

/// Everything but one value keeps its bytes: key order, white space, numbers, nested `model` keys.
#[test]
fn only_the_value_of_the_model_changes() {
    let body = r#" {"choices":[{"message":{"model":"engine","content":"\"model\":\"engine\""}}],
        "x":1.50,"big":18446744073709551616,
        "model" : "engine","created":1E5,"x":null} "#;
    let engine = HostileEngine::answering("200 OK", "", body);
    let lane = external_lane("a", &["asked"], &engine, "engine-model = \"engine\"");
    let host = host(&lane);
    let response = post(host.port, CHAT, &chat("asked", json!({})));
    assert_eq!(response.status, 200);
    assert_eq!(response.text(), body.replace("\"model\" : \"engine\"", "\"model\" : \"asked\""));
    if let Some(length) = response.header("content-length") {
        assert_eq!(length, response.body.len().to_string());
    }
    host.assert_no_request_lost();
}

/// Without `include_usage` the client sees no usage, and the tokens are known all the same.
#[test]
fn usage_that_the_client_did_not_ask_for_is_hidden() {
    for flavour in ["vllm", "llama-cpp"] {
        let host = host(&lane("a", &["a"], &["--flavour", flavour]));
        let (response, complete) =
            stream(host.port, CHAT, &chat("a", json!({ "stream": true }))).finish();
        let text = response.text();
        assert!(complete && text.ends_with("data: [DONE]\n\n"), "{text}");
        assert!(
            !text.contains("\"usage\"") && !text.contains("\"choices\":[]"),
            "{flavour}: {text}"
        );
        let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
        let (response, _) = stream(host.port, CHAT, &chat("a", options)).finish();
        assert!(response.text().contains("\"choices\":[]"), "{}", response.text());
        host.assert_no_request_lost();
    }
}

/// Streams without `include_usage` cost what they cost.
#[test]
fn budget_counts_streams_without_usage() {
    let policies = root().join("policies");
    let lane = |name: &str, cost: u32, slots: u32| {
        let more = format!("cost = {cost}\nlabels = {{ tier = {name:?} }}\nslots = {slots}");
        fake_lane(FAKE_ENGINE, name, &["auto"], &more, &["--script", r#"{"tokens": 1000}"#])
    };
    let config = format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \"budget\"\n\
         config = {{ tiers = [\"best\", \"cheap\"], thresholds = [500], default-milli = 5000 \
         }}\n{}{}",
        lane("best", 1000, 8),
        lane("cheap", 1, 4)
    );
    let host = host(&config);
    // The policy learns of completed requests a moment later.
    let mut lanes = Vec::new();
    pointsman_tests::wait_until("the dear lane is left", || {
        let body = chat("auto", json!({ "stream": true }));
        let (response, _) = stream(host.port, CHAT, &body).finish();
        lanes.extend(response.header("x-pointsman-lane").map(str::to_owned));
        assert!(lanes.len() < 50, "the streams cost nothing: {lanes:?}");
        lanes.last().is_some_and(|lane| lane == "cheap")
    });
    host.assert_no_request_lost();
}

/// Starts a host with one policy, and a lane whose engine repeats the request.
fn echo_host(guest: &Guest) -> Host {
    let dir = tempfile::tempdir().unwrap();
    guest.write_to(&dir.path().join("policies"));
    let lane = lane("a", &["a"], &["--script", r#"{"echo": true}"#]);
    start(dir, &(chain(&[&guest.name], "") + &lane))
}

fn start(dir: TempDir, config: &str) -> Host {
    Host::start_in(&program(FAKE_ENGINE), dir, config, &[]).wait_until_ready()
}

fn echoed(host: &Host, body: &str) -> Value {
    let response = send(host.port, "POST", CHAT, &[JSON], body.as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    serde_json::from_str(response.json()["body"].as_str().unwrap()).unwrap()
}

/// The turn of an agent that ends with the results of parallel tool calls.
#[test]
fn edits_keep_tool_calls_and_last_user_message() {
    let host = echo_host(&Guest::new("trim").code(KEEP_TWO).manifest(ALLOW));
    let function = json!({ "name": "read", "arguments": "{}" });
    let call = |id: &str| json!({ "id": id, "type": "function", "function": function });
    let result = |id: &str| json!({ "role": "tool", "tool_call_id": id, "content": "text" });
    let user = |text: &str| json!({ "role": "user", "content": text });
    let calls =
        json!({ "role": "assistant", "content": null, "tool_calls": [call("a"), call("b")] });
    let system = json!({ "role": "system", "content": "You are an agent." });
    let turn = [user("Fix the bug"), calls, result("a"), result("b")];
    for before in [vec![], vec![user("earlier"), json!({ "role": "assistant", "content": "ok" })]] {
        let messages = [vec![system.clone()], before, turn.to_vec()].concat();
        let body = json!({ "model": "a", "messages": messages }).to_string();
        let kept = echoed(&host, &body)["messages"].as_array().unwrap().clone();
        assert_eq!(kept[0], system);
        assert_eq!(kept[1..], turn, "the user message, the calls and both results");
    }
    host.assert_no_request_lost();
}

/// All names of the output limit are lowered: llama.cpp's `n_predict` beats `max_tokens`.
#[test]
fn output_limit_is_lowered_under_all_its_names() {
    let host = echo_host(&Guest::new("cap").code(CAP_FIVE).manifest(ALLOW));
    for name in ["max_tokens", "max_completion_tokens", "n_predict"] {
        for value in ["40", "40.0", "-1"] {
            let rest = format!(
                "\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}],\"{name}\":{value}"
            );
            let got = echoed(&host, &format!("{{\"model\":\"a\",{rest}}}"));
            let limits = ["max_tokens", "max_completion_tokens", "n_predict"];
            let found: Vec<&Value> = limits.iter().filter_map(|name| got.get(name)).collect();
            assert!(!found.is_empty() && found.iter().all(|limit| **limit == 5), "{rest}: {got}");
        }
    }
    host.assert_no_request_lost();
}

/// A quota counts what a request may generate, under whatever name it says so.
#[test]
fn quota_counts_output_under_all_its_names() {
    let policies = root().join("policies");
    let config = format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \"quota\"\n\
         config = {{ default = {{ tokens = 3000 }} }}\n{}",
        lane("a", &["a"], &[])
    );
    let host = host(&config);
    for more in [
        json!({ "max_tokens": 100_000 }),
        json!({ "max_completion_tokens": 100_000 }),
        json!({ "n_predict": 100_000 }),
        json!({ "max_tokens": 100_000.0 }),
        json!({ "max_tokens": 1000, "n": 100 }),
    ] {
        let response = post(host.port, CHAT, &chat("a", more.clone()));
        // More than the quota of a whole window.
        assert_eq!(response.error_code(), "token_quota_exceeded", "{more}: {}", response.text());
    }
    assert_eq!(post(host.port, CHAT, &chat("a", json!({ "max_tokens": 10 }))).status, 200);
    host.assert_no_request_lost();
}

/// Agents cut texts in the middle of an emoji. Nothing personal is in the text, so it passes.
#[test]
fn half_a_surrogate_pair_passes_the_redaction() {
    let policies = root().join("policies");
    let chain = "[[policies.chain]]\nname = \"redact\"";
    let engine = HostileEngine::honest();
    let lane = external_lane("a", &["a"], &engine, "");
    let host = host(&format!("[policies]\ndir = {policies:?}\ncache = \"cache\"\n{chain}\n{lane}"));
    for half in ["\\ud83d", "\\ude00", "\\ud83d\\ud83d", "\\uD83D end \\u00e9"] {
        let body = format!(
            "{{\"model\":\"a\",\"messages\":[{{\"role\":\"user\",\"content\":\"cut {half}\"}}]}}"
        );
        let response = send(host.port, "POST", CHAT, &[JSON], body.as_bytes());
        assert_eq!(response.status, 200, "{half}: {}", response.text());
        assert_eq!(engine.requests().last().unwrap().text(), body, "{half}");
    }
    host.assert_no_request_lost();
}

/// Clients of SDKs switch on these fields.
#[test]
fn error_keeps_the_engines_type_param_and_code() {
    let error = json!({ "error": { "message": "slow down", "type": "tokens", "param": "messages",
        "code": "rate_limit_exceeded" } });
    for status in ["400 Bad Request", "422 Unprocessable Content", "429 Too Many Requests"] {
        let engine = HostileEngine::answering(status, "", &error.to_string());
        let host = host(&external_lane("a", &["a"], &engine, ""));
        let response = post(host.port, CHAT, &chat("a", json!({})));
        if status.starts_with("429") {
            assert_eq!(response.header("x-pointsman-code"), Some("engine_rate_limited"));
        }
        let got = response.json()["error"].clone();
        for key in ["type", "param", "code"] {
            assert_eq!(got[key], error["error"][key], "{status} {key}: {got}");
        }
        host.assert_no_request_lost();
    }
}

/// What only the engine needs is the engine's to judge.
#[test]
fn content_as_a_list_of_strings_reaches_the_engine() {
    let engine = HostileEngine::answering("200 OK", "", GOOD_BODY);
    let host = host(&external_lane("m", &["m"], &engine, ""));
    let content = json!(["text", { "type": "text", "text": "more" }]);
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": content }] });
    let response = post(host.port, CHAT, &body);
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(engine.requests()[0].json(), body);
    host.assert_no_request_lost();
}
