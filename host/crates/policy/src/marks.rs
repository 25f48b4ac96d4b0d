//! What stands in a record for what is kept back: `redacted:` and a length, and maybe a hash.

use serde_json::Value;

const MARK: &str = "redacted:";

/// Could `value` be what was recorded as `recorded`? Marks stand for any text.
pub fn fits(recorded: &Value, value: &Value) -> bool {
    match (recorded, value) {
        (Value::String(recorded), Value::String(asked)) => text_fits(recorded, asked),
        (Value::Array(recorded), Value::Array(asked)) => {
            recorded.len() == asked.len() && recorded.iter().zip(asked).all(|(a, b)| fits(a, b))
        }
        (Value::Object(recorded), Value::Object(asked)) => {
            recorded.len() == asked.len()
                && recorded
                    .iter()
                    .all(|(key, value)| asked.get(key).is_some_and(|other| fits(value, other)))
        }
        _ => recorded == value,
    }
}

fn text_fits(recorded: &str, asked: &str) -> bool {
    // Who asks with a record's own marks asks the same.
    if recorded == asked {
        return true;
    }
    let Some((begin, mut rest)) = split_at_mark(recorded) else { return false };
    let Some(mut asked) = asked.strip_prefix(begin) else { return false };
    while let Some((middle, after)) = split_at_mark(rest) {
        let Some(found) = asked.find(middle) else { return false };
        asked = asked.get(found + middle.len()..).unwrap_or_default();
        rest = after;
    }
    asked.ends_with(rest)
}

/// What stands before the first mark of a text, and after it.
fn split_at_mark(text: &str) -> Option<(&str, &str)> {
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (begin, length) = text.match_indices(MARK).find_map(|(at, _)| {
        let length = text.get(at + MARK.len()..)?;
        (digits(length) > 0).then(|| text.get(..at).map(|begin| (begin, length)))?
    })?;
    let rest = length.get(digits(length)..)?;
    let hash = rest.strip_prefix(':').and_then(|hash| hash.split_at_checked(HASH));
    let is_hash = |hash: &str| hash.bytes().all(|digit| digit.is_ascii_hexdigit());
    Some((begin, hash.filter(|(hash, _)| is_hash(hash)).map_or(rest, |(_, rest)| rest)))
}

/// Digits of the hash in a mark.
const HASH: usize = 16;

/// Does a mark stand anywhere in it?
pub fn redacted(value: &Value) -> bool {
    match value {
        Value::String(text) => split_at_mark(text).is_some(),
        Value::Array(items) => items.iter().any(redacted),
        Value::Object(fields) => fields.values().any(redacted),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
