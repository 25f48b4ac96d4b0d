//! What is kept back: rules that replace texts, tenants, headers and fields before anything is written.
//!
//! A replaced value is a text such as `redacted:42:9f3ac21b00aa71e3`: the length of what stood there in bytes and, under
//! [`Rule::Hash`], a keyed hash, by which equal values are seen to be equal. Without the key nobody can try out what a value
//! may have been.
//!
//! Texts of a request are *all* strings of its body but for a few that are no texts (`role`, `type` and the like, see
//! `STRUCTURE` and `WORDS`), and the token ids of a prompt that comes as numbers. Numbers, flags and the names of fields are kept.

mod decision;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What happens to a kind of value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// It is written.
    Keep,
    /// Its length and its keyed hash are.
    Hash,
    /// Its length is.
    Drop,
}

/// The rules.
#[derive(Debug, Clone)]
pub struct Redact {
    /// Texts of requests: prompts, messages, and whatever else is a string in a body.
    pub text: Rule,
    /// Names of tenants, wherever they stand as words of their own in what policies read and said.
    pub tenant: Rule,
    /// Values in the state that policies keep.
    pub state: Rule,
    /// Names of headers, in lower case, whose values are replaced; `*` is all. Those whose names sound like a secret always are.
    pub headers: Vec<String>,
    /// JSON Pointers of fields whose values are replaced, with everything below them; `*` stands for any one name or index.
    pub fields: Vec<String>,
    /// Key of the hashes.
    pub key: Key,
}

/// Key of the hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// A key of this run: hashes of one run can be compared with each other and with no others.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut key = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        Ok(Self(key))
    }

    /// The key that belongs to a secret: hashes of all hosts with that secret can be compared.
    pub fn from_secret(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// Does a text stand for a value that was kept back?
pub fn is_redacted(text: &str) -> bool {
    text.starts_with(MARK)
}

const MARK: &str = "redacted:";

/// Places in a body whose strings say how it is made, and not what it says, as long as they are one of [`WORDS`].
const STRUCTURE: [&str; 17] = [
    "/tool_choice",
    "/reasoning_effort",
    "/service_tier",
    "/encoding_format",
    "/truncation",
    "/response_format/type",
    "/text/format/type",
    "/reasoning/effort",
    "/tools/*/type",
    "/messages/*/role",
    "/messages/*/content/*/type",
    "/messages/*/tool_calls/*/type",
    "/input/*/role",
    "/input/*/type",
    "/input/*/content/*/type",
    "/prompt/*/type",
    "/tool_choice/type",
];

/// What the API has at those places. The list is closed: anything else that a client writes there may be a text.
const WORDS: [&str; 44] = [
    "allowed_tools",
    "assistant",
    "auto",
    "base64",
    "custom",
    "default",
    "developer",
    "disabled",
    "file",
    "flex",
    "float",
    "function",
    "function_call",
    "function_call_output",
    "high",
    "image_url",
    "input_audio",
    "input_file",
    "input_image",
    "input_text",
    "item_reference",
    "json_object",
    "json_schema",
    "low",
    "max",
    "medium",
    "message",
    "minimal",
    "none",
    "output_text",
    "priority",
    "reasoning",
    "refusal",
    "required",
    "scale",
    "system",
    "text",
    "tool",
    "user",
    "video_url",
    "web_search",
    "xhigh",
    "file_search",
    "code_interpreter",
];

/// Longest model name that is written; what is longer, or has other characters than names have, is a text. The record names
/// the model elsewhere, too.
const LONGEST_NAME: usize = 64;

/// Parts of names of headers whose values are never written.
const SECRET_NAMES: [&str; 9] =
    ["auth", "cookie", "credential", "key", "password", "secret", "session", "signature", "token"];

impl Redact {
    /// Everything is written, but for headers that sound like a secret.
    pub fn nothing(key: Key) -> Self {
        let (headers, fields) = (Vec::new(), Vec::new());
        Self { text: Rule::Keep, tenant: Rule::Keep, state: Rule::Keep, headers, fields, key }
    }

    /// What is written instead of `value`.
    fn mark(&self, rule: Rule, value: &str) -> String {
        // What is marked already is not marked again, so that equal texts stay equal.
        if rule == Rule::Keep || is_redacted(value) {
            return value.to_owned();
        }
        let mut mark = format!("{MARK}{}", value.len());
        if rule == Rule::Hash {
            let digest =
                Sha256::new().chain_update(self.key.0).chain_update(value.as_bytes()).finalize();
            mark.push(':');
            mark.extend(digest.iter().take(8).map(|byte| format!("{byte:02x}")));
        }
        mark
    }

    /// The rule for what is named and not of a kind: fields and headers.
    fn named(&self) -> Rule {
        if self.text == Rule::Drop { Rule::Drop } else { Rule::Hash }
    }

    fn header(&self, name: &str) -> Rule {
        let name = name.to_ascii_lowercase();
        let listed = self.headers.iter().any(|header| header == "*" || *header == name);
        let secret = SECRET_NAMES.iter().any(|part| name.contains(part));
        if listed || secret { self.named() } else { Rule::Keep }
    }

    /// Apply the rules to JSON that stands at `path` in a body.
    fn json(&self, value: &mut Value, path: &mut Vec<String>) {
        if self.fields.iter().any(|field| begins(path, field)) {
            *value = Value::String(self.mark(self.named(), &value.to_string()));
            return;
        }
        match value {
            Value::String(text) if self.text != Rule::Keep && !is_structure(path, text) => {
                *text = self.mark(self.text, text);
            }
            Value::Array(items) if self.text != Rule::Keep && is_token_ids(path, items) => {
                *value = Value::String(self.mark(self.text, &value.to_string()));
            }
            Value::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    path.push(index.to_string());
                    self.json(item, path);
                    path.pop();
                }
            }
            Value::Object(fields) => {
                for (name, field) in fields {
                    path.push(name.clone());
                    self.json(field, path);
                    path.pop();
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }

    /// The same for the text of JSON. What cannot be read as JSON is replaced as a whole.
    fn json_text(&self, text: &mut String, pointer: &str, then: impl FnOnce(&mut Value)) {
        let mut path: Vec<String> = segments(pointer).map(unescaped).collect();
        match serde_json::from_str::<Value>(text) {
            Ok(mut value) => {
                let before = value.clone();
                self.json(&mut value, &mut path);
                then(&mut value);
                // What no rule concerns stays as it came, byte for byte.
                if value != before {
                    *text = value.to_string();
                }
            }
            Err(_) => *text = Value::String(self.mark(self.named(), text)).to_string(),
        }
    }
}

fn segments(pointer: &str) -> impl Iterator<Item = &str> {
    pointer.split('/').skip(1)
}

/// A segment of a JSON Pointer (RFC 6901) as the name that it stands for.
fn unescaped(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

/// Is `path` the place that `pattern` names, or below it?
fn begins(path: &[String], pattern: &str) -> bool {
    let mut names = path.iter();
    segments(pattern).all(|segment| {
        names.next().is_some_and(|name| segment == "*" || *name == unescaped(segment))
    })
}

fn is_structure(path: &[String], text: &str) -> bool {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    if matches!(path, [field] if field == "model") {
        return text.len() <= LONGEST_NAME && text.bytes().all(is_name);
    }
    let at = |place: &str| segments(place).count() == path.len() && begins(path, place);
    WORDS.contains(&text) && STRUCTURE.iter().any(|place| at(place))
}

/// Prompts may come as numbers, which anybody with the tokenizer can read.
fn is_token_ids(path: &[String], items: &[Value]) -> bool {
    let prompt = path.first().is_some_and(|field| field == "prompt" || field == "input");
    prompt && !items.is_empty() && items.iter().all(Value::is_number)
}

/// `text` with each `word` that stands by itself replaced.
fn replace_word(text: &str, word: &str, with: &str) -> Option<String> {
    let part_of_word = |c: char| c.is_alphanumeric();
    let mut replaced = String::new();
    let mut rest = 0;
    for (place, _) in text.match_indices(word) {
        let before = text[..place].chars().next_back();
        let after = text[place + word.len()..].chars().next();
        if place >= rest && !before.is_some_and(part_of_word) && !after.is_some_and(part_of_word) {
            replaced.push_str(&text[rest..place]);
            replaced.push_str(with);
            rest = place + word.len();
        }
    }
    if rest == 0 {
        return None;
    }
    replaced.push_str(&text[rest..]);
    Some(replaced)
}

#[cfg(test)]
mod tests;
