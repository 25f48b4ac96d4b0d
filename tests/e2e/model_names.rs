//! The names by which clients ask for a model, and what `/v1/models` says of it.

use pointsman_tests::client::{chat, get, post};
use pointsman_tests::host::{Host, fake_lane, program};
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, host, lane};

const CHAT: &str = "/v1/chat/completions";

/// Returns a lane with a fake vLLM, loaded on demand.
fn vllm(name: &str, model: &str, models: &[&str]) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\nmodels = {models:?}\nmax-context = 32768\nload = \
         \"on-demand\"\nexpected-load-time = \"1s\"\n[lanes.engine]\ndriver = \"vllm\"\n\
         program = [{FAKE_ENGINE:?}]\nmodel = {model:?}\n"
    )
}

fn start(lanes: &[String]) -> Host {
    Host::start(&program(FAKE_ENGINE), &lanes.concat()).wait_until_ready()
}

/// Returns the entry of a model; null if it is not listed.
fn listed(host: &Host, id: &str) -> Value {
    let list = get(host.port, "/v1/models").json();
    let models = list["data"].as_array().unwrap();
    models.iter().find(|model| model["id"] == id).cloned().unwrap_or_default()
}

#[test]
fn lane_answers_to_all_names_of_its_model() {
    let host = start(&[
        vllm("orchestrator", "/models/vllm/orchestrator/bf16", &["Listed-32B"]),
        vllm("coder", "Qwen/Qwen2.5-Coder-32B-Instruct", &["coder"]),
    ]);
    for (lane, names) in [
        (
            "orchestrator",
            vec![
                "Listed-32B",
                "orchestrator",
                "anyorg/Listed-32B",
                "/models/vllm/orchestrator/bf16",
                "/models/vllm/orchestrator/bf16/model.safetensors",
            ],
        ),
        ("coder", vec!["coder", "Qwen/Qwen2.5-Coder-32B-Instruct", "Qwen2.5-Coder-32B-Instruct"]),
    ] {
        for name in names {
            let response = post(host.port, CHAT, &chat(name, json!({ "max_tokens": 2 })));
            assert_eq!(response.status, 200, "{name}: {}", response.text());
            assert_eq!(response.header("x-pointsman-lane"), Some(lane), "{name}");
            // vLLM knows only the names that it was started with.
            assert_eq!(response.json()["model"], name);
            let path = format!("/v1/models/{}", name.replace('/', "%2F"));
            assert_eq!(get(host.port, &path).status, 200, "{name}");
        }
    }
    for unknown in ["Listed-32b", "Listed", "other", "models"] {
        let response = post(host.port, CHAT, &chat(unknown, json!({})));
        assert_eq!((response.status, response.error_code()), (404, json!("model_not_found")));
    }
    host.assert_no_request_lost();
}

/// A derived name does not take a request from a lane that has the name itself.
#[test]
fn exact_name_wins_over_derived_name() {
    let host = start(&[
        vllm("derived", "org/Name", &["derived"]),
        fake_lane(FAKE_ENGINE, "exact", &["Name"], "", &[]),
    ]);
    for _ in 0..3 {
        let response = post(host.port, CHAT, &chat("Name", json!({ "max_tokens": 2 })));
        assert_eq!(response.header("x-pointsman-lane"), Some("exact"), "{}", response.text());
    }
    host.assert_no_request_lost();
}

#[test]
fn virtual_name_has_its_lanes() {
    let names = "[[models]]\nname = \"gpt-4o\"\nlanes = [\"b\", \"c\"]\n[[models]]\n\
        name = \"internal\"\nlanes = [\"a\"]\nhidden = true\n";
    let lanes = ["a", "b", "c"].map(|name| lane(name, &[name], &[])).concat();
    let host = host(&[names, &lanes].concat());
    let ask = |model: &str| {
        let response = post(host.port, CHAT, &chat(model, json!({})));
        assert_eq!(response.status, 200, "{model}: {}", response.text());
        assert_eq!(response.json()["model"], model);
        response.header("x-pointsman-lane").unwrap().to_owned()
    };
    assert!(["b", "c"].contains(&ask("gpt-4o").as_str()));
    host.set_script("b", json!({ "status": 500 }));
    assert_eq!(ask("gpt-4o"), "c");
    assert_eq!(ask("internal"), "a");
    assert_eq!(listed(&host, "gpt-4o")["lanes"], json!(["b", "c"]));
    assert_eq!(listed(&host, "internal"), Value::Null);
    host.assert_no_request_lost();
}

/// Agents read the context length in several spellings; `vllm bench serve` reads `root`.
#[test]
fn models_are_listed_with_context_state_and_owner() {
    let host = start(&[
        vllm("coder", "Qwen/Qwen2.5-Coder-32B-Instruct", &["coder", "auto"]),
        fake_lane(FAKE_ENGINE, "reader", &["reader", "auto"], "max-context = 8192", &[]),
    ]);
    let coder = listed(&host, "coder");
    assert_eq!(coder["owned_by"], "vllm");
    assert_eq!(coder["state"], "unloaded");
    assert_eq!(coder["object"], "model");
    assert!(coder["root"].is_string() && coder["created"].is_u64(), "{coder}");
    assert!(coder.get("parent").is_some() && coder["permission"].is_array(), "{coder}");
    let reader = listed(&host, "reader");
    assert_eq!((&reader["state"], &reader["owned_by"]), (&json!("ready"), &json!("llamacpp")));
    // Of several lanes, what a request can be sure of.
    for (id, context) in [("coder", 32768), ("reader", 8192), ("auto", 8192)] {
        let entry = listed(&host, id);
        for pointer in ["/max_model_len", "/context_length", "/context_window", "/meta/n_ctx"] {
            assert_eq!(entry.pointer(pointer), Some(&json!(context)), "{id}{pointer}: {entry}");
        }
        assert_eq!(get(host.port, &format!("/v1/models/{id}")).json(), entry);
    }
    assert_eq!(listed(&host, "auto")["lanes"], json!(["coder", "reader"]));
}

#[test]
fn unknown_model_gets_the_closest_name() {
    let host = host(&lane("a", &["Qwen2.5-Coder-32B-Instruct"], &[]));
    let response = post(host.port, CHAT, &chat("Qwen2.5-Coder-32B-Instuct", json!({})));
    assert_eq!((response.status, response.error_code()), (404, json!("model_not_found")));
    let message = response.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.contains("Qwen2.5-Coder-32B-Instruct"), "{message}");
}
