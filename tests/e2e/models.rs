//! Model names: what lanes answer to, what engines are asked for, and the lists of models.

use pointsman_tests::client::{chat, get, post};
use pointsman_tests::host::Host;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, host};

const CHAT: &str = "/v1/chat/completions";

/// A vLLM lane that turns with the other one, with a LoRA adapter, and a llama.cpp lane.
fn lanes() -> String {
    let vllm = |name: &str, models: &str, model: &str, engine: &str| {
        format!(
            "[[lanes]]\nname = {name:?}\nmodels = {models}\ngroup = \"gpu\"\nmemory = \"8GiB\"\n\
             [lanes.engine]\ndriver = \"vllm\"\nprogram = [{FAKE_ENGINE:?}]\nmodel = {model:?}\n\
             tool-call-parser = \"hermes\"\n{engine}\n"
        )
    };
    [
        "[switching]\nmin-residency = 0.0\nlinger = \"0s\"\n\
         [[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n\
         [[models]]\nname = \"gpt-4o\"\nlanes = [\"coder\", \"reader\"]\n\
         [[models]]\nname = \"secret-name\"\nlanes = [\"coder\"]\nhidden = true\n"
            .to_owned(),
        vllm(
            "orchestrator",
            "[\"auto\"]",
            "/models/vllm/orchestrator/bf16",
            "max-model-len = 16384\nadapters = { sql = \"/models/lora/sql\" }",
        ),
        vllm("coder", "[\"auto\", \"Qwen/Coder-32B\"]", "Qwen/Coder-32B-AWQ", ""),
        format!(
            "[[lanes]]\nname = \"reader\"\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
             program = [{FAKE_ENGINE:?}]\nmodel = \"/models/reader.Q4.gguf\"\n"
        ),
    ]
    .concat()
}

/// Asks for a model, and returns the lane.
fn ask(host: &Host, model: &str) -> Option<String> {
    let response = post(host.port, CHAT, &chat(model, json!({ "max_tokens": 1 })));
    assert_eq!(response.status, 200, "{model}: {}", response.text());
    response.header("x-pointsman-lane").map(str::to_owned)
}

#[test]
fn lanes_answer_to_all_names_of_their_models() {
    let host = host(&lanes());
    for (model, lane) in [
        ("orchestrator", "orchestrator"),
        ("/models/vllm/orchestrator/bf16", "orchestrator"),
        ("/models/vllm/orchestrator/bf16/model.safetensors", "orchestrator"),
        ("coder", "coder"),
        ("Qwen/Coder-32B", "coder"),
        ("Coder-32B", "coder"),
        ("Qwen/Coder-32B-AWQ", "coder"),
        ("openai/Coder-32B-AWQ", "coder"),
        ("secret-name", "coder"),
        ("reader.Q4.gguf", "reader"),
        ("reader.Q4", "reader"),
    ] {
        assert_eq!(ask(&host, model).as_deref(), Some(lane), "{model}");
    }
    host.assert_no_request_lost();
}

#[test]
fn adapters_are_asked_for_by_their_own_name() {
    let echo = "env = { FAKE_ENGINE = \"--script '{\\\"echo\\\":true}'\" }\n";
    let adapters = "adapters = { sql = \"/models/lora/sql\" }";
    let config = lanes().replace(adapters, &format!("{adapters}\n{echo}"));
    let host = host(&config);
    for (model, sent) in [
        ("sql", "sql"),
        ("orchestrator:sql", "sql"),
        ("any/sql", "sql"),
        ("orchestrator", "orchestrator"),
        ("bf16", "orchestrator"),
    ] {
        let response = post(host.port, CHAT, &chat(model, json!({})));
        assert_eq!(response.header("x-pointsman-lane"), Some("orchestrator"));
        let echoed = response.json()["body"].as_str().map(str::to_owned).unwrap();
        let received: Value = serde_json::from_str(&echoed).unwrap();
        assert_eq!(received["model"], sent, "{model}");
    }
    let model = |id: &str| get(host.port, &format!("/v1/models/{id}")).json();
    assert_eq!(model("sql")["parent"], "orchestrator");
    assert_eq!(model("orchestrator:sql")["root"], "sql");
    host.assert_no_request_lost();
}

#[test]
fn models_are_listed_with_what_is_known_of_them() {
    let host = host(&lanes());
    host.wait_for_lane("reader", "ready");
    let list = || get(host.port, "/v1/models").json();
    let ids: Vec<Value> =
        list()["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    let expected = [
        "Qwen/Coder-32B",
        "auto",
        "coder",
        "gpt-4o",
        "orchestrator",
        "orchestrator:sql",
        "reader",
        "sql",
    ];
    assert_eq!(ids, expected);
    let model = |id: &str| {
        let mut model = get(host.port, &format!("/v1/models/{id}")).json();
        model.as_object_mut().unwrap().remove("created");
        model
    };
    let orchestrator = json!({
        "id": "orchestrator", "object": "model", "owned_by": "vllm", "root": "bf16",
        "parent": null, "max_model_len": 16384, "context_length": 16384, "context_window": 16384,
        "max_context_length": 16384, "meta": { "n_ctx": 16384 }, "lanes": ["orchestrator"],
        "state": "unloaded", "capabilities": ["chat", "completion", "tools"], "permission": [],
    });
    let mut listed = model("orchestrator");
    let endpoints = listed.as_object_mut().unwrap().remove("endpoints").unwrap();
    assert!(endpoints.as_array().unwrap().contains(&json!("chat-completions")), "{endpoints}");
    assert_eq!(listed, orchestrator);
    // What an engine says is known from when it was ready on.
    assert_eq!(model("coder").get("max_model_len"), None);
    ask(&host, "coder");
    assert_eq!(model("coder")["max_model_len"], 32_768);
    assert_eq!(
        (&model("auto")["state"], &model("auto")["max_model_len"]),
        (&json!("ready"), &json!(16384))
    );
    ask(&host, "orchestrator");
    assert_eq!(
        (&model("coder")["max_model_len"], &model("coder")["state"]),
        (&json!(32_768), &json!("unloaded"))
    );
    let reader = model("reader");
    assert_eq!(
        (&reader["owned_by"], &reader["root"]),
        (&json!("llamacpp"), &json!("reader.Q4.gguf"))
    );
    assert_eq!(reader["meta"], json!({ "n_ctx": 1024, "n_ctx_train": 8192 }));
    let mixed = model("gpt-4o");
    assert_eq!(
        (&mixed["owned_by"], &mixed["lanes"]),
        (&json!("pointsman"), &json!(["coder", "reader"]))
    );
    // Every name of a request works, with slashes as they are or encoded.
    for id in [
        "Qwen/Coder-32B",
        "Qwen%2FCoder-32B",
        "secret-name",
        "/models/vllm/orchestrator/bf16",
        "models/vllm/orchestrator/bf16",
        "%2Fmodels%2Fvllm%2Forchestrator%2Fbf16%2Fmodel.safetensors",
    ] {
        assert_eq!(get(host.port, &format!("/v1/models/{id}")).status, 200, "{id}");
    }
}

#[test]
fn similar_name_is_suggested() {
    let host = host(&lanes());
    for model in ["Qwen/Coder-32", "qwen/coder-32b", "coder-32b-instruct"] {
        let response = post(host.port, CHAT, &chat(model, json!({})));
        let error = &response.json()["error"];
        assert_eq!((response.status, &error["code"]), (404, &json!("model_not_found")));
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("`Qwen/Coder-32B`?"), "{message}");
        assert!(!message.contains("secret-name"), "{message}");
    }
}
