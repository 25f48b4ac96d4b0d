//! Which requests are translated, and by which module.

use pointsman_domain::Endpoint;

use crate::bad_request::BadRequest;
use crate::ollama::{self, Api};
use crate::request::Request;
use crate::translate::Translation;
use crate::{anthropic, responses};

impl Request {
    /// Returns the request for the endpoint to which requests of this one are translated; `None`
    /// for an endpoint that is not translated.
    ///
    /// # Errors
    /// If the request has something that the other endpoint cannot express.
    pub fn translated(&self) -> Result<Option<Translation>, BadRequest> {
        match self.endpoint() {
            Endpoint::Messages => anthropic::translate(self).map(Some),
            Endpoint::Responses => responses::translate(self).map(Some),
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
