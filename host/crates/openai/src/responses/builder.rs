//! Builds a response, and the events of its stream, from chunks of a chat completion.
//!
//! ```text
//!   created ─> in_progress ─> item added ─> part added ─> delta* ─> done ─> part done ─> item done
//!                                  ^                                                        │
//!                                  └────────────────── next item ───────────────────────────┤
//!                                                           completed, incomplete or failed <┘
//! ```

use serde::de::IgnoredAny;
use serde_json::{Value, json};

/// An item that is still growing.
#[derive(Debug)]
struct Open {
    kind: Kind,
    index: usize,
    id: String,
    /// The text, or the arguments of the call.
    text: String,
    logprobs: Vec<Value>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Reasoning,
    Message,
    /// The call with this index in the chat completion.
    Call {
        call: u64,
        id: String,
        name: String,
    },
}

/// A response that is being built.
#[derive(Debug)]
pub(super) struct Builder {
    response: Value,
    suffix: String,
    /// Finished items, and `null` for those that are open.
    output: Vec<Value>,
    open: Vec<Open>,
    events: Vec<Value>,
    sequence: u64,
    has_begun: bool,
    finish_reason: Option<String>,
}

impl Builder {
    /// Creates the response to the request with this body.
    pub(super) fn new(body: &Value, id: &str, model: &str) -> Self {
        let given = |name: &str, default: Value| match body.get(name) {
            None | Some(Value::Null) => default,
            Some(value) => value.clone(),
        };
        let response = json!({
            "id": id,
            "object": "response",
            "created_at": 0,
            "status": "in_progress",
            "background": given("background", json!(false)),
            "completed_at": null,
            "error": null,
            "incomplete_details": null,
            "instructions": given("instructions", Value::Null),
            "max_output_tokens": given("max_output_tokens", Value::Null),
            "max_tool_calls": given("max_tool_calls", Value::Null),
            "model": model,
            "output": [],
            "parallel_tool_calls": given("parallel_tool_calls", json!(true)),
            "previous_response_id": given("previous_response_id", Value::Null),
            "prompt_cache_key": given("prompt_cache_key", Value::Null),
            "reasoning": given("reasoning", json!({ "effort": null, "summary": null })),
            "safety_identifier": given("safety_identifier", Value::Null),
            "service_tier": "default",
            "temperature": given("temperature", json!(1.0)),
            "text": given("text", json!({ "format": { "type": "text" } })),
            "tool_choice": given("tool_choice", json!("auto")),
            "tools": given("tools", json!([])),
            "top_logprobs": given("top_logprobs", json!(0)),
            "top_p": given("top_p", json!(1.0)),
            "truncation": given("truncation", json!("disabled")),
            "usage": null,
            "user": given("user", Value::Null),
            "metadata": given("metadata", json!({})),
        });
        Self {
            response,
            suffix: id.strip_prefix("resp_").unwrap_or(id).to_owned(),
            output: Vec::new(),
            open: Vec::new(),
            events: Vec::new(),
            sequence: 0,
            has_begun: false,
            finish_reason: None,
        }
    }

    /// Returns the response as it is so far.
    pub(super) fn response(&self) -> Value {
        let mut response = self.response.clone();
        let finished = self.output.iter().filter(|item| !item.is_null());
        response["output"] = finished.cloned().collect::<Vec<_>>().into();
        response
    }

    /// Takes the events since the last call.
    pub(super) fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// Takes a chunk of a completion, or a whole one.
    pub(super) fn chunk(&mut self, chunk: &Value) {
        if let Some(created) = chunk.get("created").and_then(Value::as_u64) {
            let known = &mut self.response["created_at"];
            if *known == 0 {
                *known = created.into();
            }
        }
        self.begin();
        if let Some(usage) = chunk.get("usage").filter(|usage| usage.is_object()) {
            self.response["usage"] = usage_of(usage);
        }
        let Some(choice) = chunk.pointer("/choices/0") else { return };
        let delta = choice.get("delta").or_else(|| choice.get("message"));
        if let Some(delta) = delta {
            self.delta(delta, choice.pointer("/logprobs/content"));
        }
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            self.finish_reason = Some(reason.to_owned());
        }
    }

    fn delta(&mut self, delta: &Value, logprobs: Option<&Value>) {
        let text =
            |name: &str| delta.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        if let Some(reasoning) = text("reasoning_content").or_else(|| text("reasoning")) {
            self.grow(Kind::Reasoning, reasoning, None);
        }
        if let Some(content) = text("content").or_else(|| text("refusal")) {
            self.grow(Kind::Message, content, logprobs);
        }
        let calls = delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
        for (position, call) in calls.enumerate() {
            let field = |path: &str| call.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let number = call.get("index").and_then(Value::as_u64).unwrap_or(position as u64);
            let id = match field("/id") {
                "" => format!("call_{}{number:02}", self.suffix),
                id => id.to_owned(),
            };
            let kind = Kind::Call { call: number, id, name: field("/function/name").to_owned() };
            self.grow(kind, field("/function/arguments"), None);
        }
    }

    /// Adds a text to the open item of its kind, or to a new one.
    fn grow(&mut self, kind: Kind, text: &str, logprobs: Option<&Value>) {
        let is_same = |open: &Kind| match (open, &kind) {
            (Kind::Call { call: open, .. }, Kind::Call { call, .. }) => open == call,
            (open, kind) => open == kind,
        };
        let position = match self.open.iter().position(|open| is_same(&open.kind)) {
            Some(position) => position,
            None => {
                self.close_before(&kind);
                self.add(kind.clone());
                self.open.len() - 1
            }
        };
        let logprobs = logprobs.and_then(Value::as_array).cloned().unwrap_or_default();
        let open = &mut self.open[position];
        open.text.push_str(text);
        open.logprobs.extend(logprobs.iter().cloned());
        if text.is_empty() {
            return;
        }
        let (id, index) = (open.id.clone(), open.index);
        let event = match kind {
            Kind::Reasoning => json!({
                "type": "response.reasoning_text.delta", "item_id": id, "output_index": index,
                "content_index": 0, "delta": text,
            }),
            Kind::Message => json!({
                "type": "response.output_text.delta", "item_id": id, "output_index": index,
                "content_index": 0, "delta": text, "logprobs": logprobs,
            }),
            Kind::Call { .. } => json!({
                "type": "response.function_call_arguments.delta", "item_id": id,
                "output_index": index, "delta": text,
            }),
        };
        self.emit(event);
    }

    /// Closes the open items before a new one: calls only if their arguments are whole, because
    /// engines may send those of several calls in turns.
    fn close_before(&mut self, kind: &Kind) {
        let is_call = matches!(kind, Kind::Call { .. });
        let mut at = 0;
        while let Some(open) = self.open.get(at) {
            let is_whole = serde_json::from_str::<IgnoredAny>(&open.text).is_ok();
            if is_call && matches!(open.kind, Kind::Call { .. }) && !is_whole {
                at += 1;
            } else {
                self.close(at, "completed");
            }
        }
    }

    fn add(&mut self, kind: Kind) {
        let index = self.output.len();
        let prefix = match &kind {
            Kind::Reasoning => "rs",
            Kind::Message => "msg",
            Kind::Call { .. } => "fc",
        };
        let id = format!("{prefix}_{}{index:02}", self.suffix);
        let open = Open { kind, index, id, text: String::new(), logprobs: Vec::new() };
        let item = item(&open, "in_progress", false);
        self.emit(json!({
            "type": "response.output_item.added", "output_index": index, "item": item,
        }));
        if let Some(part) = part(&open) {
            self.emit(json!({
                "type": "response.content_part.added", "item_id": open.id, "output_index": index,
                "content_index": 0, "part": part,
            }));
        }
        self.output.push(Value::Null);
        self.open.push(open);
    }

    fn close(&mut self, position: usize, status: &str) {
        let open = self.open.remove(position);
        let (id, index) = (open.id.as_str(), open.index);
        let mut done = json!({ "item_id": id, "output_index": index });
        match &open.kind {
            Kind::Reasoning => {
                done["type"] = "response.reasoning_text.done".into();
                done["content_index"] = 0.into();
                done["text"] = open.text.as_str().into();
            }
            Kind::Message => {
                done["type"] = "response.output_text.done".into();
                done["content_index"] = 0.into();
                done["text"] = open.text.as_str().into();
                done["logprobs"] = open.logprobs.clone().into();
            }
            Kind::Call { name, .. } => {
                done["type"] = "response.function_call_arguments.done".into();
                done["name"] = name.as_str().into();
                done["arguments"] = open.text.as_str().into();
            }
        }
        self.emit(done);
        if let Some(part) = part(&open) {
            self.emit(json!({
                "type": "response.content_part.done", "item_id": id, "output_index": index,
                "content_index": 0, "part": part,
            }));
        }
        let item = item(&open, status, true);
        self.emit(json!({
            "type": "response.output_item.done", "output_index": index, "item": item,
        }));
        self.output[index] = item;
    }

    /// Ends the response as the engine has ended it.
    pub(super) fn finish(&mut self) {
        self.begin();
        let reason = match self.finish_reason.as_deref() {
            Some("length") => Some("max_output_tokens"),
            Some("content_filter") => Some("content_filter"),
            Some(_) | None => None,
        };
        let (status, event) = match reason {
            Some(_) => ("incomplete", "response.incomplete"),
            None => ("completed", "response.completed"),
        };
        while !self.open.is_empty() {
            // Only the last item is what the limit has cut.
            let status = if self.open.len() == 1 { status } else { "completed" };
            self.close(0, status);
        }
        self.response["status"] = status.into();
        if let Some(reason) = reason {
            self.response["incomplete_details"] = json!({ "reason": reason });
        }
        self.emit(json!({ "type": event, "response": self.response() }));
    }

    /// Ends the response with an error of the engine.
    pub(super) fn fail(&mut self, error: &Value) {
        self.begin();
        let message = error.get("message").or(Some(error)).and_then(Value::as_str);
        let message = message.unwrap_or("the engine reported an error");
        self.response["status"] = "failed".into();
        self.response["error"] = json!({ "code": "server_error", "message": message });
        self.emit(json!({ "type": "response.failed", "response": self.response() }));
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.emit(json!({ "type": "response.created", "response": self.response() }));
            self.emit(json!({ "type": "response.in_progress", "response": self.response() }));
        }
    }

    /// Adds an event with the next number.
    fn emit(&mut self, event: Value) {
        let Value::Object(fields) = event else { return };
        let kind = fields.get("type").cloned().unwrap_or_default();
        let mut numbered = serde_json::Map::new();
        numbered.insert("type".to_owned(), kind);
        numbered.insert("sequence_number".to_owned(), self.sequence.into());
        numbered.extend(fields);
        self.events.push(Value::Object(numbered));
        self.sequence += 1;
    }
}

/// Returns the part of an item's content; `None` for a call, which has none.
fn part(open: &Open) -> Option<Value> {
    match open.kind {
        Kind::Reasoning => Some(json!({ "type": "reasoning_text", "text": open.text })),
        Kind::Message => Some(json!({
            "type": "output_text", "text": open.text, "annotations": [],
            "logprobs": open.logprobs,
        })),
        Kind::Call { .. } => None,
    }
}

/// Returns an item, with its content if it `has_content`.
fn item(open: &Open, status: &str, has_content: bool) -> Value {
    let content: Vec<Value> = part(open).filter(|_| has_content).into_iter().collect();
    match &open.kind {
        Kind::Reasoning => json!({
            "id": open.id, "type": "reasoning", "status": status, "summary": [],
            "content": content,
        }),
        Kind::Message => json!({
            "id": open.id, "type": "message", "status": status, "role": "assistant",
            "content": content,
        }),
        Kind::Call { id, name, .. } => json!({
            "id": open.id, "type": "function_call", "status": status, "call_id": id,
            "name": name, "arguments": open.text,
        }),
    }
}

/// Returns the usage in the form of responses.
fn usage_of(usage: &Value) -> Value {
    let number = |path: &str| usage.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    let (input, output) = (number("/prompt_tokens"), number("/completion_tokens"));
    json!({
        "input_tokens": input,
        "input_tokens_details": {
            "cached_tokens": number("/prompt_tokens_details/cached_tokens"),
            "cache_write_tokens": 0,
        },
        "output_tokens": output,
        "output_tokens_details": {
            "reasoning_tokens": number("/completion_tokens_details/reasoning_tokens"),
        },
        "total_tokens": input + output,
    })
}
