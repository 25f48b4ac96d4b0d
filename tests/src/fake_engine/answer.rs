//! The answers of the fake engine: whole, or token by token, with whatever goes wrong on the way.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, header, request};
use http_body::{Body, Frame, SizeHint};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};

use super::{Engine, Flavour, Script};

/// One thing to do while answering.
#[derive(Debug)]
enum Act {
    Send(Bytes),
    Wait(Duration),
    Stall,
    Die,
}

/// Counts an answer as under way, until it ends or is dropped.
#[derive(Debug)]
struct Busy {
    engine: Arc<Engine>,
    finished: bool,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.engine.busy.fetch_sub(1, Ordering::SeqCst);
        if !self.finished {
            self.engine.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct AnswerBody {
    acts: VecDeque<Act>,
    length: Option<u64>,
    sleep: Option<Pin<Box<Sleep>>>,
    busy: Option<Busy>,
}

impl AnswerBody {
    pub(super) fn whole(body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self { length: Some(body.len() as u64), acts: [Act::Send(body)].into(), sleep: None, busy: None }
    }

    /// For benchmarks: the same answer to everybody, in one piece or as a stream of ten chunks.
    pub(super) fn constant(request: &[u8]) -> Response<Self> {
        const TEXT: &str = "{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"fake\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello there, how can I help you today?\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":9,\"total_tokens\":18}}";
        const CHUNK: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" word\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
        const LAST: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"fake\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n";
        let streaming = request.windows(13).any(|part| part == b"\"stream\":true");
        if !streaming {
            let mut response = Response::new(Self::whole(TEXT));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return response;
        }
        let mut acts: VecDeque<Act> =
            (0..9).map(|_| Act::Send(Bytes::from_static(CHUNK.as_bytes()))).collect();
        acts.push_back(Act::Send(Bytes::from_static(LAST.as_bytes())));
        let mut response = Response::new(Self { acts, length: None, sleep: None, busy: None });
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        response
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if let Some(sleep) = &mut self.sleep {
                std::task::ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
            }
            match self.acts.front() {
                None => {
                    if let Some(busy) = &mut self.busy {
                        busy.finished = true;
                    }
                    return Poll::Ready(None);
                }
                Some(Act::Stall) => return Poll::Pending,
                // As a crash does it: no destructor, no last words.
                Some(Act::Die) => {
                    let _never = rustix::process::kill_process(
                        rustix::process::getpid(),
                        rustix::process::Signal::KILL,
                    );
                    return Poll::Pending;
                }
                Some(Act::Wait(time)) => {
                    let until = Instant::now() + *time;
                    self.acts.pop_front();
                    self.sleep = Some(Box::pin(tokio::time::sleep_until(until)));
                }
                Some(Act::Send(_)) => {
                    let Some(Act::Send(data)) = self.acts.pop_front() else { continue };
                    // Of a body of known length nobody asks for the end.
                    let last = self.acts.is_empty() && self.length.is_some();
                    if let Some(busy) = self.busy.as_mut().filter(|_| last) {
                        busy.finished = true;
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map(SizeHint::with_exact).unwrap_or_default()
    }
}

/// Answer as the script says.
pub(super) fn respond(
    engine: Arc<Engine>,
    script: Script,
    parts: &request::Parts,
    asked: &Value,
) -> Response<AnswerBody> {
    let chat = parts.uri.path().contains("chat");
    let given = parts.headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let prefix = if chat { "chatcmpl" } else { "cmpl" };
    let id = match (engine.options.flavour, given) {
        (Flavour::Vllm, Some(id)) => format!("{prefix}-{id}"),
        _ => format!("{prefix}-{}", engine.seen.load(Ordering::SeqCst)),
    };
    let tokens = asked["max_tokens"].as_u64().unwrap_or(script.tokens).min(10_000);
    engine.busy.fetch_add(1, Ordering::SeqCst);
    let busy = Some(Busy { engine: Arc::clone(&engine), finished: false });
    let wait = |count: u64| Act::Wait(Duration::from_millis(script.token_ms.saturating_mul(count)));
    let usage = json!({ "prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": tokens + 7 });
    if asked["stream"] != true {
        let text: String = (0..tokens).map(|token| format!("word{token} ")).collect();
        let choice = if chat {
            json!({ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" })
        } else {
            json!({ "index": 0, "text": text, "logprobs": null, "finish_reason": "stop" })
        };
        let object = if chat { "chat.completion" } else { "text_completion" };
        let body = json!({ "id": id, "object": object, "created": 1, "model": engine.options.alias,
            "choices": [choice], "usage": usage, "x_unknown": { "kept": [1.50, null] } });
        let body = Bytes::from(body.to_string());
        let length = Some(body.len() as u64);
        let mut acts = VecDeque::from([wait(tokens)]);
        if script.die_after.is_some() {
            acts.push_back(Act::Die);
        }
        acts.push_back(Act::Send(body));
        let mut response = Response::new(AnswerBody { acts, length, sleep: None, busy });
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return response;
    }
    let acts = stream(&engine, &script, chat, &id, tokens, &usage, asked, &wait);
    let mut response = Response::new(AnswerBody { acts, length: None, sleep: None, busy });
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    response
}

#[expect(clippy::too_many_arguments, reason = "the parts of one answer, all of them made by its only caller")]
fn stream(
    engine: &Engine,
    script: &Script,
    chat: bool,
    id: &str,
    tokens: u64,
    usage: &Value,
    asked: &Value,
    wait: &dyn Fn(u64) -> Act,
) -> VecDeque<Act> {
    let object = if chat { "chat.completion.chunk" } else { "text_completion" };
    let event = |choices: Value, usage: &Value| {
        let chunk = json!({ "id": id, "object": object, "created": 1, "model": engine.options.alias,
            "choices": choices, "usage": usage });
        format!("data: {chunk}\n\n")
    };
    let delta = |text: String, finish: Value| {
        if chat {
            json!([{ "index": 0, "delta": { "content": text }, "finish_reason": finish }])
        } else {
            json!([{ "index": 0, "text": text, "finish_reason": finish }])
        }
    };
    let mut acts = VecDeque::new();
    let send = |acts: &mut VecDeque<Act>, text: String| {
        let bytes = Bytes::from(text);
        let size = script.cut.unwrap_or(bytes.len()).max(1);
        let pieces =
            (0..bytes.len()).step_by(size).map(|start| bytes.slice(start..(start + size).min(bytes.len())));
        acts.extend(pieces.map(Act::Send));
    };
    if chat {
        let role =
            json!([{ "index": 0, "delta": { "role": "assistant", "content": "" }, "finish_reason": null }]);
        send(&mut acts, event(role, &Value::Null));
    }
    for token in 0..tokens {
        acts.push_back(wait(1));
        if script.stall_after == Some(token) {
            acts.push_back(Act::Stall);
        }
        if script.die_after == Some(token) {
            acts.push_back(Act::Die);
        }
        if script.end_after == Some(token) {
            return acts;
        }
        if script.error_after == Some(token) {
            let error = json!({ "error": { "message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": null, "code": 500 } });
            send(&mut acts, format!("data: {error}\n\ndata: [DONE]\n\n"));
            return acts;
        }
        send(&mut acts, event(delta(format!("word{token} "), Value::Null), &Value::Null));
    }
    send(&mut acts, event(delta(String::new(), Value::from("stop")), &Value::Null));
    if asked["stream_options"]["include_usage"] == true {
        send(&mut acts, event(json!([]), usage));
    }
    send(&mut acts, "data: [DONE]\n\n".to_owned());
    acts
}
