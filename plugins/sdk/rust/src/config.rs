//! Reading a policy's configuration: JSON with kebab-case keys, from which every mistake is told with its key.
//!
//! ```
//! use pointsman_sdk::{PolicyError, config};
//!
//! let mut patience = 1_000;
//! let read = config::read(r#"{"patience-ms": 5, "tenants": {"acme": {"colour": 5}}}"#, |key, value| match key {
//!     "patience-ms" => value.number(1..=60_000).map(|ms| patience = ms),
//!     "tenants" => value.each(|_tenant, limits| limits.each(|_, limit| Err(limit.unknown()))),
//!     _ => Err(value.unknown()),
//! });
//! assert_eq!(patience, 5);
//! assert_eq!(read, Err(PolicyError::InvalidConfig("there is no key `tenants.acme.colour`".into())));
//! ```

use std::fmt::Write as _;
use std::ops::RangeInclusive;

use nojson::{JsonValueKind, RawJson, RawJsonValue};

use crate::PolicyError;

/// Read an object of configuration: `read` gets each key and its value, and answers [`Value::unknown`] for keys that it
/// does not know.
///
/// # Errors
/// [`PolicyError::InvalidConfig`] with the key and the reason.
pub fn read(
    json: &str,
    mut read: impl FnMut(&str, &Value<'_, '_>) -> Result<(), PolicyError>,
) -> Result<(), PolicyError> {
    let parsed = RawJson::parse(json).map_err(|error| {
        PolicyError::InvalidConfig(format!("the configuration is not JSON: {error}"))
    })?;
    Value { path: String::new(), json: parsed.value() }.object(&mut read)
}

/// A value of the configuration that knows where it stands.
#[derive(Debug)]
pub struct Value<'text, 'raw> {
    path: String,
    json: RawJsonValue<'text, 'raw>,
}

type ReadKey<'a> = dyn FnMut(&str, &Value<'_, '_>) -> Result<(), PolicyError> + 'a;

impl Value<'_, '_> {
    /// The error that this value is wrong.
    #[must_use]
    pub fn wrong(&self, why: &str) -> PolicyError {
        match self.path.as_str() {
            "" => PolicyError::InvalidConfig(format!("the configuration {why}")),
            path => PolicyError::InvalidConfig(format!("{path}: {why}")),
        }
    }

    /// The error that the key of this value is not known.
    #[must_use]
    pub fn unknown(&self) -> PolicyError {
        PolicyError::InvalidConfig(format!("there is no key `{}`", self.path))
    }

    /// Is it `null`?
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.json.kind() == JsonValueKind::Null
    }

    /// A text that is not empty.
    ///
    /// # Errors
    /// If it is something else.
    pub fn text(&self) -> Result<String, PolicyError> {
        match self.json.to_unquoted_string_str() {
            Ok(text) if !text.is_empty() => Ok(text.into_owned()),
            _ => Err(self.expected("must be a text that is not empty")),
        }
    }

    /// A whole number in a range, both ends included.
    ///
    /// # Errors
    /// If it is something else.
    pub fn number<N>(&self, range: RangeInclusive<N>) -> Result<N, PolicyError>
    where
        N: Copy + PartialOrd + TryFrom<i64> + Into<i64>,
    {
        let number = self.json.as_integer_str().ok().and_then(|digits| digits.parse::<i64>().ok());
        let (low, high): (i64, i64) = ((*range.start()).into(), (*range.end()).into());
        number
            .filter(|number| (low..=high).contains(number))
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| self.expected(&format!("must be a whole number from {low} to {high}")))
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&self) -> Result<bool, PolicyError> {
        match self.json.as_boolean_str() {
            Ok(word) => Ok(word == "true"),
            Err(_) => Err(self.expected("must be true or false")),
        }
    }

    /// One of some words, each with what it stands for.
    ///
    /// # Errors
    /// If it is something else.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Result<T, PolicyError> {
        let given = self.json.to_unquoted_string_str().ok();
        let known = words.iter().find(|(word, _)| given.as_deref() == Some(*word));
        known.map(|(_, meaning)| *meaning).ok_or_else(|| {
            let mut why = "must be ".to_owned();
            for (index, (word, _)) in words.iter().enumerate() {
                let join = if index == 0 {
                    ""
                } else if index + 1 == words.len() {
                    " or "
                } else {
                    ", "
                };
                // Writing to a string does not fail.
                let _ok = write!(why, "{join}\"{word}\"");
            }
            self.expected(&why)
        })
    }

    /// A list; `read` gets each of its elements.
    ///
    /// # Errors
    /// If it is something else, or the first of `read`'s.
    pub fn list<T>(
        &self,
        mut read: impl FnMut(&Value<'_, '_>) -> Result<T, PolicyError>,
    ) -> Result<Vec<T>, PolicyError> {
        let elements = self.json.to_array().map_err(|_| self.expected("must be a list"))?;
        let element =
            |(index, json)| read(&Value { path: format!("{}[{index}]", self.path), json });
        elements.enumerate().map(element).collect()
    }

    /// A list of texts that are not empty, each once.
    ///
    /// # Errors
    /// If it is something else.
    pub fn texts(&self) -> Result<Vec<String>, PolicyError> {
        let mut texts: Vec<String> = Vec::new();
        self.list(|value| {
            let text = value.text()?;
            if texts.contains(&text) {
                return Err(value.wrong(&format!("\"{text}\" is in the list twice")));
            }
            texts.push(text);
            Ok(())
        })?;
        Ok(texts)
    }

    /// An object; `read` gets each of its keys and values.
    ///
    /// # Errors
    /// If it is something else, a key is given twice, or the first of `read`'s.
    pub fn each(
        &self,
        mut read: impl FnMut(&str, &Value<'_, '_>) -> Result<(), PolicyError>,
    ) -> Result<(), PolicyError> {
        self.object(&mut read)
    }

    fn object(&self, read: &mut ReadKey<'_>) -> Result<(), PolicyError> {
        let members = self.json.to_object().map_err(|_| self.expected("must be an object"))?;
        let mut seen: Vec<String> = Vec::new();
        for (key, json) in members {
            let key = match key.to_unquoted_string_str() {
                Ok(key) => key.into_owned(),
                Err(_) => return Err(self.wrong("has a key that is no text")),
            };
            let dot = if self.path.is_empty() { "" } else { "." };
            let value = Value { path: format!("{}{dot}{key}", self.path), json };
            if seen.contains(&key) {
                return Err(value.wrong("is given twice"));
            }
            read(&key, &value)?;
            seen.push(key);
        }
        Ok(())
    }

    fn expected(&self, why: &str) -> PolicyError {
        const LONGEST: usize = 60;
        let given = self.json.as_raw_str();
        let cut = given.floor_char_boundary(LONGEST);
        let dots = if cut < given.len() { "…" } else { "" };
        self.wrong(&format!("{why}, and is {}{dots}", &given[..cut]))
    }
}

/// A text as JSON, in quotes.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            // Writing to a string does not fail.
            c if c < ' ' => drop(write!(json, "\\u{:04x}", u32::from(c))),
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

    fn refusal(json: &str) -> String {
        let result = read(json, |key, value| match key {
            "number" => value.number(-5..=5i32).map(drop),
            "flag" => value.flag().map(drop),
            "text" => value.text().map(drop),
            "texts" => value.texts().map(drop),
            "word" => value.word(&[("a", 1), ("b", 2), ("c", 3)]).map(drop),
            "map" => value.each(|_, value| value.number(0..=u32::MAX).map(drop)),
            _ => Err(value.unknown()),
        });
        match result {
            Ok(()) => String::new(),
            Err(PolicyError::InvalidConfig(why)) => why,
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_fits_is_read() {
        let json = r#" {"number": -5, "flag": false, "text": "\u00e4", "texts": ["a", "b"], "word": "c",
                        "map": {"x": 4294967295}} "#;
        assert_eq!(refusal(json), "");
        assert_eq!(refusal("{}"), "");
    }

    #[test]
    fn mistakes_are_told_with_key_reason_and_value() {
        for (json, expected) in [
            ("", "the configuration is not JSON: "),
            ("[]", "the configuration must be an object, and is []"),
            (r#"{"nubmer": 1}"#, "there is no key `nubmer`"),
            (r#"{"number": 6}"#, "number: must be a whole number from -5 to 5, and is 6"),
            (r#"{"number": 1.5}"#, "number: must be a whole number from -5 to 5, and is 1.5"),
            (
                r#"{"number": 99999999999999999999}"#,
                "number: must be a whole number from -5 to 5, and is 9999",
            ),
            (r#"{"flag": "true"}"#, "flag: must be true or false, and is \"true\""),
            (r#"{"text": ""}"#, "text: must be a text that is not empty, and is \"\""),
            (r#"{"texts": "a"}"#, "texts: must be a list, and is \"a\""),
            (r#"{"texts": ["a", 5]}"#, "texts[1]: must be a text that is not empty, and is 5"),
            (r#"{"texts": ["a", "a"]}"#, "texts[1]: \"a\" is in the list twice"),
            (r#"{"word": "d"}"#, "word: must be \"a\", \"b\" or \"c\", and is \"d\""),
            (
                r#"{"map": {"x": -1}}"#,
                "map.x: must be a whole number from 0 to 4294967295, and is -1",
            ),
            (r#"{"flag": true, "flag": false}"#, "flag: is given twice"),
        ] {
            let got = refusal(json);
            assert!(got.starts_with(expected), "{json}: {got}");
        }
        let long = refusal(&format!(r#"{{"flag": "{}"}}"#, "ä".repeat(500)));
        assert!(long.ends_with("ä…") && long.len() < 120, "{long}");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(json in r#"[\[\]{}",:0-9eE.+\\utrfnals\-ä "]{0,60}"#) {
            refusal(&json);
        }

        #[test]
        fn values_of_any_shape_are_refused_or_read(text: String, number: i64) {
            let given = serde_json::json!({"text": text, "number": number});
            let fits = !text.is_empty() && (-5..=5).contains(&number);
            prop_assert_eq!(refusal(&given.to_string()).is_empty(), fits);
        }

        #[test]
        fn quoted_texts_read_back(text: String) {
            prop_assert_eq!(serde_json::from_str::<String>(&quoted(&text)).unwrap(), text);
        }
    }
}
