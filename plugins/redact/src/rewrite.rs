//! Masks matches in JSON text and leaves all other bytes unchanged.

use std::ops::Range;

use nojson::{JsonParseError, JsonValueKind, RawJson, RawJsonValue};
use pointsman_sdk::config::quote_json;

use crate::find::{Kind, Rules, find};

/// Keys of protocol objects with images, audio, files, and data that only engines can read.
const MEDIA_KEYS: [&str; 13] = [
    "image_url",
    "input_audio",
    "audio",
    "audio_url",
    "video_url",
    "file",
    "file_data",
    "images",
    "multimodal_data",
    // Of `thinking` and `reasoning`: they are only valid unchanged.
    "signature",
    "encrypted_content",
    // The data of a source that is not a text.
    "data",
    "prompt_embeds",
];
/// Keys of protocol objects whose values are ids, if they look like ids.
const ID_KEYS: [&str; 4] = ["id", "call_id", "tool_call_id", "tool_use_id"];
/// Maximum length of an id.
const MAX_ID_BYTES: usize = 128;

/// What a value is, which determines the strings that are scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// Objects of an API: ids and media are not scanned.
    Protocol,
    /// Schemas and descriptions of tools: all strings are scanned.
    Schema,
    /// What models and clients chose, such as the arguments of a tool: keys are scanned as well.
    Data,
}

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

    /// Scans JSON, and masks all matches in its strings.
    ///
    /// # Errors
    /// Returns an error if the text is not JSON.
    pub(crate) fn json(
        self,
        json: &str,
        content: Content,
        counts: &mut Counts,
    ) -> Result<Scanned, JsonParseError> {
        let parsed = RawJson::parse(json)?;
        self.value(json, parsed.value(), content, counts)
    }

    /// Scans a value within `json`.
    ///
    /// # Errors
    /// Returns an error if a string is not valid.
    pub(crate) fn value(
        self,
        json: &str,
        value: RawJsonValue<'_, '_>,
        content: Content,
        counts: &mut Counts,
    ) -> Result<Scanned, JsonParseError> {
        let (mut changes, mut has_token_ids) = (Vec::new(), false);
        let mut walk =
            Walk { masker: self, counts, changes: &mut changes, has_token_ids: &mut has_token_ids };
        walk.value(value, content, true)?;
        if changes.is_empty() {
            return Ok(Scanned { masked: None, has_token_ids });
        }
        let mut last = value.position();
        let end = last + value.as_raw_str().len();
        let mut masked = String::with_capacity(end - last);
        for (range, text) in changes {
            masked.push_str(&json[last..range.start]);
            masked.push_str(&text);
            last = range.end;
        }
        masked.push_str(&json[last..end]);
        Ok(Scanned { masked: Some(masked), has_token_ids })
    }
}

/// The result of scanning JSON.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// The JSON with all matches masked; `None` if there are none.
    pub(crate) masked: Option<String>,
    /// The value is a number, or a list that has some: the ids of tokens, if it is a prompt.
    pub(crate) has_token_ids: bool,
}

/// The state of scanning one JSON value.
struct Walk<'a> {
    masker: Masker<'a>,
    counts: &'a mut Counts,
    changes: &'a mut Vec<(Range<usize>, String)>,
    has_token_ids: &'a mut bool,
}

impl Walk<'_> {
    /// Scans a value; `in_lists` if all values around it are lists.
    fn value(
        &mut self,
        value: RawJsonValue<'_, '_>,
        content: Content,
        in_lists: bool,
    ) -> Result<(), JsonParseError> {
        match value.kind() {
            JsonValueKind::String => self.string(value)?,
            JsonValueKind::Array => {
                for element in value.to_array()? {
                    self.value(element, content, in_lists)?;
                }
            }
            JsonValueKind::Object => self.object(value, content)?,
            JsonValueKind::Integer | JsonValueKind::Float => *self.has_token_ids |= in_lists,
            JsonValueKind::Null | JsonValueKind::Boolean => {}
        }
        Ok(())
    }

    fn object(
        &mut self,
        object: RawJsonValue<'_, '_>,
        content: Content,
    ) -> Result<(), JsonParseError> {
        let mut is_text = false;
        let mut members = Vec::new();
        for (key, member) in object.to_object()? {
            let name = key.to_unquoted_string_str()?;
            is_text |= name == "type" && member.as_raw_str() == "\"text\"";
            members.push((key, name, member));
        }
        for (key, name, member) in members {
            let content = match content {
                Content::Protocol => match member_content(&name, member, is_text)? {
                    Some(content) => content,
                    None => continue,
                },
                Content::Data => {
                    self.string(key)?;
                    Content::Data
                }
                Content::Schema => Content::Schema,
            };
            self.value(member, content, false)?;
        }
        Ok(())
    }

    fn string(&mut self, value: RawJsonValue<'_, '_>) -> Result<(), JsonParseError> {
        let masked = self.masker.text(&value.to_unquoted_string_str()?, self.counts);
        if let Some(masked) = masked {
            let start = value.position();
            self.changes.push((start..start + value.as_raw_str().len(), quote_json(&masked)));
        }
        Ok(())
    }
}

/// Returns what a member of an object of an API is; `None` if it is not scanned. `is_text` if the
/// object has this type.
fn member_content(
    name: &str,
    member: RawJsonValue<'_, '_>,
    is_text: bool,
) -> Result<Option<Content>, JsonParseError> {
    if MEDIA_KEYS.contains(&name) {
        return Ok((name == "data" && is_text).then_some(Content::Protocol));
    }
    if ID_KEYS.contains(&name) && is_id(member)? {
        return Ok(None);
    }
    // The arguments of tool calls, in the forms of Anthropic, Ollama and llama.cpp.
    let is_structure = matches!(member.kind(), JsonValueKind::Object | JsonValueKind::Array);
    let is_data = is_structure && (name == "input" || name == "arguments");
    Ok(Some(if is_data { Content::Data } else { Content::Protocol }))
}

/// Returns whether a string has the form of the ids that clients and engines make. Templates of
/// some models show ids to the model, so that other texts are scanned.
fn is_id(value: RawJsonValue<'_, '_>) -> Result<bool, JsonParseError> {
    if value.kind() != JsonValueKind::String {
        return Ok(false);
    }
    let text = value.to_unquoted_string_str()?;
    let is_id_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    Ok(text.len() <= MAX_ID_BYTES && text.bytes().all(is_id_byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn masked(json: &str) -> Option<String> {
        let rules = Rules { kinds: Kind::PATTERNS.to_vec(), words: vec!["falcon".into()] };
        let masker = Masker { rules: &rules, mask: "[{kind}]" };
        masker.json(json, Content::Protocol, &mut Counts::default()).unwrap().masked
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
        assert_eq!(masked(r#"{"content": "nothing here", "id": "call_falcon"}"#), None);
        assert_eq!(masked(r#"{"id": "a@b.de"}"#), Some(r#"{"id": "[email]"}"#.into()));
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
    fn arguments_of_tools_are_scanned_with_their_keys() {
        for (json, expected) in [
            (
                r#"{"type":"tool_use","id":"t1","input":{"a@b.de":1,"file":{"id":"a@b.de"}}}"#,
                r#"{"type":"tool_use","id":"t1","input":{"[email]":1,"file":{"id":"[email]"}}}"#,
            ),
            (
                r#"{"function":{"name":"f","arguments":{"audio":["a@b.de"]}}}"#,
                r#"{"function":{"name":"f","arguments":{"audio":["[email]"]}}}"#,
            ),
            (
                r#"{"source":{"type":"text","data":"a@b.de"}}"#,
                r#"{"source":{"type":"text","data":"[email]"}}"#,
            ),
            (
                r#"{"source":{"data":"a@b.de","type":"base64","type":"text"}}"#,
                r#"{"source":{"data":"[email]","type":"base64","type":"text"}}"#,
            ),
        ] {
            assert_eq!(masked(json).as_deref(), Some(expected));
        }
        let binary = r#"{"source":{"type":"base64","data":"a@b.de"},"signature":"a@b.de"}"#;
        assert_eq!(masked(binary), None);
    }

    #[test]
    fn numbers_in_lists_are_token_ids() {
        let rules = Rules { kinds: Kind::PATTERNS.to_vec(), words: Vec::new() };
        for (json, expected) in [
            ("[1,2]", true),
            (r#"["a",[3]]"#, true),
            ("7", true),
            (r#"["a"]"#, false),
            (r#"[{"n":[1]}]"#, false),
        ] {
            let masker = Masker { rules: &rules, mask: "x" };
            let scanned = masker.json(json, Content::Protocol, &mut Counts::default()).unwrap();
            assert_eq!(scanned.has_token_ids, expected, "{json}");
        }
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
            let skipped = MEDIA_KEYS.iter().any(|key| text.contains(&format!("\"{key}\":")));
            prop_assert!(skipped || !after.contains("a@b.de"), "{}", after);
        }

        #[test]
        fn invalid_json_is_an_error(text in ".{0,60}") {
            let rules = Rules { kinds: Kind::PATTERNS.to_vec(), words: Vec::new() };
            let masker = Masker { rules: &rules, mask: "x" };
            let result = masker.json(&text, Content::Protocol, &mut Counts::default());
            prop_assert_eq!(result.is_ok(), serde_json::from_str::<Value>(&text).is_ok());
        }
    }
}
