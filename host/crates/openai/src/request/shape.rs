//! The parts of a body that are parsed: messages, prompts, and the fields that the request
//! properties are derived from.

use pointsman_domain::Role;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::BadRequest;
use crate::json;
use crate::text::Text;

/// Approximate number of tokens that a chat template adds per message.
const TOKENS_PER_MESSAGE: usize = 4;

/// A chat message, or the prompt of a completion.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) texts: Vec<Text>,
    pub(super) parts: u32,
    pub(super) media_parts: u32,
}

/// The fields that are parsed. All other fields are skipped and preserved.
#[derive(Deserialize)]
pub(super) struct Shape<'a> {
    #[serde(borrow, default)]
    pub(super) model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) messages: Option<Vec<MessageShape<'a>>>,
    #[serde(borrow, default)]
    pub(super) prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) tools: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) functions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) response_format: Option<&'a RawValue>,
    // Fields by which vLLM and llama.cpp constrain the output besides `response_format`.
    #[serde(borrow, default)]
    pub(super) structured_outputs: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) grammar: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) json_schema: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct MessageShape<'a> {
    #[serde(borrow, default)]
    pub(super) role: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) content: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct PartShape<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Option<&'a RawValue>,
}

pub(super) fn read_message(body: &str, shape: &MessageShape<'_>) -> Result<Message, BadRequest> {
    let role = match shape.role.map(RawValue::get) {
        Some("\"user\"") => Role::User,
        Some("\"system\"" | "\"developer\"") => Role::System,
        Some("\"assistant\"") => Role::Assistant,
        Some("\"tool\"" | "\"function\"") => Role::Tool,
        Some(_) => Role::Other,
        None => return Err(BadRequest::invalid("messages", "a `role` in every message")),
    };
    let mut message = Message { role, texts: Vec::new(), parts: 0, media_parts: 0 };
    let Some(content) = shape.content.map(RawValue::get) else { return Ok(message) };
    match content.as_bytes().first() {
        Some(b'"') => {
            message.parts = 1;
            message.texts.push(Text::new(content, json::range_in(body, content)));
        }
        Some(b'[') => {
            let parts: Vec<PartShape<'_>> = serde_json::from_str(content).map_err(|_| {
                BadRequest::invalid(
                    "messages",
                    "every part of a message's `content` to be an object",
                )
            })?;
            for part in parts {
                message.parts += 1;
                let text = part
                    .text
                    .or(part.refusal)
                    .map(RawValue::get)
                    .filter(|text| text.starts_with('"'));
                let is_text = matches!(
                    part.kind.map(RawValue::get),
                    None | Some("\"text\"" | "\"input_text\"" | "\"refusal\"")
                );
                match text {
                    Some(text) if is_text => {
                        message.texts.push(Text::new(text, json::range_in(body, text)))
                    }
                    _ => message.media_parts += 1,
                }
            }
        }
        _ => {
            return Err(BadRequest::invalid(
                "messages",
                "a message's `content` to be a string, an array of parts, or null",
            ));
        }
    }
    Ok(message)
}

/// Reads a prompt: a string, an array of strings, an array of token ids, or an array of such
/// arrays.
pub(super) fn read_prompt(
    body: &str,
    prompt: &str,
    token_ids: &mut usize,
) -> Result<Message, BadRequest> {
    let invalid =
        || BadRequest::invalid("prompt", "a string, or an array of strings or of token ids");
    let mut message = Message { role: Role::User, texts: Vec::new(), parts: 0, media_parts: 0 };
    let pieces = match prompt.as_bytes().first() {
        Some(b'"') => vec![prompt],
        Some(b'[') => json::elements(prompt).ok_or_else(invalid)?,
        _ => return Err(invalid()),
    };
    for piece in pieces {
        message.parts += 1;
        match piece.as_bytes().first() {
            Some(b'"') => message.texts.push(Text::new(piece, json::range_in(body, piece))),
            Some(b'[') => *token_ids += json::elements(piece).ok_or_else(invalid)?.len(),
            Some(b'0'..=b'9') => *token_ids += 1,
            _ => return Err(invalid()),
        }
    }
    Ok(message)
}

pub(super) fn count_tokens(body: &str, messages: &[Message], token_ids: usize) -> u32 {
    let count = |message: &Message| {
        TOKENS_PER_MESSAGE + message.texts.iter().map(|text| text.tokens(body)).sum::<usize>()
    };
    saturating_u32(messages.iter().map(count).sum::<usize>() + token_ids)
}

pub(super) fn output_limit(shape: &Shape<'_>) -> u32 {
    let limit = [shape.max_completion_tokens, shape.max_tokens].into_iter().flatten().next();
    limit.and_then(|limit| limit.get().parse().ok()).unwrap_or(0)
}

pub(super) fn has_grammar(shape: &Shape<'_>) -> bool {
    let format =
        shape.response_format.and_then(|format| json::find(format.get(), &["type".to_owned()]));
    let constrained = matches!(format, Some("\"json_object\"" | "\"json_schema\""));
    constrained
        || [shape.structured_outputs, shape.grammar, shape.json_schema].iter().any(Option::is_some)
}

pub(super) fn saturating_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
