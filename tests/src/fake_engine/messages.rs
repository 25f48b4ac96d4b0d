//! Anthropic's endpoints, which both engines have.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::completion::CORE_DEAD;
use super::completions::{max_tokens, prompt};
use super::engine::Engine;
use super::received::{Received, receive};
use super::response_body::{ResponseBody, Step, Tails};
use super::responses::{Reply, failure, ok};

/// Responds to a request for a message, or for the number of its tokens.
pub(super) async fn respond(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    let Received { parts, request_body, script, .. } = match receive(&engine, request).await {
        Ok(received) => received,
        Err(reply) => return *reply,
    };
    if engine.state.borrow().core_dead {
        return failure(&engine, StatusCode::INTERNAL_SERVER_ERROR, CORE_DEAD);
    }
    let (_, input) = prompt(&engine, &request_body);
    if parts.uri.path().ends_with("/count_tokens") {
        return ok(&engine, &json!({ "input_tokens": input }));
    }
    let output = max_tokens(&request_body).unwrap_or(5).min(script.tokens.max(5));
    let message = Message { engine: &engine, input, output };
    if request_body["stream"] != true {
        return ok(&engine, &message.whole());
    }
    let steps = message.steps();
    let body = ResponseBody::in_flight(&engine, &engine.id(16, true), steps, Tails::default());
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

struct Message<'a> {
    engine: &'a Engine,
    input: u64,
    output: u64,
}

impl Message<'_> {
    fn whole(&self) -> Value {
        let text: String = (0..self.output).map(|token| format!("word{token} ")).collect();
        let content = json!([{ "type": "text", "text": text }]);
        let id = format!("chatcmpl-{}", self.engine.id(16, true));
        let (model, usage) = (self.engine.name(), self.usage());
        match self.engine.options.vllm() {
            true => json!({ "id": id, "type": "message", "role": "assistant", "content": content,
                "model": model, "stop_reason": "max_tokens", "usage": usage }),
            false => json!({ "id": id, "type": "message", "role": "assistant", "content": content,
                "model": model, "stop_reason": "max_tokens", "stop_sequence": null,
                "usage": usage }),
        }
    }

    fn usage(&self) -> Value {
        match self.engine.options.vllm() {
            true => json!({ "input_tokens": self.input, "output_tokens": self.output }),
            false => json!({ "cache_read_input_tokens": 1, "input_tokens": self.input - 1,
                "output_tokens": self.output }),
        }
    }

    /// Returns the steps of a stream, which the script may cut.
    fn steps(&self) -> VecDeque<Step> {
        let script = self.engine.script();
        let permit = Arc::clone(&self.engine.queue).admit(0);
        let mut steps = VecDeque::from([Step::Admit(Box::pin(permit))]);
        let send = |steps: &mut VecDeque<Step>, kind: &str, data: Value| {
            let event = format!("event: {kind}\ndata: {data}\n\n");
            steps.push_back(Step::Send(Bytes::from(event)));
        };
        let mut start = self.whole();
        start["content"] = json!([]);
        start["stop_reason"] = Value::Null;
        start["usage"]["output_tokens"] = 0.into();
        send(&mut steps, "message_start", json!({ "type": "message_start", "message": start }));
        let block = json!({ "type": "text", "text": "" });
        let block = json!({ "type": "content_block_start", "index": 0, "content_block": block });
        send(&mut steps, "content_block_start", block);
        for token in 0..self.output {
            steps.push_back(Step::Wait(Duration::from_millis(script.token_ms)));
            if script.end_after == Some(token) {
                return steps;
            }
            if script.error_after == Some(token) {
                let error = json!({ "type": "internal_error", "message": CORE_DEAD });
                send(&mut steps, "error", json!({ "type": "error", "error": error }));
                return steps;
            }
            steps.push_back(Step::Count(1));
            let delta = json!({ "type": "text_delta", "text": format!("word{token} ") });
            let data = json!({ "type": "content_block_delta", "index": 0, "delta": delta });
            send(&mut steps, "content_block_delta", data);
        }
        let stop = json!({ "type": "content_block_stop", "index": 0 });
        send(&mut steps, "content_block_stop", stop);
        let delta = json!({ "stop_reason": "max_tokens", "stop_sequence": null });
        let usage = match self.engine.options.vllm() {
            true => self.usage(),
            false => json!({ "output_tokens": self.output }),
        };
        let data = json!({ "type": "message_delta", "delta": delta, "usage": usage });
        send(&mut steps, "message_delta", data);
        steps.push_back(Step::Finish("length"));
        send(&mut steps, "message_stop", json!({ "type": "message_stop" }));
        if self.engine.options.vllm() {
            steps.push_back(Step::Send(Bytes::from_static(b"data: [DONE]\n\n")));
        }
        steps
    }
}
