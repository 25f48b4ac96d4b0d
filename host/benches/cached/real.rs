//! The conversations with two servers of llama.cpp behind a gateway.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pointsman_domain::Advisor;
use pointsman_fleet::LaneSpec;
use pointsman_gateway::{Drain, ListenerSettings};
use serde_json::{Value, json};

use super::gateway::{gateway, lane};
use super::{Blend, MODEL, Turn};

const CLIENTS: usize = 3;
const CONVERSATIONS: usize = 6;
const TURNS: usize = 4;
/// Words of the document that each conversation begins with; about 320 tokens.
const DOCUMENT_WORDS: usize = 300;
const MAX_TOKENS: u32 = 16;
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A Python with xllamacpp and a small model.
pub(super) struct Python(PathBuf);

impl Python {
    pub(super) fn find() -> Option<Self> {
        let python = Path::new(&std::env::var_os("POINTSMAN_VENV")?).join("bin/python3");
        python.exists().then_some(Self(python))
    }

    /// Runs all conversations with this advice, and new engines.
    pub(super) fn run(&self, blend: Blend) -> Vec<Turn> {
        let engines = [self.engine(), self.engine()];
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        let drain = Drain::default();
        let lanes = [("a", &engines[0]), ("b", &engines[1])]
            .map(|(name, engine)| LaneSpec { slots: 2, ..lane(name, MODEL, engine.port) });
        let advisor: Box<dyn Advisor> = Box::new(blend);
        let advisor = Arc::new(Arc::new(advisor).into());
        let gateway = gateway(lanes.into(), advisor, drain.clone());
        let (gateway, tasks) = runtime.block_on(gateway);
        let serving = runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            gateway.serve(listener, ListenerSettings::default()).await;
        });
        let turns = converse(port);
        drain.close();
        runtime.block_on(async {
            serving.await.unwrap();
            tasks.shutdown().await;
        });
        turns
    }

    fn engine(&self) -> Engine {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/llama_engine.py");
        let mut command = Command::new(&self.0);
        command.arg(script).args(["--port", &port.to_string(), "--alias", MODEL]);
        command.args(["--threads", "1"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let engine = Engine { child: command.spawn().unwrap(), port };
        let started = Instant::now();
        while !engine.is_healthy() {
            assert!(started.elapsed() < READY_TIMEOUT, "the engine is not ready");
            #[expect(clippy::disallowed_methods, reason = "a port can only be polled")]
            std::thread::park_timeout(Duration::from_millis(50));
        }
        engine
    }
}

struct Engine {
    child: Child,
    port: u16,
}

impl Engine {
    fn is_healthy(&self) -> bool {
        let Ok(mut connection) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let request = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let mut status = String::new();
        connection.write_all(request).is_ok()
            && BufReader::new(connection).read_line(&mut status).is_ok()
            && status.contains(" 200 ")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Errors mean that the engine has exited already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Has all conversations, several at a time.
fn converse(port: u16) -> Vec<Turn> {
    let (next, turns) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= CONVERSATIONS {
                        return;
                    }
                    conversation(port, number, &turns);
                }
            });
        }
    });
    turns.into_inner().unwrap()
}

fn conversation(port: u16, number: usize, turns: &Mutex<Vec<Turn>>) {
    const WORDS: [&str; 12] = [
        "river", "stone", "market", "letter", "winter", "garden", "engine", "paper", "silver",
        "window", "bridge", "doctor",
    ];
    // Different from the first word on.
    let word = |at: usize| WORDS[(at * at + at * (number + 3) + number * 7) % WORDS.len()];
    let document: Vec<&str> = (0..DOCUMENT_WORDS).map(word).collect();
    let document = format!("Document {number}: {}", document.join(" "));
    let mut messages = vec![json!({ "role": "system", "content": document })];
    for turn in 0..TURNS {
        let question = format!("Question {turn}: which word is at place {}?", turn * 7 + 1);
        messages.push(json!({ "role": "user", "content": question }));
        let (result, content) = ask(port, &messages, turn == 0);
        turns.lock().unwrap().push(result);
        messages.push(json!({ "role": "assistant", "content": content }));
    }
}

/// Sends a request, and returns its measurements and the content of the response.
fn ask(port: u16, messages: &[Value], first: bool) -> (Turn, String) {
    let body = json!({
        "model": MODEL,
        "messages": messages,
        "stream": true,
        "stream_options": { "include_usage": true },
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": true,
    });
    let body = body.to_string();
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let started = Instant::now();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all((head + &body).as_bytes()).unwrap();
    let (mut content, mut first_token, mut usage) = (String::new(), None, Value::Null);
    for line in BufReader::new(connection).lines().map(Result::unwrap) {
        let Some(event) = line.strip_prefix("data: ") else { continue };
        let Ok(event) = serde_json::from_str::<Value>(event) else { continue };
        if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
            first_token.get_or_insert_with(|| started.elapsed());
            content.push_str(text);
        }
        if event["usage"].is_object() {
            usage = event["usage"].clone();
        }
    }
    let count = |value: &Value| u32::try_from(value.as_u64().unwrap_or(0)).unwrap();
    let turn = Turn {
        first,
        prompt: count(&usage["prompt_tokens"]),
        cached: count(&usage["prompt_tokens_details"]["cached_tokens"]),
        first_token: first_token.expect("a response with content"),
    };
    (turn, content)
}
