//! Redaction marks in records: `redacted:` and a length, optionally followed by a hash, in place of
//! a text that is not recorded.

use serde_json::Value;

/// The beginning of a mark.
const MARK: &str = "redacted:";

/// Returns whether `value` matches `recorded`. A mark in `recorded` matches any text.
pub fn fits(recorded: &Value, value: &Value) -> bool {
    match (recorded, value) {
        (Value::String(recorded), Value::String(found)) => text_fits(recorded, found),
        (Value::Array(recorded), Value::Array(found)) => {
            recorded.len() == found.len() && recorded.iter().zip(found).all(|(a, b)| fits(a, b))
        }
        (Value::Object(recorded), Value::Object(found)) => {
            recorded.len() == found.len()
                && recorded
                    .iter()
                    .all(|(key, value)| found.get(key).is_some_and(|other| fits(value, other)))
        }
        _ => recorded == value,
    }
}

fn text_fits(recorded: &str, text: &str) -> bool {
    // A replay that only has the record passes its marks on.
    if recorded == text {
        return true;
    }
    let Some((begin, mut rest)) = split_at_mark(recorded) else { return false };
    let Some(mut text) = text.strip_prefix(begin) else { return false };
    while let Some((middle, after)) = split_at_mark(rest) {
        let Some(found) = text.find(middle) else { return false };
        text = text.get(found + middle.len()..).unwrap_or_default();
        rest = after;
    }
    text.ends_with(rest)
}

/// Splits a text at its first mark, into the parts before and after it.
fn split_at_mark(text: &str) -> Option<(&str, &str)> {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (begin, length) = text.match_indices(MARK).find_map(|(at, _)| {
        let length = text.get(at + MARK.len()..)?;
        (digits(length) > 0).then(|| text.get(..at).map(|begin| (begin, length)))?
    })?;
    let rest = length.get(digits(length)..)?;
    let hash = rest.strip_prefix(':').and_then(|hash| hash.split_at_checked(HASH_DIGITS));
    let is_hash = |hash: &str| hash.bytes().all(|digit| digit.is_ascii_hexdigit());
    Some((begin, hash.filter(|(hash, _)| is_hash(hash)).map_or(rest, |(_, rest)| rest)))
}

/// Hexadecimal digits of the hash in a mark.
const HASH_DIGITS: usize = 16;

/// Returns whether `value` contains a mark anywhere.
pub fn redacted(value: &Value) -> bool {
    match value {
        Value::String(text) => split_at_mark(text).is_some(),
        Value::Array(items) => items.iter().any(redacted),
        Value::Object(fields) => fields.values().any(redacted),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
