//! The fake engine compared with captures of the real engines: the same status, headers and shape
//! of the body, and the same text in errors.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use pointsman_tests::WAIT_TIMEOUT;
use pointsman_tests::client::{get, stream};
use pointsman_tests::host::root;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::FAKE_ENGINE;

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

/// A fake engine without a host.
struct Engine {
    child: Child,
    port: u16,
}

impl Engine {
    fn start(arguments: &[&str], own: &str) -> Self {
        let mut command = Command::new(FAKE_ENGINE);
        command
            .args(arguments)
            .args(["--host", "127.0.0.1", "--port", "0"])
            .env("FAKE_ENGINE", own);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port =
            line.trim().rsplit(':').next().unwrap().parse().unwrap_or_else(|_| panic!("{line:?}"));
        Self { child, port }
    }

    fn vllm(more: &[&str], own: &str) -> Self {
        let arguments = [
            "serve",
            "./model",
            "--served-model-name",
            "orchestrator",
            "--max-model-len",
            "512",
            "--disable-uvicorn-access-log",
        ];
        Self::start(&[&arguments[..], more].concat(), own)
    }

    fn llama(own: &str) -> Self {
        let arguments = [
            "--model",
            "m.gguf",
            "--alias",
            "super_reader",
            "--parallel",
            "2",
            "--ctx-size",
            "2048",
        ];
        Self::start(&[&arguments[..], &["--metrics"]].concat(), own)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let core = get_state(self.port).and_then(|state| state["core"].as_i64());
        // The engine may have exited already.
        self.child.kill().ok();
        self.child.wait().ok();
        if let Some(core) = core.and_then(|core| Pid::from_raw(core.try_into().unwrap())) {
            kill_process(core, Signal::KILL).ok();
        }
    }
}

/// Returns the state that the fake engine reports, or `None` if it does not listen.
fn get_state(port: u16) -> Option<Value> {
    TcpStream::connect(("127.0.0.1", port)).ok()?;
    Some(get(port, "/fake/state").json())
}

/// A response, from the fake engine or from a capture.
#[derive(Debug)]
struct Message {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Message {
    fn head(text: &str) -> Self {
        let mut lines = text.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.to_ascii_lowercase(), value.trim().to_owned())
        };
        Self { status, headers: lines.map(header).collect(), body: String::new() }
    }

    fn captured(folder: &str, name: &str) -> Self {
        let path = root().join("tests/captures").join(folder).join(format!("{name}.http"));
        let text = String::from_utf8_lossy(&fs::read(path).unwrap()).replace("\r\n", "\n");
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        Self { body: body.to_owned(), ..Self::head(head) }
    }

    /// Sends a request without `connection: close`, which the engine would repeat in its response.
    fn request(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n",
            body.len()
        );
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        socket.write_all(format!("{request}\r\n{body}").as_bytes()).unwrap();
        let mut reader = BufReader::new(socket);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "incomplete head: {head}");
        }
        let mut message = Self::head(head.trim_end());
        let mut body = Vec::new();
        match message.headers.get("content-length") {
            Some(length) => {
                body.resize(length.parse().unwrap(), 0);
                reader.read_exact(&mut body).unwrap();
            }
            None => loop {
                let mut size = String::new();
                reader.read_line(&mut size).unwrap();
                let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).unwrap() + 2];
                reader.read_exact(&mut chunk).unwrap();
                if chunk.len() == 2 {
                    break;
                }
                body.extend_from_slice(&chunk[..chunk.len() - 2]);
            },
        }
        message.body = String::from_utf8(body).unwrap();
        message
    }

    /// Returns the headers that must be equal, without dates and random values.
    fn stable_headers(&self, same_body: bool) -> BTreeMap<&str, &str> {
        let is_stable = |(name, value): (&String, &String)| {
            (name != "content-length" || same_body) && !value.is_empty()
        };
        let value = |name: &str, value| match name {
            "process-start-time-unix" | "x-request-id" if value != "r-1" => "(any)",
            _ => value,
        };
        let headers =
            self.headers.iter().filter(|(name, value)| *name != "date" && is_stable((name, value)));
        headers.map(|(name, text)| (name.as_str(), value(name, text))).collect()
    }
}

/// Returns the keys of a value in their order, with types instead of values. Errors are returned as
/// they are.
fn shape(value: &Value) -> String {
    match value {
        Value::Object(object) if object.contains_key("error") || object.contains_key("detail") => {
            value.to_string()
        }
        Value::Object(object) => {
            let keys: Vec<String> =
                object.iter().map(|(key, value)| format!("{key}: {}", shape(value))).collect();
            format!("{{{}}}", keys.join(", "))
        }
        Value::Array(array) => {
            let mut items: Vec<String> = array.iter().map(shape).collect();
            items.dedup();
            format!("[{}]", items.join(", "))
        }
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if number.is_f64() => "float".to_owned(),
        Value::Number(_) => "integer".to_owned(),
        Value::String(_) => "string".to_owned(),
    }
}

/// Returns the shapes of a body: of its JSON, of its events, or of its lines of metrics. Repeated
/// shapes are listed once.
fn shapes(body: &str) -> Vec<String> {
    let shape_of = |text: &str| {
        serde_json::from_str(text).map_or_else(|_| text.to_owned(), |value| shape(&value))
    };
    let mut shapes: Vec<String> = if body.starts_with("data: ") {
        body.lines().filter_map(|line| line.strip_prefix("data: ")).map(shape_of).collect()
    } else if body.starts_with("# HELP") {
        body.lines()
            .map(|line| {
                if line.starts_with('#') { line } else { line.rsplit_once(' ').unwrap().0 }
                    .to_owned()
            })
            .collect()
    } else {
        vec![shape_of(body)]
    };
    shapes.dedup();
    shapes
}

fn assert_equivalent(name: &str, captured: &Message, fake: &Message) {
    assert_eq!(fake.status, captured.status, "{name}: {fake:?}");
    assert_eq!(shapes(&fake.body), shapes(&captured.body), "{name}");
    let same_body = fake.body == captured.body;
    assert_eq!(fake.stable_headers(same_body), captured.stable_headers(same_body), "{name}");
}

type Request<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);

fn assert_matches_captures(engine: &Engine, folder: &str, requests: &[Request<'_>]) {
    for (name, method, path, headers, body) in requests {
        let fake = Message::request(engine.port, method, path, headers, body);
        assert_equivalent(&format!("{folder}/{name}"), &Message::captured(folder, name), &fake);
    }
}

fn chat(model: &str, more: Value) -> String {
    pointsman_tests::client::chat(model, more).to_string()
}

fn completion(model: &str, more: Value) -> String {
    let mut body = json!({ "model": model, "prompt": "hello" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

const VLLM: &str = "vllm-0.32.0";
const LLAMA: &str = "llama-server-b115xx";

#[test]
fn fake_vllm_matches_captures() {
    let engine = Engine::vllm(&[], "");
    let model = "orchestrator";
    let usage = json!({ "include_usage": true });
    let named = [JSON, ("x-request-id", "abc-123")];
    let text = [("content-type", "text/plain")];
    let get = |name, path| (name, "GET", path, &[][..], "");
    let request = chat(model, json!({ "max_tokens": 8 }));
    let streamed = chat(model, json!({ "max_tokens": 5, "stream": true, "stream_options": usage }));
    let completion_request = completion(model, json!({ "max_tokens": 5 }));
    let completed_stream = completion(model, json!({ "max_tokens": 4, "stream": true }));
    let unknown = chat("nope", json!({}));
    let missing = json!({ "model": model }).to_string();
    let long = completion(model, json!({ "prompt": "x".repeat(600) }));
    let options = chat(model, json!({ "stream_options": usage }));
    let input = json!({ "model": model, "input": "hello", "max_output_tokens": 5 }).to_string();
    let message = chat(model, json!({ "max_tokens": 5 }));
    let requests = [
        get("health", "/health"),
        get("ping", "/ping"),
        get("version", "/version"),
        get("load", "/load"),
        get("models", "/v1/models"),
        ("chat", "POST", CHAT, &named, &request),
        ("chat-stream", "POST", CHAT, &[JSON], &streamed),
        ("completion", "POST", COMPLETION, &[JSON], &completion_request),
        ("completion-stream", "POST", COMPLETION, &[JSON], &completed_stream),
        ("err-unknown-model", "POST", CHAT, &[JSON], &unknown),
        ("err-bad-json", "POST", CHAT, &[JSON], "{\"model\":"),
        ("err-missing-messages", "POST", CHAT, &[JSON], &missing),
        ("err-too-long", "POST", COMPLETION, &[JSON], &long),
        ("err-stream-options-without-stream", "POST", CHAT, &[JSON], &options),
        get("err-404", "/v1/nothing"),
        get("err-405", CHAT),
        ("err-content-type", "POST", CHAT, &text, &request),
        ("embeddings-unsupported", "POST", "/v1/embeddings", &[JSON], &input),
        ("responses", "POST", "/v1/responses", &[JSON], &input),
        ("messages", "POST", "/v1/messages", &[JSON], &message),
        ("tokenize", "POST", "/tokenize", &[JSON], &completion_request),
        get("metrics", "/metrics"),
    ];
    assert_matches_captures(&engine, VLLM, &requests);
}

#[test]
fn fake_vllm_with_api_key_matches_captures() {
    let more = ["--api-key", "k", "--enable-request-id-headers", "--scheduling-policy", "priority"];
    let engine = Engine::vllm(&more, "");
    let named = [JSON, ("authorization", "Bearer k"), ("x-request-id", "r-1")];
    let body = chat("orchestrator", json!({ "max_tokens": 4, "priority": 3 }));
    let requests = [
        ("err-unauthorized", "POST", CHAT, &[JSON][..], &*body),
        ("chat-priority", "POST", CHAT, &named, &body),
    ];
    assert_matches_captures(&engine, VLLM, &requests);
    assert_eq!(get(engine.port, "/fake/state").json()["priorities"], json!([3]));
}

/// Runs `fault` in the middle of a stream; returns the capture of this name and what was received.
fn broken_stream(engine: &Engine, name: &str, fault: impl FnOnce()) -> (Message, Message) {
    let body = json!({ "model": "orchestrator", "stream": true, "max_tokens": 20,
        "messages": [{ "role": "user", "content": "hello" }] });
    let mut event_stream = stream(engine.port, CHAT, &body);
    for _ in 0..3 {
        assert!(event_stream.read_chunk());
    }
    fault();
    let (response, _) = event_stream.finish();
    let headers =
        response.headers.iter().filter(|(name, _)| name != "connection").cloned().collect();
    let fake = Message { status: response.status, headers, body: response.text() };
    (Message::captured(VLLM, name), fake)
}

#[test]
fn drained_stream_of_fake_vllm_matches_capture() {
    let more = ["--enable-request-id-headers", "--shutdown-timeout", "10"];
    let mut engine = Engine::vllm(&more, "--script '{\"token-ms\": 20}'");
    let (captured, fake) = broken_stream(&engine, "stream-drained-by-sigterm", || {
        engine.signal(Signal::TERM);
        // The listener may not have seen the signal yet.
        let late = || {
            Message::request(
                engine.port,
                "POST",
                CHAT,
                &[JSON],
                &chat("orchestrator", json!({ "max_tokens": 1 })),
            )
        };
        assert!((0..20).any(|_| late().status == 500));
    });
    assert_equivalent("stream-drained-by-sigterm", &captured, &fake);
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
}

#[test]
fn stream_of_fake_vllm_with_killed_core_matches_capture() {
    let own = "--fork-core --core-death-ms 300 --script '{\"token-ms\": 20}'";
    let mut engine = Engine::vllm(&[], own);
    let core = get(engine.port, "/fake/state").json()["core"].as_i64().unwrap();
    let comm = fs::read_to_string(format!("/proc/{core}/comm")).unwrap();
    assert_eq!(comm.trim(), "VLLM::EngineCor");
    let (captured, fake) = broken_stream(&engine, "stream-engine-killed", || {
        kill_process(Pid::from_raw(core.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    });
    assert_equivalent("stream-engine-killed", &captured, &fake);
    assert_eq!(get(engine.port, "/health").status, 503);
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
}

#[test]
fn stream_of_fake_vllm_stalls_after_sigterm() {
    let engine = Engine::vllm(&[], "--script '{\"token-ms\": 20}'");
    let mut socket = TcpStream::connect(("127.0.0.1", engine.port)).unwrap();
    let body = chat("orchestrator", json!({ "stream": true, "max_tokens": 100 }));
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n");
    write!(socket, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut part = [0; 4096];
    assert!(socket.read(&mut part).unwrap() > 0);
    engine.signal(Signal::TERM);
    socket.set_read_timeout(Some(std::time::Duration::from_millis(500))).unwrap();
    let mut text = String::from_utf8_lossy(&part).into_owned();
    loop {
        match socket.read(&mut part) {
            Ok(read) => {
                assert!(read > 0, "the stream must not end");
                text.push_str(&String::from_utf8_lossy(&part[..read]));
            }
            Err(silent) => break assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert!(!text.contains("[DONE]") && !text.contains("error"), "{text}");
    let mut engine = engine;
    assert!(engine.child.try_wait().unwrap().is_none(), "the engine waits for its client");
    drop(socket);
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
}

#[test]
fn fake_llama_server_matches_captures() {
    let engine = Engine::llama("");
    let usage = json!({ "include_usage": true });
    let get = |name, path| (name, "GET", path, &[][..], "");
    let request = chat("x", json!({ "max_tokens": 8 }));
    let streamed = chat("x", json!({ "max_tokens": 5, "stream": true, "stream_options": usage }));
    let completion_request = completion("x", json!({ "max_tokens": 5 }));
    let requests = [
        get("metrics", "/metrics"),
        get("health", "/health"),
        get("models", "/v1/models"),
        get("props", "/props"),
        get("slots", "/slots"),
        ("chat", "POST", CHAT, &[JSON], &request),
        ("chat-stream", "POST", CHAT, &[JSON], &streamed),
        ("completion", "POST", COMPLETION, &[JSON], &completion_request),
        ("embeddings-unsupported", "POST", "/v1/embeddings", &[JSON], &completion_request),
        get("err-404", "/v1/nothing"),
        ("err-bad-json", "POST", CHAT, &[JSON], "{\"model\":"),
        ("err-missing-messages", "POST", CHAT, &[JSON], "{\"model\": \"x\"}"),
    ];
    assert_matches_captures(&engine, LLAMA, &requests);
}

#[test]
fn fake_llama_server_matches_captures_of_slots() {
    let folder = tempfile::tempdir().unwrap();
    let model = ["--model", "m.gguf", "--alias", "super_reader"];
    let saving = ["--slot-save-path", folder.path().to_str().unwrap()];
    let engine = Engine::start(&[&model[..], &saving].concat(), "");
    let file = r#"{"filename":"c1.bin"}"#;
    let act = |name, action, body| (name, "POST", action, &[JSON][..], body);
    let requests = [
        act("slots-save", "/slots/1?action=save", file),
        act("slots-restore", "/slots/1?action=restore", file),
        act("slots-erase", "/slots/1?action=erase", ""),
        act("err-slots-restore", "/slots/1?action=restore", r#"{"filename":"none.bin"}"#),
        act("err-slots-action", "/slots/1?action=bogus", file),
    ];
    assert_matches_captures(&engine, LLAMA, &requests);
    let full = Engine::start(&[&model[..], &saving].concat(), "--full-disk");
    let requests = [act("err-slots-full-disk", "/slots/1?action=save", file)];
    assert_matches_captures(&full, LLAMA, &requests);
    let requests = [act("err-slots-unsupported", "/slots/1?action=save", file)];
    assert_matches_captures(&Engine::llama(""), LLAMA, &requests);
}

#[test]
fn fake_llama_server_for_embeddings_matches_captures() {
    let model = ["--model", "m.gguf", "--alias", "super_reader"];
    let embedder = Engine::start(&[&model[..], &["--embeddings"]].concat(), "");
    let (embeddings, rerank) = ("/v1/embeddings", "/v1/rerank");
    let requests = [
        ("embeddings", "POST", embeddings, &[JSON][..], r#"{"input":["hello","a b"],"model":"x"}"#),
        (
            "embeddings-base64",
            "POST",
            embeddings,
            &[JSON],
            r#"{"input":"hello","encoding_format":"base64"}"#,
        ),
        ("err-embeddings-missing-input", "POST", embeddings, &[JSON], r#"{"model":"x"}"#),
        ("embedding", "POST", "/embedding", &[JSON], r#"{"content":"hello"}"#),
        ("tokenize", "POST", "/tokenize", &[JSON], r#"{"content":"hello world"}"#),
        ("detokenize", "POST", "/detokenize", &[JSON], r#"{"tokens":[28120,905]}"#),
        ("rerank-unsupported", "POST", rerank, &[JSON], r#"{"query":"q","documents":["a"]}"#),
    ];
    assert_matches_captures(&embedder, LLAMA, &requests);
    let ranker = Engine::start(&[&model[..], &["--reranking"]].concat(), "");
    let requests = [
        ("rerank", "POST", rerank, &[JSON][..], r#"{"query":"q","documents":["a","b c"]}"#),
        ("err-rerank-missing-query", "POST", rerank, &[JSON], r#"{"documents":["a","b c"]}"#),
        ("err-rerank-missing-documents", "POST", rerank, &[JSON], r#"{"query":"q"}"#),
    ];
    assert_matches_captures(&ranker, LLAMA, &requests);
}

#[test]
fn fake_llama_server_responds_503_while_loading() {
    let engine = Engine::llama("--load-ms 3600000");
    assert_matches_captures(&engine, LLAMA, &[("health-loading", "GET", "/health", &[], "")]);
    assert_eq!(get(engine.port, "/v1/models").status, 503);
}
