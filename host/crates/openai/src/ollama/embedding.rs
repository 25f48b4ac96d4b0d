//! Embeddings.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::MAX_OLLAMA_RESPONSE;
use super::clock::Clock;
use crate::translate::Translate;
use crate::usage::Usage;

/// The form of a response with embeddings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EmbeddingForm {
    /// That of `/api/embed`.
    Several,
    /// That of `/api/embeddings`.
    One,
}

/// Returns the fields of a request for embeddings of the texts in the field `input`.
pub(super) fn request(body: &Map<String, Value>, input: &str) -> Map<String, Value> {
    let mut fields = Map::new();
    super::copy(body, "model", &mut fields);
    let input = body.get(input).filter(|input| !input.is_null());
    fields.insert("input".to_owned(), input.cloned().unwrap_or_else(|| "".into()));
    super::copy(body, "dimensions", &mut fields);
    fields.insert("encoding_format".to_owned(), "float".into());
    fields
}

/// Translates a response with embeddings.
#[derive(Debug)]
pub(super) struct Embedding {
    form: EmbeddingForm,
    model: String,
    clock: Clock,
    held: Vec<u8>,
    is_too_large: bool,
}

#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow)]
    data: Vec<Entry<'a>>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    embedding: &'a RawValue,
}

impl Embedding {
    pub(super) fn new(form: EmbeddingForm, model: String, clock: Clock) -> Self {
        Self { form, model, clock, held: Vec::new(), is_too_large: false }
    }

    /// Returns the response; `None` if the engine's is not one of embeddings. The numbers keep
    /// their digits.
    fn response(&self) -> Option<String> {
        let Response { data, usage } = serde_json::from_slice(&self.held).ok()?;
        let mut vectors = data.iter().map(|entry| entry.embedding.get());
        if self.form == EmbeddingForm::One {
            return Some(format!("{{\"embedding\":{}}}", vectors.next()?));
        }
        let vectors: Vec<&str> = vectors.collect();
        let mut counts = Map::new();
        self.clock.add_total(&mut counts);
        let tokens = usage.map_or(0, |usage| usage.prompt_tokens);
        counts.insert("prompt_eval_count".to_owned(), tokens.into());
        let counts = Value::Object(counts).to_string();
        let model = Value::from(self.model.as_str());
        let (vectors, counts) = (vectors.join(","), counts.trim_start_matches('{'));
        Some(format!("{{\"model\":{model},\"embeddings\":[{vectors}],{counts}"))
    }
}

impl Translate for Embedding {
    fn chunk(&mut self, chunk: &[u8]) -> Bytes {
        self.is_too_large |= self.held.len() + chunk.len() > MAX_OLLAMA_RESPONSE;
        if !self.is_too_large {
            self.held.extend_from_slice(chunk);
        }
        Bytes::new()
    }

    fn finish(&mut self, is_complete: bool) -> Bytes {
        if !is_complete {
            return Bytes::new();
        }
        let response = if self.is_too_large { None } else { self.response() };
        self.held = Vec::new();
        let error = || json!({ "error": "the engine returned no embeddings" }).to_string();
        response.unwrap_or_else(error).into()
    }

    fn content_type(&self) -> &'static str {
        "application/json; charset=utf-8"
    }
}
