//! Conversations as people share them: a list, or lines, of objects with `conversations: [{ from, value }]`.

use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;

use super::reader::Source;

/// No conversation is longer.
const LONGEST: usize = 64 << 20;
/// Characters of a token, in the middle.
const CHARACTERS: usize = 4;

/// A question, with all that was said since the last answer, and its answer: lengths in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    pub(super) question: u32,
    pub(super) answer: u32,
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

/// The conversations of a file in order, those without an answer left out.
pub(super) struct Conversations(Source);

impl Conversations {
    pub(super) fn open(file: &Path) -> Self {
        Self(Source::open(file, 1))
    }

    fn read(&mut self) -> Option<Result<Vec<Turn>, String>> {
        self.0.next(|input, line| {
            let Some(object) = next_object(input, line)? else { return Ok(None) };
            let conversation: Conversation = serde_json::from_slice(&object)
                .map_err(|error| format!("before here is no conversation: {error}"))?;
            Ok(Some(turns(&conversation.conversations)))
        })
    }
}

impl Iterator for Conversations {
    type Item = Result<Vec<Turn>, String>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read()? {
                Ok(turns) if turns.is_empty() => {}
                found => return Some(found),
            }
        }
    }
}

fn turns(messages: &[Message]) -> Vec<Turn> {
    let mut turns = Vec::new();
    let mut question = 0u32;
    for message in messages {
        let tokens = u32::try_from(message.value.chars().count().div_ceil(CHARACTERS))
            .unwrap_or(u32::MAX)
            .max(1);
        let is_answer = matches!(
            message.from.as_str(),
            "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model"
        );
        if is_answer && question > 0 {
            turns.push(Turn { question, answer: tokens });
            question = 0;
        } else {
            question = question.saturating_add(tokens);
        }
    }
    turns
}

/// The next JSON object of a list of them, without reading the list whole.
fn next_object(input: &mut impl BufRead, line: &mut u64) -> Result<Option<Vec<u8>>, String> {
    let mut object = Vec::new();
    let (mut depth, mut in_text, mut escaped) = (0usize, false, false);
    loop {
        let piece = input.fill_buf().map_err(|error| format!("cannot be read: {error}"))?;
        if piece.is_empty() {
            return if depth == 0 {
                Ok(None)
            } else {
                Err("the file ends within a conversation".to_owned())
            };
        }
        let mut end = None;
        for (index, &byte) in piece.iter().enumerate() {
            *line += u64::from(byte == b'\n');
            if depth == 0 {
                match byte {
                    b'{' => depth = 1,
                    b'[' | b']' | b',' | b' ' | b'\t' | b'\r' | b'\n' | 0xef | 0xbb | 0xbf => {
                        continue;
                    }
                    _ => {
                        return Err(
                            "is no list of conversations; it should begin with `[{`".to_owned()
                        );
                    }
                }
            } else if in_text {
                in_text = escaped || byte != b'"';
                escaped = !escaped && byte == b'\\';
            } else {
                match byte {
                    b'"' => in_text = true,
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
        let used = end.unwrap_or(piece.len());
        input.consume(used);
        if end.is_some() {
            return Ok(Some(object));
        }
        if object.len() > LONGEST {
            return Err(format!("has a conversation of more than {} MiB", LONGEST >> 20));
        }
    }
}
