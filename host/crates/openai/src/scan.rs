//! Scanning JSON text that is known to be valid, without allocations. The results for other text
//! are arbitrary, but the scanner neither panics nor loops forever.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr2;

use crate::json::work;

/// A child of an array or object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Child {
    /// The key's literal with its quotes; empty in an array.
    pub(crate) key: Range<usize>,
    /// The start of the value.
    pub(crate) start: usize,
}

/// Returns the end of the value that begins at `start`.
pub(crate) fn value_end(json: &[u8], start: usize) -> usize {
    let end = match json.get(start) {
        Some(b'"') => string_end(json, start),
        Some(b'{' | b'[') => container_end(json, start).unwrap_or(json.len()),
        Some(_) | None => {
            let rest = json.get(start..).unwrap_or_default();
            let is_end = |byte: &u8| matches!(byte, b',' | b']' | b'}') || is_space(*byte);
            start + rest.iter().position(is_end).unwrap_or(rest.len())
        }
    };
    work::count(end.saturating_sub(start));
    end
}

/// Returns the end of the string literal that begins at `start`.
pub(crate) fn string_end(json: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(found) = json.get(at..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        at += found;
        if json[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    json.len()
}

/// Returns the end of the array or object that begins at `start`; `None` if it does not end within
/// `json`.
pub(crate) fn container_end(json: &[u8], start: usize) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = start;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                at = string_end(json, at);
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => return Some(at + 1),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// The children of an array or object, in order. What a child does not need is not scanned: its
/// value is skipped when the next child is asked for.
#[derive(Debug)]
pub(crate) struct Children<'a> {
    json: &'a [u8],
    at: usize,
    has_keys: bool,
    /// The value at `at` has been returned and is to be skipped.
    skips_value: bool,
}

impl<'a> Children<'a> {
    /// Creates the iterator over the children of the container that begins at `start`; `None` if
    /// the value there is not a container.
    pub(crate) fn new(json: &'a [u8], start: usize) -> Option<Self> {
        let has_keys = match json.get(start)? {
            b'{' => true,
            b'[' => false,
            _ => return None,
        };
        Some(Self { json, at: start + 1, has_keys, skips_value: false })
    }

    /// Creates the iterator over the elements of an array from the element that begins at `start`.
    pub(crate) fn from_element(json: &'a [u8], start: usize) -> Self {
        Self { json, at: start, has_keys: false, skips_value: false }
    }

    /// Returns the member of an object whose key begins at `start`.
    pub(crate) fn member(json: &'a [u8], start: usize) -> Option<Child> {
        Self { json, at: start, has_keys: true, skips_value: false }.next()
    }

    /// Continues after the value of the last child, whose end the caller has found.
    pub(crate) fn continue_at(&mut self, end: usize) {
        self.at = end;
        self.skips_value = false;
    }

    fn skip_separator(&mut self, separator: u8) {
        let is_skipped = |byte: u8| byte == separator || is_space(byte);
        while self.json.get(self.at).is_some_and(|byte| is_skipped(*byte)) {
            self.at += 1;
        }
    }
}

impl Iterator for Children<'_> {
    type Item = Child;

    fn next(&mut self) -> Option<Child> {
        if std::mem::take(&mut self.skips_value) {
            self.at = value_end(self.json, self.at);
        }
        self.skip_separator(b',');
        if matches!(self.json.get(self.at)?, b']' | b'}') {
            return None;
        }
        let key = self.at..if self.has_keys { string_end(self.json, self.at) } else { self.at };
        work::count(key.len());
        self.at = key.end;
        if self.has_keys {
            self.skip_separator(b':');
        }
        self.skips_value = true;
        (self.at < self.json.len()).then_some(Child { key, start: self.at })
    }
}

/// Returns true if the text of a key is `name`, which is not empty. Most keys are compared as they
/// are written.
pub(crate) fn is_key(literal: &[u8], name: &str) -> bool {
    let inner = literal.get(1..literal.len().saturating_sub(1)).unwrap_or_default();
    inner == name.as_bytes() || (inner.contains(&b'\\') && key(literal) == name)
}

/// Returns the text of a key from its literal. The escapes of a key that Rust strings cannot hold,
/// an unpaired surrogate, are returned as they are written.
pub(crate) fn key(literal: &[u8]) -> Cow<'_, str> {
    let inner = literal.get(1..literal.len().saturating_sub(1)).unwrap_or_default();
    let written = || std::str::from_utf8(inner).unwrap_or_default();
    if memchr::memchr(b'\\', inner).is_none() {
        return Cow::Borrowed(written());
    }
    serde_json::from_slice(literal).map_or_else(|_| Cow::Borrowed(written()), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn children(json: &str) -> Option<Vec<(String, &str)>> {
        let bytes = json.as_bytes();
        let children = Children::new(bytes, 0)?.map(|Child { key: literal, start }| {
            (key(&bytes[literal]).into_owned(), &json[start..value_end(bytes, start)])
        });
        Some(children.collect())
    }

    #[test]
    fn children_are_found_with_any_white_space() {
        let pair = |key: &str, value| (key.to_owned(), value);
        for (json, expected) in [
            ("[]", Some(vec![])),
            ("{ }", Some(vec![])),
            ("[1, \"a,]\" ,[2,[3]],{}]", {
                Some(vec![pair("", "1"), pair("", "\"a,]\""), pair("", "[2,[3]]"), pair("", "{}")])
            }),
            ("{\"a\" : null ,\"\\u00e9\\\"\":[ ]}", {
                Some(vec![pair("a", "null"), pair("é\"", "[ ]")])
            }),
            ("{\"\\ud800\":1}", Some(vec![pair("\\ud800", "1")])),
            ("5", None),
            ("\"[1]\"", None),
        ] {
            assert_eq!(children(json), expected, "{json}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_text_ends_the_scan(json in "[\\[\\]{}:,\"\\\\a1 ]{0,24}") {
            for start in 0..json.len() {
                let bytes = json.as_bytes();
                prop_assert!(value_end(bytes, start) <= json.len() + 1);
                if let Some(children) = Children::new(bytes, start) {
                    prop_assert!(children.count() <= json.len());
                }
            }
        }
    }
}
