//! The fields of a request for a response that the host reads itself, and the body without them.
//! All other fields keep their bytes.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::builder::Builder;
use crate::bad_request::BadRequest;
use crate::limits::MAX_ITEMS;

/// An item of an input or output, as it was written.
pub type Item = Box<RawValue>;

/// The body of a request for a response.
#[derive(Debug)]
pub struct TurnRequest {
    fields: Vec<(String, Box<RawValue>)>,
}

impl TurnRequest {
    /// Reads a body. `None` if it is not a JSON object, which parsing the request reports.
    pub fn read(body: &[u8]) -> Option<Self> {
        struct Fields;

        impl<'de> Visitor<'de> for Fields {
            type Value = Vec<(String, Box<RawValue>)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }

        let mut json = serde_json::Deserializer::from_slice(body);
        let fields = json.deserialize_map(Fields).ok()?;
        json.end().ok()?;
        Some(Self { fields })
    }

    /// Returns the value of a field that is not null.
    pub fn get(&self, name: &str) -> Option<Value> {
        let value: Value = serde_json::from_str(self.raw(name)?.get()).ok()?;
        (!value.is_null()).then_some(value)
    }

    fn raw(&self, name: &str) -> Option<&RawValue> {
        // Engines read the last one.
        self.fields.iter().rfind(|(field, _)| field == name).map(|(_, value)| &**value)
    }

    /// Returns a field that is true or false.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&self, name: &'static str) -> Result<Option<bool>, BadRequest> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(_) => Err(BadRequest::invalid(name, "true or false")),
        }
    }

    /// Returns the items of the input: a text is a message of the user.
    ///
    /// # Errors
    /// If the input is neither a text nor an array.
    pub fn items(&self) -> Result<Vec<Item>, BadRequest> {
        let invalid = || BadRequest::invalid("input", "a string or an array of items");
        let Some(input) = self.raw("input") else { return Ok(Vec::new()) };
        match input.get().as_bytes().first() {
            Some(b'"') => {
                let text: Value = serde_json::from_str(input.get()).map_err(|_| invalid())?;
                let item = json!({ "type": "message", "role": "user", "content": text });
                Ok(to_raw_value(&item).into_iter().collect())
            }
            Some(b'[') => {
                let items: Vec<Item> = serde_json::from_str(input.get()).map_err(|_| invalid())?;
                match items.len() > MAX_ITEMS {
                    true => Err(BadRequest::TooMany { what: "items", max: MAX_ITEMS }),
                    false => Ok(items),
                }
            }
            Some(b'n') => Ok(Vec::new()),
            _ => Err(invalid()),
        }
    }

    /// Removes a field.
    pub fn remove(&mut self, name: &str) {
        self.fields.retain(|(field, _)| field != name);
    }

    /// Sets a field, in its place or as the last one.
    pub fn set(&mut self, name: &str, value: &impl serde::Serialize) {
        let Ok(value) = to_raw_value(value) else { return };
        match self.fields.iter().position(|(field, _)| field == name) {
            Some(position) => {
                self.fields[position].1 = value;
                let mut at = 0;
                self.fields.retain(|(field, _)| {
                    at += 1;
                    field != name || at == position + 1
                });
            }
            None => self.fields.push((name.to_owned(), value)),
        }
    }

    /// Returns the body.
    pub fn write(&self) -> Vec<u8> {
        let mut body = vec![b'{'];
        for (at, (name, value)) in self.fields.iter().enumerate() {
            if at > 0 {
                body.push(b',');
            }
            body.extend_from_slice(Value::from(name.as_str()).to_string().as_bytes());
            body.push(b':');
            body.extend_from_slice(value.get().as_bytes());
        }
        body.push(b'}');
        body
    }

    /// Returns a response to this request with this status and no output.
    pub fn response(&self, id: &str, status: &str, created: u64) -> Value {
        let known = self.fields.iter().filter(|(name, _)| name != "input");
        let read = |(name, value): &(String, Box<RawValue>)| {
            Some((name.clone(), serde_json::from_str(value.get()).ok()?))
        };
        let body: Value = known.filter_map(read).collect::<serde_json::Map<_, _>>().into();
        let model = body.get("model").and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut response = Builder::new(&body, id, &model).response();
        response["status"] = status.into();
        response["created_at"] = created.into();
        response
    }
}

/// Returns the id of an item that refers to another one: that and nothing else.
pub fn referenced(item: &RawValue) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Reference {
        #[serde(rename = "type", default)]
        kind: Option<String>,
        id: Option<String>,
        #[serde(default, deserialize_with = "is_given")]
        role: bool,
    }

    fn is_given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
        serde::de::IgnoredAny::deserialize(deserializer).map(|_| true)
    }

    let reference: Reference = serde_json::from_str(item.get()).ok()?;
    let is_reference = match reference.kind.as_deref() {
        Some(kind) => kind == "item_reference",
        None => !reference.role,
    };
    reference.id.filter(|_| is_reference)
}
