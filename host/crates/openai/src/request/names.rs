//! Model names of a listener: a model for requests that name none, and names that stand for others.

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::json;
use crate::scan::{self, Children};

/// The model names that only the listener has on which a request arrived.
#[derive(Debug, Clone, Copy)]
pub struct ModelNames<'a> {
    /// Model of requests that name none.
    pub default: Option<&'a str>,
    /// Names, each with the model name that it stands for; [`ANY_MODEL`] is all others.
    pub targets: &'a HashMap<String, String>,
}

/// The name that stands for all names that a listener does not have itself.
pub const ANY_MODEL: &str = "*";

/// A body with the name of a model that lanes may serve.
#[derive(Debug)]
pub(super) struct Renamed {
    pub(super) body: Bytes,
    /// The model name for responses: the client's, or that of the model if the client named none.
    pub(super) response_model: String,
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    model: Option<&'a RawValue>,
}

/// Reads a field that is present. `Option` alone does not tell `null` from a missing field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

impl<'a> ModelNames<'a> {
    /// Replaces the model name in a body, or inserts it, and keeps all other bytes. Returns `None`
    /// if the body is to stay as it is, and for one that is not valid.
    pub(super) fn rename(&self, body: &[u8]) -> Option<Renamed> {
        if self.default.is_none() && self.targets.is_empty() {
            return None;
        }
        if self.keeps(body) {
            return None;
        }
        json::work::count(2 * body.len());
        let text = std::str::from_utf8(body).ok()?;
        let start = text.len() - text.trim_ascii_start().len();
        if !text[start..].starts_with('{') {
            return None;
        }
        let literal = serde_json::from_str::<Named<'_>>(text).ok()?.model.map(RawValue::get);
        let (target, response_model) = match literal {
            None | Some("null" | "\"\"") => {
                let default = self.default?;
                let target = self.target(default).unwrap_or(default);
                (target, target.to_owned())
            }
            Some(literal) => {
                let name: Cow<'_, str> = serde_json::from_str(literal).ok()?;
                (self.target(&name)?, name.into_owned())
            }
        };
        let target = serde_json::Value::from(target).to_string();
        let body = match literal {
            Some(literal) => json::splice(text, &[(json::range_in(text, literal), target)]),
            None => {
                let is_empty = text[start + 1..].trim_ascii_start().starts_with('}');
                let comma = if is_empty { "" } else { "," };
                let member = format!("\"model\":{target}{comma}");
                json::splice(text, &[(start + 1..start + 1, member)])
            }
        };
        Some(Renamed { body: body.into(), response_model })
    }

    /// Returns true if a body names a model that stands for itself, as nearly all do, which is
    /// found without parsing it. Whether the body is valid is for the parser.
    fn keeps(&self, body: &[u8]) -> bool {
        let members = Children::new(body, body.len() - body.trim_ascii_start().len());
        let mut members = members.into_iter().flatten();
        let Some(model) = members.find(|member| body.get(member.key.clone()) == Some(b"\"model\""))
        else {
            return false;
        };
        let literal = body.get(model.start..scan::value_end(body, model.start));
        let name = literal.and_then(|literal| literal.strip_prefix(b"\"")?.strip_suffix(b"\""));
        let name = name.filter(|name| !name.is_empty() && !name.contains(&b'\\'));
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        name.is_some_and(|name| self.target(name).is_none())
    }

    /// Returns the model name that a name stands for on the listener; `None` for itself.
    pub fn target(&self, name: &str) -> Option<&'a str> {
        let target = self.targets.get(name).or_else(|| self.targets.get(ANY_MODEL));
        target.map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rename(names: ModelNames<'_>, body: &str) -> Option<(String, String)> {
        let renamed = names.rename(body.as_bytes())?;
        Some((String::from_utf8(renamed.body.to_vec()).unwrap(), renamed.response_model))
    }

    #[test]
    fn requests_without_a_model_are_for_the_default() {
        let targets = HashMap::new();
        let names = ModelNames { default: Some("a \"b\""), targets: &targets };
        for (body, expected) in [
            ("{}", r#"{"model":"a \"b\""}"#),
            (" {\n } ", " {\"model\":\"a \\\"b\\\"\"\n } "),
            (r#"{ "n":1.0e5}"#, r#"{"model":"a \"b\"", "n":1.0e5}"#),
            (r#"{"n":1, "model" : null}"#, r#"{"n":1, "model" : "a \"b\""}"#),
            (r#"{"mod\u0065l":"" ,"n":1}"#, r#"{"mod\u0065l":"a \"b\"" ,"n":1}"#),
            (r#"{"x":{"model":"m"}}"#, r#"{"model":"a \"b\"","x":{"model":"m"}}"#),
        ] {
            let renamed = Some((expected.to_owned(), "a \"b\"".to_owned()));
            assert_eq!(rename(names, body), renamed, "{body}");
        }
        for body in [
            r#"{"model":"m"}"#,
            r#"{"model":5}"#,
            r#"{"model":null,"model":""}"#,
            r#"["m"]"#,
            "{} x",
            "\u{feff}{}",
            "",
        ] {
            assert_eq!(rename(names, body), None, "{body}");
        }
        let none = ModelNames { default: None, targets: &targets };
        assert_eq!(rename(none, "{}"), None);
    }

    #[test]
    fn names_stand_for_others() {
        let pair = |name: &str, target: &str| (name.to_owned(), target.to_owned());
        let targets = HashMap::from([pair("gpt-4o", "coder"), pair("é", "e")]);
        let names = ModelNames { default: Some("gpt-4o"), targets: &targets };
        for (body, expected, response_model) in [
            (r#"{"model":"gpt-4o","n":1}"#, r#"{"model":"coder","n":1}"#, "gpt-4o"),
            (r#"{"model":"\u00e9"}"#, r#"{"model":"e"}"#, "é"),
            (r#"{"model":""}"#, r#"{"model":"coder"}"#, "coder"),
        ] {
            let renamed = Some((expected.to_owned(), response_model.to_owned()));
            assert_eq!(rename(names, body), renamed, "{body}");
        }
        assert_eq!(rename(names, r#"{"model":"coder"}"#), None);
        // A name for all others, as one engine with one model has.
        let targets = HashMap::from([pair("a", "b"), pair(ANY_MODEL, "reader")]);
        let names = ModelNames { default: None, targets: &targets };
        let model = |name| names.target(name).unwrap_or(name);
        assert_eq!(["a", "b", "x", ANY_MODEL].map(model), ["b", "reader", "reader", "reader"]);
    }
}
