//! The body of a completion as a message.

use bytes::Bytes;
use serde_json::{Value, json};

use super::reply::{Reply, Stop, arguments, input, reasoning, usage, usage_fields};
use crate::error::ErrorBody;
use crate::error_form::ErrorForm;
use crate::translate::Translate;

/// Maximum size of a completion. It is kept as a whole, because the usage is at its end.
const MAX_BODY_BYTES: usize = 64 << 20;

/// Translates the body of one completion.
#[derive(Debug)]
pub(super) struct MessageBody {
    reply: Reply,
    body: Vec<u8>,
    is_too_long: bool,
}

impl MessageBody {
    /// Creates the translation of a response.
    pub(super) fn new(reply: Reply) -> Self {
        Self { reply, body: Vec::new(), is_too_long: false }
    }
}

impl Translate for MessageBody {
    fn chunk(&mut self, chunk: &[u8]) -> Bytes {
        self.is_too_long |= self.body.len() + chunk.len() > MAX_BODY_BYTES;
        if !self.is_too_long {
            self.body.extend_from_slice(chunk);
        }
        Bytes::new()
    }

    fn finish(&mut self, is_complete: bool) -> Bytes {
        if !is_complete {
            return Bytes::new();
        }
        let body = std::mem::take(&mut self.body);
        let completion = serde_json::from_slice(&body).ok().filter(|_| !self.is_too_long);
        let message = completion.and_then(|completion| message(&self.reply, &completion));
        match message {
            Some(message) => message.to_string().into(),
            None => {
                let error = ErrorBody::internal("the engine's response is not a chat completion");
                ErrorForm::Anthropic.body(&error, 500).into()
            }
        }
    }

    fn content_type(&self) -> &'static str {
        "application/json"
    }
}

/// Returns the message of a completion; `None` if it has none.
pub(super) fn message(reply: &Reply, completion: &Value) -> Option<Value> {
    let choice = completion.get("choices")?.get(0)?;
    let message = choice.get("message")?;
    let mut content = Vec::new();
    if let Some(thinking) = reasoning(message).filter(|_| !reply.hides_thinking) {
        content.push(json!({ "type": "thinking", "thinking": thinking, "signature": "" }));
    }
    let refusal = message["refusal"].as_str();
    for text in [message["content"].as_str(), refusal].into_iter().flatten() {
        if !text.is_empty() {
            content.push(json!({ "type": "text", "text": text }));
        }
    }
    let calls = message["tool_calls"].as_array().map(Vec::as_slice).unwrap_or_default();
    for call in calls {
        let function = &call["function"];
        let input = input(&arguments(function));
        let (id, name) = (call["id"].as_str(), function["name"].as_str());
        let (id, name) = (id.unwrap_or_default(), name.unwrap_or_default());
        content.push(json!({ "type": "tool_use", "id": id, "name": name, "input": input }));
    }
    let stop = Stop::read(choice).unwrap_or_else(Stop::unknown);
    let (reason, sequence) = stop.with_content(!calls.is_empty(), refusal.is_some()).fields();
    Some(json!({
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage_fields(usage(completion).unwrap_or_default()),
    }))
}
