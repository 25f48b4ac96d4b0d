//! The endpoints of requests, and which of them an engine serves.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The endpoint of a request. The contract knows the first four only; the others are `other` there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// `/v1/chat/completions`
    ChatCompletions,
    /// `/v1/completions`
    Completions,
    /// `/v1/responses`
    Responses,
    /// `/v1/embeddings`
    Embeddings,
    /// `/v1/messages`
    Messages,
    /// `/v1/messages/count_tokens`
    CountTokens,
    /// `/v1/rerank`
    Rerank,
    /// `/v1/score`
    Score,
    /// `/classify`
    Classify,
    /// `/pooling`
    Pooling,
    /// `/tokenize`
    Tokenize,
    /// `/detokenize`
    Detokenize,
    /// `/v1/moderations`
    Moderations,
    /// `/v1/images/generations`
    ImageGenerations,
    /// `/v1/images/edits`
    ImageEdits,
    /// `/v1/images/variations`
    ImageVariations,
    /// `/v1/audio/transcriptions`
    Transcriptions,
    /// `/v1/audio/translations`
    Translations,
    /// `/v1/audio/speech`
    Speech,
    /// `/completion`
    LlamaCompletion,
    /// `/infill`
    LlamaInfill,
    /// `/embedding`
    LlamaEmbedding,
    /// `/apply-template`
    LlamaApplyTemplate,
    /// `/api/chat`
    OllamaChat,
    /// `/api/generate`
    OllamaGenerate,
    /// `/api/embed`
    OllamaEmbed,
    /// `/api/embeddings`
    OllamaEmbeddings,
    /// Any other endpoint.
    #[default]
    Other,
}

impl Endpoint {
    /// All endpoints that have a path.
    pub const ALL: [Self; 27] = [
        Self::ChatCompletions,
        Self::Completions,
        Self::Responses,
        Self::Embeddings,
        Self::Messages,
        Self::CountTokens,
        Self::Rerank,
        Self::Score,
        Self::Classify,
        Self::Pooling,
        Self::Tokenize,
        Self::Detokenize,
        Self::Moderations,
        Self::ImageGenerations,
        Self::ImageEdits,
        Self::ImageVariations,
        Self::Transcriptions,
        Self::Translations,
        Self::Speech,
        Self::LlamaCompletion,
        Self::LlamaInfill,
        Self::LlamaEmbedding,
        Self::LlamaApplyTemplate,
        Self::OllamaChat,
        Self::OllamaGenerate,
        Self::OllamaEmbed,
        Self::OllamaEmbeddings,
    ];

    /// Returns the path of the endpoint on an engine; `None` for [`Endpoint::Other`].
    pub fn path(self) -> Option<&'static str> {
        Some(match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
            Self::Messages => "/v1/messages",
            Self::CountTokens => "/v1/messages/count_tokens",
            Self::Rerank => "/v1/rerank",
            Self::Score => "/v1/score",
            Self::Classify => "/classify",
            Self::Pooling => "/pooling",
            Self::Tokenize => "/tokenize",
            Self::Detokenize => "/detokenize",
            Self::Moderations => "/v1/moderations",
            Self::ImageGenerations => "/v1/images/generations",
            Self::ImageEdits => "/v1/images/edits",
            Self::ImageVariations => "/v1/images/variations",
            Self::Transcriptions => "/v1/audio/transcriptions",
            Self::Translations => "/v1/audio/translations",
            Self::Speech => "/v1/audio/speech",
            Self::LlamaCompletion => "/completion",
            Self::LlamaInfill => "/infill",
            Self::LlamaEmbedding => "/embedding",
            Self::LlamaApplyTemplate => "/apply-template",
            Self::OllamaChat => "/api/chat",
            Self::OllamaGenerate => "/api/generate",
            Self::OllamaEmbed => "/api/embed",
            Self::OllamaEmbeddings => "/api/embeddings",
            Self::Other => return None,
        })
    }

    /// Returns the name of the endpoint: its metric label, and what policies are told.
    pub fn label(self) -> &'static str {
        match self {
            Self::ChatCompletions => "chat-completions",
            Self::Completions => "completions",
            Self::Responses => "responses",
            Self::Embeddings => "embeddings",
            Self::Messages => "messages",
            Self::CountTokens => "count-tokens",
            Self::Rerank => "rerank",
            Self::Score => "score",
            Self::Classify => "classify",
            Self::Pooling => "pooling",
            Self::Tokenize => "tokenize",
            Self::Detokenize => "detokenize",
            Self::Moderations => "moderations",
            Self::ImageGenerations => "image-generations",
            Self::ImageEdits => "image-edits",
            Self::ImageVariations => "image-variations",
            Self::Transcriptions => "transcriptions",
            Self::Translations => "translations",
            Self::Speech => "speech",
            Self::LlamaCompletion => "llama-completion",
            Self::LlamaInfill => "llama-infill",
            Self::LlamaEmbedding => "llama-embedding",
            Self::LlamaApplyTemplate => "llama-apply-template",
            Self::OllamaChat => "ollama-chat",
            Self::OllamaGenerate => "ollama-generate",
            Self::OllamaEmbed => "ollama-embed",
            Self::OllamaEmbeddings => "ollama-embeddings",
            Self::Other => "other",
        }
    }
}

impl Endpoint {
    /// Returns the endpoint with this name.
    pub fn from_label(label: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|endpoint| endpoint.label() == label)
    }

    /// Returns the endpoint of an engine by which the host can serve this one: it translates the
    /// request, and the response back.
    pub fn translated_to(self) -> Option<Self> {
        match self {
            Self::Messages | Self::Responses | Self::OllamaChat | Self::OllamaGenerate => {
                Some(Self::ChatCompletions)
            }
            Self::OllamaEmbed | Self::OllamaEmbeddings => Some(Self::Embeddings),
            Self::ChatCompletions
            | Self::Completions
            | Self::Embeddings
            | Self::CountTokens
            | Self::Rerank
            | Self::Score
            | Self::Classify
            | Self::Pooling
            | Self::Tokenize
            | Self::Detokenize
            | Self::Moderations
            | Self::ImageGenerations
            | Self::ImageEdits
            | Self::ImageVariations
            | Self::Transcriptions
            | Self::Translations
            | Self::Speech
            | Self::LlamaCompletion
            | Self::LlamaInfill
            | Self::LlamaEmbedding
            | Self::LlamaApplyTemplate
            | Self::Other => None,
        }
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// How an engine serves an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serving {
    /// The engine has the endpoint.
    Native,
    /// The host translates to another endpoint, which the engine has.
    Translated,
    /// Not at all.
    Not,
}

/// A set of endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(into = "Vec<Endpoint>", from = "Vec<Endpoint>")]
pub struct EndpointSet(u32);

impl EndpointSet {
    /// Returns the set of these endpoints.
    pub fn new(endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        Self(endpoints.into_iter().fold(0, |bits, endpoint| bits | endpoint.bit()))
    }

    /// Returns the set of all endpoints.
    pub fn all() -> Self {
        Self::new(Endpoint::ALL.into_iter().chain([Endpoint::Other]))
    }

    /// Returns true if the set has all endpoints.
    pub fn is_all(&self) -> bool {
        *self == Self::all()
    }

    /// Returns true if the endpoint is in the set.
    pub fn contains(self, endpoint: Endpoint) -> bool {
        self.0 & endpoint.bit() != 0
    }

    /// Returns the endpoints of both sets.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the endpoints in the set, in the order of [`Endpoint::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Endpoint> {
        let all = Endpoint::ALL.into_iter().chain([Endpoint::Other]);
        all.filter(move |endpoint| self.contains(*endpoint))
    }

    /// Returns how an engine that has these endpoints serves one of them.
    pub fn serving(self, endpoint: Endpoint) -> Serving {
        if self.contains(endpoint) {
            Serving::Native
        } else if endpoint.translated_to().is_some_and(|target| self.contains(target)) {
            Serving::Translated
        } else {
            Serving::Not
        }
    }
}

impl From<EndpointSet> for Vec<Endpoint> {
    fn from(set: EndpointSet) -> Self {
        set.iter().collect()
    }
}

impl From<Vec<Endpoint>> for EndpointSet {
    fn from(endpoints: Vec<Endpoint>) -> Self {
        Self::new(endpoints)
    }
}

impl fmt::Debug for EndpointSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Endpoint::label)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_names_in_records() {
        for endpoint in Endpoint::ALL.into_iter().chain([Endpoint::Other]) {
            let json = serde_json::to_value(endpoint).unwrap();
            assert_eq!(json, endpoint.label());
            assert_eq!(Endpoint::from_label(endpoint.label()).is_some(), endpoint.path().is_some());
        }
    }

    #[test]
    fn what_an_engine_lacks_is_translated_if_it_has_the_other_endpoint() {
        use Endpoint::{ChatCompletions, Embeddings, Messages, OllamaEmbed, Rerank};
        let chat = EndpointSet::new([ChatCompletions]);
        for (set, endpoint, expected) in [
            (chat, ChatCompletions, Serving::Native),
            (chat, Messages, Serving::Translated),
            (chat, OllamaEmbed, Serving::Not),
            (chat.union(EndpointSet::new([Embeddings])), OllamaEmbed, Serving::Translated),
            (chat, Rerank, Serving::Not),
            (EndpointSet::all(), Messages, Serving::Native),
            (EndpointSet::default(), ChatCompletions, Serving::Not),
        ] {
            assert_eq!(set.serving(endpoint), expected, "{set:?} {endpoint:?}");
        }
    }
}
