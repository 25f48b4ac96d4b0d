//! Conversations in the ShareGPT format: a list, or lines, of objects with
//! `conversations: [{ from, value }]`.

use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;

use super::error::{TraceError, TraceLineError};
use super::reader::TraceReader;

/// The maximum length of a conversation in bytes.
const MAX_CONVERSATION: usize = 64 << 20;
/// The average number of characters per token.
const CHARS_PER_TOKEN: usize = 4;

/// A turn of a conversation. Lengths are in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// All messages since the last response.
    pub(super) prompt: u32,
    pub(super) response: u32,
}

#[derive(Deserialize)]
struct Conversation {
    #[serde(default)]
    conversations: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    from: String,
    #[serde(default)]
    value: String,
}

/// An iterator over the conversations of a file. Conversations without a response are skipped.
pub(super) struct Conversations(TraceReader);

impl Conversations {
    pub(super) fn open(file: &Path) -> Self {
        Self(TraceReader::open(file, 1))
    }

    fn read(&mut self) -> Option<Result<Vec<Turn>, TraceError>> {
        self.0.next(|input, line| {
            let Some(object) = next_object(input, line)? else { return Ok(None) };
            let conversation: Conversation = serde_json::from_slice(&object)?;
            Ok(Some(turns(&conversation.conversations)))
        })
    }
}

impl Iterator for Conversations {
    type Item = Result<Vec<Turn>, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read()? {
                Ok(turns) if turns.is_empty() => {}
                result => return Some(result),
            }
        }
    }
}

fn turns(messages: &[Message]) -> Vec<Turn> {
    let mut turns = Vec::new();
    let mut prompt = 0u32;
    for message in messages {
        let tokens = u32::try_from(message.value.chars().count().div_ceil(CHARS_PER_TOKEN))
            .unwrap_or(u32::MAX)
            .max(1);
        let is_response = matches!(
            message.from.as_str(),
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model"
        );
        if is_response && prompt > 0 {
            turns.push(Turn { prompt, response: tokens });
            prompt = 0;
        } else {
            prompt = prompt.saturating_add(tokens);
        }
    }
    turns
}

/// Reads the next object of a JSON list, without reading the whole list: the files are larger than
/// memory should hold.
fn next_object(
    input: &mut impl BufRead,
    line: &mut u64,
) -> Result<Option<Vec<u8>>, TraceLineError> {
    let mut object = Vec::new();
    let (mut depth, mut in_string, mut is_escaped) = (0usize, false, false);
    loop {
        let chunk = input.fill_buf()?;
        if chunk.is_empty() {
            return if depth == 0 { Ok(None) } else { Err(TraceLineError::Truncated) };
        }
        let mut end = None;
        for (index, &byte) in chunk.iter().enumerate() {
            *line += u64::from(byte == b'\n');
            if depth == 0 {
                match byte {
                    b'{' => depth = 1,
                    // Between objects: list syntax, white space and a byte order mark.
                    b'[' | b']' | b',' | b' ' | b'\t' | b'\r' | b'\n' | 0xef | 0xbb | 0xbf => {
                        continue;
                    }
                    _ => return Err(TraceLineError::NotConversations),
                }
            } else if in_string {
                in_string = is_escaped || byte != b'"';
                is_escaped = !is_escaped && byte == b'\\';
            } else {
                match byte {
                    b'"' => in_string = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
            }
            object.push(byte);
            if depth == 0 {
                end = Some(index + 1);
                break;
            }
        }
        let consumed = end.unwrap_or(chunk.len());
        input.consume(consumed);
        if end.is_some() {
            return Ok(Some(object));
        }
        if object.len() > MAX_CONVERSATION {
            return Err(TraceLineError::ConversationTooLong { max: MAX_CONVERSATION });
        }
    }
}
