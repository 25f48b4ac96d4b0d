//! The fake engine against recordings of the real ones: the same status, headers and shape of body, and the same words
//! where something is wrong.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use pointsman_tests::PATIENCE;
use pointsman_tests::client::{get, stream};
use pointsman_tests::host::root;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::FAKE_ENGINE;

const CHAT: &str = "/v1/chat/completions";
const COMPLETION: &str = "/v1/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

/// A fake engine of its own.
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
        let _ended = (self.child.kill(), self.child.wait());
        if let Some(core) = core.and_then(|core| Pid::from_raw(core.try_into().unwrap())) {
            let _ended = kill_process(core, Signal::KILL);
        }
    }
}

/// What the engine says of itself, if it still listens.
fn get_state(port: u16) -> Option<Value> {
    TcpStream::connect(("127.0.0.1", port)).ok()?;
    Some(get(port, "/fake/state").json())
}

/// What came over the wire, now or when it was recorded.
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

    fn recorded(folder: &str, name: &str) -> Self {
        let path = root().join("tests/captures").join(folder).join(format!("{name}.http"));
        let text = String::from_utf8_lossy(&fs::read(path).unwrap()).replace("\r\n", "\n");
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        Self { body: body.to_owned(), ..Self::head(head) }
    }

    /// Ask, without the `connection: close` that would be answered in kind.
    fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
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
            assert!(reader.read_line(&mut head).unwrap() > 0, "no whole head: {head}");
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

    /// Headers without those that are never the same twice.
    fn fixed_headers(&self, same_body: bool) -> BTreeMap<&str, &str> {
        let fixed = |(name, value): (&String, &String)| {
            (name != "content-length" || same_body) && !value.is_empty()
        };
        let value = |name: &str, value| match name {
            "process-start-time-unix" | "x-request-id" if value != "r-1" => "(any)",
            _ => value,
        };
        let headers =
            self.headers.iter().filter(|(name, value)| *name != "date" && fixed((name, value)));
        headers.map(|(name, text)| (name.as_str(), value(name, text))).collect()
    }
}

/// A value with its keys in their order, and kinds instead of values; all of it where an error is told.
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

/// The shapes of a body: of its JSON, of its events (repeated ones once), or of its lines of metrics.
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

fn compare(name: &str, recorded: &Message, faked: &Message) {
    assert_eq!(faked.status, recorded.status, "{name}: {faked:?}");
    assert_eq!(shapes(&faked.body), shapes(&recorded.body), "{name}");
    let same_body = faked.body == recorded.body;
    assert_eq!(faked.fixed_headers(same_body), recorded.fixed_headers(same_body), "{name}");
}

type Request<'a> = (&'a str, &'a str, &'a str, &'a [(&'a str, &'a str)], &'a str);

fn check(engine: &Engine, folder: &str, requests: &[Request<'_>]) {
    for (name, method, path, headers, body) in requests {
        let faked = Message::ask(engine.port, method, path, headers, body);
        compare(&format!("{folder}/{name}"), &Message::recorded(folder, name), &faked);
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
fn the_fake_vllm_answers_as_the_recorded_one() {
    let engine = Engine::vllm(&[], "");
    let model = "orchestrator";
    let usage = json!({ "include_usage": true });
    let named = [JSON, ("x-request-id", "abc-123")];
    let text = [("content-type", "text/plain")];
    let get = |name, path| (name, "GET", path, &[][..], "");
    let asked = chat(model, json!({ "max_tokens": 8 }));
    let streamed = chat(model, json!({ "max_tokens": 5, "stream": true, "stream_options": usage }));
    let completed = completion(model, json!({ "max_tokens": 5 }));
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
        ("chat", "POST", CHAT, &named, &asked),
        ("chat-stream", "POST", CHAT, &[JSON], &streamed),
        ("completion", "POST", COMPLETION, &[JSON], &completed),
        ("completion-stream", "POST", COMPLETION, &[JSON], &completed_stream),
        ("err-unknown-model", "POST", CHAT, &[JSON], &unknown),
        ("err-bad-json", "POST", CHAT, &[JSON], "{\"model\":"),
        ("err-missing-messages", "POST", CHAT, &[JSON], &missing),
        ("err-too-long", "POST", COMPLETION, &[JSON], &long),
        ("err-stream-options-without-stream", "POST", CHAT, &[JSON], &options),
        get("err-404", "/v1/nothing"),
        get("err-405", CHAT),
        ("err-content-type", "POST", CHAT, &text, &asked),
        ("embeddings-unsupported", "POST", "/v1/embeddings", &[JSON], &input),
        ("responses", "POST", "/v1/responses", &[JSON], &input),
        ("messages", "POST", "/v1/messages", &[JSON], &message),
        ("tokenize", "POST", "/tokenize", &[JSON], &completed),
        get("metrics", "/metrics"),
    ];
    check(&engine, VLLM, &requests);
}

#[test]
fn the_fake_vllm_with_a_key_answers_as_the_recorded_one() {
    let more = ["--api-key", "k", "--enable-request-id-headers", "--scheduling-policy", "priority"];
    let engine = Engine::vllm(&more, "");
    let named = [JSON, ("authorization", "Bearer k"), ("x-request-id", "r-1")];
    let body = chat("orchestrator", json!({ "max_tokens": 4, "priority": 3 }));
    let requests = [
        ("err-unauthorized", "POST", CHAT, &[JSON][..], &*body),
        ("chat-priority", "POST", CHAT, &named, &body),
    ];
    check(&engine, VLLM, &requests);
    assert_eq!(get(engine.port, "/fake/state").json()["priorities"], json!([3]));
}

/// A stream in the middle of which something is done; what came.
fn broken_stream(engine: &Engine, name: &str, done: impl FnOnce()) -> (Message, Message) {
    let body = json!({ "model": "orchestrator", "stream": true, "max_tokens": 20,
        "messages": [{ "role": "user", "content": "hello" }] });
    let mut answer = stream(engine.port, CHAT, &body);
    for _ in 0..3 {
        assert!(answer.more());
    }
    done();
    let (reply, _) = answer.finish();
    let headers = reply.headers.iter().filter(|(name, _)| name != "connection").cloned().collect();
    let faked = Message { status: reply.status, headers, body: reply.text() };
    (Message::recorded(VLLM, name), faked)
}

#[test]
fn a_drained_stream_of_the_fake_vllm_ends_as_the_recorded_one() {
    let more = ["--enable-request-id-headers", "--shutdown-timeout", "10"];
    let mut engine = Engine::vllm(&more, "--script '{\"token-ms\": 20}'");
    let (recorded, faked) = broken_stream(&engine, "stream-drained-by-sigterm", || {
        engine.signal(Signal::TERM);
        // The listener may not have seen the signal yet.
        let late = || {
            Message::ask(
                engine.port,
                "POST",
                CHAT,
                &[JSON],
                &chat("orchestrator", json!({ "max_tokens": 1 })),
            )
        };
        assert!((0..20).any(|_| late().status == 500));
    });
    compare("stream-drained-by-sigterm", &recorded, &faked);
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_stream_of_the_fake_vllm_whose_core_dies_ends_as_the_recorded_one() {
    let own = "--fork-core --core-death-ms 300 --script '{\"token-ms\": 20}'";
    let mut engine = Engine::vllm(&[], own);
    let core = get(engine.port, "/fake/state").json()["core"].as_i64().unwrap();
    let comm = fs::read_to_string(format!("/proc/{core}/comm")).unwrap();
    assert_eq!(comm.trim(), "VLLM::EngineCor");
    let (recorded, faked) = broken_stream(&engine, "stream-engine-killed", || {
        kill_process(Pid::from_raw(core.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
    });
    compare("stream-engine-killed", &recorded, &faked);
    assert_eq!(get(engine.port, "/health").status, 503);
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_stream_of_the_fake_vllm_falls_silent_at_sigterm_as_the_recorded_one() {
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
                assert!(read > 0, "the stream was ended");
                text.push_str(&String::from_utf8_lossy(&part[..read]));
            }
            Err(silent) => break assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    assert!(!text.contains("[DONE]") && !text.contains("error"), "{text}");
    let mut engine = engine;
    assert!(engine.child.try_wait().unwrap().is_none(), "it waits for its client");
    drop(socket);
    assert_eq!(engine.child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_fake_llama_server_answers_as_the_recorded_one() {
    let engine = Engine::llama("");
    let usage = json!({ "include_usage": true });
    let get = |name, path| (name, "GET", path, &[][..], "");
    let asked = chat("x", json!({ "max_tokens": 8 }));
    let streamed = chat("x", json!({ "max_tokens": 5, "stream": true, "stream_options": usage }));
    let completed = completion("x", json!({ "max_tokens": 5 }));
    let requests = [
        get("metrics", "/metrics"),
        get("health", "/health"),
        get("models", "/v1/models"),
        get("props", "/props"),
        get("slots", "/slots"),
        ("chat", "POST", CHAT, &[JSON], &asked),
        ("chat-stream", "POST", CHAT, &[JSON], &streamed),
        ("completion", "POST", COMPLETION, &[JSON], &completed),
        ("embeddings-unsupported", "POST", "/v1/embeddings", &[JSON], &completed),
        get("err-404", "/v1/nothing"),
        ("err-bad-json", "POST", CHAT, &[JSON], "{\"model\":"),
        ("err-missing-messages", "POST", CHAT, &[JSON], "{\"model\": \"x\"}"),
    ];
    check(&engine, LLAMA, &requests);
}

#[test]
fn the_fake_llama_server_says_that_it_loads() {
    let engine = Engine::llama("--load-ms 3600000");
    check(&engine, LLAMA, &[("health-loading", "GET", "/health", &[], "")]);
    assert_eq!(get(engine.port, "/v1/models").status, 503);
}
