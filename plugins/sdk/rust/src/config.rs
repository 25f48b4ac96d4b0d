//! A reader for a policy's configuration: JSON with kebab-case keys. Every error names its key.
//!
//! ```
//! use pointsman_sdk::{PolicyError, config};
//!
//! let mut timeout = 1_000;
//! let json = r#"{"timeout-ms": 5, "tenants": {"acme": {"colour": 5}}}"#;
//! let result = config::read(json, |key, value| match key {
//!     "timeout-ms" => value.integer(1..=60_000).map(|ms| timeout = ms),
//!     "tenants" => {
//!         value.entries(|_tenant, limits| limits.entries(|_, limit| Err(limit.unknown_key())))
//!     }
//!     _ => Err(value.unknown_key()),
//! });
//! assert_eq!(timeout, 5);
//! let error = PolicyError::InvalidConfig("tenants.acme.colour: unknown key".into());
//! assert_eq!(result, Err(error));
//! ```

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use nojson::{JsonValueKind, RawJson, RawJsonValue};

use crate::PolicyError;

/// Reads a configuration object: calls `read` with each key and its value. `read` returns
/// [`Value::unknown_key`] for keys that the policy does not have.
///
/// # Errors
/// Returns [`PolicyError::InvalidConfig`] with the key and the reason.
pub fn read(
    json: &str,
    mut read: impl FnMut(&str, &Value<'_, '_>) -> Result<(), PolicyError>,
) -> Result<(), PolicyError> {
    let parsed = RawJson::parse(json)
        .map_err(|error| PolicyError::InvalidConfig(format!("invalid JSON: {error}")))?;
    Value { path: String::new(), json: parsed.value() }.members(&mut read)
}

/// A value of the configuration, with its path for error messages.
#[derive(Debug)]
pub struct Value<'text, 'raw> {
    path: String,
    json: RawJsonValue<'text, 'raw>,
}

type ReadKey<'a> = dyn FnMut(&str, &Value<'_, '_>) -> Result<(), PolicyError> + 'a;

impl Value<'_, '_> {
    /// Creates an error about this value, `PATH: reason`. For the whole configuration, which has no
    /// path, the error is only the reason.
    #[must_use]
    pub fn error(&self, reason: &str) -> PolicyError {
        let separator = if self.path.is_empty() { "" } else { ": " };
        PolicyError::InvalidConfig(format!("{}{separator}{reason}", self.path))
    }

    /// Creates the error for a key that the policy does not have.
    #[must_use]
    pub fn unknown_key(&self) -> PolicyError {
        self.error("unknown key")
    }

    /// Returns true if the value is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.json.kind() == JsonValueKind::Null
    }

    /// Reads a string.
    ///
    /// # Errors
    /// Returns an error if the value is not a string, or is empty.
    pub fn string(&self) -> Result<String, PolicyError> {
        match self.json.to_unquoted_string_str() {
            Ok(text) if !text.is_empty() => Ok(text.into_owned()),
            Ok(_) => Err(self.expected("a non-empty string")),
            Err(_) => Err(self.expected("a string")),
        }
    }

    /// Reads an integer in a range.
    ///
    /// # Errors
    /// Returns an error if the value is not an integer, or is out of range.
    pub fn integer<N>(&self, range: RangeInclusive<N>) -> Result<N, PolicyError>
    where
        N: Copy + PartialOrd + TryFrom<i64> + Into<i64>,
    {
        let number = self.json.as_integer_str().ok().and_then(|digits| digits.parse::<i64>().ok());
        let (min, max): (i64, i64) = ((*range.start()).into(), (*range.end()).into());
        number
            .filter(|number| (min..=max).contains(number))
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| self.expected(&format!("an integer from {min} to {max}")))
    }

    /// Reads a boolean.
    ///
    /// # Errors
    /// Returns an error if the value is not a boolean.
    pub fn bool(&self) -> Result<bool, PolicyError> {
        match self.json.as_boolean_str() {
            Ok(word) => Ok(word == "true"),
            Err(_) => Err(self.expected("a boolean")),
        }
    }

    /// Reads one of several words and returns what it stands for.
    ///
    /// # Errors
    /// Returns an error if the value is not one of `choices`.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, PolicyError> {
        let given = self.json.to_unquoted_string_str().ok();
        let chosen = choices.iter().find(|(word, _)| given.as_deref() == Some(*word));
        chosen.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let mut list = String::new();
            for (index, (word, _)) in choices.iter().enumerate() {
                let separator = if index == 0 {
                    ""
                } else if index + 1 == choices.len() {
                    " or "
                } else {
                    ", "
                };
                write!(list, "{separator}\"{word}\"").ok(); // writing to a String cannot fail
            }
            self.expected(&list)
        })
    }

    /// Reads a list. Calls `read` for each element.
    ///
    /// # Errors
    /// Returns an error if the value is not a list, or the first error of `read`.
    pub fn list<T>(
        &self,
        mut read: impl FnMut(&Value<'_, '_>) -> Result<T, PolicyError>,
    ) -> Result<Vec<T>, PolicyError> {
        let elements = self.json.to_array().map_err(|_| self.expected("a list"))?;
        let element =
            |(index, json)| read(&Value { path: format!("{}[{index}]", self.path), json });
        elements.enumerate().map(element).collect()
    }

    /// Reads a list of distinct, non-empty strings.
    ///
    /// # Errors
    /// Returns an error if the value is anything else.
    pub fn strings(&self) -> Result<Vec<String>, PolicyError> {
        let mut strings: Vec<String> = Vec::new();
        self.list(|value| {
            let string = value.string()?;
            if strings.contains(&string) {
                return Err(value.error(&format!("duplicate value \"{string}\"")));
            }
            strings.push(string);
            Ok(())
        })?;
        Ok(strings)
    }

    /// Reads an object. Calls `read` with each key and its value.
    ///
    /// # Errors
    /// Returns an error if the value is not an object or has a duplicate key, or the first error
    /// of `read`.
    pub fn entries(
        &self,
        mut read: impl FnMut(&str, &Value<'_, '_>) -> Result<(), PolicyError>,
    ) -> Result<(), PolicyError> {
        self.members(&mut read)
    }

    /// Reads an object. Not generic over `read`, which keeps components small.
    fn members(&self, read: &mut ReadKey<'_>) -> Result<(), PolicyError> {
        let members = self.json.to_object().map_err(|_| self.expected("an object"))?;
        let mut seen: Vec<String> = Vec::new();
        for (key, json) in members {
            let key = match key.to_unquoted_string_str() {
                Ok(key) => key.into_owned(),
                Err(_) => return Err(self.error("invalid key")),
            };
            let dot = if self.path.is_empty() { "" } else { "." };
            let value = Value { path: format!("{}{dot}{key}", self.path), json };
            if seen.contains(&key) {
                return Err(value.error("duplicate key"));
            }
            read(&key, &value)?;
            seen.push(key);
        }
        Ok(())
    }

    /// Creates the error `PATH: expected X, found Y`. Long values are truncated, because an
    /// operator's log is not the place for them.
    fn expected(&self, what: &str) -> PolicyError {
        const MAX_FOUND_BYTES: usize = 60;
        let found = match self.json.kind() {
            JsonValueKind::Array => "a list",
            JsonValueKind::Object => "an object",
            JsonValueKind::Null
            | JsonValueKind::Boolean
            | JsonValueKind::Integer
            | JsonValueKind::Float
            | JsonValueKind::String => self.json.as_raw_str(),
        };
        let end = found.floor_char_boundary(MAX_FOUND_BYTES);
        let dots = if end < found.len() { "…" } else { "" };
        self.error(&format!("expected {what}, found {}{dots}", &found[..end]))
    }
}

/// Returns a string as a JSON string literal, including the quotes.
#[must_use]
pub fn quote_json(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            c if c < ' ' => {
                write!(json, "\\u{:04x}", u32::from(c)).ok(); // writing to a String cannot fail
            }
            c => json.push(c),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a configuration with a key of each type. Returns the error message, or an empty
    /// string on success.
    fn read_error(json: &str) -> String {
        let result = read(json, |key, value| match key {
            "integer" => value.integer(-5..=5i32).map(drop),
            "bool" => value.bool().map(drop),
            "string" => value.string().map(drop),
            "strings" => value.strings().map(drop),
            "choice" => value.choice(&[("a", 1), ("b", 2), ("c", 3)]).map(drop),
            "map" => value.entries(|_, value| value.integer(0..=u32::MAX).map(drop)),
            _ => Err(value.unknown_key()),
        });
        match result {
            Ok(()) => String::new(),
            Err(PolicyError::InvalidConfig(message)) => message,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn valid_values_are_accepted() {
        let json = r#" {"integer": -5, "bool": false, "string": "\u00e4", "strings": ["a", "b"],
                        "choice": "c", "map": {"x": 4294967295}} "#;
        assert_eq!(read_error(json), "");
        assert_eq!(read_error("{}"), "");
    }

    #[test]
    fn errors_have_key_reason_and_value() {
        for (json, expected) in [
            ("", "invalid JSON: "),
            ("[]", "expected an object, found a list"),
            (r#"{"inetger": 1}"#, "inetger: unknown key"),
            (r#"{"integer": 6}"#, "integer: expected an integer from -5 to 5, found 6"),
            (r#"{"integer": 1.5}"#, "integer: expected an integer from -5 to 5, found 1.5"),
            (
                r#"{"integer": 99999999999999999999}"#,
                "integer: expected an integer from -5 to 5, found 9999",
            ),
            (r#"{"bool": "true"}"#, "bool: expected a boolean, found \"true\""),
            (r#"{"string": ""}"#, "string: expected a non-empty string, found \"\""),
            (r#"{"strings": "a"}"#, "strings: expected a list, found \"a\""),
            (r#"{"strings": ["a", 5]}"#, "strings[1]: expected a string, found 5"),
            (r#"{"strings": ["a", "a"]}"#, "strings[1]: duplicate value \"a\""),
            (r#"{"choice": "d"}"#, "choice: expected \"a\", \"b\" or \"c\", found \"d\""),
            (r#"{"map": {"x": -1}}"#, "map.x: expected an integer from 0 to 4294967295, found -1"),
            (r#"{"map": {"x": {"y": 1}}}"#, "map.x: expected an integer"),
            (r#"{"bool": true, "bool": false}"#, "bool: duplicate key"),
        ] {
            let message = read_error(json);
            assert!(message.starts_with(expected), "{json}: {message}");
        }
        let long = read_error(&format!(r#"{{"bool": "{}"}}"#, "ä".repeat(500)));
        assert!(long.ends_with("ä…") && long.len() < 120, "{long}");
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic(json in r#"[\[\]{}",:0-9eE.+\\utrfnals\-ä "]{0,60}"#) {
            read_error(&json);
        }

        #[test]
        fn values_are_accepted_exactly_if_valid(text: String, number: i64) {
            let given = serde_json::json!({"string": text, "integer": number});
            let is_valid = !text.is_empty() && (-5..=5).contains(&number);
            prop_assert_eq!(read_error(&given.to_string()).is_empty(), is_valid);
        }

        #[test]
        fn quoted_strings_round_trip(text: String) {
            prop_assert_eq!(serde_json::from_str::<String>(&quote_json(&text)).unwrap(), text);
        }
    }
}
