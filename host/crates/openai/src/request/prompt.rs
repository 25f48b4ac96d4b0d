//! The prompt of a request: its messages, and where in the body their texts are.

mod blocks;
mod elements;
mod fields;
mod items;

use std::ops::Range;
use std::sync::OnceLock;

use pointsman_domain::Role;
use serde_json::value::RawValue;

use self::elements::{for_each, for_each_ignored};
pub(super) use self::fields::MAX_FIELD_DEPTH;
use self::fields::listed_prompts;
use super::shape::{MessageShape, Object, PartShape, Shape};
use crate::bad_request::BadRequest;
use crate::endpoint::PromptShape;
use crate::index;
use crate::json;
use crate::limits::MAX_ITEMS;
use crate::scan::Children;
use crate::text::Text;

/// Approximate number of tokens that a chat template adds per message.
const TOKENS_PER_MESSAGE: usize = 4;

/// The prompt of a request. Messages and texts are in one list each, because a request may have a
/// hundred thousand of them.
#[derive(Debug, Default)]
pub(super) struct Prompt {
    messages: Vec<Message>,
    texts: Vec<Text>,
    /// The number of texts of the system prompt, which are before those of all messages.
    system_texts: usize,
    /// Bytes of the literals of all texts, with their quotes.
    text_size: usize,
    /// Number of token ids, for which there is no text.
    token_ids: usize,
    /// Number of messages, parts and items.
    items: usize,
    /// Number of texts and token arrays that are a prompt each.
    prompts: usize,
    /// Bytes of all texts up to each text, with escapes resolved; found when it is first needed.
    ends: OnceLock<Vec<usize>>,
}

/// A chat message, or the prompt of another endpoint.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) parts: u32,
    pub(super) media_parts: u32,
    /// The end of its texts in the list of all texts. They begin where those before it end.
    texts_end: usize,
    /// The literals in the body that become part of the engine's prompt. Empty ranges are none.
    pub(super) literals: [Range<usize>; 2],
}

impl Prompt {
    /// Reads the prompt. At endpoints without chat messages, all of it is one message.
    pub(super) fn read(
        body: &str,
        prompt: PromptShape,
        shape: &Shape<'_>,
    ) -> Result<Self, BadRequest> {
        let mut read = Self::default();
        let required = |name, json: Option<&RawValue>, read: &mut Self| {
            let json = json.ok_or(BadRequest::Missing { name })?.get();
            read.begin(Role::User)?;
            read.read_texts(body, name, json)
        };
        match prompt {
            PromptShape::Messages | PromptShape::Blocks => {
                if prompt == PromptShape::Blocks {
                    // Nothing is kept for it; without the rest of it, the response would be wrong.
                    if shape.thread.is_some_and(|thread| thread.get() != "null") {
                        return Err(BadRequest::Thread);
                    }
                    read.read_system(body, shape.system)?;
                }
                let messages = shape.messages.as_ref();
                let messages = messages.ok_or(BadRequest::Missing { name: "messages" })?;
                // Exact, because doubling would take twice the memory for a moment.
                read.messages.reserve_exact(messages.0.len());
                for Object(message) in &messages.0 {
                    read.read_message(body, message)?;
                }
            }
            PromptShape::Prompt => {
                required("prompt", shape.prompt, &mut read)?;
                read.set_literals(body, [shape.prompt, None]);
            }
            PromptShape::Items => {
                read.begin(Role::User)?;
                read.set_literals(body, [shape.instructions, shape.input]);
                match shape.instructions.map(RawValue::get) {
                    Some(items) if items.starts_with('[') => read.read_items(body, items)?,
                    Some(instructions) => read.add_text(body, instructions),
                    None => {}
                }
                if let Some(input) = shape.input.map(RawValue::get) {
                    read.read_items(body, input)?;
                }
            }
            // No literals: engines cache no prefixes of embeddings and the like.
            PromptShape::Fields(fields) => {
                read.begin(Role::User)?;
                for field in fields {
                    let path = [(*field).to_owned()];
                    if let Some(json) = index::find(body, &path) {
                        read.read_field(body, json, MAX_FIELD_DEPTH)?;
                        if *field == "prompt" {
                            read.prompts = listed_prompts(json);
                        }
                    }
                }
                read.read_images(shape.images)?;
            }
            PromptShape::Unknown => {}
        }
        Ok(read)
    }

    /// Returns the messages.
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Returns all texts.
    pub(super) fn texts(&self) -> &[Text] {
        &self.texts
    }

    /// Returns all texts, each with the index of its message, like [`Prompt::texts_from`].
    pub(super) fn texts_with_messages(&self) -> impl Iterator<Item = (usize, &Text)> {
        let mut message = 0;
        self.texts.iter().enumerate().map(move |(position, text)| {
            if position < self.system_texts {
                return (self.messages.len(), text);
            }
            while self.messages.get(message).is_some_and(|found| found.texts_end <= position) {
                message += 1;
            }
            (message, text)
        })
    }

    /// Returns the number of bytes of the literals of all texts.
    pub(super) fn text_size(&self) -> usize {
        self.text_size
    }

    /// Returns the texts of a message. What follows the last message is the system prompt, so that
    /// the messages have the indices that they have in the body.
    fn range(&self, index: usize) -> Option<Range<usize>> {
        if index == self.messages.len() {
            return Some(0..self.system_texts);
        }
        let end = self.messages.get(index)?.texts_end;
        let start = match index.checked_sub(1) {
            Some(before) => self.messages.get(before)?.texts_end,
            None => self.system_texts,
        };
        Some(start..end)
    }

    /// Returns the number of bytes of all texts before the text `index`.
    fn bytes_before(&self, body: &[u8], index: usize) -> usize {
        let ends = self.ends.get_or_init(|| {
            let mut end = 0;
            let add = |text: &Text| {
                end += text.bytes(body).len();
                end
            };
            self.texts.iter().map(add).collect()
        });
        index.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or(0)
    }

    /// Returns the number of bytes of a message's text.
    pub(super) fn text_bytes(&self, body: &[u8], index: usize) -> usize {
        let Some(range) = self.range(index) else { return 0 };
        self.bytes_before(body, range.end) - self.bytes_before(body, range.start)
    }

    /// Returns the texts of a message from the one that has the byte `offset` of the message's
    /// text, and the offset of that byte in it.
    pub(super) fn texts_from(&self, body: &[u8], index: usize, offset: usize) -> (&[Text], usize) {
        let Some(range) = self.range(index) else { return (&[], 0) };
        if range.len() <= 1 {
            return (&self.texts[range], offset);
        }
        let begin = self.bytes_before(body, range.start);
        let wanted = begin.saturating_add(offset);
        // `bytes_before` has found all ends.
        let ends = self.ends.get().map_or(&[][..], |ends| &ends[range.clone()]);
        let first = range.start + ends.partition_point(|end| *end <= wanted);
        (&self.texts[first..range.end], wanted - self.bytes_before(body, first).min(wanted))
    }

    /// Returns the number of prompts that get a response each.
    pub(super) fn prompts(&self) -> usize {
        self.prompts.max(1)
    }

    /// Returns the estimated number of tokens.
    pub(super) fn tokens(&self, body: &str) -> u32 {
        let texts: usize = self.texts.iter().map(|text| text.tokens(body)).sum();
        saturating_u32(TOKENS_PER_MESSAGE * self.messages.len() + texts + self.token_ids)
    }

    /// Counts a message, part or item.
    fn count_item(&mut self) -> Result<(), BadRequest> {
        self.items += 1;
        match self.items > MAX_ITEMS {
            true => {
                Err(BadRequest::TooMany { what: "messages, parts and prompts", max: MAX_ITEMS })
            }
            false => Ok(()),
        }
    }

    fn begin(&mut self, role: Role) -> Result<(), BadRequest> {
        self.count_item()?;
        let texts_end = self.texts.len();
        let literals = [0..0, 0..0];
        self.messages.push(Message { role, parts: 0, media_parts: 0, texts_end, literals });
        Ok(())
    }

    /// Sets the literals of `body` that become part of the engine's prompt.
    fn set_literals(&mut self, body: &str, fields: [Option<&RawValue>; 2]) {
        if let Some(message) = self.messages.last_mut() {
            message.literals =
                fields.map(|field| field.map_or(0..0, |field| json::range_in(body, field.get())));
        }
    }

    /// Adds a part that is the string literal `json`, a slice of `body`, to the last message.
    fn add_text(&mut self, body: &str, json: &str) {
        let Some(message) = self.messages.last_mut().filter(|_| json.starts_with('"')) else {
            return;
        };
        message.parts += 1;
        message.texts_end = self.texts.len() + 1;
        self.push_text(body, json);
    }

    /// Adds the string literal `json`, a slice of `body`.
    fn push_text(&mut self, body: &str, json: &str) {
        self.text_size += json.len();
        self.texts.push(Text::new(json, json::range_in(body, json)));
    }

    /// Adds a part without text to the last message.
    fn add_part(&mut self, is_media: bool) {
        if let Some(message) = self.messages.last_mut() {
            message.parts += 1;
            message.media_parts += u32::from(is_media);
        }
    }

    /// Reads a chat message.
    pub(super) fn read_message(
        &mut self,
        body: &str,
        shape: &MessageShape<'_>,
    ) -> Result<(), BadRequest> {
        let role = match shape.role.map(RawValue::get) {
            Some("\"user\"") => Role::User,
            Some("\"system\"" | "\"developer\"") => Role::System,
            Some("\"assistant\"") => Role::Assistant,
            Some("\"tool\"" | "\"function\"") => Role::Tool,
            Some(_) => Role::Other,
            None => return Err(missing_role()),
        };
        self.begin(role)?;
        self.set_literals(body, [shape.content, shape.tool_calls]);
        if let Some(content) = shape.content.map(RawValue::get) {
            self.read_content(body, content)?;
        }
        self.read_images(shape.images)
    }

    /// Reads a list of images, of which each is a part of the last message.
    fn read_images(&mut self, images: Option<&RawValue>) -> Result<(), BadRequest> {
        let images = images.and_then(|images| Children::new(images.get().as_bytes(), 0));
        for _ in images.into_iter().flatten() {
            self.count_item()?;
            self.add_part(true);
        }
        Ok(())
    }

    /// Reads the content of a chat message: a string, or an array of parts.
    pub(super) fn read_content(&mut self, body: &str, content: &str) -> Result<(), BadRequest> {
        match content.as_bytes().first() {
            Some(b'"') => self.add_text(body, content),
            Some(b'[') => self.read_parts(body, content)?,
            Some(b'{') => self.read_part(body, content)?,
            // A number, or true or false, is the engine's to judge.
            _ => self.add_part(false),
        }
        Ok(())
    }

    fn read_parts(&mut self, body: &str, content: &str) -> Result<(), BadRequest> {
        for_each(content, invalid_part, |part| {
            self.count_item()?;
            self.read_part(body, part)
        })
    }

    /// Reads a part of a message's content: an object, or a text as vLLM takes it. Other values
    /// have no text, and are the engine's to judge; an array may have some, which policies would
    /// not see.
    pub(super) fn read_part(&mut self, body: &str, part: &str) -> Result<(), BadRequest> {
        match part.as_bytes().first() {
            Some(b'"') => {
                self.add_text(body, part);
                return Ok(());
            }
            Some(b'{') => {}
            Some(b'[') => return Err(invalid_part()),
            _ => {
                self.add_part(false);
                return Ok(());
            }
        }
        let Object(part) =
            serde_json::from_str::<Object<PartShape<'_>>>(part).map_err(|_| invalid_part())?;
        self.read_object(body, &part)
    }

    /// Reads a part that is an object.
    fn read_object(&mut self, body: &str, part: &PartShape<'_>) -> Result<(), BadRequest> {
        let text =
            part.text.or(part.refusal).map(RawValue::get).filter(|text| text.starts_with('"'));
        let kind = unescaped(part.kind)?;
        let is_text = matches!(
            kind,
            None | Some(
                "\"text\""
                    | "\"input_text\""
                    | "\"output_text\""
                    | "\"refusal\""
                    | "\"reasoning_text\""
                    | "\"summary_text\""
            )
        );
        match (kind, text) {
            (_, Some(text)) if is_text => self.add_text(body, text),
            (Some("\"thinking\""), _) => {
                self.add_text(body, part.thinking.map(RawValue::get).unwrap_or_default());
            }
            (Some("\"tool_use\"" | "\"redacted_thinking\""), _) => self.add_part(false),
            (Some("\"tool_result\"" | "\"search_result\""), _) => {
                self.add_part(false);
                self.read_titles(body, part);
                self.read_nested(body, part.content)?;
            }
            (Some("\"document\""), _) => {
                self.read_titles(body, part);
                self.read_document(body, part.source)?;
            }
            _ => self.add_part(true),
        }
        Ok(())
    }

    /// Reads a prompt or input: a string, an array of strings, an array of token ids, or an array
    /// of such arrays.
    pub(super) fn read_texts(
        &mut self,
        body: &str,
        name: &'static str,
        json: &str,
    ) -> Result<(), BadRequest> {
        let invalid =
            || BadRequest::invalid(name, "a string, or an array of strings or of token ids");
        match json.as_bytes().first() {
            Some(b'"') => {
                self.add_text(body, json);
                return Ok(());
            }
            Some(b'[') => {}
            _ => return Err(invalid()),
        }
        for_each(json, invalid, |piece| {
            match piece.as_bytes().first() {
                Some(b'"') => {
                    self.add_text(body, piece);
                    self.prompts += 1;
                    return self.count_item();
                }
                Some(b'[') => {
                    self.prompts += 1;
                    for_each_ignored(piece, || self.token_ids += 1).map_err(|_| invalid())?;
                    self.count_item()?;
                }
                Some(b'0'..=b'9') => self.token_ids += 1,
                _ => return Err(invalid()),
            }
            self.add_part(false);
            Ok(())
        })
    }
}

/// Returns the literal of a type. Types decide what is a text, so one that is written with escapes,
/// which others may read differently, is refused.
fn unescaped(kind: Option<&RawValue>) -> Result<Option<&str>, BadRequest> {
    match kind.map(RawValue::get) {
        Some(kind) if kind.contains('\\') => Err(invalid_part()),
        kind => Ok(kind),
    }
}

pub(super) fn missing_role() -> BadRequest {
    BadRequest::invalid("messages", "a `role` in every message")
}

fn invalid_part() -> BadRequest {
    BadRequest::invalid(
        "messages",
        "every part of a message's `content` to be an object or a string",
    )
}

pub(super) fn saturating_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
