//! llama.cpp's own routes, and paths of engines for keys with `engine-admin`.

use std::path::PathBuf;

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::client::{Response, get, get_unix, post, send, stream};
use pointsman_tests::host::{Host, program, root};
use serde_json::{Value, json};

use crate::clients::prepared_dir;
use crate::{FAKE_ENGINE, host, lane, one_lane};

const JSON: (&str, &str) = ("content-type", "application/json");
const USER: (&str, &str) = ("authorization", "Bearer user-key");
const ADMIN: (&str, &str) = ("x-api-key", "admin-key");

/// Starts a host with a key of a user and one with `engine-admin`.
fn keyed(config: &str) -> Host {
    let keys = "[[keys]]\ntenant = \"t\"\nenv = \"USER_KEY\"\n\
        [[keys]]\ntenant = \"ops\"\nenv = \"ADMIN_KEY\"\nengine-admin = true\n";
    let env = [("USER_KEY", "user-key"), ("ADMIN_KEY", "admin-key")];
    let dir = tempfile::tempdir().unwrap();
    let config = format!("[state]\ndir = \"states\"\n{keys}{config}");
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &env).wait_until_ready()
}

fn as_admin(host: &Host, method: &str, path: &str) -> Response {
    send(host.port, method, path, &[ADMIN, JSON], b"{}")
}

#[test]
fn native_endpoints_are_served_where_the_default_lane_is_a_llama_cpp() {
    let host = one_lane(&["--script", r#"{"tokens": 3}"#]);
    for path in ["/completion", "/completions", "//completion/"] {
        let response = post(host.port, path, &json!({ "prompt": "x", "n_predict": 2 }));
        assert_eq!(response.status, 200, "{path}: {}", response.text());
        let body = response.json();
        assert_eq!((&body["content"], &body["stop"]), (&json!("word0 word1 "), &json!(true)));
    }
    // OpenAI's form has its `/v1`.
    let openai = post(host.port, "/v1/completions", &json!({ "prompt": "x" })).json();
    assert_eq!(openai["choices"][0]["text"], "word0 word1 word2 ");
    let (response, complete) =
        stream(host.port, "/completion", &json!({ "prompt": "x", "stream": true })).finish();
    let text = response.text();
    assert!(complete && text.contains("\"stop\":true") && !text.contains("[DONE]"), "{text}");
    assert!(!text.contains("\"error\""), "{text}");
    let infill = json!({ "input_prefix": "a", "input_suffix": "b" });
    assert_eq!(post(host.port, "/infill", &infill).status, 200);
    let messages = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    let template = post(host.port, "/apply-template", &messages).json();
    assert!(template["prompt"].is_string(), "{template}");
    // The engine was started without embeddings.
    let embedding = post(host.port, "/embedding", &json!({ "content": "x" }));
    assert!([404, 501].contains(&embedding.status), "{}", embedding.text());
    let finished = host.wait_for_event("request_finished", &[("endpoint", "llama-completion")]);
    assert_eq!(finished.text("outcome"), "answered");
    host.assert_no_request_lost();
}

#[test]
fn other_listeners_have_no_native_endpoints() {
    let listener = "[[listeners]]\naddress = \"127.0.0.1:0\"\ndefault-model = \"b\"\n";
    let host = host(&[listener, &lane("a", &["a"], &[]), &lane("b", &["b"], &[])].concat());
    let body = json!({ "prompt": "x", "model": "a" });
    for path in ["/completion", "/infill", "/embedding", "/apply-template", "/slots", "/props"] {
        assert_eq!(post(host.port, path, &body).status, 404, "{path}");
    }
    assert!(post(host.port, "/completions", &body).json()["choices"].is_array());
    let native = post(host.listener_port(1), "/completion", &json!({ "prompt": "x" }));
    assert_eq!(native.header("x-pointsman-lane"), Some("b"), "{}", native.text());
}

#[test]
fn broken_native_stream_ends_with_an_error() {
    let host = one_lane(&["--script", r#"{"end-after": 2}"#]);
    let body = json!({ "prompt": "x", "stream": true });
    let text = stream(host.port, "/completion", &body).finish().0.text();
    assert!(text.contains("\"engine_error\"") && !text.contains("\"stop\":true"), "{text}");
    host.assert_no_request_lost();
}

#[test]
fn what_clients_share_needs_the_right() {
    let host = keyed(&lane("a", &["a"], &[]));
    for path in ["/slots", "/props", "/lora-adapters", "/upstream/a/slots"] {
        let refused = send(host.port, "GET", path, &[USER], b"");
        assert_eq!(
            (refused.status, refused.error_code()),
            (403, json!("engine_admin_required")),
            "{path}"
        );
        assert_eq!(get(host.port, path).status, 401, "{path}");
        let allowed = as_admin(&host, "GET", path);
        assert_eq!(allowed.status, 200, "{path}: {}", allowed.text());
    }
    let direct = get(host.engine_port("a"), "/props").text();
    assert_eq!(as_admin(&host, "GET", "/props").text(), direct);
    // The engine's own answer, whatever it is.
    assert_eq!(as_admin(&host, "POST", "/upstream/a/props").status, 501);
    assert_eq!(as_admin(&host, "POST", "/lora-adapters").json(), json!({ "success": true }));
    assert_eq!(as_admin(&host, "DELETE", "/upstream/a/x").status, 404);
    for path in ["/upstream/a/sleep", "/upstream/a/v1/load_lora_adapter"] {
        let refused = as_admin(&host, "POST", path);
        assert_eq!(refused.error_code(), "engine_path_refused", "{path}");
    }
    let unknown = as_admin(&host, "GET", "/upstream/b/slots");
    assert_eq!((unknown.status, unknown.error_code()), (404, json!("lane_not_found")));
    host.assert_no_request_lost();
    let open = one_lane(&[]);
    for path in ["/slots", "/upstream/a/slots"] {
        assert_eq!(get(open.port, path).error_code(), "engine_admin_required", "{path}");
        // Operators need no key.
        assert!(open.get(&format!("/upstream/a{path}")).status < 500);
    }
}

#[test]
fn operators_reach_every_path() {
    let host = keyed(&lane("a", &["a"], &[]));
    let socket: PathBuf = host.dir.path().join("states/admin.sock");
    let slots = get_unix(&socket, "/upstream/a/slots").unwrap();
    assert_eq!(slots.status, 200, "{}", slots.text());
    assert!(slots.json().is_array());
    // The engine has no such path.
    assert_eq!(get_unix(&socket, "/upstream/a/sleep").unwrap().status, 404);
    assert_eq!(get_unix(&socket, "/upstream/a/../policies").unwrap().status, 400);
}

#[test]
fn paths_of_other_services_cannot_be_reached() {
    let engine = HostileEngine::honest();
    let host = keyed(&external_lane("a", &["a"], &engine, ""));
    for (path, status) in [
        ("/upstream/a/../admin", 404),
        ("/upstream/a/%2e%2e/admin", 404),
        ("/upstream/a/%2E./x", 404),
        ("/upstream/a/x%2f..%2fy", 404),
        ("/upstream/a/%2fetc", 400),
        ("/upstream/a/%73leep", 400),
        ("/upstream/a/x%0d%0aHost:%20evil", 400),
        ("/upstream/a/x%00", 404),
        ("/upstream/a/x;y", 400),
        ("/upstream/a%2f..%2fb/x", 404),
        ("/upstream/127.0.0.1:1/x", 404),
        ("/upstream/@evil/x", 404),
        ("/upstream/", 404),
    ] {
        let response = as_admin(&host, "POST", path);
        assert_eq!(response.status, status, "{path}: {}", response.text());
    }
    let seen = |path: &str| engine.requests().iter().any(|request| request.path.contains(path));
    assert!(!seen("admin") && !seen("leep") && !seen("evil") && !seen("etc"));
    host.assert_no_request_lost();
}

#[test]
fn paths_of_engines_pass_on_what_they_should() {
    let engine = HostileEngine::answering(
        "302 Found",
        "location: http://127.0.0.1:1/\r\nset-cookie: a=b\r\n",
        "{}",
    );
    let host = keyed(&external_lane("a", &["a"], &engine, ""));
    let headers = [ADMIN, JSON, ("x-pointsman-x", "1"), ("cookie", "c=d")];
    let response =
        send(host.port, "POST", "/upstream/a/slots/0?action=erase&key=s", &headers, b"{\"a\":1}");
    assert_eq!(response.status, 302);
    assert_eq!((response.header("location"), response.header("set-cookie")), (None, None));
    let sent =
        engine.requests().into_iter().find(|request| request.path.contains("slots")).unwrap();
    assert!(sent.path.ends_with("/slots/0?action=erase"), "{}", sent.path);
    assert_eq!(sent.json(), json!({ "a": 1 }));
    for name in ["x-api-key", "authorization", "cookie", "x-pointsman-x"] {
        assert_eq!(sent.header(name), None, "{name}");
    }
    host.assert_no_request_lost();
}

#[test]
fn lane_is_only_loaded_if_the_request_asks_for_it() {
    let lane = lane("a", &["a"], &[]).replace("models =", "load = \"on-demand\"\nmodels =");
    let host = keyed(&lane);
    assert_eq!(host.lane("a")["state"], "unloaded");
    let refused = as_admin(&host, "GET", "/upstream/a/slots");
    assert_eq!((refused.status, refused.error_code()), (409, json!("lane_not_loaded")));
    assert_eq!(host.lane("a")["state"], "unloaded");
    let load = [ADMIN, ("x-pointsman-load", "true")];
    let response = send(host.port, "GET", "/upstream/a/slots", &load, b"");
    assert_eq!(response.status, 200, "{}", response.text());
    assert_eq!(as_admin(&host, "GET", "/upstream/a/slots").status, 200);
    host.assert_no_request_lost();
}

/// What differs between two responses of the same request.
fn without_ids(mut body: Value) -> Value {
    for name in ["timings", "id_slot", "tokens_cached", "model", "created", "id"] {
        body.as_object_mut().map(|body| body.remove(name));
    }
    body
}

#[test]
fn real_llama_cpp_answers_as_it_does_directly() {
    let python = prepared_dir("POINTSMAN_VENV", "venv").join("bin/python3");
    let engine = root().join("examples/llama_engine.py");
    let command = json!([python, engine, "--port", "{port}", "--alias", "{lane}"]);
    let config = format!(
        "[[lanes]]\nname = \"a\"\nslots = 2\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
         command = {command}\n"
    );
    let host = host(&config);
    let engine = host.engine_port("a");
    let greedy = json!({ "prompt": "Once upon a time", "n_predict": 8, "temperature": 0,
        "seed": 1, "cache_prompt": false });
    for (path, body) in [
        ("/completion", greedy.clone()),
        ("/completions", greedy.clone()),
        ("/tokenize", json!({ "content": "Hello world" })),
        ("/detokenize", json!({ "tokens": [100, 200] })),
        ("/apply-template", json!({ "messages": [{ "role": "user", "content": "hi" }] })),
    ] {
        let (direct, through) = (post(engine, path, &body), post(host.port, path, &body));
        assert_eq!(through.status, direct.status, "{path}: {}", through.text());
        assert_eq!(without_ids(through.json()), without_ids(direct.json()), "{path}");
    }
    let mut streamed = greedy;
    streamed["stream"] = true.into();
    let contents = |port: u16| -> Vec<Value> {
        let (response, complete) = stream(port, "/completion", &streamed).finish();
        assert!(complete, "{}", response.text());
        let text = response.text();
        let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
        data.map(|data| without_ids(serde_json::from_str(data).unwrap())).collect()
    };
    assert_eq!(contents(host.port), contents(engine));
    let chat = json!({ "model": "a", "messages": [{ "role": "user", "content": "Say hello." }],
        "options": { "num_predict": 4 } });
    let lines = post(host.port, "/api/chat", &chat).text();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!((&last["done"], &last["eval_count"]), (&json!(true), &json!(4)), "{lines}");
    host.assert_no_request_lost();
    host.stop();
}
