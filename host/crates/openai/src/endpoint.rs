//! The wire format of each endpoint, in one table.

use pointsman_domain::Endpoint;

use crate::error_form::ErrorForm;

/// The endpoints that the host serves. The others are known to the contract only.
pub const SERVED: [Endpoint; 23] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Responses,
    Endpoint::Embeddings,
    Endpoint::Rerank,
    Endpoint::Score,
    Endpoint::Classify,
    Endpoint::Pooling,
    Endpoint::Tokenize,
    Endpoint::Detokenize,
    Endpoint::Moderations,
    Endpoint::Messages,
    Endpoint::CountTokens,
    Endpoint::ImageGenerations,
    Endpoint::ImageEdits,
    Endpoint::ImageVariations,
    Endpoint::Transcriptions,
    Endpoint::Translations,
    Endpoint::Speech,
    Endpoint::OllamaChat,
    Endpoint::OllamaGenerate,
    Endpoint::OllamaEmbed,
    Endpoint::OllamaEmbeddings,
];

/// The wire format of one endpoint.
#[derive(Debug)]
pub struct EndpointShape {
    /// Where the prompt is.
    pub(crate) prompt: PromptShape,
    /// Fields of the body that limit the length of the response.
    /// [`Edit::CapOutputTokens`](pointsman_domain::Edit) sets the last one if the request has none
    /// that every engine reads.
    /// Empty if the length of a response does not vary.
    pub(crate) output_limits: &'static [OutputLimit],
    /// How streams are structured.
    pub stream: StreamKind,
    /// The form of errors.
    pub errors: ErrorForm,
}

/// Where the prompt of a request is, and what it looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PromptShape {
    /// Chat messages in `messages`.
    Messages,
    /// Chat messages with content blocks in `messages`, and a text or blocks in `system`.
    Blocks,
    /// A text, texts or token ids in `prompt`.
    Prompt,
    /// A text or items in `input`, and a text in `instructions`.
    Items,
    /// Texts in these fields: a text, token ids, or lists or objects that have such. Whether they
    /// are complete is the engine's to judge.
    Fields(&'static [&'static str]),
    /// Unknown: the request has no text for policies, and 0 tokens.
    Unknown,
}

impl PromptShape {
    /// Returns true if the prompt consists of chat messages.
    pub(crate) fn is_chat(self) -> bool {
        matches!(self, Self::Messages | Self::Blocks)
    }
}

/// A field that limits the length of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OutputLimit {
    CompletionTokens,
    Predict,
    Tokens,
    OutputTokens,
}

impl OutputLimit {
    /// Returns the name of the field.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::CompletionTokens => "max_completion_tokens",
            // llama.cpp's own name, which counts at all of its endpoints.
            Self::Predict => "n_predict",
            Self::Tokens => "max_tokens",
            Self::OutputTokens => "max_output_tokens",
        }
    }

    /// Returns true if every engine reads the field in requests with such a prompt. vLLM ignores
    /// `n_predict`, and reads `max_completion_tokens` of chat requests only.
    pub(crate) fn is_read_by_all(self, prompt: PromptShape) -> bool {
        match self {
            Self::CompletionTokens => prompt == PromptShape::Messages,
            // Endpoints of llama.cpp only.
            Self::Predict => matches!(prompt, PromptShape::Fields(_)),
            Self::Tokens | Self::OutputTokens => true,
        }
    }
}

/// How a stream ends, and where it reports the usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamKind {
    /// Chunks with a `finish_reason` and a top-level `usage`, then `[DONE]`.
    #[default]
    Chunks,
    /// Events with a `type`, of which the last one has a `response` with the `usage`.
    Events,
    /// Events with a `type`, from `message_start` to `message_stop`.
    Messages,
    /// `transcript.text.delta`, then `transcript.text.done` with the `usage`; of vLLM chunks that
    /// end with `[DONE]` only, because each piece of the audio has a `finish_reason` of its own.
    Transcripts,
    /// `speech.audio.delta`, then `speech.audio.done` with the `usage`.
    Speech,
    /// Partial images, then an event for each whole image: `image_generation.completed` or
    /// `image_edit.completed`.
    Images,
    /// Objects of llama.cpp's own endpoints, of which the last one has `stop` and the counts of
    /// tokens. They have no end marker.
    Native,
}

impl StreamKind {
    /// Returns the types of the events of which a complete stream has one for each choice.
    pub(crate) fn last_events(self) -> &'static [&'static str] {
        match self {
            Self::Chunks | Self::Events | Self::Messages | Self::Native => &[],
            Self::Transcripts => &["transcript.text.done"],
            Self::Speech => &["speech.audio.done"],
            Self::Images => &["image_generation.completed", "image_edit.completed"],
        }
    }
}

/// What bodies of requests are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    /// JSON.
    Json,
    /// JSON, whatever the content type says.
    AnyJson,
    /// A multipart form.
    Form,
    /// Either of them, as the content type says.
    Either,
}

impl BodyKind {
    /// Returns what the bodies of requests for an endpoint are.
    pub fn for_endpoint(endpoint: Endpoint) -> Self {
        match endpoint {
            Endpoint::Transcriptions | Endpoint::Translations | Endpoint::ImageVariations => {
                Self::Form
            }
            Endpoint::ImageEdits => Self::Either,
            Endpoint::ChatCompletions
            | Endpoint::Completions
            | Endpoint::Responses
            | Endpoint::Embeddings
            | Endpoint::Messages
            | Endpoint::CountTokens
            | Endpoint::Rerank
            | Endpoint::Score
            | Endpoint::Classify
            | Endpoint::Pooling
            | Endpoint::Tokenize
            | Endpoint::Detokenize
            | Endpoint::Moderations
            | Endpoint::ImageGenerations
            | Endpoint::Speech
            | Endpoint::LlamaCompletion
            | Endpoint::LlamaInfill
            | Endpoint::LlamaEmbedding
            | Endpoint::LlamaApplyTemplate
            | Endpoint::OllamaChat
            | Endpoint::OllamaGenerate
            | Endpoint::OllamaEmbed
            | Endpoint::OllamaEmbeddings
            | Endpoint::Other => Self::Json,
        }
    }
}

/// Returns true if a response of the endpoint is a stream unless the client says otherwise.
pub(crate) fn streams_by_default(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::OllamaChat | Endpoint::OllamaGenerate)
}

impl ErrorForm {
    /// Returns the form of errors below a path.
    pub fn for_path(path: &str) -> Self {
        // Its greeting, and also the paths of Ollama's API that the host does not serve.
        if path == "/" || path.starts_with("/api/") {
            return Self::Ollama;
        }
        let is_path = |endpoint: &Endpoint| endpoint.path() == Some(path);
        let endpoint = Endpoint::ALL.into_iter().find(is_path);
        let below_messages = path.strip_prefix("/v1/messages/").map(|_| Endpoint::Messages);
        let endpoint = endpoint.or(below_messages).unwrap_or(Endpoint::Other);
        EndpointShape::for_endpoint(endpoint).errors
    }
}

impl EndpointShape {
    /// Returns a shape whose streams are chunks, and whose errors are OpenAI's.
    const fn new(prompt: PromptShape, output_limits: &'static [OutputLimit]) -> Self {
        Self { prompt, output_limits, stream: StreamKind::Chunks, errors: ErrorForm::OpenAi }
    }

    /// Returns true if requests have fields that limit the length of the response.
    pub fn limits_output(&self) -> bool {
        !self.output_limits.is_empty()
    }

    const fn with_stream(self, stream: StreamKind) -> Self {
        Self { stream, ..self }
    }

    const fn with_errors(self, errors: ErrorForm) -> Self {
        Self { errors, ..self }
    }

    /// Returns the shape of an endpoint.
    pub fn for_endpoint(endpoint: Endpoint) -> &'static Self {
        use self::ErrorForm::{Anthropic, Ollama};
        use self::OutputLimit::{CompletionTokens, OutputTokens, Predict, Tokens};
        use self::PromptShape::{Blocks, Fields, Items, Messages, Prompt, Unknown};
        const TOKENS: &[OutputLimit] = &[CompletionTokens, Predict, Tokens];
        const NATIVE: &[OutputLimit] = &[Tokens, Predict];
        const SCORED: PromptShape =
            Fields(&["text_1", "text_2", "queries", "documents", "data_1", "data_2"]);
        const INFILL: PromptShape =
            Fields(&["input_prefix", "input_suffix", "input_extra", "prompt"]);
        match endpoint {
            Endpoint::ChatCompletions => &const { Self::new(Messages, TOKENS) },
            Endpoint::Completions => &const { Self::new(Prompt, TOKENS) },
            Endpoint::Responses => {
                const SHAPE: EndpointShape = EndpointShape::new(Items, &[Predict, OutputTokens]);
                &const { SHAPE.with_stream(StreamKind::Events).with_errors(ErrorForm::Responses) }
            }
            Endpoint::Embeddings | Endpoint::Moderations => {
                // vLLM also takes messages, and llama.cpp its own name.
                &const { Self::new(Fields(&["input", "messages", "content"]), &[]) }
            }
            Endpoint::Messages => {
                const SHAPE: EndpointShape = EndpointShape::new(Blocks, &[Tokens]);
                &const { SHAPE.with_stream(StreamKind::Messages).with_errors(Anthropic) }
            }
            Endpoint::CountTokens => &const { Self::new(Blocks, &[]).with_errors(Anthropic) },
            Endpoint::Rerank => &const { Self::new(Fields(&["query", "documents", "texts"]), &[]) },
            Endpoint::Score => &const { Self::new(SCORED, &[]) },
            Endpoint::Classify | Endpoint::Pooling => {
                &const { Self::new(Fields(&["input", "messages"]), &[]) }
            }
            Endpoint::Tokenize => {
                &const { Self::new(Fields(&["prompt", "content", "messages"]), &[]) }
            }
            Endpoint::Detokenize => &const { Self::new(Fields(&["tokens"]), &[]) },
            Endpoint::ImageGenerations | Endpoint::ImageEdits | Endpoint::ImageVariations => {
                &const { Self::new(Fields(&["prompt"]), &[]).with_stream(StreamKind::Images) }
            }
            Endpoint::Transcriptions | Endpoint::Translations => {
                &const { Self::new(Fields(&["prompt"]), &[]).with_stream(StreamKind::Transcripts) }
            }
            Endpoint::Speech => {
                const SHAPE: EndpointShape =
                    EndpointShape::new(Fields(&["input", "instructions"]), &[]);
                &const { SHAPE.with_stream(StreamKind::Speech) }
            }
            Endpoint::LlamaCompletion => {
                &const { Self::new(Fields(&["prompt"]), NATIVE).with_stream(StreamKind::Native) }
            }
            Endpoint::LlamaInfill => {
                &const { Self::new(INFILL, NATIVE).with_stream(StreamKind::Native) }
            }
            Endpoint::LlamaEmbedding => &const { Self::new(Fields(&["content", "input"]), &[]) },
            Endpoint::LlamaApplyTemplate => &const { Self::new(Fields(&["messages"]), &[]) },
            // Caps are set as `options.num_predict`.
            Endpoint::OllamaChat => &const { Self::new(Messages, &[Tokens]).with_errors(Ollama) },
            Endpoint::OllamaGenerate => {
                const FIELDS: PromptShape = Fields(&["system", "prompt", "suffix"]);
                &const { Self::new(FIELDS, &[Tokens]).with_errors(Ollama) }
            }
            Endpoint::OllamaEmbed => {
                &const { Self::new(Fields(&["input"]), &[]).with_errors(Ollama) }
            }
            Endpoint::OllamaEmbeddings => {
                &const { Self::new(Fields(&["prompt"]), &[]).with_errors(Ollama) }
            }
            Endpoint::Other => &const { Self::new(Unknown, TOKENS) },
        }
    }
}
