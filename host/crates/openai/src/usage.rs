//! Token usage as reported by engines: in one of the last events of a stream, or near the end or
//! the start of a body.

use std::sync::LazyLock;

use memchr::memmem::{Finder, FinderRev};
use serde::Deserialize;

/// The JSON key of the usage. A text cannot contain it, because its quotes would be escaped.
const KEY: &[u8] = b"\"usage\":";
/// The JSON key of llama.cpp's timings.
const TIMES: &[u8] = b"\"timings\":";

/// The JSON keys of Ollama's counts.
const EVALUATED: &[u8] = b"\"eval_count\":";
const PROMPT_EVALUATED: &[u8] = b"\"prompt_eval_count\":";

/// Token counts of a `usage` object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(from = "WireUsage")]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Prompt tokens served from the engine's prefix cache; `None` if the engine does not report
    /// them, like vLLM without `--enable-prompt-tokens-details`.
    pub cached_tokens: Option<u32>,
    /// Tokens of the response.
    pub completion_tokens: u32,
}

/// The serialised form of [`Usage`]. The aliases are the names at the endpoints for responses
/// and messages.
#[derive(Deserialize)]
struct WireUsage {
    #[serde(default, alias = "input_tokens")]
    prompt_tokens: u64,
    #[serde(default, alias = "output_tokens")]
    completion_tokens: u64,
    #[serde(default, alias = "input_tokens_details")]
    prompt_tokens_details: Option<PromptTokensDetails>,
    // Anthropic's, whose `input_tokens` do not include them.
    #[serde(default)]
    cache_read_input_tokens: Option<u64>,
    #[serde(default)]
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct PromptTokensDetails {
    #[serde(default)]
    cached_tokens: Option<u64>,
}

/// Saturates: no model has a context of so many tokens.
fn saturating(tokens: u64) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

impl From<WireUsage> for Usage {
    fn from(wire: WireUsage) -> Self {
        let cached = wire.prompt_tokens_details.and_then(|details| details.cached_tokens);
        let (read, created) = (wire.cache_read_input_tokens, wire.cache_creation_input_tokens);
        let apart = read.unwrap_or(0).saturating_add(created.unwrap_or(0));
        let cached = cached.or(read);
        Self {
            prompt_tokens: saturating(wire.prompt_tokens.saturating_add(apart)),
            cached_tokens: cached.map(saturating),
            completion_tokens: saturating(wire.completion_tokens),
        }
    }
}

impl Usage {
    /// Returns the usage with the prompt of `prompt`, if this one has none.
    pub(crate) fn with_prompt_of(self, prompt: Option<Self>) -> Self {
        match prompt {
            Some(Self { prompt_tokens, cached_tokens, .. }) if self.prompt_tokens == 0 => {
                Self { prompt_tokens, cached_tokens, ..self }
            }
            Some(_) | None => self,
        }
    }
}

/// llama.cpp's `timings`, which its responses have in addition to the usage, and its streams even
/// if the client has not asked for the usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) struct Timings {
    #[serde(default)]
    cache_n: Option<u32>,
    #[serde(default)]
    prompt_n: Option<u32>,
    #[serde(default)]
    predicted_n: Option<u32>,
}

impl Timings {
    /// Returns the usage; `None` if a count is missing.
    pub(crate) fn usage(self) -> Option<Usage> {
        Some(Usage {
            prompt_tokens: self.cache_n?.saturating_add(self.prompt_n?),
            cached_tokens: self.cache_n,
            completion_tokens: self.predicted_n?,
        })
    }
}

/// Returns true if `json` contains a `usage` that is an object rather than `null`. A cheap hint:
/// the object may be nested in another field.
pub(crate) fn is_in(json: &[u8]) -> bool {
    static FINDER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(KEY));
    FINDER.find_iter(json).any(|at| json[at + KEY.len()..].trim_ascii_start().starts_with(b"{"))
}

/// The last bytes of a body, which contain the usage: in most responses of all known engines,
/// little follows it. In llama.cpp's embeddings, and in ranked documents, little precedes it: the
/// first bytes are kept too.
#[derive(Debug, Default)]
pub struct BodyTail {
    start: Vec<u8>,
    end: Vec<u8>,
}

impl BodyTail {
    /// Number of bytes that are kept.
    const MAX_BYTES: usize = 4 << 10;
    /// Number of bytes that are kept of the start: an id and the name of a model, and the usage.
    const MAX_START: usize = 1 << 10;

    /// Appends a chunk of the body.
    pub fn chunk(&mut self, chunk: &[u8]) {
        let left = Self::MAX_START - self.start.len();
        self.start.extend_from_slice(&chunk[..chunk.len().min(left)]);
        let new = &chunk[chunk.len().saturating_sub(Self::MAX_BYTES)..];
        let excess = (self.end.len() + new.len()).saturating_sub(Self::MAX_BYTES);
        self.end.drain(..excess);
        self.end.extend_from_slice(new);
    }

    /// Returns the usage, if the end or the start of the body has one.
    pub fn usage(&self) -> Option<Usage> {
        static USAGE: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new(KEY));
        static TIMINGS: LazyLock<FinderRev<'static>> = LazyLock::new(|| FinderRev::new(TIMES));
        let usage = |part: &[u8]| read(part.get(USAGE.rfind(part)? + KEY.len()..)?);
        usage(&self.end)
            .or_else(|| usage(&self.start))
            .or_else(|| {
                // llama.cpp's own endpoints.
                let at = TIMINGS.rfind(&self.end)? + TIMES.len();
                read::<Timings>(self.end.get(at..)?).and_then(Timings::usage)
            })
            .or_else(|| self.counts_of_ollama())
    }
}

impl BodyTail {
    /// Returns the counts in Ollama's last object, which has none of a prompt that was cached.
    fn counts_of_ollama(&self) -> Option<Usage> {
        let count = |key: &[u8]| {
            let at = memchr::memmem::rfind(&self.end, key)? + key.len();
            read(self.end.get(at..)?)
        };
        let completion_tokens = count(EVALUATED)?;
        let prompt_tokens = count(PROMPT_EVALUATED).unwrap_or(0);
        Some(Usage { prompt_tokens, cached_tokens: None, completion_tokens })
    }
}

/// Reads the value at the beginning of `json`; other fields of the object around it may follow.
fn read<T: for<'de> Deserialize<'de>>(json: &[u8]) -> Option<T> {
    serde_json::Deserializer::from_slice(json).into_iter().next()?.ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A body as sent by vLLM 0.32.0, with more fields after the usage.
    const BODY: &str = concat!(
        r#"{"id":"x","choices":[{"message":{"content":"the \"usage\": {\"prompt_tokens\": 9}"}}],"#,
        r#""usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,"#,
        r#""prompt_tokens_details":{"cached_tokens":4}},"prompt_logprobs":null}"#,
    );
    const USAGE: Usage = Usage { prompt_tokens: 7, cached_tokens: Some(4), completion_tokens: 2 };

    fn usage(body: &str, size: usize) -> Option<Usage> {
        let mut tail = BodyTail::default();
        body.as_bytes().chunks(size).for_each(|chunk| tail.chunk(chunk));
        assert!(tail.start.len() + tail.end.len() <= BodyTail::MAX_START + BodyTail::MAX_BYTES);
        tail.usage()
    }

    #[test]
    fn usage_is_found_at_the_end_of_a_body() {
        let long = format!("{}{BODY}", "x".repeat(3 * BodyTail::MAX_BYTES));
        for size in [1, 7, 4096, 100_000] {
            assert_eq!(usage(BODY, size), Some(USAGE), "in pieces of {size}");
            assert_eq!(usage(&long, size), Some(USAGE), "in pieces of {size}");
        }
        let ranked = format!(
            r#"{{"model":"m","usage":{{"prompt_tokens":7,"total_tokens":7}},"results":[{}]}}"#,
            "0,".repeat(BodyTail::MAX_BYTES)
        );
        let first = Usage { prompt_tokens: 7, cached_tokens: None, completion_tokens: 0 };
        assert_eq!(usage(&ranked, 100), Some(first));
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
            (r#"{"usage":{"input_tokens":2,"output_tokens":3,"total_tokens":5}}"#, Some((2, 3))),
            ("", None),
        ] {
            let found = found.map(|(prompt_tokens, completion_tokens)| Usage {
                prompt_tokens,
                cached_tokens: None,
                completion_tokens,
            });
            assert_eq!(usage(body, 4096), found, "{body}");
        }
        let native = r#"{"content":"","timings":{"cache_n":4,"prompt_n":3,"predicted_n":2}}"#;
        assert_eq!(usage(native, 7), Some(USAGE));
        let ollama = "{\"done\":true,\"prompt_eval_count\":7,\"eval_count\":2}\n";
        let counted = Usage { cached_tokens: None, ..USAGE };
        assert_eq!(usage(ollama, 5), Some(counted));
    }

    #[test]
    fn null_usage_is_not_detected() {
        for (json, detected) in [
            (r#"{"usage":null}"#, false),
            (r#"{"usage": {"a":1}}"#, true),
            (r#"{"x":{"usage":null},"usage":{}}"#, true),
            (r#"{"text":"\"usage\":{"}"#, false),
            (r#"{"usage":"#, false),
        ] {
            assert_eq!(is_in(json.as_bytes()), detected, "{json}");
        }
    }

    proptest! {
        #[test]
        fn tail_keeps_the_last_bytes_of_arbitrary_bodies(pieces: Vec<Vec<u8>>) {
            let mut tail = BodyTail::default();
            pieces.iter().for_each(|piece| tail.chunk(piece));
            prop_assert_eq!(tail.usage(), None);
            let whole = pieces.concat();
            prop_assert_eq!(&tail.end, &whole[whole.len().saturating_sub(BodyTail::MAX_BYTES)..]);
        }
    }
}
