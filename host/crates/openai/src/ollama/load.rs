//! Requests without a prompt, by which clients of Ollama load or unload a model.

use pointsman_domain::{Endpoint, RequestView as _};
use serde_json::{Map, Value, json};

use crate::date::timestamp;
use crate::index;
use crate::request::Request;
use crate::scan::Children;

/// A request that generates nothing. The host decides which lanes are loaded, so that such a
/// request changes nothing, and is answered without an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRequest {
    is_chat: bool,
    model: String,
    /// With `keep_alive` 0.
    unloads: bool,
}

impl LoadRequest {
    /// Returns the request as one without a prompt; `None` if it has a prompt, or belongs to
    /// another API.
    pub fn from_request(request: &Request) -> Option<Self> {
        let body = request.json();
        let field = |name: &str| index::find(body, &[name.to_owned()]).unwrap_or("null");
        let is_empty = |name: &str| matches!(field(name), "null" | "\"\"");
        let has_children = |name: &str| {
            Children::new(field(name).as_bytes(), 0).is_some_and(|mut all| all.next().is_some())
        };
        let is_chat = request.endpoint() == Endpoint::OllamaChat;
        let is_load = match is_chat {
            true => request.info().messages == 0,
            false => {
                request.endpoint() == Endpoint::OllamaGenerate
                    && is_empty("prompt")
                    && is_empty("suffix")
                    && !has_children("images")
            }
        };
        is_load.then(|| Self {
            is_chat,
            model: request.response_model().to_owned(),
            unloads: is_zero(field("keep_alive")),
        })
    }

    /// Returns the body of the response.
    pub fn to_json(&self) -> String {
        let mut body = Map::new();
        let mut set = |name: &str, value: Value| body.insert(name.to_owned(), value);
        set("model", self.model.as_str().into());
        set("created_at", timestamp(std::time::SystemTime::now()).into());
        match self.is_chat {
            true => set("message", json!({ "role": "assistant", "content": "" })),
            false => set("response", "".into()),
        };
        set("done", true.into());
        set("done_reason", if self.unloads { "unload" } else { "load" }.into());
        format!("{}\n", Value::Object(body))
    }
}

/// Returns true if a duration is zero: a number of seconds, or a text with units.
fn is_zero(json: &str) -> bool {
    let text = json.trim_matches('"');
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    text != "null" && number.parse::<f64>().is_ok_and(|number| number == 0.0)
}
