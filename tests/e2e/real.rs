//! A real model: the quickstart, with three lanes of llama.cpp.

use std::fs;

use pointsman_tests::client::{get, post, stream};
use pointsman_tests::host::{Host, kill, program, root};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::FAKE_ENGINE;
use crate::clients::prepared;

/// The quickstart's configuration in a folder of its own, with its paths made absolute.
fn quickstart() -> Host {
    let text = fs::read_to_string(root().join("examples/quickstart.toml")).unwrap();
    let text = text
        .replace("\"../policies\"", &format!("{:?}\ncache = \"cache\"", root().join("policies")))
        .replace("\"llama_engine.py\"", &format!("{:?}", root().join("examples/llama_engine.py")));
    let path = format!(
        "{}:{}",
        prepared("POINTSMAN_VENV", "venv").join("bin").display(),
        std::env::var("PATH").unwrap()
    );
    Host::start_in(&program(FAKE_ENGINE), tempfile::tempdir().unwrap(), &text, &[("PATH", &path)])
        .ready()
}

fn asking(model: &str, text: &str, more: &Value) -> Value {
    let mut body = json!({ "model": model, "messages": [{ "role": "user", "content": text }], "max_tokens": 8 });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

const CHAT: &str = "/v1/chat/completions";

#[test]
fn a_real_model_answers_streams_dies_and_comes_back() {
    let host = quickstart();
    let reply = post(host.port, CHAT, &asking("auto", "Say hello.", &json!({})));
    assert_eq!(
        (reply.status, reply.header("x-pointsman-lane")),
        (200, Some("orchestrator")),
        "{}",
        reply.text()
    );
    assert!(reply.json()["usage"]["completion_tokens"].as_u64().unwrap() > 0);
    // The system prompt of the quickstart is for this lane.
    let bare = post(host.port, CHAT, &asking("coder", "Say hello.", &json!({}))).json();
    assert_ne!(reply.json()["usage"]["prompt_tokens"], bare["usage"]["prompt_tokens"]);

    let text = post(
        host.port,
        "/v1/completions",
        &json!({ "model": "coder", "prompt": "fn main() {", "max_tokens": 4 }),
    );
    assert!(text.json()["choices"][0]["text"].is_string(), "{}", text.text());
    let (reply, complete) =
        stream(host.port, CHAT, &asking("super_reader", "Say hello.", &json!({ "stream": true })))
            .finish();
    assert!(complete && reply.text().ends_with("data: [DONE]\n\n"), "{}", reply.text());

    // A client that leaves frees its slot at once, as the engine itself says.
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
    let mut answer = stream(host.port, CHAT, &asking("coder", "Count.", &long));
    assert!(answer.until("content") && busy());
    drop(answer);
    wait_until("the slot is free", || !busy());

    // An engine that is killed in the middle of a stream.
    let mut answer = stream(host.port, CHAT, &asking("coder", "Count.", &long));
    assert!(answer.until("content"));
    kill(host.engine_pid("coder"), Signal::KILL);
    let (reply, _) = answer.finish();
    assert!(
        reply.text().contains("\"engine_error\"") && !reply.text().contains("[DONE]"),
        "{}",
        reply.text()
    );
    wait_until("the lane serves again", || {
        host.lane("coder")["state"] == "ready" && host.lane("coder")["starts"] == 2
    });
    assert_eq!(post(host.port, CHAT, &asking("coder", "Say hello.", &json!({}))).status, 200);
    host.assert_nothing_lost();
    host.stop();
}

/// Three lanes of the small model that cannot be loaded together, and 200 requests at once, half of them streams: everybody is
/// answered by the lane asked for, and lanes are exchanged a few times and not for every request.
#[test]
fn real_lanes_take_turns() {
    let python = prepared("POINTSMAN_VENV", "venv").join("bin/python3");
    let engine = root().join("examples/llama_engine.py");
    let lane = |name: &str| {
        format!(
            "[[lanes]]\nname = {name:?}\ngroup = \"box\"\nmemory = \"250MiB\"\nslots = 2\nexpected-load-time = \"3s\"\n\
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
                let (reply, complete) =
                    stream(port, CHAT, &asking(lane, "Say hello.", &more)).finish();
                let text = reply.text();
                assert!(
                    complete && reply.status == 200,
                    "request {number}: {} {text}",
                    reply.status
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
    host.assert_nothing_lost();
    assert_eq!(host.metric("pointsman_answered_total", ""), 200.0);
    let loads = host.metric("pointsman_switches_total", "");
    assert!((3.0..30.0).contains(&loads), "{loads} loads for 200 requests");
    host.stop();
}
