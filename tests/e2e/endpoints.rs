//! Endpoints that are only passed on: embeddings, ranking, classification and tokens; and which
//! lanes can serve which endpoint.

use std::fs;

use pointsman_tests::client::{Response, chat, get, post, send};
use pointsman_tests::host::{Host, fake_lane, program, root};
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, host, lane, one_lane};

const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

/// Returns a lane with a fake vLLM, whose model is in a folder below `models` if there is one of
/// its name.
fn vllm_lane(name: &str, models: &[&str], keys: &str, engine: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\nmodels = {models:?}\n{keys}\n[lanes.engine]\n\
         driver = \"vllm\"\nprogram = [{FAKE_ENGINE:?}]\nmodel = \"models/{name}\"\n{engine}\n"
    )
}

const POOLING: &str = "arguments = [\"--runner\", \"pooling\"]";
const CLASSIFY: &str = "arguments = [\"--runner\", \"pooling\", \"--convert\", \"classify\"]";

fn served_by(response: &Response) -> (u16, Option<&str>) {
    (response.status, response.header("x-pointsman-lane"))
}

#[test]
fn requests_and_responses_of_all_endpoints_are_passed_on() {
    let policies = root().join("policies");
    let config = format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \"spread\"\n\
         {}{}{}",
        vllm_lane("embedder", &["bge"], "", POOLING),
        vllm_lane("classifier", &["sentiment"], "", CLASSIFY),
        lane("ranker", &["rank"], &["--embeddings", "--reranking"])
            .replace("[lanes.engine]", "endpoints = [\"embeddings\", \"rerank\"]\n[lanes.engine]"),
    );
    let host = host(&config);
    let (text, texts) = (json!("hello"), json!(["hello", "you"]));
    let documents = json!({ "query": "q", "documents": ["one", "two", "three"], "top_n": 2 });
    for (path, model, fields, result, count) in [
        ("/v1/embeddings", "bge", json!({ "input": text }), "/data", 1),
        ("/embeddings", "bge", json!({ "input": texts }), "/data", 2),
        ("/v1/embeddings", "rank", json!({ "input": [1, 2, 3] }), "/data", 1),
        ("/v1/rerank", "bge", documents.clone(), "/results", 2),
        ("/rerank", "rank", documents.clone(), "/results", 2),
        ("/v2/rerank", "rank", documents.clone(), "/results", 2),
        ("/reranking", "rank", documents.clone(), "/results", 2),
        ("/v1/reranking", "bge", documents, "/results", 2),
        ("/score", "bge", json!({ "text_1": text, "text_2": texts }), "/data", 2),
        ("/v1/score", "bge", json!({ "queries": text, "documents": texts }), "/data", 2),
        ("/classify", "sentiment", json!({ "input": texts }), "/data", 2),
        ("/v1/classify", "sentiment", json!({ "input": text }), "/data", 1),
        ("/pooling", "bge", json!({ "input": text }), "/data", 1),
        ("/v1/pooling", "bge", json!({ "input": text }), "/data", 1),
        ("/tokenize", "bge", json!({ "prompt": text }), "/tokens", 5),
        ("/v1/tokenize", "bge", json!({ "prompt": text }), "/tokens", 5),
    ] {
        let mut body = json!({ "model": model });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let response = post(host.port, path, &body);
        assert_eq!(response.status, 200, "{path} {model}: {}", response.text());
        assert!(response.header("x-pointsman-policy").unwrap().starts_with("spread@"), "{path}");
        let answer = response.json();
        let results = answer.pointer(result).and_then(Value::as_array).map(Vec::len);
        assert_eq!(results, Some(count), "{path} {model}: {answer}");
        if result != "/tokens" {
            assert_eq!(answer["model"], model, "{path}");
            assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 0, "{path} {answer}");
        }
    }
    let ids = json!({ "model": "bge", "tokens": [71, 68] });
    assert_eq!(post(host.port, "/v1/detokenize", &ids).json()["prompt"].as_str().unwrap().len(), 2);
    for (path, allowed) in [("/v1/rerank", "POST"), ("/tokenize", "POST"), ("/v1/score", "POST")] {
        let response = get(host.port, path);
        assert_eq!((response.status, response.header("allow")), (405, Some(allowed)), "{path}");
    }
    host.assert_no_request_lost();
}

#[test]
fn bytes_of_requests_and_responses_are_kept() {
    let host = one_lane(&["--script", r#"{"echo": true}"#, "--embeddings"]);
    let body = concat!(
        r#" {"input" : ["caf\u00e9", "b"],"encoding_format":"base64","model":"a","dimensions":4,"#,
        r#""x":1.50, "#,
        r#""input_type":"query"} "#
    );
    let response = send(host.port, "POST", "/v1/embeddings", &[JSON], body.as_bytes());
    assert_eq!(response.json()["body"], body);
    assert_eq!(response.json()["path"], "/v1/embeddings");
    // One lane is the default model.
    host.set_script("a", json!({}));
    let encoded = json!({ "input": "hello", "encoding_format": "base64" });
    let response = post(host.port, "/v1/embeddings", &encoded);
    assert_eq!(response.status, 200, "{}", response.text());
    let embedding = &response.json()["data"][0]["embedding"];
    // Eight numbers of four bytes.
    assert_eq!(embedding.as_str().map(str::len), Some(44), "{embedding}");
    host.assert_no_request_lost();
}

/// A request is never a reason to load a lane whose engine cannot serve it.
#[test]
fn lane_that_cannot_serve_an_endpoint_is_not_loaded_for_it() {
    let dir = tempfile::tempdir().unwrap();
    for (name, architecture) in [("chat", "Qwen3ForCausalLM"), ("pool", "BertModel")] {
        let folder = dir.path().join("models").join(name);
        fs::create_dir_all(&folder).unwrap();
        let config = json!({ "architectures": [architecture] });
        fs::write(folder.join("config.json"), config.to_string()).unwrap();
    }
    let group = "group = \"gpu\"\nmemory = \"8GiB\"";
    let config = format!(
        "[switching]\nmin-residency = 0.0\nlinger = \"0s\"\n\
         [[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n{}{}",
        vllm_lane("chat", &["shared"], group, ""),
        // The real vLLM finds out by the model's files.
        vllm_lane("pool", &["shared"], group, "env = { FAKE_ENGINE = \"--runner pooling\" }"),
    );
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready();
    let refused = |path: &str, model: &str, named: &str| {
        let body = json!({ "model": model, "input": "x", "messages": [] });
        let response = post(host.port, path, &body);
        let code = json!("endpoint_not_supported");
        assert_eq!((response.status, response.error_code()), (404, code), "{}", response.text());
        assert_eq!(response.json()["error"]["param"], "model");
        assert!(response.text().contains(named), "{}", response.text());
    };
    refused("/v1/embeddings", "chat", "shared");
    refused(CHAT, "pool", "shared");
    refused("/v1/moderations", "shared", "no model");
    refused("/classify", "pool", "no model");
    for lane in ["chat", "pool"] {
        assert_eq!(host.lane(lane)["state"], "unloaded", "{lane}");
    }
    let embed = json!({ "model": "shared", "input": "x" });
    for _ in 0..2 {
        let response = post(host.port, "/v1/embeddings", &embed);
        assert_eq!(served_by(&response), (200, Some("pool")), "{}", response.text());
    }
    assert_eq!(host.lane("chat")["state"], "unloaded");
    let response = post(host.port, CHAT, &chat("shared", json!({ "max_tokens": 1 })));
    assert_eq!(served_by(&response), (200, Some("chat")), "{}", response.text());
    let model = |id: &str| get(host.port, &format!("/v1/models/{id}")).json();
    let endpoints = |id: &str| model(id)["endpoints"].to_string();
    assert!(endpoints("shared").contains("embeddings") && endpoints("shared").contains("chat"));
    assert!(!endpoints("chat").contains("embeddings") && !endpoints("pool").contains("chat"));
    assert_eq!(model("pool")["capabilities"], json!([]));
    host.assert_no_request_lost();
}

#[test]
fn endpoints_are_learned_from_a_ready_engine_unless_they_are_configured() {
    // Nothing is known of models on the hub.
    let engine = "env = { FAKE_ENGINE = \"--runner pooling\" }";
    let config = [
        vllm_lane("learned", &["learned"], "", engine),
        vllm_lane("configured", &["configured"], "endpoints = [\"chat-completions\"]", engine),
        vllm_lane("silent", &["silent"], "", "arguments = [\"--disable-fastapi-docs\"]"),
    ];
    let host = host(&config.concat());
    let endpoints = |id: &str| {
        let model = get(host.port, &format!("/v1/models/{id}")).json();
        let list = model["endpoints"].as_array().unwrap().clone();
        ["chat-completions", "embeddings", "classify"].map(|name| list.contains(&json!(name)))
    };
    assert_eq!(endpoints("learned"), [false, true, false]);
    assert_eq!(endpoints("configured"), [true, false, false]);
    assert_eq!(endpoints("silent"), [true, true, true]);
    let embed =
        |model: &str| post(host.port, "/v1/embeddings", &json!({ "model": model, "input": "x" }));
    assert_eq!(embed("learned").status, 200);
    assert_eq!(embed("configured").status, 404);
    // What the engine does not have after all is the engine's error.
    assert_eq!(embed("silent").status, 404);
    host.assert_no_request_lost();
}

#[test]
fn fallback_only_reaches_lanes_that_can_serve_the_endpoint() {
    let lane = |name: &str, endpoints: &str, flags: &[&str]| {
        fake_lane(FAKE_ENGINE, name, &["m"], &format!("endpoints = {endpoints}"), flags)
    };
    let config = [
        lane("a", "[\"embeddings\"]", &["--embeddings", "--script", r#"{"status": 500}"#]),
        lane("b", "[\"chat-completions\"]", &[]),
        lane("c", "[\"embeddings\", \"rerank\"]", &["--embeddings"]),
    ];
    let host = host(&config.concat());
    let response = post(host.port, "/v1/embeddings", &json!({ "model": "m", "input": "x" }));
    assert_eq!(served_by(&response), (200, Some("c")), "{}", response.text());
    let response = post(host.port, CHAT, &chat("m", json!({ "max_tokens": 1 })));
    assert_eq!(served_by(&response), (200, Some("b")), "{}", response.text());
    host.set_script("c", json!({ "status": 500 }));
    let response = post(host.port, "/v1/embeddings", &json!({ "model": "m", "input": "x" }));
    // Of the lane that was attempted last.
    assert_eq!(served_by(&response), (502, Some("c")), "{}", response.text());
    host.set_script("b", json!({ "status": 500 }));
    let response = post(host.port, CHAT, &chat("m", json!({ "max_tokens": 1 })));
    assert_eq!(served_by(&response), (502, Some("b")), "{}", response.text());
    host.assert_no_request_lost();
}

/// A llama.cpp says itself what it was not started for, also if the operator is wrong.
#[test]
fn engine_that_lacks_an_endpoint_says_so() {
    let config = fake_lane(FAKE_ENGINE, "a", &["a"], "endpoints = [\"rerank\"]", &[]);
    let host = host(&config);
    let body = json!({ "model": "a", "query": "q", "documents": ["d"] });
    let response = post(host.port, "/v1/rerank", &body);
    assert_eq!(response.status, 501, "{}", response.text());
    assert_eq!(host.lane("a")["state"], "ready");
    host.assert_no_request_lost();
}
