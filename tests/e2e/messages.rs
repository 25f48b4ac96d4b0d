//! Anthropic's messages API: passed to engines that have it, and translated for those that do not.

use std::io::Write as _;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use pointsman_tests::attack::{HostileEngine, Next, STREAM_HEAD, chunk, external_lane};
use pointsman_tests::client::{Response, get, post, send, stream};
use pointsman_tests::host::{Host, fake_lane, program, root};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::clients::{assert_succeeds, prepared_dir};
use crate::{FAKE_ENGINE, host};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const JSON: (&str, &str) = ("content-type", "application/json");
const NATIVE: &str = "endpoints = [\"chat-completions\", \"messages\", \"count-tokens\"]";
const CHAT_ONLY: &str = "endpoints = [\"chat-completions\"]";

fn message(model: &str, more: Value) -> Value {
    let mut body = json!({ "model": model, "max_tokens": 9,
        "messages": [{ "role": "user", "content": "hello" }] });
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Returns the kinds of the events of a stream, of which each names its kind twice.
fn kinds(stream: &str) -> Vec<&str> {
    let mut kinds = Vec::new();
    for event in stream.split_terminator("\n\n").filter(|event| event.starts_with("event:")) {
        let (kind, data) = event.split_once('\n').unwrap();
        let kind = kind.strip_prefix("event: ").unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(data["type"], kind);
        kinds.push(kind);
    }
    kinds
}

fn error(response: &Response) -> (u16, Value) {
    let body = response.json();
    assert_eq!(body["type"], "error", "{body}");
    assert!(body["error"]["message"].is_string(), "{body}");
    assert!(response.header("request-id").is_some(), "{body}");
    (response.status, body["error"]["type"].clone())
}

/// An engine with chat completions that calls the first tool until it has a result.
fn agent() -> HostileEngine {
    HostileEngine::start(|request, stream| {
        let body = request.json();
        let messages = body["messages"].as_array().unwrap();
        let has_result = messages.last().is_some_and(|last| last["role"] == "tool");
        let is_call = body["tools"].is_array() && !has_result;
        let call = json!({ "index": 0, "id": "call_1", "type": "function", "function":
            { "name": body["tools"][0]["function"]["name"],
                "arguments": "{\"city\": \"Rome\"}" } });
        let said = match is_call {
            true => json!({ "role": "assistant", "content": null, "tool_calls": [call] }),
            false => json!({ "role": "assistant", "content": "sunny" }),
        };
        let finish = if is_call { "tool_calls" } else { "stop" };
        let usage = json!({ "prompt_tokens": 12, "completion_tokens": 3,
            "prompt_tokens_details": { "cached_tokens": 8 } });
        if body["stream"] == true {
            let chunks = [
                json!({ "model": "x", "choices": [{ "index": 0, "delta": said }] }),
                json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": finish }] }),
                json!({ "choices": [], "usage": usage }),
            ];
            stream.write_all(STREAM_HEAD.as_bytes())?;
            for data in chunks {
                stream.write_all(&chunk(format!("data: {data}\n\n").as_bytes()))?;
            }
            stream.write_all(&chunk(b"data: [DONE]\n\n"))?;
            stream.write_all(b"0\r\n\r\n")?;
            return Ok(Next::Close);
        }
        let body = json!({ "id": "c", "model": "x", "choices":
            [{ "index": 0, "message": said, "finish_reason": finish }], "usage": usage })
        .to_string();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{body}",
            body.len()
        )?;
        Ok(Next::Close)
    })
}

#[test]
fn a_tool_loop_works_on_an_engine_without_messages() {
    let engine = agent();
    let host = host(&external_lane("a", &["asked"], &engine, CHAT_ONLY));
    let tools = json!([{ "name": "weather", "description": "d",
        "input_schema": { "type": "object", "properties": { "city": { "type": "string" } } } }]);
    let first = message("asked", json!({ "system": "be kind", "tools": tools }));
    let response = post(host.port, MESSAGES, &first);
    assert_eq!(response.status, 200, "{}", response.text());
    let said = response.json();
    assert_eq!(
        (&said["type"], &said["model"], &said["stop_reason"]),
        (&json!("message"), &json!("asked"), &json!("tool_use"))
    );
    let id = response.header("request-id").unwrap();
    assert_eq!(said["id"], format!("msg_{id}"));
    assert_eq!(response.header("x-request-id"), Some(id));
    assert_eq!(response.header("x-pointsman-lane"), Some("a"));
    assert_eq!(said["usage"]["input_tokens"], 4);
    assert_eq!(said["usage"]["cache_read_input_tokens"], 8);
    let call = json!([{ "type": "tool_use", "id": "call_1", "name": "weather",
        "input": { "city": "Rome" } }]);
    assert_eq!(said["content"], call);

    let result = json!([{ "type": "tool_result", "tool_use_id": "call_1", "content": "25 C" }]);
    let messages = json!([
        { "role": "user", "content": "hello" },
        { "role": "assistant", "content": call },
        { "role": "user", "content": result },
    ]);
    let second = message("asked", json!({ "tools": tools, "messages": messages, "stream": true }));
    let (response, complete) = stream(host.port, MESSAGES, &second).finish();
    let text = response.text();
    assert!(complete, "{text}");
    assert!(response.header("content-type").unwrap().starts_with("text/event-stream"));
    assert_eq!(
        kinds(&text),
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ],
        "{text}"
    );
    assert!(text.contains("\"stop_reason\":\"end_turn\"") && text.contains("sunny"), "{text}");
    let requests = engine.requests();
    assert!(requests.iter().all(|request| request.path == "/v1/chat/completions"));
    let sent = requests[0].json();
    assert_eq!(sent["messages"][0], json!({ "role": "system", "content": "be kind" }));
    let sent = requests[1].json();
    assert_eq!(sent["messages"][2]["tool_call_id"], "call_1");
    assert_eq!(sent["stream_options"]["include_usage"], true);
    let tokens = host.metric("pointsman_requests_total", "outcome=\"answered\"");
    assert!(tokens >= 2.0);
    host.assert_no_request_lost();
}

#[test]
fn engines_that_have_messages_get_the_clients_bytes() {
    let answer = r#"{"id":"m","type":"message","model":"x" ,"content":[{"type":"text"}],"y":1.50}"#;
    let engine = HostileEngine::answering("200 OK", "", answer);
    let more = format!("{NATIVE}\nengine-model = \"a\"");
    let host = host(&external_lane("a", &["a"], &engine, &more));
    let body = r#" {"model":"a", "max_tokens":1e1,"messages":[{"role":"user","content":[
        {"type":"text","text":"caf\u00e9","cache_control":{"type":"ephemeral"}}]}],"z":{} } "#;
    let headers =
        [JSON, ("anthropic-version", "2023-06-01"), ("anthropic-beta", "x"), ("x-api-key", "k")];
    let response = send(host.port, "POST", MESSAGES, &headers, body.as_bytes());
    assert_eq!(response.text(), answer.replace("\"x\"", "\"a\""));
    let received = &engine.requests()[0];
    assert_eq!((received.path.as_str(), received.text()), (MESSAGES, body.to_owned()));
    assert_eq!(received.header("anthropic-version"), Some("2023-06-01"));
    assert_eq!(received.header("anthropic-beta"), Some("x"));
    assert_eq!(received.header("x-api-key"), None);
    host.assert_no_request_lost();
}

#[test]
fn streams_of_engines_that_have_messages_are_observed() {
    for flavour in ["vllm", "llama-cpp"] {
        let arguments = ["--flavour", flavour, "--script", r#"{"chunk-size": 7}"#];
        let lane = fake_lane(FAKE_ENGINE, "served", &["asked"], NATIVE, &arguments);
        let host = host(&lane);
        let body = message("asked", json!({ "stream": true, "max_tokens": 4 }));
        let (response, complete) = stream(host.port, MESSAGES, &body).finish();
        let text = response.text();
        assert!(complete && kinds(&text).ends_with(&["message_delta", "message_stop"]), "{text}");
        assert!(text.contains("\"model\":\"asked\"") && !text.contains("served"), "{text}");
        let whole = post(host.port, MESSAGES, &message("asked", json!({})));
        assert_eq!(whole.json()["model"], "asked");

        host.set_script("served", json!({ "end-after": 2 }));
        let (response, _) = stream(host.port, MESSAGES, &body).finish();
        let text = response.text();
        assert_eq!(kinds(&text).last(), Some(&"error"), "{text}");
        assert!(!text.contains("message_stop"), "{text}");
        host.wait_for_event("response_aborted", &[("cause", "unfinished")]);

        host.set_script("served", json!({ "error-after": 2 }));
        let (response, _) = stream(host.port, MESSAGES, &body).finish();
        let text = response.text();
        assert_eq!(kinds(&text).last(), Some(&"error"), "{text}");
        host.assert_no_request_lost();
    }
}

#[test]
fn a_translated_stream_that_breaks_has_no_end() {
    for script in
        [json!({ "end-after": 2 }), json!({ "error-after": 2 }), json!({ "die-after": 2 })]
    {
        let arguments = ["--flavour", "vllm", "--script", &script.to_string()];
        let host = host(&fake_lane(FAKE_ENGINE, "a", &["a"], CHAT_ONLY, &arguments));
        let body = message("a", json!({ "stream": true }));
        let (response, _) = stream(host.port, MESSAGES, &body).finish();
        let text = response.text();
        let kinds = kinds(&text);
        assert_eq!(kinds.last(), Some(&"error"), "{script}: {text}");
        assert!(kinds.contains(&"content_block_delta") && !kinds.contains(&"message_stop"));
        host.assert_no_request_lost();
    }
}

#[test]
fn engine_stops_when_the_client_of_a_translated_stream_leaves() {
    let (gone, is_gone) = mpsc::channel();
    let engine = HostileEngine::start(move |_, stream| {
        stream.write_all(STREAM_HEAD.as_bytes())?;
        let delta = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
        let delta = chunk(delta.as_bytes());
        stream.write_all(&delta)?;
        // The host closes the connection.
        let end = std::io::Read::read(stream, &mut [0]);
        gone.send(()).ok();
        end.map(|_| Next::Close)
    });
    let host = host(&external_lane("a", &["a"], &engine, CHAT_ONLY));
    let mut client = stream(host.port, MESSAGES, &message("a", json!({ "stream": true })));
    assert!(client.read_until("text_delta"));
    drop(client);
    is_gone.recv_timeout(Duration::from_secs(10)).unwrap();
    wait_until("the request is counted as abandoned", || {
        host.metric("pointsman_client_gone_total", "") > 0.0
    });
    host.assert_no_request_lost();
}

#[test]
fn a_fallback_without_messages_serves_the_request() {
    let broken = HostileEngine::answering("500 Internal Server Error", "", "{}");
    let agent = agent();
    let lanes = external_lane("a", &["m"], &broken, NATIVE)
        + &external_lane("b", &["m"], &agent, CHAT_ONLY).replace("slots = 16", "slots = 1");
    let host = host(&lanes);
    for _ in 0..4 {
        let response = post(host.port, MESSAGES, &message("m", json!({})));
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.json()["content"], json!([{ "type": "text", "text": "sunny" }]));
    }
    assert!(agent.requests().iter().all(|request| request.path.ends_with("/chat/completions")));
    host.assert_no_request_lost();
}

#[test]
fn errors_have_anthropics_form() {
    let engine = |status: &str, body: &str| HostileEngine::answering(status, "", body);
    let refused = r#"{"error":{"message":"too long","type":"BadRequestError","code":400}}"#;
    let lanes = [
        external_lane("a", &["a"], &agent(), CHAT_ONLY),
        external_lane("bad", &["bad"], &engine("400 Bad Request", refused), CHAT_ONLY),
        external_lane("broken", &["broken"], &engine("500 Internal Server Error", "{}"), CHAT_ONLY),
        external_lane("busy", &["busy"], &engine("503 Service Unavailable", "{}"), CHAT_ONLY),
        external_lane("texts", &["texts"], &agent(), "endpoints = [\"embeddings\"]"),
    ];
    let config = format!(
        "server = {{ max-body = \"1KiB\" }}\n[[keys]]\ntenant = \"t\"\nenv = \"TEST_KEY\"\n{}",
        lanes.concat()
    );
    let dir = tempfile::tempdir().unwrap();
    let env = [("TEST_KEY", "sesame")];
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &env).wait_until_ready();
    let headers = [JSON, ("x-api-key", "sesame")];
    let to = |method: &str, path: &str, body: &str| {
        send(host.port, method, path, &headers, body.as_bytes())
    };
    let pdf = json!([{ "role": "user", "content": [{ "type": "document", "source":
        { "type": "base64", "media_type": "application/pdf", "data": "AA" } }] }]);
    let search = json!([{ "type": "web_search_20250305", "name": "web_search" }]);
    let long = "x".repeat(2048);
    for (model, more, expected) in [
        ("nope", json!({}), (404, "not_found_error")),
        ("texts", json!({}), (404, "not_found_error")),
        ("a", json!({ "messages": "x" }), (400, "invalid_request_error")),
        ("a", json!({ "messages": pdf }), (400, "invalid_request_error")),
        ("a", json!({ "tools": search }), (400, "invalid_request_error")),
        ("a", json!({ "system": long }), (413, "request_too_large")),
        ("bad", json!({}), (400, "invalid_request_error")),
        ("broken", json!({}), (502, "api_error")),
        ("busy", json!({}), (503, "overloaded_error")),
    ] {
        let response = to("POST", MESSAGES, &message(model, more.clone()).to_string());
        let found = error(&response);
        assert_eq!(found, (expected.0, json!(expected.1)), "{model} {more}: {}", response.text());
    }
    let bad = to("POST", MESSAGES, &message("bad", json!({})).to_string());
    assert!(bad.json()["error"]["message"].as_str().unwrap().contains("too long"));
    let invalid = to("POST", COUNT, "{");
    assert_eq!(error(&invalid), (400, json!("invalid_request_error")));
    let body = message("a", json!({})).to_string();
    let unauthorized = send(host.port, "POST", MESSAGES, &[JSON], body.as_bytes());
    assert_eq!(error(&unauthorized), (401, json!("authentication_error")));
    let uncounted = send(host.port, "POST", COUNT, &[JSON], body.as_bytes());
    assert_eq!(error(&uncounted), (401, json!("authentication_error")));
    for (method, path, status) in [("GET", MESSAGES, 405), ("POST", "/v1/messages/batches", 404)] {
        let response = to(method, path, "");
        assert_eq!((response.status, &response.json()["type"]), (status, &json!("error")));
    }
    host.assert_no_request_lost();
}

#[test]
fn tokens_are_counted_without_loading_a_lane() {
    let on_demand = |name: &str, endpoints: &str| {
        let more = format!("load = \"on-demand\"\n{endpoints}");
        fake_lane(FAKE_ENGINE, name, &[name], &more, &["--flavour", "llama-cpp"])
    };
    let lanes = on_demand("idle", NATIVE)
        + &on_demand("chat", CHAT_ONLY)
        + &fake_lane(FAKE_ENGINE, "ready", &["ready"], NATIVE, &[]);
    let host = Host::start(&program(FAKE_ENGINE), &lanes);
    host.wait_for_lane("ready", "ready");
    let count = |model: &str, more: Value| post(host.port, COUNT, &message(model, more));
    for model in ["idle", "chat"] {
        let response = count(model, json!({}));
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.header("x-pointsman-estimate"), Some("true"));
        let tools = json!([{ "name": "f", "description": "some words that are long enough",
            "input_schema": {} }]);
        let more = count(model, json!({ "system": "be kind", "tools": tools }));
        let tokens = |response: &Response| response.json()["input_tokens"].as_u64().unwrap();
        assert!(tokens(&more) > tokens(&response) + 10 && tokens(&response) > 0);
        assert_eq!(host.lane(model)["state"], "unloaded");
    }
    let response = count("ready", json!({}));
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("x-pointsman-estimate"), None);
    assert_eq!(response.header("x-pointsman-lane"), Some("ready"));
    assert!(response.json()["input_tokens"].as_u64().unwrap() > 0);
    host.assert_no_request_lost();
}

#[test]
fn models_have_anthropics_form_for_its_libraries() {
    let host = host(&external_lane("a", &["a"], &agent(), CHAT_ONLY));
    let headers = [("anthropic-version", "2023-06-01")];
    let list = send(host.port, "GET", "/v1/models", &headers, b"").json();
    assert_eq!((&list["has_more"], &list["first_id"]), (&json!(false), &json!("a")));
    assert_eq!(
        (&list["data"][0]["type"], &list["data"][0]["display_name"]),
        (&json!("model"), &json!("a"))
    );
    let one = send(host.port, "GET", "/v1/models/a", &headers, b"").json();
    assert!(one["created_at"].as_str().unwrap().ends_with('Z'));
    let plain = get(host.port, "/v1/models").json();
    assert_eq!(plain["data"][0].get("display_name"), None);
}

/// Starts a host with the lanes that the client scripts expect.
fn host_for_clients() -> Host {
    let chat = |name: &str, script: &str| {
        fake_lane(FAKE_ENGINE, name, &[name], CHAT_ONLY, &["--script", script])
    };
    let lanes = [
        external_lane("agent", &["agent"], &agent(), CHAT_ONLY),
        fake_lane(FAKE_ENGINE, "native", &["native"], NATIVE, &[]),
        chat("truncated", r#"{"end-after": 2}"#),
        chat("broken", r#"{"status": 500}"#),
    ];
    let config = format!("[[keys]]\ntenant = \"t\"\nenv = \"TEST_KEY\"\n{}", lanes.concat());
    let dir = tempfile::tempdir().unwrap();
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[("TEST_KEY", "sesame")])
        .wait_until_ready()
}

#[test]
fn anthropics_python_package_works() {
    let host = host_for_clients();
    let mut command = Command::new(prepared_dir("POINTSMAN_VENV", "venv").join("bin/python"));
    command.arg(root().join("tests/python/anthropic_client.py"));
    command.args([&host.port.to_string(), "sesame"]);
    assert_succeeds(command);
    host.assert_no_request_lost();
}

#[test]
fn anthropics_node_package_works() {
    let host = host_for_clients();
    let mut command = Command::new("node");
    command.arg(root().join("tests/node/anthropic_client.mjs"));
    command.args([&host.port.to_string(), "sesame"]).arg(prepared_dir("POINTSMAN_NODE", "node"));
    assert_succeeds(command);
    host.assert_no_request_lost();
}
