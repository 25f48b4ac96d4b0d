//! What a reader of tables asks for, noted while it reads, from which a JSON Schema is made.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// A string that may contain a reference to an environment variable has any value.
const REFERENCE: &str = r"\$\{";
/// A duration as [`pointsman_domain::units::duration`] parses it.
const DURATION: &str = "^[0-9]+ *(us|ms|s|m|h)$";
/// A size as [`pointsman_domain::units::bytes`] parses it.
const SIZE: &str = "^[0-9]+ *(B|KiB|MiB|GiB|TiB)$";

/// The type of a value, as a reader asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anything: the reader looks at the value itself.
    Any,
    /// A string.
    Text,
    /// A string that is not empty.
    RequiredText,
    /// A duration with a unit.
    Duration,
    /// A size with a unit.
    Size,
    /// One of these strings.
    Choice(Vec<String>),
    /// An integer within a range.
    Integer { min: i64, max: i64 },
    /// An integer or a float.
    Number,
    /// A boolean.
    Bool,
    /// A list of strings.
    Texts,
    /// A table of strings.
    TextPairs,
    /// A table, which has a shape of its own.
    Table,
    /// A list of tables, which have a shape of their own.
    Tables,
}

/// The keys of one table.
#[derive(Debug, Clone, Default)]
struct TableShape {
    keys: BTreeMap<String, Vec<Kind>>,
    /// Unknown keys are errors.
    is_closed: bool,
}

/// The tables that a reader has read, by their paths without positions in lists: `lanes[].engine`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recorder(RefCell<BTreeMap<String, TableShape>>);

impl Recorder {
    /// Notes that a key is known, of any type.
    pub(crate) fn know(&self, table: &str, key: &str) {
        let mut tables = self.0.borrow_mut();
        tables.entry(pattern(table)).or_default().keys.entry(key.to_owned()).or_default();
    }

    /// Notes the type that a key is read as.
    pub(crate) fn read(&self, table: &str, key: &str, kind: Kind) {
        let mut tables = self.0.borrow_mut();
        let table = tables.entry(pattern(table)).or_default();
        let kinds = table.keys.entry(key.to_owned()).or_default();
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }

    /// Notes that a table has no other keys.
    pub(crate) fn close(&self, table: &str) {
        self.0.borrow_mut().entry(pattern(table)).or_default().is_closed = true;
    }
}

/// Returns a path without positions in lists.
fn pattern(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    let mut parts = path.split('[');
    pattern.push_str(parts.next().unwrap_or_default());
    for part in parts {
        pattern.push_str("[]");
        pattern.push_str(part.split_once(']').map_or(part, |(_, rest)| rest));
    }
    pattern
}

/// The documents that a reader accepts, as far as their keys and types are concerned.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    tables: BTreeMap<String, TableShape>,
    /// Keys without which a document is invalid, by table.
    required: BTreeMap<String, BTreeSet<String>>,
    /// Strings can have references to environment variables.
    has_references: bool,
}

impl Shape {
    /// Creates a shape from what was read of a document, with the paths of the keys that it lacked.
    pub(crate) fn new(
        recorder: Recorder,
        missing: impl Iterator<Item = String>,
        has_references: bool,
    ) -> Self {
        let mut required: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for path in missing {
            let path = pattern(&path);
            let (table, key) = path.rsplit_once('.').unwrap_or(("", &path));
            required.entry(table.to_owned()).or_default().insert(key.to_owned());
        }
        Self { tables: recorder.0.into_inner(), required, has_references }
    }

    /// Adds what another document has shown.
    #[must_use]
    pub fn with(mut self, other: Self) -> Self {
        for (path, table) in other.tables {
            let own = self.tables.entry(path).or_default();
            own.is_closed |= table.is_closed;
            for (key, kinds) in table.keys {
                let known = own.keys.entry(key).or_default();
                let new: Vec<Kind> =
                    kinds.into_iter().filter(|kind| !known.contains(kind)).collect();
                known.extend(new);
            }
        }
        for (path, keys) in other.required {
            self.required.entry(path).or_default().extend(keys);
        }
        self
    }

    /// Adds what an alternative document has shown: a key is required if it is in both.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let both = |(table, keys): (&String, &BTreeSet<String>)| {
            let other = other.required.get(table)?;
            Some((table.clone(), keys.intersection(other).cloned().collect()))
        };
        let required = self.required.iter().filter_map(both).collect();
        Self { required, ..self.with(other.clone()) }
    }

    /// Leaves out that a key is required, because another key can take its place.
    #[must_use]
    pub fn optional(mut self, table: &str, key: &str) -> Self {
        if let Some(keys) = self.required.get_mut(table) {
            keys.remove(key);
        }
        self
    }

    /// Returns the JSON Schema of the table at a path, such as `lanes[].engine`; that of the whole
    /// document is at the empty path.
    pub fn schema(&self, path: &str) -> Value {
        let Some(table) = self.tables.get(path) else { return json!({ "type": "object" }) };
        let property = |(key, kinds): (&String, &Vec<Kind>)| {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            (key.clone(), self.value(&path, kinds))
        };
        let properties: Map<String, Value> = table.keys.iter().map(property).collect();
        let mut schema = json!({ "type": "object", "properties": properties });
        if table.is_closed {
            schema["additionalProperties"] = json!(false);
        }
        // A default of the reader, such as that of a list that may be empty, is not required.
        let required = self.required.get(path).into_iter().flatten();
        let required: Vec<&String> = required.filter(|key| table.keys.contains_key(*key)).collect();
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        schema
    }

    /// Returns the schema of a value at `path` that is read as any of these types.
    fn value(&self, path: &str, kinds: &[Kind]) -> Value {
        let mut schemas: Vec<Value> = kinds.iter().map(|kind| self.kind(path, kind)).collect();
        match schemas.len() {
            _ if kinds.contains(&Kind::Any) => json!({}),
            0 => json!({}),
            1 => schemas.remove(0),
            _ => json!({ "anyOf": schemas }),
        }
    }

    fn kind(&self, path: &str, kind: &Kind) -> Value {
        let text = |pattern: &str| match self.has_references {
            true => json!({ "type": "string", "pattern": format!("{pattern}|{REFERENCE}") }),
            false => json!({ "type": "string", "pattern": pattern }),
        };
        match kind {
            Kind::Any => json!({}),
            Kind::Text => json!({ "type": "string" }),
            Kind::RequiredText => json!({ "type": "string", "minLength": 1 }),
            Kind::Duration => text(DURATION),
            Kind::Size => text(SIZE),
            Kind::Choice(words) if self.has_references => json!({
                "anyOf": [{ "enum": words }, { "type": "string", "pattern": REFERENCE }]
            }),
            Kind::Choice(words) => json!({ "enum": words }),
            Kind::Integer { min, max: i64::MAX } => json!({ "type": "integer", "minimum": min }),
            Kind::Integer { min, max } => {
                json!({ "type": "integer", "minimum": min, "maximum": max })
            }
            Kind::Number => json!({ "type": "number" }),
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::Texts => json!({ "type": "array", "items": { "type": "string" } }),
            Kind::TextPairs => {
                json!({ "type": "object", "additionalProperties": { "type": "string" } })
            }
            Kind::Table => self.schema(path),
            Kind::Tables => json!({ "type": "array", "items": self.schema(&format!("{path}[]")) }),
        }
    }
}
