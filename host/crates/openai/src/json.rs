//! Finding and replacing values in JSON text without changing the rest of the text.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

/// Maximum number of tokens in a JSON Pointer. Bounds the recursion of edits.
const MAX_DEPTH: usize = 32;

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

/// Returns `json` with the value at `tokens` set to `value`. A missing last member is added; `-`
/// appends to an array.
pub(crate) fn set(json: &str, tokens: &[String], value: &str) -> Result<String, PointerError> {
    let [token, deeper @ ..] = tokens else { return Ok(value.to_owned()) };
    match json.as_bytes().first() {
        Some(b'{') => {
            let members = members(json).ok_or(PointerError::InvalidJson)?;
            match members.iter().rev().find(|(key, _)| key == token) {
                Some((_, old)) => Ok(splice(json, range_in(json, old), &set(old, deeper, value)?)),
                None if deeper.is_empty() => {
                    let key = Value::from(token.as_str());
                    let comma = if members.is_empty() { "" } else { "," };
                    Ok(splice(json, 1..1, &format!("{key}:{value}{comma}")))
                }
                None => Err(PointerError::NoMember(token.clone())),
            }
        }
        Some(b'[') => {
            let elements = elements(json).ok_or(PointerError::InvalidJson)?;
            if token == "-" && deeper.is_empty() {
                let end = json.len() - 1;
                let comma = if elements.is_empty() { "" } else { "," };
                return Ok(splice(json, end..end, &format!("{comma}{value}")));
            }
            let old = token.parse::<usize>().ok().and_then(|index| elements.get(index).copied());
            let old = old.ok_or_else(|| PointerError::NoElement(token.clone()))?;
            Ok(splice(json, range_in(json, old), &set(old, deeper, value)?))
        }
        _ => Err(PointerError::NotAContainer(token.clone())),
    }
}

/// Returns `json` without the value at `tokens`. Removing a missing value changes nothing.
pub(crate) fn remove(json: &str, tokens: &[String]) -> Result<String, PointerError> {
    let [token, deeper @ ..] = tokens else { return Err(PointerError::Empty) };
    let (children, at): (Vec<&str>, Option<usize>) = match json.as_bytes().first() {
        Some(b'{') => {
            let members = members(json).ok_or(PointerError::InvalidJson)?;
            let at = members.iter().rposition(|(key, _)| key == token);
            (members.into_iter().map(|(_, value)| value).collect(), at)
        }
        Some(b'[') => (elements(json).ok_or(PointerError::InvalidJson)?, token.parse().ok()),
        _ => return Ok(json.to_owned()),
    };
    let Some((at, old)) = at.and_then(|at| children.get(at).map(|old| (at, *old))) else {
        return Ok(json.to_owned());
    };
    let old_range = range_in(json, old);
    if !deeper.is_empty() {
        return Ok(splice(json, old_range, &remove(old, deeper)?));
    }
    // Remove from the end of the previous child to the end of this one; for the first child, to the
    // start of the next one.
    let range =
        match (at.checked_sub(1).and_then(|before| children.get(before)), children.get(at + 1)) {
            (Some(before), _) => range_in(json, before).end..old_range.end,
            (None, Some(_)) => {
                let comma = json[old_range.end..]
                    .find(',')
                    .map_or(old_range.end, |comma| old_range.end + comma + 1);
                1..comma
            }
            (None, None) => 1..json.len() - 1,
        };
    Ok(splice(json, range, ""))
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
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let members = deserializer.deserialize_map(Members).ok()?;
    deserializer.end().ok()?;
    Some(members)
}

/// Returns the JSON text of the elements of an array.
pub(crate) fn elements(json: &str) -> Option<Vec<&str>> {
    let elements: Vec<&RawValue> = serde_json::from_str(json).ok()?;
    Some(elements.into_iter().map(RawValue::get).collect())
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
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn edits_change_nothing_else() {
        let body = r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2],"d":null}, "é\u0041":"x" }"#;
        for (pointer, value, expected) in [
            ("/a", "7", r#"{ "a" : 7 ,"b":{"c":[1 , 2],"d":null}, "é\u0041":"x" }"#),
            ("/b/c/1", "9", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 9],"d":null}, "é\u0041":"x" }"#),
            ("/b/c/-", "3", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2,3],"d":null}, "é\u0041":"x" }"#),
            ("/éA", "0", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2],"d":null}, "é\u0041":0 }"#),
            ("/n", "[]", r#"{"n":[], "a" : 1.0e2 ,"b":{"c":[1 , 2],"d":null}, "é\u0041":"x" }"#),
        ] {
            assert_eq!(
                set(body, &tokens(pointer).unwrap(), value).unwrap(),
                expected,
                "set {pointer}"
            );
        }
        for (pointer, expected) in [
            ("/a", r#"{"b":{"c":[1 , 2],"d":null}, "é\u0041":"x" }"#),
            ("/b/c/0", r#"{ "a" : 1.0e2 ,"b":{"c":[ 2],"d":null}, "é\u0041":"x" }"#),
            ("/b/d", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2]}, "é\u0041":"x" }"#),
            ("/éA", r#"{ "a" : 1.0e2 ,"b":{"c":[1 , 2],"d":null} }"#),
            ("/none", body),
            ("/a/deep", body),
        ] {
            assert_eq!(
                remove(body, &tokens(pointer).unwrap()).unwrap(),
                expected,
                "remove {pointer}"
            );
        }
        assert_eq!(remove(r#"{ "a":1 }"#, &tokens("/a").unwrap()).unwrap(), "{}");
        let too_deep = "/a".repeat(MAX_DEPTH + 1);
        for (pointer, error) in [
            ("", PointerError::Empty),
            ("a", PointerError::NoLeadingSlash("a".to_owned())),
            (too_deep.as_str(), PointerError::TooDeep),
            ("/x/y", PointerError::NoMember("x".to_owned())),
            ("/b/c/9", PointerError::NoElement("9".to_owned())),
            ("/a/b", PointerError::NotAContainer("b".to_owned())),
        ] {
            let result = tokens(pointer).and_then(|tokens| set(body, &tokens, "1"));
            assert_eq!(result, Err(error), "{pointer:?}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[ab/~\"é]{0,2}", inner), 0..4)
                    .prop_map(|all| Value::Object(all.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Setting, finding and removing agree with the same operations on parsed values.
        #[test]
        fn text_edits_agree_with_value_edits(
            body in prop::collection::vec(("[ab/~\"é]{0,2}", any_json()), 0..4),
            key in "[ab/~\"é]{0,2}",
            value in any_json(),
            pretty: bool,
        ) {
            let mut model = Value::Object(body.into_iter().collect());
            let text = match pretty {
                true => serde_json::to_string_pretty(&model).unwrap(),
                false => model.to_string(),
            };
            let path = [key.clone()];
            let found = find(&text, &path).map(|text| serde_json::from_str::<Value>(text).unwrap());
            prop_assert_eq!(found, model.get(&key).cloned());
            let removed = remove(&text, &path).unwrap();
            let removed: Value = serde_json::from_str(&removed).unwrap();
            let set = set(&text, &path, &value.to_string()).unwrap();
            let set: Value = serde_json::from_str(&set).unwrap();
            model.as_object_mut().unwrap().shift_remove(&key);
            prop_assert_eq!(&removed, &model);
            model[&key] = value;
            prop_assert_eq!(&set, &model);
        }
    }

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
        assert_eq!(json!([]).to_string(), "[]");
    }
}
