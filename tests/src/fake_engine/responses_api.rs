//! The responses API, as vLLM 0.32.0 has it: plain and as a stream of typed events without
//! `[DONE]`. Neither engine knows the responses of another process, so an earlier response is
//! refused.

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
use super::response_body::{BodyEnd, ResponseBody, Step, Tails};
use super::responses::{Reply, failure, ok, vllm_error};
use super::script::ResponseScript;

/// Responds to `POST /v1/responses`.
pub(super) async fn respond(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    let Received { parts, body, request_body, script } = match receive(&engine, request).await {
        Ok(received) => received,
        Err(reply) => return *reply,
    };
    if script.echo {
        let body = String::from_utf8_lossy(&body);
        return ok(&engine, &json!({ "path": parts.uri.path(), "body": body }));
    }
    if engine.state.borrow().core_dead {
        return failure(&engine, StatusCode::INTERNAL_SERVER_ERROR, CORE_DEAD);
    }
    if let Some(id) = request_body["previous_response_id"].as_str() {
        let message = format!("Response with id '{id}' not found.");
        let param = Some("response_id");
        return vllm_error(
            &engine,
            StatusCode::NOT_FOUND,
            &message,
            "invalid_request_error",
            param,
        );
    }
    let response = Made::new(&engine, &script, &request_body);
    let mut steps = VecDeque::new();
    let Made { whole, events } = response;
    let id = whole["id"].as_str().unwrap_or_default().to_owned();
    let wait = || Step::Wait(Duration::from_millis(script.token_ms));
    if request_body["stream"] != true {
        steps.extend((0..whole["usage"]["output_tokens"].as_u64().unwrap_or(0)).map(|_| wait()));
        let body = ResponseBody::in_flight(&engine, &id, steps, Tails::default());
        return match body.collect().await.1 {
            BodyEnd::CoreDead => failure(&engine, StatusCode::INTERNAL_SERVER_ERROR, CORE_DEAD),
            BodyEnd::Aborted | BodyEnd::Complete => ok(&engine, &whole),
        };
    }
    let mut tokens = 0;
    for event in events {
        let is_delta = event["type"] == "response.output_text.delta";
        if is_delta && script.end_after == Some(tokens) {
            break;
        }
        steps.extend(is_delta.then(wait));
        tokens += u64::from(is_delta);
        let kind = event["type"].as_str().unwrap_or_default();
        steps.push_back(Step::Send(Bytes::from(format!("event: {kind}\ndata: {event}\n\n"))));
    }
    let body = ResponseBody::in_flight(&engine, &id, steps, Tails::default());
    let mut response = Response::new(body);
    let kind = HeaderValue::from_static("text/event-stream; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// A response, and the events of its stream.
struct Made {
    whole: Value,
    events: Vec<Value>,
}

impl Made {
    fn new(engine: &Engine, script: &ResponseScript, request_body: &Value) -> Self {
        let (_, input) = prompt(engine, request_body);
        let limit = max_tokens(request_body);
        let output = limit.unwrap_or(script.tokens).min(10_000);
        let words: Vec<String> = (0..output).map(|token| format!("word{token} ")).collect();
        let mut whole = response(engine, &words.concat(), input, output, limit);
        if request_body["tools"].is_array() {
            whole["tools"] = request_body["tools"].clone();
        }
        let mut item = whole["output"][0].clone();
        let id = item["id"].clone();
        let content = item["content"][0].take();
        let mut empty = item;
        empty["content"] = json!([]);
        empty["status"] = "in_progress".into();
        let mut begun = whole.clone();
        begun["status"] = "in_progress".into();
        begun["output"] = json!([]);
        begun["usage"] = Value::Null;
        begun["incomplete_details"] = Value::Null;
        let mut no_text = content.clone();
        no_text["text"] = "".into();
        let at = json!({ "item_id": id, "output_index": 0, "content_index": 0 });
        let part = |kind: &str, more: Value| {
            let mut event = json!({ "type": kind });
            for fields in [&at, &more] {
                let fields = fields.as_object().into_iter().flatten();
                event.as_object_mut().into_iter().for_each(|event| {
                    event.extend(fields.clone().map(|(k, v)| (k.clone(), v.clone())));
                });
            }
            event
        };
        let end = match limit {
            Some(_) => "response.incomplete",
            None => "response.completed",
        };
        let mut events = vec![
            json!({ "type": "response.created", "response": begun }),
            json!({ "type": "response.in_progress", "response": begun }),
            json!({ "type": "response.output_item.added", "output_index": 0, "item": empty }),
            part("response.content_part.added", json!({ "part": no_text })),
        ];
        events.extend(words.iter().map(|word| {
            part("response.output_text.delta", json!({ "delta": word, "logprobs": [] }))
        }));
        events.extend([
            part("response.output_text.done", json!({ "text": content["text"], "logprobs": [] })),
            part("response.content_part.done", json!({ "part": content })),
            json!({ "type": "response.output_item.done", "output_index": 0,
                "item": whole["output"][0] }),
            json!({ "type": end, "response": whole }),
        ]);
        for (number, event) in events.iter_mut().enumerate() {
            event["sequence_number"] = number.into();
        }
        Self { whole, events }
    }
}

fn response(engine: &Engine, text: &str, tokens: u64, output: u64, limit: Option<u64>) -> Value {
    let content =
        json!([{ "annotations": [], "text": text, "type": "output_text", "logprobs": null }]);
    let message = json!({ "id": format!("msg_{}", engine.id(16, true)), "content": content,
        "role": "assistant", "status": "completed", "type": "message", "phase": null });
    let input_details = json!({ "cached_tokens": 0, "cache_write_tokens": 0,
        "input_tokens_per_turn": [], "cached_tokens_per_turn": [] });
    let output_details = json!({ "reasoning_tokens": 0, "tool_output_tokens": 0,
        "output_tokens_per_turn": [], "tool_output_tokens_per_turn": [] });
    let usage = json!({ "input_tokens": tokens, "input_tokens_details": input_details,
        "output_tokens": output, "output_tokens_details": output_details,
        "total_tokens": tokens + output });
    let incomplete = limit.map(|_| json!({ "reason": "max_output_tokens" }));
    let status = if limit.is_some() { "incomplete" } else { "completed" };
    json!({ "id": format!("resp_{}", engine.id(16, true)), "created_at": engine.created,
        "incomplete_details": incomplete, "instructions": null, "metadata": null,
        "model": engine.name(), "object": "response", "output": [message],
        "parallel_tool_calls": true, "temperature": 1.0, "tool_choice": "none", "tools": [],
        "top_p": 1.0, "background": false, "max_output_tokens": limit, "max_tool_calls": null,
        "previous_response_id": null, "prompt": null, "reasoning": null, "service_tier": "auto",
        "status": status, "text": null, "top_logprobs": null, "truncation": "disabled",
        "usage": usage, "user": null, "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "kv_transfer_params": null, "ec_transfer_params": null, "input_messages": null,
        "output_messages": null })
}
