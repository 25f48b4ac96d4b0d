//! Messages with content blocks as chat messages.
//!
//! ```text
//!   system                                     system message
//!   user: tool_result*, text, image            tool messages, then a user message
//!   assistant: thinking, text, tool_use*       one message: reasoning, content, calls
//! ```

use serde_json::value::RawValue;

use super::chat::{Call, ChatMessage, Content, Part, ToolCall};
use super::wire::{Block, Message, Source, Wire};
use crate::bad_request::BadRequest;

/// Stands between texts of one message.
const BETWEEN_TEXTS: &str = "\n";
/// The beginning of a text of Claude Code that differs in every request, so that no engine could
/// reuse its prefix cache.
const BILLING: &str = "x-anthropic-billing-header:";

/// Returns the messages of a request.
///
/// # Errors
/// If there is something that chat messages cannot express.
pub(super) fn messages<'a>(wire: &Wire<'a>) -> Result<Vec<ChatMessage<'a>>, BadRequest> {
    let mut messages = Vec::with_capacity(wire.messages.len() + 1);
    if let Some(system) = wire.system {
        let text = system_text(system)?;
        if !text.is_empty() {
            messages.push(ChatMessage::new("system", Content::Text(text)));
        }
    }
    for Message { role, content } in &wire.messages {
        let blocks = content.map(blocks).transpose()?.unwrap_or_default();
        match role.as_str() {
            "user" => user(blocks, &mut messages)?,
            "assistant" => messages.push(assistant(blocks)?),
            "system" => {
                let content = Content::Text(texts(blocks)?);
                messages.push(ChatMessage::new("system", content));
            }
            _ => return Err(BadRequest::invalid("messages", "roles `user` and `assistant`")),
        }
    }
    Ok(messages)
}

/// Reads content, which is a text or a list of blocks.
fn blocks(content: &RawValue) -> Result<Vec<Block<'_>>, BadRequest> {
    let json = content.get();
    if json.starts_with('"') {
        let text = serde_json::from_str(json).map_err(BadRequest::Json)?;
        return Ok(vec![Block { kind: "text".to_owned(), text, ..Block::default() }]);
    }
    serde_json::from_str(json).map_err(BadRequest::Json)
}

fn system_text(system: &RawValue) -> Result<String, BadRequest> {
    let mut blocks = blocks(system)?;
    let is_kept =
        |block: &Block<'_>| !block.text.as_deref().unwrap_or_default().starts_with(BILLING);
    blocks.retain(is_kept);
    texts(blocks)
}

/// Returns the texts of blocks that have nothing else.
fn texts(blocks: Vec<Block<'_>>) -> Result<String, BadRequest> {
    let mut parts = Vec::new();
    for block in blocks {
        parts.push(part(block)?);
    }
    match content(parts) {
        Content::Text(text) => Ok(text),
        Content::Null | Content::Parts(_) => {
            Err(BadRequest::unsupported("messages", "images are only for messages of the user"))
        }
    }
}

/// Adds the messages for a message of the user: chat templates take the results of tools only
/// directly behind their calls.
fn user(blocks: Vec<Block<'_>>, messages: &mut Vec<ChatMessage<'_>>) -> Result<(), BadRequest> {
    let (mut parts, mut images) = (Vec::new(), Vec::new());
    let mut has_results = false;
    for block in blocks {
        if block.kind == "tool_result" {
            has_results = true;
            let id = block.tool_use_id.clone();
            let text = tool_result(&block, &mut images)?;
            let message = ChatMessage::new("tool", Content::Text(text));
            messages.push(ChatMessage { tool_call_id: id, ..message });
        } else {
            parts.push(part(block)?);
        }
    }
    // Most chat templates take images of the user only.
    parts.splice(0..0, images).for_each(drop);
    if !parts.is_empty() || !has_results {
        messages.push(ChatMessage::new("user", content(parts)));
    }
    Ok(())
}

/// Returns the text of a tool's result, and adds its images to `images`.
fn tool_result(block: &Block<'_>, images: &mut Vec<Part>) -> Result<String, BadRequest> {
    let mut parts = Vec::new();
    for block in block.content.map(blocks).transpose()?.unwrap_or_default() {
        match part(block)? {
            image @ Part::ImageUrl { .. } => images.push(image),
            text @ Part::Text { .. } => parts.push(text),
        }
    }
    let text = match content(parts) {
        Content::Text(text) => text,
        Content::Null | Content::Parts(_) => String::new(),
    };
    // Messages of tools have no field for this.
    Ok(if block.is_error == Some(true) { format!("Error: {text}") } else { text })
}

fn assistant(blocks: Vec<Block<'_>>) -> Result<ChatMessage<'_>, BadRequest> {
    let (mut parts, mut reasoning, mut calls) = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        match block.kind.as_str() {
            "thinking" => reasoning.extend(block.thinking),
            // Only Anthropic's models can read it.
            "redacted_thinking" => {}
            "tool_use" => calls.push(ToolCall {
                id: block.id.unwrap_or_default(),
                kind: "function",
                function: Call {
                    name: block.name.unwrap_or_default(),
                    arguments: block.input.map_or("{}", RawValue::get),
                },
            }),
            _ => parts.push(part(block)?),
        }
    }
    let content = match parts.is_empty() && !calls.is_empty() {
        true => Content::Null,
        false => content(parts),
    };
    let reasoning = reasoning.join(BETWEEN_TEXTS);
    let message = ChatMessage::new("assistant", content);
    let reasoning_content = Some(reasoning).filter(|reasoning| !reasoning.is_empty());
    Ok(ChatMessage { reasoning_content, tool_calls: calls, ..message })
}

/// Returns the content that consists of these parts: one text if possible, which all chat templates
/// take.
fn content(parts: Vec<Part>) -> Content {
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        let Part::Text { text: more } = part else { return Content::Parts(parts) };
        if index > 0 {
            text.push_str(BETWEEN_TEXTS);
        }
        text.push_str(more);
    }
    Content::Text(text)
}

/// Returns the part of a chat message for a block.
fn part(block: Block<'_>) -> Result<Part, BadRequest> {
    match block.kind.as_str() {
        "text" => Ok(Part::Text { text: block.text.unwrap_or_default() }),
        "image" => Ok(Part::image(image_url(source(&block)?)?)),
        "document" => document(&block),
        "search_result" => {
            let text = block.content.map(blocks).transpose()?.map_or(Ok(String::new()), texts)?;
            Ok(Part::Text { text: titled(&block, text) })
        }
        kind => Err(BadRequest::unsupported(
            "messages",
            &format!("content blocks of the type `{kind}` cannot be translated here"),
        )),
    }
}

fn source<'a>(block: &Block<'a>) -> Result<Source<'a>, BadRequest> {
    let json = block.source.map(RawValue::get);
    let json = json.ok_or_else(|| BadRequest::invalid("messages", "a `source` of each image"))?;
    serde_json::from_str(json).map_err(BadRequest::Json)
}

fn image_url(source: Source<'_>) -> Result<String, BadRequest> {
    match (source.kind.as_str(), source.media_type, source.data, source.url) {
        ("base64", Some(media_type), Some(data), _) => {
            Ok(format!("data:{media_type};base64,{data}"))
        }
        ("url", _, _, Some(url)) => Ok(url),
        ("file", ..) => Err(no_files()),
        _ => Err(BadRequest::invalid(
            "messages",
            "images with a source of the type `base64` or `url`",
        )),
    }
}

/// Returns a document that is text. Engines cannot read others.
fn document(block: &Block<'_>) -> Result<Part, BadRequest> {
    let source = source(block)?;
    let text = match (source.kind.as_str(), source.data, source.content) {
        ("text", Some(text), _) => text,
        ("content", _, Some(content)) => texts(blocks(content)?)?,
        ("file", ..) => return Err(no_files()),
        _ => {
            return Err(BadRequest::unsupported(
                "messages",
                "documents must be plain text: the engine cannot read PDF files; send the text, \
                 or images of the pages",
            ));
        }
    };
    Ok(Part::Text { text: titled(block, text) })
}

fn titled(block: &Block<'_>, text: String) -> String {
    let before = [&block.title, &block.context].into_iter().flatten().map(String::as_str);
    before.chain([text.as_str()]).collect::<Vec<_>>().join(BETWEEN_TEXTS)
}

fn no_files() -> BadRequest {
    BadRequest::unsupported("messages", "files by id are not stored here; send their content")
}
