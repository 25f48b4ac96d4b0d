//! What a policy may know about one request. Numbers are passed by value; everything else is read
//! lazily through [`RequestView`].

use std::any::Any;
use std::borrow::Cow;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::advice::Edit;
use crate::allowance::Allowance;
use crate::constraint::Constraint;
use crate::endpoint::Endpoint;
use crate::fleet_view::LaneId;

/// One request as an advisor sees it.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Lazy view of the request.
    pub request: Arc<dyn RequestView>,
    /// Wall clock in milliseconds since the Unix epoch, frozen for the decision.
    pub now_ms: u64,
    /// Seed for the randomness of policies; see [`Facts::seed()`].
    pub seed: u64,
    /// Time since the request was accepted.
    pub age: Duration,
    /// 0 for the first decision about the request, 1 for the first retry, and so on.
    pub attempt: u32,
    /// Time until the host gives up on the request; `None` if that is not known.
    pub time_left: Option<Duration>,
    /// The lanes that the filters of earlier policies leave, or, after a failed attempt, those of
    /// all policies; `None` if there are no filters, so that all candidates are left.
    pub lanes_left: Option<Arc<[LaneId]>>,
}

impl Facts {
    /// Returns the seed for the request with this id.
    ///
    /// The seed depends on the id only, so a request that is sent again with the same id gets the
    /// same decision. It is below 2^53, the largest range of integers that JavaScript numbers
    /// represent exactly, so policies in all languages derive the same random numbers.
    pub fn seed(id: impl Hash) -> u64 {
        // DefaultHasher::new() has fixed keys; only RandomState draws new ones.
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        hasher.finish() >> 11
    }
}

/// Lazy, read-only access to a request.
///
/// Implemented by the parsed request of the wire crate. A policy host can therefore serve a
/// policy's reads, and apply the edits of one policy before calling the next, without depending on
/// the wire format. `Any`, so that the host can get the edited request back in its own type.
pub trait RequestView: Any + Send + Sync + fmt::Debug {
    /// Returns the properties that every policy gets with the call.
    fn info(&self) -> RequestInfo;
    /// Returns the request id.
    fn id(&self) -> &str;
    /// Returns the model name that the client asked for; empty if it gave none.
    fn model(&self) -> &str;
    /// Returns the authenticated tenant.
    fn tenant(&self) -> Option<&str>;
    /// Returns the name of the key with which the client authenticated; never a part of its secret.
    fn key_name(&self) -> Option<&str> {
        None
    }
    /// Returns the group of that key.
    fn key_group(&self) -> Option<&str> {
        None
    }
    /// Returns a random number of the request, which stays the same until its end. Unlike the seed,
    /// it is another one if a client sends a request with the same id again.
    fn draw(&self) -> u64 {
        0
    }
    /// Returns what the limits of that key leave, with this request counted.
    fn allowance(&self) -> Allowance {
        Allowance::default()
    }
    /// Returns what the operator's guards demand of the request; `None` if none applies. Policies
    /// do not see it.
    fn constraint(&self) -> Option<&Arc<Constraint>> {
        None
    }
    /// Returns the first value of a header. The name is case-insensitive; credential headers are
    /// never returned.
    fn header(&self, name: &str) -> Option<&str>;
    /// Returns all headers except credential headers, with lower-case names and raw values.
    fn headers(&self) -> Vec<(&str, &[u8])>;
    /// Returns the field of the JSON body that a JSON Pointer names, if its text has at most
    /// `max_bytes`.
    fn field(&self, pointer: &str, max_bytes: usize) -> FieldValue;
    /// Returns one entry per chat message; empty for other endpoints.
    fn messages(&self) -> Vec<MessageInfo>;
    /// Returns at most `max_bytes` of the text of message `index` from byte `offset`, shortened to
    /// character boundaries (see [`char_slice`]).
    fn text(&self, index: u32, offset: u64, max_bytes: usize) -> Cow<'_, str>;
    /// Returns the number of bytes that a search through all texts reads at most. Callers charge
    /// searches by it.
    fn text_size(&self) -> u64 {
        self.info().body_bytes
    }
    /// Returns at most `max_bytes` raw bytes of the body from `offset`.
    fn bytes(&self, offset: u64, max_bytes: usize) -> &[u8];
    /// Returns true if the text of any message contains `needle`. `ignore_case` folds ASCII letters
    /// only.
    fn contains(&self, needle: &str, ignore_case: bool) -> bool;
    /// Passes all texts to `visit`, in the order of the prompt, until it breaks: the index of the
    /// message, the byte of the message's text at which the text begins, and the text. A message
    /// has several texts if it has several parts.
    fn visit_texts(&self, visit: &mut dyn FnMut(u32, u64, &str) -> ControlFlow<()>);
    /// Returns the hashes of the leading blocks of the prompt (see [`fnv1a_chain`]).
    fn prefix_hashes(&self, block_bytes: usize, max_blocks: usize) -> Vec<u64>;
    /// Returns the request with `edits` applied in order, and the edits that could not be applied.
    /// A dropped edit does not affect the others.
    fn edited(&self, edits: &[Edit]) -> (Arc<dyn RequestView>, Vec<DroppedEdit>);
}

/// An edit that cannot be applied or that would make the request invalid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DroppedEdit {
    /// Position in the list of edits.
    pub index: usize,
    /// The reason, for people.
    pub reason: String,
}

/// Properties of a request that every policy gets by value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RequestInfo {
    /// Endpoint that received the request.
    pub endpoint: Endpoint,
    /// True if the client asked for a stream.
    pub streaming: bool,
    /// Size of the body in bytes.
    pub body_bytes: u64,
    /// Estimated prompt length in tokens.
    pub prompt_tokens: u32,
    /// Maximum number of output tokens that the client asked for; 0 if it set no limit.
    pub max_output_tokens: u32,
    /// Number of chat messages.
    pub messages: u32,
    /// True if the request offers tools.
    pub has_tools: bool,
    /// True if the request has parts that are not text.
    pub has_media: bool,
    /// True if the request constrains the output (JSON mode, schema or grammar).
    pub has_grammar: bool,
}

/// Role and size of one chat message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MessageInfo {
    /// Author of the message.
    pub role: Role,
    /// Bytes of text over all parts, with escapes resolved.
    pub text_bytes: u64,
    /// Number of content parts.
    pub parts: u32,
    /// Number of content parts that are not text.
    pub media_parts: u32,
}

/// The first occurrence of a pattern in the texts of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TextMatch {
    /// Index of the pattern.
    pub pattern: u32,
    /// Index of the message.
    pub message: u32,
    /// Byte of the message's text at which the occurrence begins.
    pub offset: u64,
}

/// The author of a chat message.
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

/// The result of reading a JSON field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FieldValue {
    /// The field does not exist.
    Absent,
    /// The JSON text of the field.
    Json(String),
    /// The field is longer than the limit; its size in bytes.
    TooLarge(u64),
}

/// Returns at most `max_bytes` of `text` from byte `offset`, with both ends moved inwards to
/// character boundaries. Empty if `offset` is past the end.
pub fn char_slice(text: &str, offset: u64, max_bytes: usize) -> &str {
    let Ok(offset) = usize::try_from(offset) else { return "" };
    if offset >= text.len() {
        return "";
    }
    let start = text.ceil_char_boundary(offset);
    // `offset + max_bytes` comes from a guest and may overflow.
    let end = text.floor_char_boundary(offset.saturating_add(max_bytes).min(text.len()));
    text.get(start..end).unwrap_or("")
}

/// Returns chained 64-bit FNV-1a hashes of the concatenation of `pieces`: hash `i` covers the first
/// `(i + 1) * block_bytes` bytes. An incomplete last block has no hash. The constants are those of
/// the FNV reference (Fowler, Noll, Vo).
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
    fn seed_is_a_function_of_the_request_id() {
        assert_eq!(Facts::seed("a"), Facts::seed("a"));
        assert_ne!(Facts::seed("a"), Facts::seed("b"));
    }

    #[test]
    fn slices_shrink_to_character_boundaries() {
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
    fn hashes_match_the_reference_vectors() {
        // FNV-1a 64 of "a" and "foobar", from the reference test suite.
        assert_eq!(fnv1a_chain([b"a".as_slice()], 1, 9), [0xaf63_dc4c_8601_ec8c]);
        assert_eq!(fnv1a_chain([b"foo".as_slice(), b"bar"], 6, 9), [0x8594_4171_f739_67e8]);
    }

    proptest! {
        #[test]
        fn slices_stay_within_bounds(
            text: String,
            offset in 0u64..300,
            max in 0usize..300,
        ) {
            let slice = char_slice(&text, offset, max);
            prop_assert!(slice.len() <= max && text.contains(slice));
        }

        #[test]
        fn hashes_do_not_depend_on_piece_boundaries(
            bytes: Vec<u8>,
            split in 0usize..64,
            block in 1usize..16,
        ) {
            let split = split.min(bytes.len());
            let (head, tail) = bytes.split_at(split);
            let whole = fnv1a_chain([bytes.as_slice()], block, 100);
            prop_assert_eq!(&whole, &fnv1a_chain([head, tail], block, 100));
            prop_assert_eq!(whole.len(), bytes.len() / block);
        }
    }
}
