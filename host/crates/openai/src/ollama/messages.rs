//! The messages of a chat request, from those of Ollama.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use crate::bad_request::BadRequest;

type Object = Map<String, Value>;

/// Beginnings of images in base64, and their types.
const IMAGE_TYPES: [(&str, &str); 4] =
    [("/9j/", "image/jpeg"), ("R0lGOD", "image/gif"), ("UklGR", "image/webp"), ("Qk", "image/bmp")];

/// Returns the messages of a request for `/api/chat`.
pub(super) fn of_chat(body: &Object) -> Result<Vec<Value>, BadRequest> {
    let messages = body.get("messages").and_then(Value::as_array);
    let mut calls = Calls::default();
    messages.into_iter().flatten().map(|message| of_message(message, &mut calls)).collect()
}

/// Returns the messages of a request for `/api/generate`.
pub(super) fn of_prompt(body: &Object) -> Result<Vec<Value>, BadRequest> {
    let mut messages = Vec::new();
    let system = body.get("system").and_then(Value::as_str).unwrap_or_default();
    if !system.is_empty() {
        messages.push(json!({ "role": "system", "content": system }));
    }
    let prompt = body.get("prompt").cloned().unwrap_or_default();
    let content = content(&prompt, body.get("images"))?;
    messages.push(json!({ "role": "user", "content": content }));
    Ok(messages)
}

/// The calls of tools that have no result yet. Ollama's calls have no ids, which OpenAI's need.
#[derive(Debug, Default)]
struct Calls {
    count: usize,
    open: VecDeque<(String, String)>,
}

impl Calls {
    /// Returns the id of a call: its own, or the next one.
    fn begin(&mut self, call: &Value, name: &str) -> String {
        let own = call["id"].as_str().filter(|id| !id.is_empty());
        let id = own.map_or_else(|| format!("call_{}", self.count), str::to_owned);
        self.count += 1;
        self.open.push_back((name.to_owned(), id.clone()));
        id
    }

    /// Returns the id of the call that a result belongs to: the first open one of that tool, or of
    /// any tool.
    fn end(&mut self, message: &Object) -> String {
        let text = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default();
        let id = text("tool_call_id");
        let name = if text("tool_name").is_empty() { text("name") } else { text("tool_name") };
        let by_id = self.open.iter().position(|(_, open)| open == id);
        let by_name = || self.open.iter().position(|(open, _)| open == name);
        let at = by_id.or_else(by_name).unwrap_or(0);
        match self.open.remove(at) {
            Some((_, call)) if id.is_empty() => call,
            Some(_) | None if !id.is_empty() => id.to_owned(),
            Some(_) | None => "call_0".to_owned(),
        }
    }
}

fn of_message(message: &Value, calls: &mut Calls) -> Result<Value, BadRequest> {
    let invalid = || BadRequest::invalid("messages", "an array of objects");
    let message = message.as_object().ok_or_else(invalid)?;
    let mut translated = Object::new();
    let role = message.get("role").cloned().unwrap_or_default();
    translated.insert("role".to_owned(), role.clone());
    let text = message.get("content").cloned().unwrap_or_default();
    translated.insert("content".to_owned(), content(&text, message.get("images"))?);
    if let Some(thinking) = message.get("thinking").and_then(Value::as_str) {
        translated.insert("reasoning_content".to_owned(), thinking.into());
    }
    let made = message.get("tool_calls").and_then(Value::as_array);
    let made: Vec<Value> = made.into_iter().flatten().map(|call| of_call(call, calls)).collect();
    if !made.is_empty() {
        translated.insert("tool_calls".to_owned(), made.into());
    }
    if role == "tool" {
        translated.insert("tool_call_id".to_owned(), calls.end(message).into());
    }
    Ok(Value::Object(translated))
}

fn of_call(call: &Value, calls: &mut Calls) -> Value {
    let name = call["function"]["name"].as_str().unwrap_or_default();
    let arguments = match &call["function"]["arguments"] {
        Value::String(text) => text.clone(),
        Value::Null => "{}".to_owned(),
        arguments @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            arguments.to_string()
        }
    };
    let function = json!({ "name": name, "arguments": arguments });
    json!({ "id": calls.begin(call, name), "type": "function", "function": function })
}

/// Returns the content of a message with a text and images.
fn content(text: &Value, images: Option<&Value>) -> Result<Value, BadRequest> {
    let invalid = || BadRequest::invalid("images", "an array of base64 texts");
    let images = match images {
        None | Some(Value::Null) => &[][..],
        Some(images) => images.as_array().ok_or_else(invalid)?,
    };
    let text = if text.is_null() { Value::from("") } else { text.clone() };
    if images.is_empty() {
        return Ok(text);
    }
    let mut parts = Vec::with_capacity(images.len() + 1);
    if text != "" {
        parts.push(json!({ "type": "text", "text": text }));
    }
    for image in images {
        let url = data_url(image.as_str().ok_or_else(invalid)?);
        parts.push(json!({ "type": "image_url", "image_url": { "url": url } }));
    }
    Ok(parts.into())
}

fn data_url(image: &str) -> String {
    if image.starts_with("data:") {
        return image.to_owned();
    }
    let known = IMAGE_TYPES.iter().find(|(begin, _)| image.starts_with(begin));
    let kind = known.map_or("image/png", |(_, kind)| kind);
    format!("data:{kind};base64,{image}")
}
