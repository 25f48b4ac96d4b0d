//! JSON Pointers and ranges of JSON text.

use std::borrow::Cow;
use std::ops::Range;

/// Maximum number of tokens in a JSON Pointer. Bounds the recursion of edits.
pub(crate) const MAX_DEPTH: usize = 32;

/// The reason why a JSON Pointer cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PointerError {
    /// The pointer is empty, and would refer to the whole body.
    #[error("JSON Pointer is empty: it must refer to a field of the body")]
    Empty,
    /// The pointer does not start with `/`.
    #[error("invalid JSON Pointer `{0}`: expected a leading `/`")]
    NoLeadingSlash(String),
    /// The pointer has too many tokens.
    #[error("JSON Pointer exceeds {MAX_DEPTH} levels")]
    TooDeep,
    /// The text that the pointer refers to is not JSON.
    #[error("body is not valid JSON")]
    InvalidJson,
    /// The array or object has too many children for an edit.
    #[error("array or object has too many elements to edit")]
    TooManyChildren,
    /// The object has no such member.
    #[error("no member `{0}`")]
    NoMember(String),
    /// The array has no such element.
    #[error("no element `{0}`")]
    NoElement(String),
    /// The parent of the token is neither an object nor an array.
    #[error("parent of `{0}` is neither an object nor an array")]
    NotAContainer(String),
}

/// Returns the byte range of `part`, which is a slice of `whole`.
pub(crate) fn range_in(whole: &str, part: &str) -> Range<usize> {
    let start = part.as_ptr() as usize - whole.as_ptr() as usize;
    start..start + part.len()
}

/// Returns the unescaped tokens of a JSON Pointer (RFC 6901).
pub(crate) fn tokens(pointer: &str) -> Result<Vec<String>, PointerError> {
    if pointer.is_empty() {
        return Err(PointerError::Empty);
    }
    let Some(rest) = pointer.strip_prefix('/') else {
        return Err(PointerError::NoLeadingSlash(pointer.to_owned()));
    };
    let tokens: Vec<String> =
        rest.split('/').map(|token| token.replace("~1", "/").replace("~0", "~")).collect();
    if tokens.len() > MAX_DEPTH {
        return Err(PointerError::TooDeep);
    }
    Ok(tokens)
}

/// Returns `json` with some ranges replaced, which are in order and do not overlap.
pub(crate) fn splice(json: &str, parts: &[(Range<usize>, String)]) -> String {
    let more: usize = parts.iter().map(|(_, with)| with.len()).sum();
    let mut out = String::with_capacity(json.len() + more);
    let mut copied = 0;
    for (range, with) in parts {
        out.push_str(&json[copied..range.start]);
        out.push_str(with);
        copied = range.end;
    }
    out.push_str(&json[copied..]);
    out
}

/// Length of an escape with a code unit of UTF-16.
const UNIT: usize = r"\ud800".len();

/// Returns JSON text with U+FFFD instead of each half of a surrogate pair that is alone. JSON
/// allows such escapes and clients that cut texts send them, but most strings cannot hold what they
/// stand for. All positions stay the same.
pub(crate) fn without_half_pairs(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut fixed: Option<String> = None;
    let mut copied = 0;
    let mut at = 0;
    while let Some(found) = bytes.get(at..).and_then(|rest| memchr::memchr(b'\\', rest)) {
        at += found;
        let Some(unit) = code_unit(bytes, at) else {
            at += 2;
            continue;
        };
        let is_pair = (0xd800..0xdc00).contains(&unit)
            && code_unit(bytes, at + UNIT).is_some_and(|low| (0xdc00..0xe000).contains(&low));
        if !is_pair && (0xd800..0xe000).contains(&unit) {
            let fixed = fixed.get_or_insert_default();
            fixed.push_str(&json[copied..at]);
            fixed.push_str(r"\ufffd");
            copied = at + UNIT;
        }
        at += if is_pair { 2 * UNIT } else { UNIT };
    }
    match fixed {
        None => Cow::Borrowed(json),
        Some(fixed) => Cow::Owned(fixed + &json[copied..]),
    }
}

/// Returns the code unit of the escape at `at`; `None` if another one is there.
fn code_unit(json: &[u8], at: usize) -> Option<u16> {
    let digits = json.get(at..at + UNIT)?.strip_prefix(br"\u")?;
    u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// Counts bytes that are scanned or copied, so that tests can bound the work of an edit without
/// measuring time.
pub(crate) mod work {
    #[cfg(not(test))]
    #[inline]
    pub(crate) fn count(_: usize) {}

    #[cfg(test)]
    pub(crate) use counter::{count, counted};

    #[cfg(test)]
    mod counter {
        use std::cell::Cell;

        thread_local! {
            static BYTES: Cell<usize> = const { Cell::new(0) };
        }

        pub(crate) fn count(bytes: usize) {
            BYTES.set(BYTES.get() + bytes);
        }

        /// Returns the number of bytes that `work` scans and copies.
        pub(crate) fn counted(work: impl FnOnce()) -> usize {
            let before = BYTES.get();
            work();
            BYTES.get() - before
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_pairs_are_replaced() {
        for (json, expected) in [
            (r#""a""#, r#""a""#),
            (r#""\ud83d\ude00 \n\u00e9""#, r#""\ud83d\ude00 \n\u00e9""#),
            (r#""x \uD83D y""#, r#""x \ufffd y""#),
            (r#""\ude00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#""\ud83d\ud83d\ude00""#, r#""\ufffd\ud83d\ude00""#),
            (r#""\ud83d\n""#, r#""\ufffd\n""#),
            (r#""\\ud83d""#, r#""\\ud83d""#),
            (r#""\\\ud83d é""#, r#""\\\ufffd é""#),
            (r#"{"\udfff":"\udbff"}"#, r#"{"\ufffd":"\ufffd"}"#),
            (r"\", r"\"),
            (r"\ud83", r"\ud83"),
        ] {
            assert_eq!(without_half_pairs(json), expected, "{json}");
        }
    }
}
