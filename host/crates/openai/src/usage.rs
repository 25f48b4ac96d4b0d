//! How many tokens an answer was, as engines say it: in one of the last events of a stream, or near the end of a body.

use std::sync::LazyLock;

use memchr::memmem::{Finder, FinderRev};
use serde::Deserialize;

/// The key. It cannot be part of a text, where its quotes would be escaped.
const KEY: &[u8] = b"\"usage\":";

/// Token counts from a `usage` object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "Object")]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// How many of them came from the engine's prefix cache.
    pub cached_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
}

/// The same as it is written.
#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u32>,
}

impl From<Object> for Usage {
    fn from(object: Object) -> Self {
        let cached = object.prompt_tokens_details.and_then(|details| details.cached_tokens);
        Self {
            prompt_tokens: object.prompt_tokens,
            cached_tokens: cached.unwrap_or_default(),
            completion_tokens: object.completion_tokens,
        }
    }
}

/// Does this JSON have a usage that is more than a `null`? Cheap, and only a hint: it may belong to something inside.
pub(crate) fn is_in(json: &[u8]) -> bool {
    static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));
    FINDER.find_iter(json).any(|at| json[at + KEY.len()..].trim_ascii_start().starts_with(b"{"))
}

/// The last bytes of a body, where its usage is: what comes after it is short with all engines that we know.
#[derive(Debug, Default)]
pub struct BodyTail(Vec<u8>);

impl BodyTail {
    /// Bytes that are kept.
    const LENGTH: usize = 4 << 10;

    /// The body goes on with `chunk`.
    pub fn chunk(&mut self, chunk: &[u8]) {
        let new = &chunk[chunk.len().saturating_sub(Self::LENGTH)..];
        let too_many = (self.0.len() + new.len()).saturating_sub(Self::LENGTH);
        self.0.drain(..too_many);
        self.0.extend_from_slice(new);
    }

    /// The usage, if the end of the body has one.
    pub fn usage(&self) -> Option<Usage> {
        static FINDER: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new(KEY));
        let at = FINDER.rfind(&self.0)?;
        // The object ends before the body does.
        serde_json::Deserializer::from_slice(&self.0[at + KEY.len()..]).into_iter().next()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As vLLM 0.32.0 ends a body: with more fields after the usage.
    const BODY: &str = r#"{"id":"x","choices":[{"message":{"content":"the \"usage\": {\"prompt_tokens\": 9}"}}],"usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}},"prompt_logprobs":null}"#;
    const USAGE: Usage = Usage { prompt_tokens: 7, cached_tokens: 4, completion_tokens: 2 };

    fn usage(body: &str, size: usize) -> Option<Usage> {
        let mut tail = BodyTail::default();
        body.as_bytes().chunks(size).for_each(|chunk| tail.chunk(chunk));
        assert!(tail.0.len() <= BodyTail::LENGTH);
        tail.usage()
    }

    #[test]
    fn the_usage_of_a_body_is_found_at_its_end() {
        let long = format!("{}{BODY}", "x".repeat(3 * BodyTail::LENGTH));
        for size in [1, 7, 4096, 100_000] {
            assert_eq!(usage(BODY, size), Some(USAGE), "in pieces of {size}");
            assert_eq!(usage(&long, size), Some(USAGE), "in pieces of {size}");
        }
        let text_only =
            BODY.replace("\"usage\":{\"prompt_tokens\":7", "\"used\":{\"prompt_tokens\":7");
        for (body, found) in [
            (text_only.as_str(), None),
            (r#"{"usage":null}"#, None),
            (r#"{"usage":{"prompt_tokens":"many"}}"#, None),
            (r#"{"usage":{"prompt_tokens":"#, None),
            (r#"{"usage": {"prompt_tokens_details":null,"completion_tokens":1}}"#, Some((0, 1))),
            (
                r#"{"usage": {"prompt_tokens_details":{"cached_tokens":null},"prompt_tokens":1}}"#,
                Some((1, 0)),
            ),
            ("", None),
        ] {
            let found = found.map(|(prompt_tokens, completion_tokens)| Usage {
                prompt_tokens,
                cached_tokens: 0,
                completion_tokens,
            });
            assert_eq!(usage(body, 4096), found, "{body}");
        }
    }

    #[test]
    fn a_null_is_not_worth_looking_at() {
        for (json, worth) in [
            (r#"{"usage":null}"#, false),
            (r#"{"usage": {"a":1}}"#, true),
            (r#"{"x":{"usage":null},"usage":{}}"#, true),
            (r#"{"text":"\"usage\":{"}"#, false),
            (r#"{"usage":"#, false),
        ] {
            assert_eq!(is_in(json.as_bytes()), worth, "{json}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bodies_never_panic(pieces: Vec<Vec<u8>>) {
            let mut tail = BodyTail::default();
            pieces.iter().for_each(|piece| tail.chunk(piece));
            prop_assert_eq!(tail.usage(), None);
            let whole = pieces.concat();
            prop_assert_eq!(&tail.0, &whole[whole.len().saturating_sub(BodyTail::LENGTH)..]);
        }
    }
}
