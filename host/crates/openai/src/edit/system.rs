//! The system prompt of requests that have it in a field of the body.

use serde_json::{Value, json};

use crate::document::Node;
use crate::json::PointerError;

const SYSTEM: &str = "system";
/// Stands between the texts: some engines join blocks without anything between them.
const BETWEEN: &str = "\n\n";

/// Adds a text before the system prompt.
pub(super) fn prepend(body: &mut Node<'_>, text: &str) -> Result<(), PointerError> {
    let system = body.member(SYSTEM)?;
    if let Some(system) = system {
        let literal = system.text().filter(|literal| literal.starts_with('"'));
        if let Some(rest) = literal.and_then(|literal| literal.strip_prefix('"')) {
            let before = Value::from(format!("{text}{BETWEEN}")).to_string();
            let before = before.strip_suffix('"').unwrap_or(&before);
            *system = Node::Text(format!("{before}{rest}").into());
            return Ok(());
        }
        if system.is_array()
            && let Some(blocks) = system.open()?
        {
            let block = json!({ "type": "text", "text": format!("{text}{BETWEEN}") });
            blocks.push_front("", block.to_string());
            return Ok(());
        }
    }
    body.set(&[SYSTEM.to_owned()], Value::from(text).to_string().into())
}

/// Puts a text before the instructions of a request for a response: a text, or items. Anything
/// else, which engines refuse, is replaced.
pub(super) fn prepend_instructions(body: &mut Node<'_>, text: &str) -> Result<(), PointerError> {
    const NAME: &str = "instructions";
    let before = body.member(NAME)?.map(|field| field.write()).unwrap_or_default();
    let instructions = match serde_json::from_str(&before) {
        Ok(Value::String(before)) if !before.is_empty() => {
            Value::from(format!("{text}\n\n{before}")).to_string()
        }
        Ok(Value::Array(items)) if !items.is_empty() => {
            let item = json!({ "role": "system", "content": text });
            format!("[{item},{}", &before.trim_ascii_start()[1..])
        }
        Ok(_) | Err(_) => Value::from(text).to_string(),
    };
    body.set(&[NAME.to_owned()], instructions.into())
}
