//! Ollama's API, as its clients use it.

use std::process::Command;

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::client::{Response, get, post, send, stream};
use pointsman_tests::host::Host;
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::clients::{assert_succeeds, prepared_dir, start_keyed};
use crate::{host, lane, one_lane};

const CHAT: &str = "/api/chat";
const GENERATE: &str = "/api/generate";
const KEY: (&str, &str) = ("authorization", "Bearer sesame");

fn lines(response: &Response) -> Vec<Value> {
    let text = response.text();
    assert!(text.ends_with('\n'), "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn messages(model: &str, more: Value) -> Value {
    pointsman_tests::client::chat(model, more)
}

#[test]
fn clients_that_look_for_ollama_find_it() {
    let host = host(&(lane("a", &["org/a"], &[]) + &lane("b", &["b"], &[])));
    let root = get(host.port, "/");
    assert_eq!((root.status, root.text().as_str()), (200, "Ollama is running"));
    assert!(root.header("content-type").unwrap().starts_with("text/plain"));
    let head = send(host.port, "HEAD", "/", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert!(get(host.port, "/api/version").json()["version"].is_string());
    let names = |response: &Response| -> Vec<String> {
        let body = response.json();
        let models = body["models"].as_array().unwrap().clone();
        models.iter().map(|model| model["model"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&get(host.port, "/api/tags")), ["a", "b", "org/a"]);
    let loaded = get(host.port, "/api/ps");
    assert_eq!(names(&loaded), ["org/a", "b"]);
    assert!(loaded.json()["models"][0]["expires_at"].is_string());
    // Learned from the engine once it is ready.
    wait_until("the context is known", || {
        let show = |model: &str| post(host.port, "/api/show", &json!({ "model": model })).text();
        ["a", "b"].iter().all(|model| show(model).contains("context_length"))
    });
    for model in ["b", "b:latest", "a"] {
        let shown = post(host.port, "/api/show", &json!({ "model": model }));
        assert_eq!(shown.status, 200, "{model}: {}", shown.text());
        let shown = shown.json();
        assert!(shown["capabilities"].as_array().unwrap().contains(&json!("completion")));
        let architecture = shown["model_info"]["general.architecture"].as_str().unwrap();
        assert!(shown["model_info"][format!("{architecture}.context_length")].is_u64(), "{shown}");
    }
    let unknown = post(host.port, "/api/show", &json!({ "name": "x" }));
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["error"].is_string(), "{}", unknown.text());
    for (method, path) in [("POST", "/api/pull"), ("DELETE", "/api/delete")] {
        let refused = send(host.port, method, path, &[], b"{}");
        assert_eq!(refused.status, 501, "{path}");
        assert!(refused.json()["error"].is_string(), "{path}");
    }
    let root =
        crate::host(&["[server]\npath-prefix = \"/llm\"\n", &lane("a", &["a"], &[])].concat());
    for path in ["/", "/llm", "/llm/"] {
        assert_eq!(get(root.port, path).text(), "Ollama is running", "{path}");
    }
    assert_eq!(get(root.port, "/api/tags").status, 404);
}

#[test]
fn probes_need_the_key_that_requests_need() {
    let host = start_keyed(&lane("a", &["a"], &[]));
    for path in ["/", "/api/version", "/api/tags", "/api/ps"] {
        assert_eq!(get(host.port, path).status, 401, "{path}");
        assert_eq!(send(host.port, "GET", path, &[KEY], b"").status, 200, "{path}");
    }
    for path in ["/api/show", CHAT, GENERATE, "/api/embed", "/api/embeddings", "/api/pull"] {
        let response = post(host.port, path, &json!({ "model": "a", "messages": [] }));
        assert_eq!(response.status, 401, "{path}");
        assert!(response.json()["error"].is_string(), "{path}: {}", response.text());
    }
    assert_eq!(send(host.port, "POST", "/api/show", &[KEY], br#"{"model":"a"}"#).status, 200);
}

#[test]
fn answers_are_lines_unless_the_client_wants_one() {
    let host = one_lane(&["--script", r#"{"tokens": 3}"#]);
    // `curl -d` sends no JSON type.
    let form = ("content-type", "application/x-www-form-urlencoded");
    let body = messages("a:latest", json!({})).to_string();
    let response = send(host.port, "POST", CHAT, &[form], body.as_bytes());
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/x-ndjson"));
    let all = lines(&response);
    let text: String = all.iter().map(|l| l["message"]["content"].as_str().unwrap()).collect();
    assert_eq!(text, "word0 word1 word2 ");
    let (last, rest) = all.split_last().unwrap();
    assert!(rest.iter().all(|line| line["done"] == false));
    assert_eq!((&last["done"], &last["done_reason"]), (&json!(true), &json!("stop")));
    assert_eq!((&last["eval_count"], &last["model"]), (&json!(3), &json!("a:latest")));
    assert!(last["prompt_eval_count"].as_u64().unwrap() > 0, "{last}");
    assert!(last["total_duration"].as_u64().unwrap() > 0, "{last}");
    // A page of another origin could send the type of forms without asking.
    let origin = [form, ("origin", "https://evil.example")];
    assert_eq!(send(host.port, "POST", CHAT, &origin, body.as_bytes()).status, 415);

    let whole = post(host.port, CHAT, &messages("a", json!({ "stream": false })));
    assert_eq!(whole.header("content-type"), Some("application/json; charset=utf-8"));
    assert_eq!(whole.json()["message"]["content"], "word0 word1 word2 ");
    for more in [json!({}), json!({ "raw": true })] {
        let mut body = json!({ "model": "a", "prompt": "x", "stream": false,
            "options": { "num_predict": 2 } });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let response = post(host.port, GENERATE, &body).json();
        assert_eq!(response["response"], "word0 word1 ", "{response}");
        assert_eq!(response["done_reason"], "length", "{response}");
    }
    for (body, reason) in
        [(json!({ "model": "a" }), "load"), (json!({ "model": "a", "keep_alive": 0 }), "unload")]
    {
        let response = post(host.port, GENERATE, &body);
        assert_eq!((response.status, &response.json()["done_reason"]), (200, &json!(reason)));
    }
    assert_eq!(host.lane("a")["state"], "ready");
    host.assert_no_request_lost();
}

#[test]
fn errors_have_the_form_of_ollama() {
    let host = one_lane(&[]);
    for (body, status) in [
        (messages("unknown", json!({})), 404),
        (messages("a", json!({ "format": "xml" })), 400),
        (messages("a", json!({ "stream": "yes" })), 400),
        (json!({ "model": "unknown" }), 404),
    ] {
        let response = post(host.port, CHAT, &body);
        assert_eq!(response.status, status, "{body}: {}", response.text());
        assert!(response.json()["error"].is_string(), "{body}: {}", response.text());
    }
    // The engine's own error: it has no embeddings.
    let response = post(host.port, "/api/embed", &json!({ "model": "a", "input": "x" }));
    assert!(response.status >= 400 && response.json()["error"].is_string());
    host.assert_no_request_lost();
}

#[test]
fn broken_stream_ends_with_an_error_line() {
    let host = one_lane(&["--script", r#"{"end-after": 2}"#]);
    let (response, complete) = stream(host.port, CHAT, &messages("a", json!({}))).finish();
    assert!(complete, "the error is the last line");
    let all = lines(&response);
    assert!(all.last().unwrap()["error"].is_string(), "{}", response.text());
    assert!(all.len() > 1 && all.iter().all(|line| line["done"] != true));
    host.assert_no_request_lost();
}

/// Comments would not be lines of JSON.
#[test]
fn waiting_clients_get_nothing_but_lines() {
    let config = "server.keep-alive = \"50ms\"\n";
    let slow = lane("a", &["a"], &["--script", r#"{"prompt-ms": 400, "tokens": 1}"#]);
    let host = host(&(config.to_owned() + &slow));
    let response = post(host.port, CHAT, &messages("a", json!({})));
    assert_eq!(lines(&response).last().unwrap()["done"], true);
    host.assert_no_request_lost();
}

#[test]
fn embeddings_are_translated() {
    let body = r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,-1]}],
        "model":"e","usage":{"prompt_tokens":2,"total_tokens":2}}"#;
    let engine = HostileEngine::answering("200 OK", "", body);
    let host = host(&external_lane("e", &["e"], &engine, ""));
    let embed = post(host.port, "/api/embed", &json!({ "model": "e", "input": ["x"] })).json();
    assert_eq!((&embed["model"], &embed["embeddings"]), (&json!("e"), &json!([[0.5, -1]])));
    let one = post(host.port, "/api/embeddings", &json!({ "model": "e", "prompt": "x" })).json();
    assert_eq!(one, json!({ "embedding": [0.5, -1] }));
    host.assert_no_request_lost();
}

#[test]
fn official_python_package_works() {
    let host: Host = start_keyed(&lane("a", &["a"], &["--script", r#"{"tokens": 3}"#]));
    let mut command = Command::new(prepared_dir("POINTSMAN_VENV", "venv").join("bin/python"));
    let script = pointsman_tests::host::root().join("tests/python/ollama_client.py");
    command.arg(script).arg(host.port.to_string()).arg("sesame");
    assert_succeeds(command);
    host.assert_no_request_lost();
}
