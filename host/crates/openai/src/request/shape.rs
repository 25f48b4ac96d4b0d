//! The parts of a body that are parsed: messages, prompts, and the fields that the request
//! properties are derived from.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

use pointsman_domain::Role;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::bad_request::BadRequest;
use crate::endpoint::{EndpointShape, OutputLimit, PromptShape};
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
    /// The literals in the body that become part of the engine's prompt.
    pub(super) literals: Vec<Range<usize>>,
}

impl Message {
    pub(super) fn new(role: Role) -> Self {
        Self { role, texts: Vec::new(), parts: 0, media_parts: 0, literals: Vec::new() }
    }

    /// Sets the literals of `body` that become part of the engine's prompt.
    fn set_literals<const N: usize>(&mut self, body: &str, fields: [Option<&RawValue>; N]) {
        let literals = fields.into_iter().flatten().map(RawValue::get);
        self.literals = literals.map(|literal| json::range_in(body, literal)).collect();
    }

    /// Adds a part that is the string literal `json`, a slice of `body`.
    fn add_text(&mut self, body: &str, json: &str) {
        if json.starts_with('"') {
            self.parts += 1;
            self.texts.push(Text::new(json, json::range_in(body, json)));
        }
    }
}

/// The fields that are parsed. All other fields are skipped and preserved.
#[derive(Deserialize)]
pub(super) struct Shape<'a> {
    #[serde(borrow, default)]
    pub(super) model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) messages: Option<Vec<Object<MessageShape<'a>>>>,
    #[serde(borrow, default)]
    pub(super) prompt: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) input: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) instructions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) stream: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) max_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) max_completion_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) max_output_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) tools: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) functions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pub(super) response_format: Option<&'a RawValue>,
    /// Format of the output at the endpoint for responses.
    #[serde(borrow, default)]
    pub(super) text: Option<&'a RawValue>,
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
    #[serde(borrow, default)]
    pub(super) tool_calls: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct PartShape<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Option<&'a RawValue>,
}

/// An object. Types derived from `Deserialize` alone would accept arrays too.
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_map(Fields(PhantomData)).map(Self)
    }
}

/// Reads the model from the JSON text of its field.
pub(super) fn read_model(json: Option<&str>) -> Result<String, BadRequest> {
    let json = json.ok_or(BadRequest::Missing { name: "model" })?;
    serde_json::from_str(json).map_err(|_| BadRequest::invalid("model", "a string"))
}

/// Reads whether the client asks for a stream from the JSON text of the field.
pub(super) fn read_stream(json: Option<&str>) -> Result<bool, BadRequest> {
    match json {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(BadRequest::invalid("stream", "true or false")),
    }
}

/// Reads the prompt. At endpoints without chat messages, all of it is one message.
pub(super) fn read_prompt(
    body: &str,
    prompt: PromptShape,
    shape: &Shape<'_>,
    token_ids: &mut usize,
) -> Result<Vec<Message>, BadRequest> {
    let required = |name, json: Option<&RawValue>, token_ids| {
        let json = json.ok_or(BadRequest::Missing { name })?.get();
        read_texts(body, name, json, token_ids).map(|message| vec![message])
    };
    match prompt {
        PromptShape::Messages => {
            let messages = shape.messages.as_ref();
            let messages = messages.ok_or(BadRequest::Missing { name: "messages" })?;
            messages.iter().map(|Object(message)| read_message(body, message)).collect()
        }
        PromptShape::Prompt => {
            let mut messages = required("prompt", shape.prompt, token_ids)?;
            messages.iter_mut().for_each(|message| message.set_literals(body, [shape.prompt]));
            Ok(messages)
        }
        // No literals: engines cache no prefixes of embeddings.
        PromptShape::Input => required("input", shape.input, token_ids),
        PromptShape::Items => {
            let mut message = Message::new(Role::User);
            message.set_literals(body, [shape.instructions, shape.input]);
            if let Some(instructions) = shape.instructions.map(RawValue::get) {
                message.add_text(body, instructions);
            }
            if let Some(input) = shape.input.map(RawValue::get) {
                *token_ids += TOKENS_PER_MESSAGE * read_items(body, input, &mut message)?;
            }
            Ok(vec![message])
        }
        PromptShape::Unknown => Ok(Vec::new()),
    }
}

pub(super) fn read_message(body: &str, shape: &MessageShape<'_>) -> Result<Message, BadRequest> {
    let role = match shape.role.map(RawValue::get) {
        Some("\"user\"") => Role::User,
        Some("\"system\"" | "\"developer\"") => Role::System,
        Some("\"assistant\"") => Role::Assistant,
        Some("\"tool\"" | "\"function\"") => Role::Tool,
        Some(_) => Role::Other,
        None => return Err(missing_role()),
    };
    let mut message = Message::new(role);
    message.set_literals(body, [shape.content, shape.tool_calls]);
    if let Some(content) = shape.content.map(RawValue::get) {
        read_content(body, content, &mut message)?;
    }
    Ok(message)
}

/// Reads the content of a chat message: a string, or an array of parts.
pub(super) fn read_content(
    body: &str,
    content: &str,
    message: &mut Message,
) -> Result<(), BadRequest> {
    match content.as_bytes().first() {
        Some(b'"') => message.add_text(body, content),
        Some(b'[') => read_parts(body, content, message).map_err(|_| invalid_part())?,
        _ => {
            return Err(BadRequest::invalid(
                "messages",
                "a message's `content` to be a string, an array of parts, or null",
            ));
        }
    }
    Ok(())
}

pub(super) fn missing_role() -> BadRequest {
    BadRequest::invalid("messages", "a `role` in every message")
}

pub(super) fn invalid_part() -> BadRequest {
    BadRequest::invalid("messages", "every part of a message's `content` to be an object")
}

fn read_parts(body: &str, content: &str, message: &mut Message) -> Result<(), serde_json::Error> {
    json::work::count(content.len());
    let parts: Vec<Object<PartShape<'_>>> = serde_json::from_str(content)?;
    for Object(part) in parts {
        let text =
            part.text.or(part.refusal).map(RawValue::get).filter(|text| text.starts_with('"'));
        let is_text = matches!(
            part.kind.map(RawValue::get),
            None | Some("\"text\"" | "\"input_text\"" | "\"output_text\"" | "\"refusal\"")
        );
        match text {
            Some(text) if is_text => message.add_text(body, text),
            _ => {
                message.parts += 1;
                message.media_parts += 1;
            }
        }
    }
    Ok(())
}

/// Reads a prompt or input: a string, an array of strings, an array of token ids, or an array of
/// such arrays.
pub(super) fn read_texts(
    body: &str,
    name: &'static str,
    json: &str,
    token_ids: &mut usize,
) -> Result<Message, BadRequest> {
    let invalid = || BadRequest::invalid(name, "a string, or an array of strings or of token ids");
    let mut message = Message::new(Role::User);
    let pieces = match json.as_bytes().first() {
        Some(b'"') => vec![json],
        Some(b'[') => json::elements(json).ok_or_else(invalid)?,
        _ => return Err(invalid()),
    };
    for piece in pieces {
        match piece.as_bytes().first() {
            Some(b'"') => {
                message.add_text(body, piece);
                continue;
            }
            Some(b'[') => *token_ids += json::elements(piece).ok_or_else(invalid)?.len(),
            Some(b'0'..=b'9') => *token_ids += 1,
            _ => return Err(invalid()),
        }
        message.parts += 1;
    }
    Ok(message)
}

/// The fields of an item that have text: a message, or the call of a tool or its result.
#[derive(Deserialize)]
struct ItemShape<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow, default)]
    output: Option<&'a RawValue>,
}

/// Reads the input of a response: a string, or an array of items. Returns the number of items. What
/// is unknown has no text, because engines add kinds of items.
pub(super) fn read_items(
    body: &str,
    input: &str,
    message: &mut Message,
) -> Result<usize, BadRequest> {
    let invalid = || BadRequest::invalid("input", "a string or an array of items");
    let items = match input.as_bytes().first() {
        Some(b'"') => {
            message.add_text(body, input);
            return Ok(0);
        }
        Some(b'[') => json::elements(input).ok_or_else(invalid)?,
        _ => return Err(invalid()),
    };
    for item in &items {
        json::work::count(item.len());
        let Ok(Object(item)) = serde_json::from_str::<Object<ItemShape<'_>>>(item) else {
            continue;
        };
        for text in [item.content, item.arguments, item.output].into_iter().flatten() {
            match text.get().as_bytes().first() {
                Some(b'"') => message.add_text(body, text.get()),
                // Parts that are not objects have no text either.
                Some(b'[') => read_parts(body, text.get(), message).unwrap_or_default(),
                _ => {}
            }
        }
    }
    Ok(items.len())
}

pub(super) fn count_tokens(body: &str, messages: &[Message], token_ids: usize) -> u32 {
    let count = |message: &Message| {
        TOKENS_PER_MESSAGE + message.texts.iter().map(|text| text.tokens(body)).sum::<usize>()
    };
    saturating_u32(messages.iter().map(count).sum::<usize>() + token_ids)
}

/// Returns the first limit of the output that the request has, or 0.
pub(super) fn output_limit(shape: &Shape<'_>, format: &EndpointShape) -> u32 {
    let read = |limit: &OutputLimit| match limit {
        OutputLimit::CompletionTokens => shape.max_completion_tokens,
        OutputLimit::Tokens => shape.max_tokens,
        OutputLimit::OutputTokens => shape.max_output_tokens,
    };
    format
        .output_limits
        .iter()
        .find_map(read)
        .and_then(|limit| limit.get().parse().ok())
        .unwrap_or(0)
}

pub(super) fn has_grammar(shape: &Shape<'_>) -> bool {
    let of = |field: Option<&RawValue>, path: &[&str]| {
        let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
        let kind = field.and_then(|field| json::find(field.get(), &path));
        matches!(kind, Some("\"json_object\"" | "\"json_schema\""))
    };
    of(shape.response_format, &["type"])
        || of(shape.text, &["format", "type"])
        || [shape.structured_outputs, shape.grammar, shape.json_schema].iter().any(Option::is_some)
}

pub(super) fn saturating_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
