//! The items of an input as messages.

use serde_json::{Map, Value, json};

use super::tools::short;
use crate::bad_request::BadRequest;

/// The messages so far.
#[derive(Default)]
struct Messages {
    done: Vec<Value>,
    /// The texts that chat templates have as the one system message before all others.
    system: Vec<String>,
    /// The message of the assistant that further items may belong to.
    assistant: Option<Map<String, Value>>,
}

/// Returns the messages for instructions and an input.
pub(super) fn messages(
    instructions: Option<&Value>,
    input: &Value,
) -> Result<Vec<Value>, BadRequest> {
    let mut messages = Messages::default();
    match instructions {
        None => {}
        Some(Value::String(text)) => messages.system.push(text.clone()),
        Some(Value::Array(items)) => {
            items.iter().try_for_each(|item| messages.item(item))?;
        }
        Some(_) => return Err(BadRequest::invalid("instructions", "a string")),
    }
    match input {
        Value::Null => {}
        Value::String(text) => messages.done.push(json!({ "role": "user", "content": text })),
        Value::Array(items) => items.iter().try_for_each(|item| messages.item(item))?,
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(BadRequest::invalid("input", "a string or an array of items"));
        }
    }
    messages.flush();
    let Messages { mut done, system, .. } = messages;
    if !system.is_empty() {
        done.insert(0, json!({ "role": "system", "content": system.join("\n\n") }));
    }
    if done.is_empty() {
        return Err(BadRequest::Missing { name: "input" });
    }
    Ok(done)
}

impl Messages {
    fn item(&mut self, item: &Value) -> Result<(), BadRequest> {
        if let Value::String(text) = item {
            self.push(json!({ "role": "user", "content": text }));
            return Ok(());
        }
        let text = |name: &str| item.get(name).and_then(Value::as_str).unwrap_or_default();
        match text("type") {
            "message" | "" => self.message(item, text("role")),
            "reasoning" => {
                self.reasoning(item);
                Ok(())
            }
            "function_call" => {
                let call = json!({
                    "id": text("call_id"),
                    "type": "function",
                    "function": { "name": text("name"), "arguments": text("arguments") },
                });
                self.call(call);
                Ok(())
            }
            "function_call_output" => {
                let output = item.get("output").unwrap_or(&Value::Null);
                let content = content(output, "tool")?;
                let id = text("call_id");
                self.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
                Ok(())
            }
            kind => {
                let what = format!("items of type `{}`", short(kind));
                Err(BadRequest::unsupported("input", &what))
            }
        }
    }

    fn message(&mut self, item: &Value, role: &str) -> Result<(), BadRequest> {
        let content = content(item.get("content").unwrap_or(&Value::Null), role)?;
        match role {
            "system" | "developer" => {
                let is_first = self.done.is_empty() && self.assistant.is_none();
                match content {
                    Value::String(text) if is_first => self.system.push(text),
                    content @ (Value::String(_)
                    | Value::Null
                    | Value::Bool(_)
                    | Value::Number(_)
                    | Value::Array(_)
                    | Value::Object(_)) => {
                        self.push(json!({ "role": "system", "content": content }));
                    }
                }
            }
            "assistant" => {
                let fits = |open: &Map<String, Value>| {
                    !open.contains_key("content") && !open.contains_key("tool_calls")
                };
                if !self.assistant.as_ref().is_some_and(fits) {
                    self.flush();
                }
                let open = self.assistant.get_or_insert_with(assistant);
                open.insert("content".to_owned(), content);
            }
            "user" => self.push(json!({ "role": "user", "content": content })),
            role => {
                let what = format!("messages with the role `{}`", short(role));
                return Err(BadRequest::unsupported("input", &what));
            }
        }
        Ok(())
    }

    /// Adds reasoning to the message of the assistant that follows. What is encrypted, only the
    /// API that has encrypted it can read.
    fn reasoning(&mut self, item: &Value) {
        let parts = |name: &str| {
            let parts = item.get(name).and_then(Value::as_array).into_iter().flatten();
            let texts = parts.filter_map(|part| part.get("text").and_then(Value::as_str));
            texts.collect::<Vec<_>>().join("\n")
        };
        let text = Some(parts("content")).filter(|text| !text.is_empty());
        let text = text.unwrap_or_else(|| parts("summary"));
        self.flush();
        if !text.is_empty() {
            let open = self.assistant.get_or_insert_with(assistant);
            open.insert("reasoning_content".to_owned(), text.into());
        }
    }

    /// Adds the call of a tool: parallel calls are one message.
    fn call(&mut self, call: Value) {
        let open = self.assistant.get_or_insert_with(assistant);
        let calls = open.entry("tool_calls").or_insert_with(|| json!([]));
        if let Value::Array(calls) = calls {
            calls.push(call);
        }
    }

    fn push(&mut self, message: Value) {
        self.flush();
        self.done.push(message);
    }

    fn flush(&mut self) {
        if let Some(mut message) = self.assistant.take() {
            // Some chat templates fail without it.
            message.entry("content").or_insert(Value::Null);
            self.done.push(Value::Object(message));
        }
    }
}

fn assistant() -> Map<String, Value> {
    Map::from_iter([("role".to_owned(), "assistant".into())])
}

/// Returns the content of a message: a text, unless it has other parts or several of a user.
fn content(content: &Value, role: &str) -> Result<Value, BadRequest> {
    let parts = match content {
        Value::Null => return Ok("".into()),
        Value::String(_) => return Ok(content.clone()),
        Value::Array(parts) => parts,
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            return Err(BadRequest::invalid("input", "a string or an array of parts"));
        }
    };
    let parts = parts.iter().map(part).collect::<Result<Vec<Value>, _>>()?;
    let texts: Option<Vec<&str>> =
        parts.iter().map(|part| part.get("text").and_then(Value::as_str)).collect();
    Ok(match texts.as_deref() {
        Some([text]) => (*text).into(),
        Some(texts) if role == "assistant" => texts.concat().into(),
        Some(texts) if role != "user" => texts.join("\n").into(),
        Some(_) | None => parts.into(),
    })
}

/// Returns a part in the form of chat requests.
fn part(part: &Value) -> Result<Value, BadRequest> {
    let text = |name: &str| part.get(name).and_then(Value::as_str);
    let text_part = |text: &str| json!({ "type": "text", "text": text });
    match text("type").unwrap_or_default() {
        "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text" => {
            Ok(text_part(text("text").unwrap_or_default()))
        }
        "refusal" => Ok(text_part(text("refusal").unwrap_or_default())),
        "input_image" => {
            let url = text("image_url");
            let url = url.ok_or_else(|| BadRequest::unsupported("input", "images by file id"))?;
            let mut image = json!({ "url": url });
            if let Some(detail) = text("detail") {
                image["detail"] = detail.into();
            }
            Ok(json!({ "type": "image_url", "image_url": image }))
        }
        "image_url" => Ok(part.clone()),
        "input_audio" => Ok(json!({
            "type": "input_audio",
            "input_audio": part.get("input_audio").unwrap_or(&Value::Null),
        })),
        // Policies would not see the text in it.
        "input_file" => Err(BadRequest::unsupported("input", "files")),
        kind => {
            let what = format!("parts of type `{}`", short(kind));
            Err(BadRequest::unsupported("input", &what))
        }
    }
}
