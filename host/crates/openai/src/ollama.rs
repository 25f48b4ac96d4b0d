//! Ollama's endpoints `/api/chat`, `/api/generate`, `/api/embed` and `/api/embeddings`, as requests
//! for the OpenAI endpoints of an engine, and the responses back.
//!
//! Fields that concern how Ollama loads a model (`keep_alive`, `num_ctx`, `context`, `template`)
//! have no effect: the lane and its engine decide these.

mod clock;
mod completion;
mod embedding;
mod load;
mod messages;
mod options;

use bytes::Bytes;
use pointsman_domain::Endpoint;
use serde_json::{Map, Value};

use self::clock::Clock;
use self::completion::{Completion, CompletionForm};
use self::embedding::{Embedding, EmbeddingForm};
use crate::bad_request::BadRequest;
use crate::json;
use crate::request::Request;
use crate::translate::{Translate, Translation};

pub use self::load::LoadRequest;

/// Bytes of an engine's response that a translation holds: of one event, of the tool calls of a
/// stream, or of a whole JSON body.
const MAX_OLLAMA_RESPONSE: usize = 64 << 20;

/// Ollama's endpoints that are translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Api {
    /// `/api/chat`
    Chat,
    /// `/api/generate`
    Generate,
    /// `/api/embed`
    Embed,
    /// `/api/embeddings`
    Embeddings,
}

/// Returns the request for the endpoint of an engine, with what translates its response.
///
/// # Errors
/// If a field that is translated does not have a form that Ollama takes.
pub(crate) fn translated(request: &Request, api: Api) -> Result<Translation, BadRequest> {
    json::work::count(request.body().len());
    let body: Map<String, Value> =
        serde_json::from_str(request.json()).map_err(BadRequest::Json)?;
    let clock = Clock::new(request.head().arrived);
    let model = request.response_model().to_owned();
    let completion = |form| -> Box<dyn Translate> {
        Box::new(Completion::new(form, model.clone(), request.streaming(), clock))
    };
    let (endpoint, fields, response): (_, _, Box<dyn Translate>) = match api {
        Api::Chat => {
            let messages = messages::of_chat(&body)?;
            let fields = chat(&body, messages)?;
            (Endpoint::ChatCompletions, fields, completion(CompletionForm::Chat))
        }
        // Without the chat template of the engine: as it is, or with a gap to fill.
        Api::Generate if is_plain(&body) => {
            let fields = plain(&body);
            (Endpoint::Completions, fields, completion(CompletionForm::Generate))
        }
        Api::Generate => {
            let fields = chat(&body, messages::of_prompt(&body)?)?;
            (Endpoint::ChatCompletions, fields, completion(CompletionForm::Generate))
        }
        Api::Embed => {
            let fields = embedding::request(&body, "input");
            let response = Embedding::new(EmbeddingForm::Several, model, clock);
            (Endpoint::Embeddings, fields, Box::new(response))
        }
        Api::Embeddings => {
            let fields = embedding::request(&body, "prompt");
            let response = Embedding::new(EmbeddingForm::One, model, clock);
            (Endpoint::Embeddings, fields, Box::new(response))
        }
    };
    let body = Bytes::from(Value::Object(fields).to_string());
    let request = Request::parse(endpoint, body, request.head().clone())?;
    Ok(Translation { request, response })
}

/// Returns the fields of a chat request with these messages.
fn chat(body: &Map<String, Value>, messages: Vec<Value>) -> Result<Map<String, Value>, BadRequest> {
    let mut fields = Map::new();
    copy(body, "model", &mut fields);
    fields.insert("messages".to_owned(), messages.into());
    copy(body, "tools", &mut fields);
    stream(body, &mut fields);
    options::add(body, &mut fields);
    options::add_format(body, &mut fields)?;
    options::add_thinking(body, &mut fields);
    Ok(fields)
}

/// Returns the fields of a request for a completion of the prompt as it is.
fn plain(body: &Map<String, Value>) -> Map<String, Value> {
    let mut fields = Map::new();
    copy(body, "model", &mut fields);
    let prompt = body.get("prompt").and_then(Value::as_str).unwrap_or_default();
    fields.insert("prompt".to_owned(), prompt.into());
    copy(body, "suffix", &mut fields);
    stream(body, &mut fields);
    options::add(body, &mut fields);
    fields
}

fn is_plain(body: &Map<String, Value>) -> bool {
    let suffix = body.get("suffix").and_then(Value::as_str).unwrap_or_default();
    body.get("raw") == Some(&Value::Bool(true)) || !suffix.is_empty()
}

/// Copies a field that is not null.
fn copy(body: &Map<String, Value>, name: &str, fields: &mut Map<String, Value>) {
    if let Some(value) = body.get(name).filter(|value| !value.is_null()) {
        fields.insert(name.to_owned(), value.clone());
    }
}

/// Asks for a stream, which is Ollama's default.
fn stream(body: &Map<String, Value>, fields: &mut Map<String, Value>) {
    let is_stream = body.get("stream").and_then(Value::as_bool).unwrap_or(true);
    fields.insert("stream".to_owned(), is_stream.into());
}

#[cfg(test)]
mod tests;
