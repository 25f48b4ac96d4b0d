//! Tools, the choice among them, and the format of the output.

use serde_json::{Map, Value, json};

use crate::bad_request::BadRequest;

/// Adds the tools and the choice to a chat request.
pub(super) fn add(
    chat: &mut Map<String, Value>,
    tools: Option<&Value>,
    choice: Option<&Value>,
) -> Result<(), BadRequest> {
    let Some(tools) = tools else { return Ok(()) };
    let tools = tools.as_array().ok_or_else(|| BadRequest::invalid("tools", "an array"))?;
    let mut functions = tools.iter().map(function).collect::<Result<Vec<_>, _>>()?;
    let (choice, allowed) = match choice {
        None => (None, None),
        Some(choice) => tool_choice(choice)?,
    };
    if let Some(allowed) = allowed {
        let is_allowed = |function: &Value| {
            allowed.iter().any(|name| function.pointer("/function/name") == Some(name))
        };
        functions.retain(is_allowed);
    }
    if functions.is_empty() {
        return Ok(());
    }
    chat.insert("tools".to_owned(), functions.into());
    if let Some(choice) = choice {
        chat.insert("tool_choice".to_owned(), choice);
    }
    Ok(())
}

/// Returns a function tool in the form of chat requests.
fn function(tool: &Value) -> Result<Value, BadRequest> {
    let kind = tool.get("type").and_then(Value::as_str).unwrap_or_default();
    if kind != "function" {
        return Err(BadRequest::unsupported("tools", &format!("tools of type `{}`", short(kind))));
    }
    // As a client of the chat API writes it, which some send.
    if tool.get("function").is_some_and(Value::is_object) {
        return Ok(tool.clone());
    }
    if !tool.get("name").is_some_and(Value::is_string) {
        return Err(BadRequest::invalid("tools", "a `name` in every function"));
    }
    let fields = ["name", "description", "parameters", "strict"].into_iter();
    let given = fields.filter_map(|name| {
        let value = tool.get(name).filter(|value| !value.is_null())?;
        Some((name.to_owned(), value.clone()))
    });
    let function: Map<String, Value> = given.collect();
    Ok(json!({ "type": "function", "function": function }))
}

type Choice = (Option<Value>, Option<Vec<Value>>);

/// Returns the choice in the form of chat requests, and the names of the functions that it leaves.
fn tool_choice(choice: &Value) -> Result<Choice, BadRequest> {
    if choice.is_string() {
        return Ok((Some(choice.clone()), None));
    }
    let kind = choice.get("type").and_then(Value::as_str).unwrap_or_default();
    match kind {
        "function" => {
            let name = choice.get("name").or_else(|| choice.pointer("/function/name"));
            let name = name.filter(|name| name.is_string());
            let name = name.ok_or_else(|| BadRequest::invalid("tool_choice", "a `name`"))?;
            Ok((Some(json!({ "type": "function", "function": { "name": name } })), None))
        }
        "allowed_tools" => {
            let tools = choice.get("tools").and_then(Value::as_array).into_iter().flatten();
            let names = tools.filter_map(|tool| tool.get("name").cloned()).collect();
            Ok((choice.get("mode").cloned(), Some(names)))
        }
        _ => {
            let what = format!("a choice of type `{}`", short(kind));
            Err(BadRequest::unsupported("tool_choice", &what))
        }
    }
}

/// Returns the format of the output in the form of chat requests; `None` for text.
pub(super) fn response_format(format: &Value) -> Result<Option<Value>, BadRequest> {
    match format.get("type").and_then(Value::as_str).unwrap_or_default() {
        "text" => Ok(None),
        "json_object" => Ok(Some(json!({ "type": "json_object" }))),
        "json_schema" => {
            let fields = ["name", "description", "schema", "strict"].into_iter();
            let given = fields.filter_map(|name| {
                let value = format.get(name).filter(|value| !value.is_null())?;
                Some((name.to_owned(), value.clone()))
            });
            let schema: Map<String, Value> = given.collect();
            Ok(Some(json!({ "type": "json_schema", "json_schema": schema })))
        }
        kind => {
            let what = format!("a format of type `{}`", short(kind));
            Err(BadRequest::unsupported("text.format", &what))
        }
    }
}

/// Returns the beginning of a text of the client, for a message.
pub(super) fn short(text: &str) -> String {
    text[..text.floor_char_boundary(60)].escape_debug().to_string()
}
