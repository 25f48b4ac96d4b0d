//! Requests for endpoints that an engine does not have, as requests for one that it has, and the
//! responses back.
//!
//! ```text
//!   client ──request──> Request::translated ──request of another endpoint──> engine
//!   client <──bytes──── Translate::chunk, finish <──bytes of its response─────┘
//! ```
//!
//! The request is translated for one attempt: policies see and edit it as the client sent it, and
//! the next lane may have the endpoint itself.

use std::fmt;

use bytes::Bytes;
use pointsman_domain::Endpoint;

use crate::anthropic;
use crate::bad_request::BadRequest;
use crate::ollama::{self, Api};
use crate::request::Request;

/// A request as an engine gets it that does not have the endpoint of the client.
#[derive(Debug)]
pub struct Translation {
    /// The request for the endpoint that the engine has.
    pub request: Request,
    /// Translates the response.
    pub response: Box<dyn Translate>,
}

/// Translates one successful response, as it arrives.
pub trait Translate: fmt::Debug + Send + Sync {
    /// Takes a chunk of the engine's body, and returns what the client gets for it: nothing, if the
    /// translation needs the rest.
    fn chunk(&mut self, chunk: &[u8]) -> Bytes;

    /// Returns what the client still gets at the end of the engine's body. `is_complete` is false
    /// for a stream that broke off, which must not look complete: an error follows.
    fn finish(&mut self, is_complete: bool) -> Bytes;

    /// Returns the content type of the client's response.
    fn content_type(&self) -> &'static str;
}

impl Request {
    /// Returns the request for the endpoint to which requests of this one are translated; `None`
    /// for an endpoint that is not translated.
    ///
    /// # Errors
    /// If the request has something that the other endpoint cannot express.
    pub fn translated(&self) -> Result<Option<Translation>, BadRequest> {
        match self.endpoint() {
            Endpoint::Messages => anthropic::translate(self).map(Some),
            Endpoint::Responses => crate::responses::translate(self).map(Some),
            Endpoint::OllamaChat => ollama::translated(self, Api::Chat).map(Some),
            Endpoint::OllamaGenerate => ollama::translated(self, Api::Generate).map(Some),
            Endpoint::OllamaEmbed => ollama::translated(self, Api::Embed).map(Some),
            Endpoint::OllamaEmbeddings => ollama::translated(self, Api::Embeddings).map(Some),
            Endpoint::ChatCompletions
            | Endpoint::Completions
            | Endpoint::Embeddings
            | Endpoint::CountTokens
            | Endpoint::Rerank
            | Endpoint::Score
            | Endpoint::Classify
            | Endpoint::Pooling
            | Endpoint::Tokenize
            | Endpoint::Detokenize
            | Endpoint::Moderations
            | Endpoint::ImageGenerations
            | Endpoint::ImageEdits
            | Endpoint::ImageVariations
            | Endpoint::Transcriptions
            | Endpoint::Translations
            | Endpoint::Speech
            | Endpoint::LlamaCompletion
            | Endpoint::LlamaInfill
            | Endpoint::LlamaEmbedding
            | Endpoint::LlamaApplyTemplate
            | Endpoint::Other => Ok(None),
        }
    }
}
