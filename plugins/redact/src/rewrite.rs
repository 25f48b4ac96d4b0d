//! Masks matches in JSON text and leaves all other bytes unchanged.

use std::ops::Range;

use nojson::{JsonParseError, JsonValueKind, RawJson, RawJsonValue};
use pointsman_sdk::config::quote_json;

use crate::find::{Kind, Rules, find};

/// Keys whose values are not prose: protocol fields, and data that only looks like text.
const SKIPPED_KEYS: [&str; 10] = [
    "role",
    "type",
    "id",
    "call_id",
    "tool_call_id",
    "image_url",
    "input_audio",
    "audio",
    "file",
    "file_data",
];

/// Number of matches by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts([u32; Kind::ALL.len()]);

impl Counts {
    pub(crate) fn add(&mut self, kind: Kind) {
        self.0[kind as usize] += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|count| u64::from(*count)).sum()
    }

    /// Returns for example `2 email, 1 phone`.
    pub(crate) fn summary(&self) -> String {
        let present = Kind::ALL.iter().zip(self.0).filter(|(_, count)| *count > 0);
        let parts: Vec<String> =
            present.map(|(kind, count)| format!("{count} {}", kind.name())).collect();
        parts.join(", ")
    }
}

/// Replaces matches of the rules by a mask.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Masker<'a> {
    pub(crate) rules: &'a Rules,
    pub(crate) mask: &'a str,
}

impl Masker<'_> {
    /// Returns the text with all matches masked, or `None` if there are none.
    pub(crate) fn text(self, text: &str, counts: &mut Counts) -> Option<String> {
        let found = find(text, self.rules);
        if found.is_empty() {
            return None;
        }
        let mut masked = String::with_capacity(text.len());
        let mut last = 0;
        for (range, kind) in found {
            counts.add(kind);
            masked.push_str(&text[last..range.start]);
            masked.push_str(&self.mask.replace("{kind}", kind.name()));
            last = range.end;
        }
        masked.push_str(&text[last..]);
        Some(masked)
    }

    /// Returns the JSON with all matches in its strings masked, or `None` if there are none.
    ///
    /// # Errors
    /// Returns an error if the text is not JSON.
    pub(crate) fn json(
        self,
        json: &str,
        counts: &mut Counts,
    ) -> Result<Option<String>, JsonParseError> {
        let parsed = RawJson::parse(json)?;
        let mut changes: Vec<(Range<usize>, String)> = Vec::new();
        self.walk(parsed.value(), counts, &mut changes)?;
        if changes.is_empty() {
            return Ok(None);
        }
        let mut masked = String::with_capacity(json.len());
        let mut last = 0;
        for (range, text) in changes {
            masked.push_str(&json[last..range.start]);
            masked.push_str(&text);
            last = range.end;
        }
        masked.push_str(&json[last..]);
        Ok(Some(masked))
    }

    fn walk(
        self,
        value: RawJsonValue<'_, '_>,
        counts: &mut Counts,
        changes: &mut Vec<(Range<usize>, String)>,
    ) -> Result<(), JsonParseError> {
        match value.kind() {
            JsonValueKind::String => {
                if let Some(masked) = self.text(&value.to_unquoted_string_str()?, counts) {
                    let start = value.position();
                    changes.push((start..start + value.as_raw_str().len(), quote_json(&masked)));
                }
            }
            JsonValueKind::Array => {
                for element in value.to_array()? {
                    self.walk(element, counts, changes)?;
                }
            }
            JsonValueKind::Object => {
                for (key, member) in value.to_object()? {
                    if !SKIPPED_KEYS.contains(&&*key.to_unquoted_string_str()?) {
                        self.walk(member, counts, changes)?;
                    }
                }
            }
            JsonValueKind::Null
            | JsonValueKind::Boolean
            | JsonValueKind::Integer
            | JsonValueKind::Float => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn masked(json: &str) -> Option<String> {
        let rules = Rules { kinds: Kind::PATTERNS.to_vec(), words: vec!["falcon".into()] };
        Masker { rules: &rules, mask: "[{kind}]" }.json(json, &mut Counts::default()).unwrap()
    }

    #[test]
    fn only_strings_with_matches_change() {
        let message = |text: &str| {
            format!(r#"[ {{"role":"user", "n":1.50, "content":"{text}"}} , {{"content":"none"}}]"#)
        };
        assert_eq!(
            masked(&message(r#"a@b.de and \u00e4\n\"x\""#)),
            Some(message(r#"[email] and ä\n\"x\""#))
        );
        assert_eq!(masked(r#"{"content": "nothing here", "id": "a@b.de"}"#), None);
        assert_eq!(
            masked(r#"{"content": "a\u0040b.de"}"#),
            Some(r#"{"content": "[email]"}"#.into()),
            "escapes"
        );
        let image = r#"{"type":"image_url","image_url":{"url":"https://a@b.de"}}"#;
        let parts = &format!(r#"[{{"type":"text","text":"Falcon"}},{image}]"#);
        assert_eq!(masked(parts), Some(parts.replace("Falcon", "[word]")));
    }

    #[test]
    fn summary_lists_counts_in_order() {
        let mut counts = Counts::default();
        for kind in [Kind::Phone, Kind::Email, Kind::Phone] {
            counts.add(kind);
        }
        assert_eq!((counts.total(), counts.summary()), (3, "1 email, 2 phone".to_owned()));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            "[ -~ä\n]{0,20}",
            Just("x a@b.de \"y\"".to_owned()),
            Just("falcon\\".to_owned())
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            text.prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map("[a-z]{1,8}", inner, 0..5)
                    .prop_map(Value::from_iter),
            ]
        })
    }

    /// Returns the value with all strings emptied.
    fn shape(value: &Value) -> Value {
        match value {
            Value::String(_) => Value::from(""),
            Value::Array(elements) => elements.iter().map(shape).collect(),
            Value::Object(members) => {
                members.iter().map(|(key, value)| (key.clone(), shape(value))).collect()
            }
            other => other.clone(),
        }
    }

    proptest! {
        #[test]
        fn masking_keeps_the_structure_and_removes_secrets(json in any_json()) {
            let text = json.to_string();
            let after = masked(&text).unwrap_or_else(|| text.clone());
            let parsed: Value = serde_json::from_str(&after).unwrap();
            prop_assert_eq!(shape(&parsed), shape(&json));
            let skipped = SKIPPED_KEYS.iter().any(|key| text.contains(&format!("\"{key}\":")));
            prop_assert!(skipped || !after.contains("a@b.de"), "{}", after);
        }

        #[test]
        fn invalid_json_is_an_error(text in ".{0,60}") {
            let rules = Rules { kinds: Kind::PATTERNS.to_vec(), words: Vec::new() };
            let result = Masker { rules: &rules, mask: "x" }.json(&text, &mut Counts::default());
            prop_assert_eq!(result.is_ok(), serde_json::from_str::<Value>(&text).is_ok());
        }
    }
}
