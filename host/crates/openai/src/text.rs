//! Text inside a request body: a JSON string literal whose escapes are resolved on first read.

use std::ops::Range;
use std::sync::OnceLock;

use memchr::memmem;

use crate::json::{without_half_pairs, work};

/// A JSON string literal within a body.
#[derive(Debug)]
pub(crate) struct Text {
    /// Byte range of the literal, without the quotes.
    range: Range<usize>,
    escaped: bool,
    decoded: OnceLock<Box<str>>,
}

impl Text {
    /// Creates a text from the literal `json` (with quotes), which is at `range` in the body.
    pub(crate) fn new(json: &str, range: Range<usize>) -> Self {
        work::count(json.len());
        let escaped = memchr::memchr(b'\\', json.as_bytes()).is_some();
        Self { range: range.start + 1..range.end - 1, escaped, decoded: OnceLock::new() }
    }

    /// Returns the text with escapes resolved, as UTF-8; the half of a surrogate pair, which UTF-8
    /// does not have, as U+FFFD. `body` is the body that contains the
    /// literal.
    pub(crate) fn bytes<'a>(&'a self, body: &'a [u8]) -> &'a [u8] {
        let literal = &body[self.range.clone()];
        if !self.escaped {
            return literal;
        }
        let decoded = self.decoded.get_or_init(|| {
            work::count(literal.len());
            let quoted = &body[self.range.start - 1..self.range.end + 1];
            let decoded: Result<Box<str>, _> = serde_json::from_slice(quoted);
            decoded.unwrap_or_else(|_| {
                // The half of a surrogate pair.
                let quoted = String::from_utf8_lossy(quoted);
                serde_json::from_str(&without_half_pairs(&quoted)).unwrap_or_default()
            })
        });
        decoded.as_bytes()
    }

    /// Returns the text with escapes resolved. Validates it, so use [`Text::bytes`] for a part.
    pub(crate) fn read<'a>(&'a self, body: &'a [u8]) -> &'a str {
        let bytes = self.bytes(body);
        work::count(bytes.len());
        // Parsing has validated the body; the fallback is unreachable.
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// Returns the estimated number of tokens, from the literal with its escapes.
    pub(crate) fn tokens(&self, body: &str) -> usize {
        work::count(self.range.len());
        estimate_tokens(&body[self.range.clone()])
    }
}

/// Appends at most `max` bytes of `text` from byte `offset`, which both move inwards to character
/// boundaries. Looks at no other bytes than these.
pub(crate) fn append_slice(out: &mut String, text: &[u8], offset: usize, max: usize) {
    let is_boundary = |at: usize| text.get(at).is_none_or(|byte| !(0x80..0xc0).contains(byte));
    let mut end = offset.saturating_add(max).min(text.len());
    let mut start = offset.min(text.len());
    while !is_boundary(start) {
        start += 1;
    }
    while end > start && !is_boundary(end) {
        end -= 1;
    }
    let slice = text.get(start..end).unwrap_or_default();
    work::count(slice.len());
    // Both ends are boundaries of valid UTF-8; the fallback is unreachable.
    out.push_str(std::str::from_utf8(slice).unwrap_or_default());
}

/// Returns the estimated number of tokens of a text. Common tokenizers produce about one token per
/// four ASCII characters, per two letters of other alphabets, and per CJK character.
pub fn estimate_tokens(text: &str) -> usize {
    if text.is_ascii() {
        return text.len().div_ceil(4);
    }
    let count = |test: fn(&u8) -> bool| text.as_bytes().iter().filter(|byte| test(byte)).count();
    let ascii = count(|byte| *byte < 0x80);
    let two_bytes = count(|byte| (0xc0..0xe0).contains(byte));
    let three_bytes = count(|byte| (0xe0..0xf0).contains(byte));
    let four_bytes = count(|byte| *byte >= 0xf0);
    ascii.div_ceil(4) + two_bytes.div_ceil(2) + three_bytes + 2 * four_bytes
}

/// Bytes of the text whose letters are folded at a time: a copy of all of it could be large.
const FOLDED_BYTES: usize = 16 << 10;

/// Returns true if `text` contains `needle`. `ignore_case` folds ASCII letters only. Takes time
/// linear in the length of `text`, whatever both contain.
pub(crate) fn contains(text: &str, needle: &str, ignore_case: bool) -> bool {
    let (text, needle) = (text.as_bytes(), needle.as_bytes());
    // Also keeps the search for a long text in many short ones linear.
    if needle.len() > text.len() {
        return false;
    }
    if !ignore_case {
        return memmem::find(text, needle).is_some();
    }
    let needle = needle.to_ascii_lowercase();
    let finder = memmem::Finder::new(&needle);
    let step = FOLDED_BYTES.max(needle.len());
    let mut folded = Vec::new();
    // Each piece overlaps the next one by the length of the needle.
    (0..text.len().max(1)).step_by(step).any(|start| {
        let piece = &text[start..(start + step + needle.len()).min(text.len())];
        folded.clear();
        folded.extend(piece.iter().map(u8::to_ascii_lowercase));
        finder.find(&folded).is_some()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn estimates_are_within_a_factor_of_two() {
        // Token counts by the cl100k_base tokenizer.
        for (text, tokens) in [
            ("The quick brown fox jumps over the lazy dog.", 10),
            ("fn main() {\n    println!(\"Hello, world!\");\n}\n", 13),
            ("Der schnelle braune Fuchs springt über den faulen Hund.", 17),
            ("我喜欢学习新的语言和文化。", 15),
        ] {
            let estimate = estimate_tokens(text);
            assert!(
                estimate * 2 >= tokens && estimate <= tokens * 2,
                "{text}: {estimate} for {tokens}"
            );
        }
        assert_eq!(estimate_tokens("a"), 1);
        assert_eq!(estimate_tokens(""), 0);
    }

    #[test]
    fn search_finds_matches_across_pieces() {
        let text = "x".repeat(3 * FOLDED_BYTES);
        for at in [0, FOLDED_BYTES - 3, FOLDED_BYTES, 2 * FOLDED_BYTES - 1, text.len() - 6] {
            let mut text = text.clone();
            text.replace_range(at..at + 6, "NeEdLe");
            assert!(contains(&text, "needle", true), "{at}");
            assert!(!contains(&text, "needles", true), "{at}");
        }
        // A search that compares at every position would take minutes.
        let repetitive = "a".repeat(8 << 20);
        assert!(!contains(&repetitive, &("a".repeat(100_000) + "b"), true));
        assert!(contains("", "", true));
    }

    proptest! {
        #[test]
        fn search_agrees_with_the_standard_library(
            text in "[abAB é]{0,20}",
            needle in "[abAB é]{0,3}",
        ) {
            prop_assert_eq!(contains(&text, &needle, false), text.contains(&needle));
            let folded = text.to_ascii_lowercase().contains(&needle.to_ascii_lowercase());
            prop_assert_eq!(contains(&text, &needle, true), folded);
        }

        #[test]
        fn literals_read_as_serde_json_reads_them(text: String) {
            let body = format!("[{}]", serde_json::to_string(&text).unwrap());
            let literal = &body[1..body.len() - 1];
            let read = Text::new(literal, 1..body.len() - 1);
            prop_assert_eq!(read.read(body.as_bytes()), &text);
        }
    }
}
