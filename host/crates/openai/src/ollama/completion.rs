//! Texts and tool calls: a stream of chat completions, or a whole response, as lines of JSON.

mod chunk;

use bytes::Bytes;
use memchr::memchr;
use serde_json::{Map, Value, json};

use self::chunk::{CallPart, Chunk, Piece};
use super::MAX_OLLAMA_RESPONSE;
use super::clock::{Clock, nanoseconds};
use crate::date::timestamp;
use crate::error::EngineErrorBody;
use crate::translate::Translate;
use crate::usage::Usage;

/// Tool calls of one response.
const MAX_OLLAMA_CALLS: usize = 1024;

/// Where a line has the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CompletionForm {
    /// In `message`, as `/api/chat` has it.
    Chat,
    /// In `response`, as `/api/generate` has it.
    Generate,
}

/// Translates a response.
///
/// ```text
///   data: {…delta…}  ──> {"message":{…},"done":false}
///   data: [DONE]     ──> {…,"done":true,"done_reason":…}      not if the stream breaks off
/// ```
#[derive(Debug)]
pub(super) struct Completion {
    form: CompletionForm,
    model: String,
    /// The client gets a line for each part of the text, else one line with all of it.
    streaming: bool,
    clock: Clock,
    /// An incomplete line of a stream, or the beginning of another body.
    held: Vec<u8>,
    /// Whether the engine sends events; known from the first byte.
    has_events: Option<bool>,
    seen: Seen,
    /// The last line, or an error, was written.
    is_over: bool,
}

/// What of the response has not been written yet.
#[derive(Debug, Default)]
struct Seen {
    text: String,
    thinking: String,
    logprobs: Vec<Value>,
    /// Their arguments arrive in parts.
    calls: Vec<CallPart>,
    /// Bytes of the calls and texts above.
    bytes: usize,
    finish_reason: Option<String>,
    usage: Option<Usage>,
    /// Milliseconds for the prompt and the response, of llama.cpp.
    timings: Option<(f64, f64)>,
}

impl Completion {
    pub(super) fn new(form: CompletionForm, model: String, streaming: bool, clock: Clock) -> Self {
        Self {
            form,
            model,
            streaming,
            clock,
            held: Vec::new(),
            has_events: None,
            seen: Seen::default(),
            is_over: false,
        }
    }

    /// Takes the lines of a stream that have arrived.
    fn lines(&mut self, out: &mut String) {
        let held = std::mem::take(&mut self.held);
        let mut rest = held.as_slice();
        while let Some(end) = memchr(b'\n', rest) {
            self.line(&rest[..end], out);
            rest = &rest[end + 1..];
        }
        self.held = rest.to_vec();
    }

    fn line(&mut self, line: &[u8], out: &mut String) {
        // Earlier builds of llama.cpp report errors in a field of their own.
        let data = line.strip_prefix(b"data:").or_else(|| line.strip_prefix(b"error:"));
        let Some(data) = data.map(<[u8]>::trim_ascii).filter(|_| !self.is_over) else { return };
        match data {
            b"[DONE]" => self.end(out),
            // llama.cpp begins some of its streams with an event that says nothing.
            b"null" => {}
            data => self.object(data, out),
        }
    }

    /// Takes one object: an event, or a whole response.
    fn object(&mut self, data: &[u8], out: &mut String) {
        let Ok(chunk) = serde_json::from_slice::<Chunk>(data) else {
            self.fail("the engine sent a response that is not valid", out);
            return;
        };
        if chunk.is_error() {
            let message = EngineErrorBody::read(data).message;
            self.fail(message.as_deref().unwrap_or("the engine failed"), out);
            return;
        }
        self.seen.usage = chunk.usage.or(self.seen.usage);
        self.seen.timings = chunk.timings().or(self.seen.timings);
        if let Some(piece) = chunk.into_piece() {
            self.piece(piece, out);
        }
    }

    fn piece(&mut self, piece: Piece, out: &mut String) {
        let Piece { text, thinking, logprobs, calls, finish_reason } = piece;
        self.seen.finish_reason = finish_reason.or(self.seen.finish_reason.take());
        calls.into_iter().for_each(|part| self.seen.add_call(part));
        if self.seen.calls.len() > MAX_OLLAMA_CALLS {
            return self.fail("the engine called too many tools", out);
        }
        if text.is_empty() && thinking.is_empty() && logprobs.is_empty() {
            return self.check_size(out);
        }
        self.clock.first();
        if self.streaming {
            self.write(&text, &thinking, logprobs, Vec::new(), Map::new(), out);
            return self.check_size(out);
        }
        self.seen.bytes += text.len() + thinking.len();
        self.seen.text.push_str(&text);
        self.seen.thinking.push_str(&thinking);
        self.seen.logprobs.extend(logprobs);
        self.check_size(out);
    }

    fn check_size(&mut self, out: &mut String) {
        if self.seen.bytes + self.held.len() > MAX_OLLAMA_RESPONSE {
            self.fail("the response of the engine is too large", out);
        }
    }

    /// Writes the tool calls, and the last line.
    fn end(&mut self, out: &mut String) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let seen = std::mem::take(&mut self.seen);
        let reason = match seen.finish_reason.as_deref() {
            Some("length") => "length",
            _ => "stop",
        };
        let mut last = Map::new();
        last.insert("done_reason".to_owned(), reason.into());
        self.clock.add_total(&mut last);
        let (prompt, response) = match seen.timings {
            Some((prompt, response)) => (milliseconds(prompt), milliseconds(response)),
            None => {
                let (prompt, response) = self.clock.evaluation();
                (nanoseconds(prompt), nanoseconds(response))
            }
        };
        let usage = seen.usage.unwrap_or_default();
        last.insert("prompt_eval_count".to_owned(), usage.prompt_tokens.into());
        last.insert("prompt_eval_duration".to_owned(), prompt);
        last.insert("eval_count".to_owned(), usage.completion_tokens.into());
        last.insert("eval_duration".to_owned(), response);
        let mut calls: Vec<Value> = seen.calls.iter().map(CallPart::to_json).collect();
        if self.streaming && !calls.is_empty() {
            self.write("", "", Vec::new(), std::mem::take(&mut calls), Map::new(), out);
        }
        self.write(&seen.text, &seen.thinking, seen.logprobs, calls, last, out);
    }

    /// Writes a line: the last one, if `last` is not empty.
    fn write(
        &self,
        text: &str,
        thinking: &str,
        logprobs: Vec<Value>,
        calls: Vec<Value>,
        last: Map<String, Value>,
        out: &mut String,
    ) {
        let mut line = Map::new();
        let mut set = |name: &str, value: Value| line.insert(name.to_owned(), value);
        set("model", self.model.as_str().into());
        set("created_at", timestamp(std::time::SystemTime::now()).into());
        match self.form {
            CompletionForm::Chat => {
                let mut message = json!({ "role": "assistant", "content": text });
                if !thinking.is_empty() {
                    message["thinking"] = thinking.into();
                }
                if !calls.is_empty() {
                    message["tool_calls"] = calls.into();
                }
                set("message", message);
            }
            CompletionForm::Generate => {
                set("response", text.into());
                if !thinking.is_empty() {
                    set("thinking", thinking.into());
                }
            }
        }
        set("done", (!last.is_empty()).into());
        if !logprobs.is_empty() {
            set("logprobs", logprobs.into());
        }
        line.extend(last);
        out.push_str(&Value::Object(line).to_string());
        out.push('\n');
    }

    /// Ends the response with an error.
    fn fail(&mut self, message: &str, out: &mut String) {
        if !std::mem::replace(&mut self.is_over, true) {
            out.push_str(&json!({ "error": message }).to_string());
            out.push('\n');
        }
        self.seen = Seen::default();
        self.held = Vec::new();
    }
}

impl Seen {
    fn add_call(&mut self, part: CallPart) {
        let CallPart { index, id, name, arguments } = part;
        self.bytes += id.len() + name.len() + arguments.len();
        let is_full = self.calls.len() > MAX_OLLAMA_CALLS;
        match self.calls.iter_mut().find(|call| call.index == index) {
            Some(call) => {
                call.name.push_str(&name);
                call.arguments.push_str(&arguments);
            }
            None if is_full => {}
            None => self.calls.push(CallPart { index, id, name, arguments }),
        }
    }
}

impl CallPart {
    /// Returns the call as Ollama writes it. Arguments that are not JSON stay a text.
    fn to_json(&self) -> Value {
        let arguments = match self.arguments.trim() {
            "" => json!({}),
            text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        // Without the id: Ollama's clients name the tool in its result.
        json!({ "function": { "name": self.name, "arguments": arguments } })
    }
}

/// Returns milliseconds as nanoseconds. Casts of floats saturate.
fn milliseconds(time: f64) -> Value {
    ((time * 1e6) as u64).into()
}

impl Translate for Completion {
    fn chunk(&mut self, chunk: &[u8]) -> Bytes {
        if self.is_over {
            return Bytes::new();
        }
        let mut out = String::new();
        self.held.extend_from_slice(chunk);
        if self.has_events.is_none() {
            let first = self.held.trim_ascii_start().first();
            self.has_events = first.map(|first| *first != b'{');
            if self.has_events.is_none() {
                self.held.clear();
            }
        }
        // What was held before has no line ending.
        if self.has_events == Some(true) && memchr(b'\n', chunk).is_some() {
            self.lines(&mut out);
        }
        self.check_size(&mut out);
        out.into()
    }

    fn finish(&mut self, is_complete: bool) -> Bytes {
        let mut out = String::new();
        if is_complete && !self.is_over {
            let held = std::mem::take(&mut self.held);
            match self.has_events {
                Some(true) => self.line(&held, &mut out),
                Some(false) | None => self.object(&held, &mut out),
            }
            self.end(&mut out);
        }
        self.is_over = true;
        out.into()
    }

    fn content_type(&self) -> &'static str {
        match self.streaming {
            true => "application/x-ndjson",
            false => "application/json; charset=utf-8",
        }
    }
}
