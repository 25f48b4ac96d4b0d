//! Requests that may have to wait for a start of vLLM.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pointsman_tests::client::{Stream, chat, stream};
use serde_json::{Value, json};

use crate::LOAD_LIMIT;

pub(crate) const CHAT: &str = "/v1/chat/completions";

/// A chat whose answer has exactly this many tokens. The weights are dummies: only its length means something.
pub(crate) fn asking(model: &str, tokens: u32, more: &Value) -> Value {
    let mut body = chat(model, json!({ "max_tokens": tokens, "ignore_eos": true }));
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The same as a stream.
pub(crate) fn asking_for_stream(model: &str, tokens: u32) -> Value {
    asking(model, tokens, &json!({ "stream": true, "stream_options": { "include_usage": true } }))
}

/// The whole answer as it is on the wire, head and all.
///
/// # Errors
/// When the connection breaks, or nothing comes for too long.
pub(crate) fn exchange(port: u16, method: &str, path: &str, body: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(LOAD_LIMIT))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// What became of a stream.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) status: u16,
    pub(crate) text: String,
    /// The body ended as HTTP wants it.
    pub(crate) complete: bool,
    /// Until the first event; a comment is none.
    pub(crate) first: Option<Duration>,
    pub(crate) took: Duration,
}

impl Told {
    /// Pieces of text. vLLM may put several tokens into one.
    pub(crate) fn pieces(&self) -> usize {
        self.text.matches("\"content\":").count()
    }

    pub(crate) fn comments(&self) -> usize {
        self.text.lines().filter(|line| line.starts_with(':')).count()
    }

    /// Is it whole?
    pub(crate) fn done(&self) -> bool {
        self.status == 200
            && self.complete
            && self.text.ends_with("data: [DONE]\n\n")
            && !self.text.contains("\"error\"")
    }

    /// Was the client told that it is not?
    pub(crate) fn broken(&self) -> bool {
        self.status == 200
            && self.text.contains("data: {\"error\"")
            && !self.text.contains("[DONE]")
    }

    /// The last event but `[DONE]`.
    pub(crate) fn last(&self) -> &str {
        let mut events = self.text.lines().filter_map(|line| line.strip_prefix("data: "));
        events.rfind(|event| *event != "[DONE]").unwrap_or("")
    }
}

/// Read a stream to its end.
pub(crate) fn hear(mut stream: Stream, begun: Instant) -> Told {
    let status = stream.status;
    let first = stream.until("data: ").then(|| begun.elapsed());
    let (reply, complete) = stream.finish();
    Told { status, text: reply.text(), complete, first, took: begun.elapsed() }
}

/// Ask, and hear the answer, in a thread of its own.
pub(crate) fn ask(port: u16, body: Value) -> JoinHandle<Told> {
    let begun = Instant::now();
    std::thread::spawn(move || hear(stream(port, CHAT, &body), begun))
}
