//! Finding values in JSON text.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

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

/// Returns the JSON text of the value at `tokens`.
pub(crate) fn find<'a>(json: &'a str, tokens: &[String]) -> Option<&'a str> {
    let mut json = json;
    for token in tokens {
        json = match json.as_bytes().first()? {
            // Of duplicate members the last one counts, as in most parsers.
            b'{' => members(json)?.into_iter().rev().find(|(key, _)| key == token)?.1,
            b'[' => elements(json)?.get(token.parse::<usize>().ok()?).copied()?,
            _ => return None,
        };
    }
    Some(json)
}

/// Returns `json` with `range` replaced.
pub(crate) fn splice(json: &str, range: Range<usize>, with: &str) -> String {
    let mut out = String::with_capacity(json.len() - range.len() + with.len());
    out.push_str(&json[..range.start]);
    out.push_str(with);
    out.push_str(&json[range.end..]);
    out
}

/// Returns the members of an object with the JSON text of their values.
pub(crate) fn members(json: &str) -> Option<Vec<(Cow<'_, str>, &str)>> {
    work::count(json.len());
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let members = deserializer.deserialize_map(Members).ok()?;
    deserializer.end().ok()?;
    Some(members)
}

/// Returns the JSON text of the elements of an array.
pub(crate) fn elements(json: &str) -> Option<Vec<&str>> {
    work::count(json.len());
    let elements: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    Some(elements.into_iter().map(RawValue::get).collect())
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

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(Cow<'de, str>, &'de str)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(key) = map.next_key_seed(Key)? {
            members.push((key, map.next_value::<&RawValue>()?.get()));
        }
        Ok(members)
    }
}

/// A key, borrowed if it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, key: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

/// Returns true if `json` is an empty array or object.
pub(crate) fn is_empty(json: &str) -> bool {
    struct Empty;
    impl<'de> Visitor<'de> for Empty {
        type Value = bool;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array or object")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<bool, A::Error> {
            let empty = seq.next_element::<IgnoredAny>()?.is_none();
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            Ok(empty)
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let empty = map.next_entry::<IgnoredAny, IgnoredAny>()?.is_none();
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            Ok(empty)
        }
    }
    serde_json::Deserializer::from_str(json).deserialize_any(Empty).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_arrays_and_objects_are_detected() {
        for (json, empty) in [
            ("[]", true),
            ("[ ]", true),
            ("[1]", false),
            ("{}", true),
            (r#"{"a":1}"#, false),
            ("5", false),
        ] {
            assert_eq!(is_empty(json), empty, "{json}");
        }
    }
}
