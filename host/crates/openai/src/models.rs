//! `GET /v1/models` and `GET /v1/models/{id}`: the form of a model in lists.
//!
//! The fields are those of OpenAI, vLLM and llama.cpp, and the other spellings of the context
//! length that agents look for.

use serde_json::{Map, Value, json};

use crate::date;

/// A model that clients can name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelEntry<'a> {
    /// Its name.
    pub id: &'a str,
    /// The kind of engine that serves it.
    pub owner: &'a str,
    /// The model that is served under the name; the name itself if that is not known.
    pub root: Option<&'a str>,
    /// The model that an adapter belongs to.
    pub parent: Option<&'a str>,
    /// Maximum sequence length in tokens, if known.
    pub context: Option<u32>,
    /// Sequence length in tokens that the model was trained with, if known.
    pub trained_context: Option<u32>,
    /// Names of the lanes that serve it.
    pub lanes: Vec<&'a str>,
    /// Whether it is loaded.
    pub state: &'a str,
    /// What it can do.
    pub capabilities: Vec<&'a str>,
    /// Labels of the endpoints at which it can be used.
    pub endpoints: Vec<&'a str>,
}

/// Returns the body of the list of models. `created` is in seconds since the Unix epoch.
pub fn list(entries: &[ModelEntry<'_>], created: u64) -> String {
    let data: Vec<Value> = entries.iter().map(|entry| card(entry, created)).collect();
    json!({ "object": "list", "data": data }).to_string()
}

/// Returns the body of the list of models as Anthropic's libraries read it, with the fields of all
/// others.
pub fn anthropic_list(entries: &[ModelEntry<'_>], created: u64) -> String {
    let data: Vec<Value> = entries.iter().map(|entry| anthropic_card(entry, created)).collect();
    let id = |entry: Option<&ModelEntry<'_>>| entry.map(|entry| entry.id.to_owned());
    let (first, last) = (id(entries.first()), id(entries.last()));
    json!({
        "object": "list", "data": data, "has_more": false, "first_id": first, "last_id": last,
    })
    .to_string()
}

/// Returns the body for one model as Anthropic's libraries read it.
pub fn anthropic_one(entry: &ModelEntry<'_>, created: u64) -> String {
    anthropic_card(entry, created).to_string()
}

fn anthropic_card(entry: &ModelEntry<'_>, created: u64) -> Value {
    let mut card = card(entry, created);
    card["type"] = "model".into();
    card["display_name"] = entry.id.into();
    card["created_at"] = date::from_seconds(created).into();
    card["lifecycle"] = "active".into();
    card["max_input_tokens"] = card["max_model_len"].clone();
    // Anthropic has an object of this name, with other members.
    if let Some(card) = card.as_object_mut() {
        card.remove("capabilities");
    }
    card
}

/// Returns the body for one model.
pub fn one(entry: &ModelEntry<'_>, created: u64) -> String {
    card(entry, created).to_string()
}

fn card(entry: &ModelEntry<'_>, created: u64) -> Value {
    let mut card = Map::new();
    let mut set = |key: &str, value: Value| card.insert(key.to_owned(), value);
    set("id", entry.id.into());
    set("object", "model".into());
    set("created", created.into());
    set("owned_by", entry.owner.into());
    set("root", entry.root.unwrap_or(entry.id).into());
    set("parent", entry.parent.into());
    // The spellings of vLLM, of OpenRouter and LM Studio, and of others.
    for key in ["max_model_len", "context_length", "context_window", "max_context_length"] {
        if let Some(context) = entry.context {
            set(key, context.into());
        }
    }
    // The spellings of llama.cpp.
    let mut meta = Map::new();
    for (key, tokens) in [("n_ctx", entry.context), ("n_ctx_train", entry.trained_context)] {
        if let Some(tokens) = tokens {
            meta.insert(key.to_owned(), tokens.into());
        }
    }
    if !meta.is_empty() {
        set("meta", meta.into());
    }
    set("lanes", entry.lanes.as_slice().into());
    set("state", entry.state.into());
    set("capabilities", entry.capabilities.as_slice().into());
    set("endpoints", entry.endpoints.as_slice().into());
    set("permission", json!([]));
    Value::Object(card)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_the_fields_that_clients_read() {
        let entry = ModelEntry {
            id: "coder:sql",
            owner: "vllm",
            root: Some("sql"),
            parent: Some("coder"),
            context: Some(32_768),
            trained_context: Some(131_072),
            lanes: vec!["coder"],
            state: "unloaded",
            capabilities: vec!["chat", "completion", "tools"],
            endpoints: vec!["chat-completions", "completions"],
        };
        let expected = json!({
            "id": "coder:sql",
            "object": "model",
            "created": 7,
            "owned_by": "vllm",
            "root": "sql",
            "parent": "coder",
            "max_model_len": 32_768,
            "context_length": 32_768,
            "context_window": 32_768,
            "max_context_length": 32_768,
            "meta": { "n_ctx": 32_768, "n_ctx_train": 131_072 },
            "lanes": ["coder"],
            "state": "unloaded",
            "capabilities": ["chat", "completion", "tools"],
            "endpoints": ["chat-completions", "completions"],
            "permission": [],
        });
        assert_eq!(serde_json::from_str::<Value>(&one(&entry, 7)).unwrap(), expected);
        let body: Value = serde_json::from_str(&list(&[entry], 7)).unwrap();
        assert_eq!(body, json!({ "object": "list", "data": [expected] }));
    }

    #[test]
    fn anthropics_form_has_its_fields_too() {
        let entry = |id| ModelEntry { id, owner: "vllm", state: "ready", ..Default::default() };
        let body: Value =
            serde_json::from_str(&anthropic_list(&[entry("a"), entry("b")], 7)).unwrap();
        let page = (&body["first_id"], &body["last_id"], &body["has_more"]);
        assert_eq!(page, (&json!("a"), &json!("b"), &json!(false)));
        assert_eq!(body["data"][1]["type"], "model");
        assert_eq!(body["data"][1]["display_name"], "b");
        assert_eq!(body["data"][1]["created_at"], "1970-01-01T00:00:07Z");
        assert_eq!(body["data"][1]["object"], "model");
        assert_eq!(body["data"][1]["lifecycle"], "active");
        assert_eq!(body["data"][1].get("capabilities"), None);
        let empty: Value = serde_json::from_str(&anthropic_list(&[], 7)).unwrap();
        assert_eq!((&empty["first_id"], &empty["data"]), (&json!(null), &json!([])));
        let one: Value = serde_json::from_str(&anthropic_one(&entry("a"), 0)).unwrap();
        assert_eq!(one["type"], "model");
    }

    #[test]
    fn unknown_lengths_are_left_out() {
        let entry =
            ModelEntry { id: "a", owner: "pointsman", state: "ready", ..Default::default() };
        let body: Value = serde_json::from_str(&one(&entry, 7)).unwrap();
        let expected = json!({
            "id": "a", "object": "model", "created": 7, "owned_by": "pointsman", "root": "a",
            "parent": null, "lanes": [], "state": "ready", "capabilities": [], "endpoints": [],
            "permission": [],
        });
        assert_eq!(body, expected);
    }
}
