//! Redaction: rules that replace texts, tenants, headers and fields before a record is written.
//!
//! A redacted value is a text such as `redacted:42:9f3ac21b00aa71e3`: the length of the original in
//! bytes and, under [`Rule::Hash`], a keyed hash, by which equal values can be recognised. Without
//! the key, the original cannot be guessed from the hash.
//!
//! Texts of a request are *all* strings of its body, except a few structural ones (`role`, `type`
//! and the like, see `STRUCTURAL_PATHS` and `STRUCTURAL_VALUES`), and the token ids of a prompt
//! given as numbers. Numbers, booleans and field names are kept.

mod decision;

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// What happens to a kind of value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The value is written.
    Keep,
    /// The length and a keyed hash of the value are written.
    Hash,
    /// The length of the value is written.
    Drop,
}

/// The redaction rules.
#[derive(Debug, Clone)]
pub struct Redact {
    /// Rule for texts of requests: prompts, messages and all other strings of a body.
    pub text: Rule,
    /// Rule for tenant names, wherever they appear as whole words in what policies read and
    /// advised.
    pub tenant: Rule,
    /// Rule for values in the state of policies.
    pub state: Rule,
    /// Lower-case names of headers whose values are redacted; `*` for all. Headers whose names
    /// suggest a secret are always redacted.
    pub headers: Vec<String>,
    /// JSON Pointers of fields whose values are redacted, including everything below them; `*`
    /// matches any one name or index.
    pub fields: Vec<String>,
    /// The key of the hashes.
    pub key: Key,
}

/// The key of the hashes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// Returns a random key. Hashes can then only be compared within one run.
    ///
    /// # Errors
    /// If the system provides no random bytes.
    pub fn random() -> io::Result<Self> {
        let mut key = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        Ok(Self(key))
    }

    /// Returns the key derived from a secret. Hashes of all hosts with that secret can be compared.
    pub fn from_secret(secret: &str) -> Self {
        Self(Sha256::digest(secret.as_bytes()).into())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// Returns true if a text is a redacted value.
pub fn is_redacted(text: &str) -> bool {
    text.starts_with(PREFIX)
}

const PREFIX: &str = "redacted:";

/// Fields of a body whose strings describe its structure rather than its content, as long as the
/// value is one of [`STRUCTURAL_VALUES`].
const STRUCTURAL_PATHS: [&str; 17] = [
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

/// The values that the API defines for those fields. The list is closed: any other value may be
/// text from the client.
const STRUCTURAL_VALUES: [&str; 44] = [
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

/// Maximum length of a model name that is written. A longer value, or one with other characters,
/// counts as text. The record has the model in another field, too.
const MAX_MODEL_NAME_BYTES: usize = 64;

/// Parts of header names that suggest a secret; values of such headers are never written.
const SECRET_NAME_PARTS: [&str; 9] =
    ["auth", "cookie", "credential", "key", "password", "secret", "session", "signature", "token"];

/// Headers that are redacted by default: they contain addresses of clients.
pub const PERSONAL_HEADERS: [&str; 3] = ["forwarded", "x-forwarded-for", "x-real-ip"];

impl Redact {
    /// Returns the default rules: texts of requests and addresses of clients are redacted.
    pub fn standard(key: Key) -> Self {
        let headers = PERSONAL_HEADERS.map(str::to_owned).to_vec();
        Self { text: Rule::Hash, headers, ..Self::nothing(key) }
    }

    /// Returns rules that redact only headers whose names suggest a secret.
    pub fn nothing(key: Key) -> Self {
        let (headers, fields) = (Vec::new(), Vec::new());
        Self { text: Rule::Keep, tenant: Rule::Keep, state: Rule::Keep, headers, fields, key }
    }

    /// Returns the text that is written instead of `value`.
    fn redacted(&self, rule: Rule, value: &str) -> String {
        // A redacted value is not redacted again, so that equal texts stay equal.
        if rule == Rule::Keep || is_redacted(value) {
            return value.to_owned();
        }
        let mut redacted = format!("{PREFIX}{}", value.len());
        if rule == Rule::Hash {
            let digest =
                Sha256::new().chain_update(self.key.0).chain_update(value.as_bytes()).finalize();
            redacted.push(':');
            redacted.extend(digest.iter().take(8).map(|byte| format!("{byte:02x}")));
        }
        redacted
    }

    /// Returns the rule for fields and headers that are listed by name.
    fn rule_for_named(&self) -> Rule {
        if self.text == Rule::Drop { Rule::Drop } else { Rule::Hash }
    }

    fn rule_for_header(&self, name: &str) -> Rule {
        let name = name.to_ascii_lowercase();
        let listed = self.headers.iter().any(|header| header == "*" || *header == name);
        let secret = SECRET_NAME_PARTS.iter().any(|part| name.contains(part));
        if listed || secret { self.rule_for_named() } else { Rule::Keep }
    }

    /// Redacts JSON that is at `path` in a body.
    fn json(&self, value: &mut Value, path: &mut Vec<String>) {
        if self.fields.iter().any(|field| is_at_or_below(path, field)) {
            *value = Value::String(self.redacted(self.rule_for_named(), &value.to_string()));
            return;
        }
        match value {
            Value::String(text) if self.text != Rule::Keep && !is_structure(path, text) => {
                *text = self.redacted(self.text, text);
            }
            Value::Array(items) if self.text != Rule::Keep && is_token_ids(path, items) => {
                *value = Value::String(self.redacted(self.text, &value.to_string()));
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

    /// Redacts JSON text that is at `pointer` in a body. Text that is not valid JSON is replaced as
    /// a whole.
    fn json_text(&self, text: &mut String, pointer: &str, then: impl FnOnce(&mut Value)) {
        let mut path: Vec<String> = segments(pointer).map(unescaped).collect();
        match serde_json::from_str::<Value>(text) {
            Ok(mut value) => {
                let before = value.clone();
                self.json(&mut value, &mut path);
                then(&mut value);
                // Text that no rule applies to is kept byte for byte.
                if value != before {
                    *text = value.to_string();
                }
            }
            Err(_) => *text = Value::String(self.redacted(self.rule_for_named(), text)).to_string(),
        }
    }
}

fn segments(pointer: &str) -> impl Iterator<Item = &str> {
    pointer.split('/').skip(1)
}

/// Returns the name that a segment of a JSON Pointer (RFC 6901) refers to.
fn unescaped(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

/// Returns true if `path` is the field that `pattern` names, or below it.
fn is_at_or_below(path: &[String], pattern: &str) -> bool {
    let mut names = path.iter();
    segments(pattern).all(|segment| {
        names.next().is_some_and(|name| segment == "*" || *name == unescaped(segment))
    })
}

fn is_structure(path: &[String], text: &str) -> bool {
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    if matches!(path, [field] if field == "model") {
        return text.len() <= MAX_MODEL_NAME_BYTES && text.bytes().all(is_name);
    }
    let at = |place: &str| segments(place).count() == path.len() && is_at_or_below(path, place);
    STRUCTURAL_VALUES.contains(&text) && STRUCTURAL_PATHS.iter().any(|place| at(place))
}

/// Fields of requests that may have token ids, at one endpoint or another.
const PROMPT_FIELDS: [&str; 10] = [
    "prompt",
    "input",
    "tokens",
    "content",
    "query",
    "queries",
    "documents",
    "texts",
    "text_1",
    "text_2",
];

/// Returns true for a prompt given as token ids, which can be decoded with the tokenizer.
fn is_token_ids(path: &[String], items: &[Value]) -> bool {
    let prompt = path.first().is_some_and(|field| PROMPT_FIELDS.contains(&field.as_str()));
    prompt && !items.is_empty() && items.iter().all(Value::is_number)
}

/// Returns `text` with every whole-word occurrence of `word` replaced; `None` if there is none.
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
