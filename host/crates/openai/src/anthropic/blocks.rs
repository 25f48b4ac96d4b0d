//! The content blocks of a stream: one after the other, while the chunks of chat completions may
//! mix texts and calls.
//!
//! ```text
//!   open ──another channel, and the open one can end──> the other one is open
//!     └──another channel, and a call is incomplete────> its text waits
//! ```
//!
//! A call can end as soon as its arguments are a whole JSON object.

use std::collections::VecDeque;

use serde_json::Value;

use super::events::{Block, Events};
use super::reply::arguments;

/// Maximum number of calls of one response.
const MAX_CALLS: usize = 1_000;
/// Maximum number of bytes that wait for the end of a block.
const MAX_WAITING_BYTES: usize = 8 << 20;
/// Bytes that each block that waits is counted with, besides its text.
const WAITING_BLOCK_BYTES: usize = 100;

/// What the text of a response belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channel {
    Thinking,
    Text,
    /// A call, by its place in the list of all calls.
    Call(usize),
}

/// The response has more than the host keeps of it.
#[derive(Debug)]
pub(super) struct TooMuch;

/// The content blocks of one stream.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// The number of blocks that have begun.
    begun: u32,
    open: Option<Channel>,
    calls: Vec<Call>,
    /// The calls that the engine's indices stand for at the moment.
    indices: Vec<(u64, usize)>,
    /// Blocks that have not begun, in their order, with their texts.
    waiting: VecDeque<(Channel, String)>,
    waiting_bytes: usize,
}

#[derive(Debug, Default)]
struct Call {
    id: Option<String>,
    name: String,
    is_ended: bool,
    arguments: ObjectEnd,
}

impl Blocks {
    /// Returns true if the response has calls.
    pub(super) fn has_calls(&self) -> bool {
        !self.calls.is_empty()
    }

    /// Adds text to a channel.
    ///
    /// # Errors
    /// If too much waits.
    pub(super) fn push(
        &mut self,
        channel: Channel,
        text: &str,
        out: &mut Events,
    ) -> Result<(), TooMuch> {
        if self.open == Some(channel) {
            self.delta(channel, text, out);
        } else if matches!(channel, Channel::Call(call) if self.calls[call].is_ended) {
            // What follows a whole object would make its arguments invalid.
            return Ok(());
        } else if let Some((_, waiting)) = self.waiting.iter_mut().find(|(at, _)| *at == channel) {
            waiting.push_str(text);
            self.waiting_bytes += text.len();
        } else {
            self.waiting.push_back((channel, text.to_owned()));
            self.waiting_bytes += WAITING_BLOCK_BYTES + text.len();
        }
        while self.can_end() && self.waiting.front().is_some_and(|(next, _)| self.can_begin(*next))
        {
            self.advance(out);
        }
        if self.waiting_bytes > MAX_WAITING_BYTES { Err(TooMuch) } else { Ok(()) }
    }

    /// Adds a part of the calls of a delta.
    ///
    /// # Errors
    /// If there are too many calls, or too much waits.
    pub(super) fn push_call(&mut self, delta: &Value, out: &mut Events) -> Result<(), TooMuch> {
        let index = delta["index"].as_u64().unwrap_or(0);
        let id = delta["id"].as_str().filter(|id| !id.is_empty());
        let call = self.call(index, id)?;
        let function = &delta["function"];
        let name = function["name"].as_str().unwrap_or_default();
        let known = &mut self.calls[call];
        if known.name.is_empty() {
            name.clone_into(&mut known.name);
        }
        if let Some(id) = id {
            known.id.get_or_insert_with(|| id.to_owned());
        }
        let arguments = arguments(function);
        self.push(Channel::Call(call), &arguments, out)
    }

    /// Returns the place of the call that an engine's index stands for. Some engines give all calls
    /// the same index, but different ids.
    fn call(&mut self, index: u64, id: Option<&str>) -> Result<usize, TooMuch> {
        let known = self.indices.iter_mut().find(|(at, _)| *at == index);
        if let Some((_, call)) = &known {
            let is_other = match (&self.calls[*call].id, id) {
                (Some(known), Some(id)) => known != id,
                (None, _) | (_, None) => false,
            };
            if !is_other {
                return Ok(*call);
            }
        }
        let call = self.calls.len();
        if call >= MAX_CALLS {
            return Err(TooMuch);
        }
        match known {
            Some((_, at)) => *at = call,
            None => self.indices.push((index, call)),
        }
        self.calls.push(Call::default());
        Ok(call)
    }

    /// Ends the open block, and begins and ends all that wait.
    pub(super) fn finish(&mut self, out: &mut Events) {
        while !self.waiting.is_empty() {
            self.advance(out);
        }
        self.end(out);
    }

    fn can_end(&self) -> bool {
        match self.open {
            None | Some(Channel::Thinking | Channel::Text) => true,
            Some(Channel::Call(call)) => self.calls[call].arguments.is_whole(),
        }
    }

    fn can_begin(&self, channel: Channel) -> bool {
        match channel {
            Channel::Thinking | Channel::Text => true,
            Channel::Call(call) => !self.calls[call].name.is_empty(),
        }
    }

    /// Ends the open block, and begins the next one that waits.
    fn advance(&mut self, out: &mut Events) {
        self.end(out);
        let Some((channel, text)) = self.waiting.pop_front() else { return };
        self.waiting_bytes -= WAITING_BLOCK_BYTES + text.len();
        out.block_start(self.begun, &self.block(channel));
        self.begun += 1;
        self.open = Some(channel);
        self.delta(channel, &text, out);
    }

    fn end(&mut self, out: &mut Events) {
        let Some(channel) = self.open.take() else { return };
        out.block_stop(self.begun - 1, &self.block(channel));
        if let Channel::Call(call) = channel {
            self.calls[call].is_ended = true;
        }
    }

    /// Writes text of the open block.
    fn delta(&mut self, channel: Channel, text: &str, out: &mut Events) {
        if text.is_empty() {
            return;
        }
        if let Channel::Call(call) = channel {
            self.calls[call].arguments.push(text);
        }
        out.block_delta(self.begun - 1, &self.block(channel), text);
    }

    fn block(&self, channel: Channel) -> Block<'_> {
        match channel {
            Channel::Thinking => Block::Thinking,
            Channel::Text => Block::Text,
            Channel::Call(call) => {
                let Call { id, name, .. } = &self.calls[call];
                Block::Call { id: id.as_deref().unwrap_or_default(), name }
            }
        }
    }
}

/// Finds the end of a JSON object that arrives in parts.
#[derive(Debug, Default)]
struct ObjectEnd {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    is_whole: bool,
}

impl ObjectEnd {
    fn is_whole(&self) -> bool {
        self.is_whole
    }

    fn push(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' => self.in_string = !self.in_string,
                _ if self.in_string => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    self.is_whole |= self.depth == 0;
                }
                _ => {}
            }
        }
    }
}
