//! Requests that may have to wait for a start of vLLM.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pointsman_tests::client::{ResponseStream, chat, stream};
use serde_json::{Value, json};

use crate::LOAD_TIMEOUT;

pub(crate) const CHAT: &str = "/v1/chat/completions";

/// Returns a chat request whose completion has exactly this many tokens. With dummy weights, only
/// the length of the completion is meaningful.
pub(crate) fn chat_body(model: &str, tokens: u32, more: &Value) -> Value {
    let mut body = chat(model, json!({ "max_tokens": tokens, "ignore_eos": true }));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Returns a chat request for a stream of exactly this many tokens.
pub(crate) fn stream_body(model: &str, tokens: u32) -> Value {
    chat_body(
        model,
        tokens,
        &json!({ "stream": true, "stream_options": { "include_usage": true } }),
    )
}

/// Sends a request; returns the whole response as it is on the wire, including its head.
///
/// # Errors
/// If the connection breaks, or if nothing arrives within [`LOAD_TIMEOUT`].
pub(crate) fn raw_request(port: u16, method: &str, path: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LOAD_TIMEOUT))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    Ok(String::from_utf8_lossy(&response).into_owned())
}

/// A finished stream.
#[derive(Debug)]
pub(crate) struct StreamOutcome {
    pub(crate) status: u16,
    pub(crate) text: String,
    /// True if the body ended as HTTP requires.
    pub(crate) complete: bool,
    /// The time until the first event; comments do not count.
    pub(crate) first: Option<Duration>,
    pub(crate) took: Duration,
}

impl StreamOutcome {
    /// Returns the number of chunks with text. vLLM may put several tokens into one chunk.
    pub(crate) fn chunks(&self) -> usize {
        self.text.matches("\"content\":").count()
    }

    pub(crate) fn comments(&self) -> usize {
        self.text.lines().filter(|line| line.starts_with(':')).count()
    }

    /// Returns true if the stream is complete.
    pub(crate) fn is_done(&self) -> bool {
        self.status == 200
            && self.complete
            && self.text.ends_with("data: [DONE]\n\n")
            && !self.text.contains("\"error\"")
    }

    /// Returns true if the stream ended with an error event.
    pub(crate) fn is_broken(&self) -> bool {
        self.status == 200
            && self.text.contains("data: {\"error\"")
            && !self.text.contains("[DONE]")
    }

    /// Returns the last event before `[DONE]`.
    pub(crate) fn last_event(&self) -> &str {
        let mut events = self.text.lines().filter_map(|line| line.strip_prefix("data: "));
        events.rfind(|event| *event != "[DONE]").unwrap_or("")
    }
}

/// Reads a stream to its end.
pub(crate) fn read_stream(mut stream: ResponseStream, start: Instant) -> StreamOutcome {
    let status = stream.status;
    let first = stream.read_until("data: ").then(|| start.elapsed());
    let (response, complete) = stream.finish();
    StreamOutcome { status, text: response.text(), complete, first, took: start.elapsed() }
}

/// Sends a request for a stream and reads it, in a thread of its own.
pub(crate) fn spawn_stream(port: u16, body: Value) -> JoinHandle<StreamOutcome> {
    let start = Instant::now();
    std::thread::spawn(move || read_stream(stream(port, CHAT, &body), start))
}
