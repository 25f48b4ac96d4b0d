//! A validator for the JSON Schemas that this workspace generates, for their tests. It knows the
//! keywords that they use, and panics on others. (A crate for all of JSON Schema would change the
//! features of crates that the product is built with.)

use regex::Regex;
use serde_json::{Map, Value};

/// Keywords without an effect on validity.
const ANNOTATIONS: [&str; 7] =
    ["$schema", "title", "description", "default", "definitions", "format", "deprecated"];

/// Returns true if the schema accepts the value.
///
/// # Panics
/// If the schema has keywords that this validator does not know.
pub fn accepts(schema: &Value, value: &Value) -> bool {
    Validator { root: schema }.accepts(schema, value)
}

struct Validator<'a> {
    root: &'a Value,
}

impl Validator<'_> {
    fn accepts(&self, schema: &Value, value: &Value) -> bool {
        match schema {
            Value::Bool(accepts) => *accepts,
            Value::Object(keywords) => {
                keywords.iter().all(|(word, limit)| self.keyword(keywords, word, limit, value))
            }
            other => panic!("not a schema: {other}"),
        }
    }

    fn keyword(&self, all: &Map<String, Value>, word: &str, limit: &Value, value: &Value) -> bool {
        let list = || limit.as_array().unwrap_or_else(|| panic!("{word} is not a list: {limit}"));
        let number = |is_within: fn(f64, f64) -> bool| match (value.as_f64(), limit.as_f64()) {
            (Some(value), Some(limit)) => is_within(value, limit),
            _ => true,
        };
        let length = |length: Option<usize>, is_within: fn(u64, u64) -> bool| {
            let limit = limit.as_u64().unwrap_or_else(|| panic!("{word}: {limit}"));
            length.is_none_or(|length| is_within(length as u64, limit))
        };
        let items = value.as_array();
        match word {
            "$ref" => {
                let path = limit.as_str().and_then(|path| path.strip_prefix('#'));
                let schema = path.and_then(|path| self.root.pointer(path));
                self.accepts(schema.unwrap_or_else(|| panic!("unknown {limit}")), value)
            }
            "type" if limit.is_array() => list().iter().any(|name| is_type(name, value)),
            "type" => is_type(limit, value),
            "const" => value == limit,
            "enum" => list().contains(value),
            "anyOf" => list().iter().any(|schema| self.accepts(schema, value)),
            "oneOf" => list().iter().filter(|schema| self.accepts(schema, value)).count() == 1,
            "allOf" => list().iter().all(|schema| self.accepts(schema, value)),
            "minimum" => number(|value, limit| value >= limit),
            "maximum" => number(|value, limit| value <= limit),
            "minLength" => length(value.as_str().map(str::len), |length, limit| length >= limit),
            "minItems" => length(items.map(Vec::len), |length, limit| length >= limit),
            "maxItems" => length(items.map(Vec::len), |length, limit| length <= limit),
            "pattern" => {
                let pattern = limit.as_str().map(Regex::new).and_then(Result::ok);
                let pattern = pattern.unwrap_or_else(|| panic!("invalid pattern {limit}"));
                value.as_str().is_none_or(|text| pattern.is_match(text))
            }
            "required" => value.as_object().is_none_or(|object| {
                list().iter().all(|key| key.as_str().is_some_and(|key| object.contains_key(key)))
            }),
            "items" => match (items, limit.as_array()) {
                (None, _) => true,
                // A tuple.
                (Some(items), Some(schemas)) => {
                    schemas.iter().zip(items).all(|(schema, item)| self.accepts(schema, item))
                }
                (Some(items), None) => items.iter().all(|item| self.accepts(limit, item)),
            },
            "properties" => value.as_object().is_none_or(|object| {
                let property = |(key, value)| Some(self.accepts(limit.get(key)?, value));
                object.iter().filter_map(property).all(|accepts| accepts)
            }),
            "additionalProperties" => value.as_object().is_none_or(|object| {
                let known = all.get("properties");
                let is_known = |key: &String| known.is_some_and(|known| known.get(key).is_some());
                let mut others = object.iter().filter(|(key, _)| !is_known(key));
                others.all(|(_, value)| self.accepts(limit, value))
            }),
            _ => {
                assert!(ANNOTATIONS.contains(&word), "unknown keyword {word}");
                true
            }
        }
    }
}

fn is_type(name: &Value, value: &Value) -> bool {
    match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("number") => value.is_number(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("null") => value.is_null(),
        _ => panic!("unknown type {name}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::accepts;

    #[test]
    fn keywords_are_applied() {
        for (schema, value, expected) in [
            (json!(true), json!(1), true),
            (json!({ "type": "integer" }), json!(1), true),
            (json!({ "type": "integer" }), json!(1.5), false),
            (json!({ "type": ["string", "null"] }), json!(null), true),
            (json!({ "enum": ["a"] }), json!("b"), false),
            (json!({ "minimum": 1 }), json!(0), false),
            (json!({ "maximum": 1 }), json!("a"), true),
            (json!({ "pattern": "^[0-9]+s$" }), json!("5s"), true),
            (json!({ "pattern": "^[0-9]+s$" }), json!("5"), false),
            (json!({ "required": ["a"] }), json!({}), false),
            (json!({ "items": { "type": "string" } }), json!(["a", 1]), false),
            (json!({ "items": [{ "type": "string" }] }), json!([1]), false),
            (json!({ "anyOf": [{ "const": 1 }, { "const": 2 }] }), json!(3), false),
            (json!({ "additionalProperties": false }), json!({ "a": 1 }), false),
            (
                json!({ "properties": { "a": { "type": "string" } },
                        "additionalProperties": { "type": "boolean" } }),
                json!({ "a": "x", "b": true }),
                true,
            ),
            (
                json!({ "$ref": "#/definitions/a", "definitions": { "a": { "minLength": 2 } } }),
                json!("a"),
                false,
            ),
        ] {
            assert_eq!(accepts(&schema, &value), expected, "{schema} {value}");
        }
    }
}
