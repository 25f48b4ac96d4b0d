//! What a policy may know of one request: figures by value, everything else read lazily through [`RequestView`].

use std::borrow::Cow;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::advice::Edit;

/// One request as the advisor sees it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The request itself, read lazily.
    pub request: Arc<dyn RequestView>,
    /// Wall clock in milliseconds since the Unix epoch, frozen for the decision.
    pub now_ms: u64,
    /// Seed for the policies' randomness.
    pub seed: u64,
    /// Time since the request was accepted.
    pub age: Duration,
    /// 0 for the first decision about the request, 1 for the first retry, and so on.
    pub attempt: u32,
}

impl Facts {
    /// The seed that policies get: a function of the id, so that a request sent again with its id is decided alike. It is
    /// below 2^53, because the numbers of JavaScript hold no more: in all languages the same numbers follow from it.
    pub fn seed(id: &str) -> u64 {
        // DefaultHasher::new() has fixed keys; only RandomState draws new ones.
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        hasher.finish() >> 11
    }
}

/// Lazy, read-only access to a request. Implemented by the parsed request of the wire crate, so that a policy host
/// can answer a guest's questions, and apply one policy's edits before asking the next, without knowing the wire.
pub trait RequestView: Send + Sync + fmt::Debug {
    /// The figures that are passed to every policy.
    fn figures(&self) -> Figures;
    /// The id of the request.
    fn id(&self) -> &str;
    /// The model name the client asked for; empty where it gave none.
    fn model(&self) -> &str;
    /// The tenant that authentication found.
    fn tenant(&self) -> Option<&str>;
    /// First value of a header, name in any case; never a credential header.
    fn header(&self, name: &str) -> Option<&str>;
    /// All headers, names in lower case and values as they came; never a credential header.
    fn headers(&self) -> Vec<(&str, &[u8])>;
    /// A field of the JSON body by JSON Pointer.
    fn field(&self, pointer: &str, max_bytes: usize) -> FieldValue;
    /// One record per chat message.
    fn messages(&self) -> Vec<MessageInfo>;
    /// Part of a message's text: at most `max_bytes` from byte `offset`, cut inwards to character boundaries
    /// (see [`char_slice`]).
    fn text(&self, index: u32, offset: u64, max_bytes: usize) -> Cow<'_, str>;
    /// Raw bytes of the body.
    fn bytes(&self, offset: u64, max_bytes: usize) -> &[u8];
    /// Does the text of any message contain `needle`?
    fn contains(&self, needle: &str, ignore_case: bool) -> bool;
    /// Hashes of the leading blocks of the prompt (see [`fnv1a_chain`]).
    fn prefix_hashes(&self, block_bytes: usize, max_blocks: usize) -> Vec<u64>;
    /// The request with these edits applied, and the edits that could not be, each with the reason.
    fn edited(&self, edits: &[Edit]) -> (Arc<dyn RequestView>, Vec<(Edit, String)>);
}

/// Everything about a request that is a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Figures {
    /// Which endpoint the request came in on.
    pub endpoint: Endpoint,
    /// The client asked for a stream.
    pub streaming: bool,
    /// Size of the body in bytes.
    pub body_bytes: u64,
    /// Estimated prompt length in tokens.
    pub prompt_tokens: u32,
    /// The most tokens the client wants; 0 where it set no limit.
    pub max_output_tokens: u32,
    /// Number of chat messages.
    pub messages: u32,
    /// The request offers tools.
    pub has_tools: bool,
    /// The request carries parts that are not text.
    pub has_media: bool,
    /// The request constrains the output.
    pub has_grammar: bool,
}

/// The OpenAI endpoint of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/embeddings`
    Embeddings,
    /// Anything else.
    #[default]
    Other,
}

impl Endpoint {
    /// Path of the endpoint at an engine; `None` for [`Endpoint::Other`].
    pub fn path(self) -> Option<&'static str> {
        match self {
            Self::ChatCompletions => Some("/v1/chat/completions"),
            Self::Completions => Some("/v1/completions"),
            Self::Responses => Some("/v1/responses"),
            Self::Embeddings => Some("/v1/embeddings"),
            Self::Other => None,
        }
    }

    /// Short name, for labels of metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat-completions",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Other => "other",
        }
    }
}

/// Facts about one chat message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MessageInfo {
    /// Who wrote it.
    pub role: Role,
    /// Bytes of text over all parts, escapes resolved.
    pub text_bytes: u64,
    /// Number of content parts.
    pub parts: u32,
    /// How many are not text.
    pub media_parts: u32,
}

/// Who wrote a chat message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the roles of the OpenAI API")]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
    Other,
}

/// The answer to reading a JSON field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FieldValue {
    /// There is no such field.
    Absent,
    /// Its JSON text.
    Json(String),
    /// It is longer than the limit; its size in bytes.
    TooLarge(u64),
}

/// The part of `text` from byte `offset`, at most `max_bytes` long, with both ends moved inwards to character
/// boundaries. Empty past the end.
pub fn char_slice(text: &str, offset: u64, max_bytes: usize) -> &str {
    let Ok(offset) = usize::try_from(offset) else { return "" };
    if offset >= text.len() {
        return "";
    }
    let start = text.ceil_char_boundary(offset);
    let end = text.floor_char_boundary(offset.saturating_add(max_bytes).min(text.len()));
    text.get(start..end).unwrap_or("")
}

/// Chained 64-bit FNV-1a over the concatenation of `pieces`: hash `i` covers the first `(i + 1) * block_bytes`
/// bytes. An unfinished last block has no hash. Constants from the FNV reference (Fowler, Noll, Vo).
pub fn fnv1a_chain<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    block_bytes: usize,
    max_blocks: usize,
) -> Vec<u64> {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hashes = Vec::new();
    let mut hash = OFFSET_BASIS;
    let mut filled = 0;
    if block_bytes == 0 || max_blocks == 0 {
        return hashes;
    }
    for byte in pieces.into_iter().flatten() {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(PRIME);
        filled += 1;
        if filled == block_bytes {
            hashes.push(hash);
            filled = 0;
            if hashes.len() == max_blocks {
                break;
            }
        }
    }
    hashes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Facts, char_slice, fnv1a_chain};

    #[test]
    fn the_same_id_gives_the_same_seed() {
        assert_eq!(Facts::seed("a"), Facts::seed("a"));
        assert_ne!(Facts::seed("a"), Facts::seed("b"));
    }

    #[test]
    fn slices_are_cut_inwards_to_characters() {
        for (text, offset, max, expected) in [
            ("hello", 0, 5, "hello"),
            ("hello", 1, 3, "ell"),
            ("hello", 5, 3, ""),
            ("hello", u64::MAX, 3, ""),
            ("aäb", 0, 2, "a"),
            ("aäb", 2, 2, "b"),
            ("ä", 1, 1, ""),
            ("äö", 1, 1, ""),
        ] {
            assert_eq!(
                char_slice(text, offset, max),
                expected,
                "{text:?} from {offset}, {max} bytes"
            );
        }
    }

    #[test]
    fn hashes_match_the_published_vectors() {
        // FNV-1a 64 of "a" and "foobar", from the reference test suite.
        assert_eq!(fnv1a_chain([b"a".as_slice()], 1, 9), [0xaf63_dc4c_8601_ec8c]);
        assert_eq!(fnv1a_chain([b"foo".as_slice(), b"bar"], 6, 9), [0x8594_4171_f739_67e8]);
    }

    proptest! {
        #[test]
        fn slices_never_panic_and_stay_within_bounds(text: String, offset in 0u64..300, max in 0usize..300) {
            let slice = char_slice(&text, offset, max);
            prop_assert!(slice.len() <= max && text.contains(slice));
        }

        #[test]
        fn hashes_do_not_depend_on_how_the_text_is_cut(bytes: Vec<u8>, cut in 0usize..64, block in 1usize..16) {
            let cut = cut.min(bytes.len());
            let (head, tail) = bytes.split_at(cut);
            let whole = fnv1a_chain([bytes.as_slice()], block, 100);
            prop_assert_eq!(&whole, &fnv1a_chain([head, tail], block, 100));
            prop_assert_eq!(whole.len(), bytes.len() / block);
        }
    }
}
