//! The chunks of a completion as the events of a message.
//!
//! ```text
//!   first chunk ──> message_start
//!   deltas ───────> content_block_start, content_block_delta*, content_block_stop, …
//!   [DONE] ───────> message_delta with the usage of the last chunk, message_stop
//!   an error, or the end of a broken stream ──> no message_stop
//! ```

use bytes::Bytes;
use serde_json::Value;

use super::blocks::{Blocks, Channel, TooMuch};
use super::event_reader::EventReader;
use super::events::Events;
use super::reply::{Reply, Stop, reasoning, usage};
use crate::error::{EngineErrorBody, ErrorBody};
use crate::error_form::ErrorForm;
use crate::translate::Translate;
use crate::usage::Usage;

/// Translates the stream of one completion.
#[derive(Debug)]
pub(super) struct MessageStream {
    reply: Reply,
    reader: EventReader,
    message: Message,
}

/// The message as far as it has arrived.
#[derive(Debug, Default)]
struct Message {
    is_begun: bool,
    is_ended: bool,
    is_refused: bool,
    blocks: Blocks,
    stop: Option<Stop>,
    usage: Option<Usage>,
    /// Chunks with content: at least as many tokens, for engines that report no usage.
    deltas: u32,
}

impl MessageStream {
    /// Creates the translation of a response.
    pub(super) fn new(reply: Reply) -> Self {
        Self { reply, reader: EventReader::default(), message: Message::default() }
    }
}

impl Translate for MessageStream {
    fn chunk(&mut self, chunk: &[u8]) -> Bytes {
        let Self { reply, reader, message } = self;
        let mut out = Events::default();
        if !message.is_ended
            && reader.chunk(chunk, |data| message.event(reply, data, &mut out)).is_err()
        {
            message.fail("an event of the engine is too long", &mut out);
        }
        out.into_bytes()
    }

    fn finish(&mut self, is_complete: bool) -> Bytes {
        let Self { reply, reader, message } = self;
        let mut out = Events::default();
        if is_complete {
            reader.finish(|data| message.event(reply, data, &mut out));
            message.end(&mut out);
        }
        out.into_bytes()
    }

    fn content_type(&self) -> &'static str {
        "text/event-stream; charset=utf-8"
    }
}

impl Message {
    /// Takes the data of an event.
    fn event(&mut self, reply: &Reply, data: &[u8], out: &mut Events) {
        let data = data.trim_ascii();
        if self.is_ended {
            return;
        }
        if data == b"[DONE]" {
            return self.end(out);
        }
        let Ok(chunk) = serde_json::from_slice::<Value>(data) else {
            return self.fail("an event of the engine is not JSON", out);
        };
        if chunk.get("error").is_some_and(|error| !error.is_null()) {
            let said = EngineErrorBody::read(data);
            let message = said.message.unwrap_or_else(|| "the engine failed".to_owned());
            let error = ErrorBody::internal(&message).with_status(said.status.unwrap_or(500));
            return self.error(&error, out);
        }
        if !self.is_begun {
            self.is_begun = true;
            out.message_start(reply);
        }
        self.usage = usage(&chunk).or(self.usage);
        if self.choice(reply, &chunk["choices"][0], out).is_err() {
            self.fail("the response has too many tool calls", out);
        }
    }

    fn choice(&mut self, reply: &Reply, choice: &Value, out: &mut Events) -> Result<(), TooMuch> {
        let delta = &choice["delta"];
        let text = |key: &str| delta[key].as_str().filter(|text| !text.is_empty());
        if let Some(thinking) = reasoning(delta) {
            self.deltas = self.deltas.saturating_add(1);
            if !reply.hides_thinking {
                self.blocks.push(Channel::Thinking, thinking, out)?;
            }
        }
        self.is_refused |= text("refusal").is_some();
        for text in [text("content"), text("refusal")].into_iter().flatten() {
            self.deltas = self.deltas.saturating_add(1);
            self.blocks.push(Channel::Text, text, out)?;
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            self.deltas = self.deltas.saturating_add(1);
            self.blocks.push_call(call, out)?;
        }
        self.stop = Stop::read(choice).or(self.stop.take());
        Ok(())
    }

    /// Ends a complete message.
    fn end(&mut self, out: &mut Events) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        if !self.is_begun {
            let error = ErrorBody::internal("the engine's response is not a stream");
            return self.error(&error, out);
        }
        self.blocks.finish(out);
        let stop = self.stop.take().unwrap_or_else(Stop::unknown);
        let stop = stop.with_content(self.blocks.has_calls(), self.is_refused);
        let at_least = Usage { completion_tokens: self.deltas, ..Usage::default() };
        out.message_end(&stop, self.usage.unwrap_or(at_least));
    }

    /// Ends a message that cannot be translated.
    fn fail(&mut self, why: &str, out: &mut Events) {
        self.error(&ErrorBody::internal(why), out);
    }

    fn error(&mut self, error: &ErrorBody, out: &mut Events) {
        self.is_ended = true;
        out.raw(&ErrorForm::Anthropic.event(error, false));
    }
}
