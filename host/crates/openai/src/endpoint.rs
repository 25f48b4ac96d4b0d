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
    /// tokens. There is no end marker.
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

impl EndpointShape {
    /// Returns the shape of an endpoint.
    pub fn for_endpoint(endpoint: Endpoint) -> &'static Self {
        const TOKENS: &[OutputLimit] =
            &[OutputLimit::CompletionTokens, OutputLimit::Predict, OutputLimit::Tokens];
        match endpoint {
            Endpoint::ChatCompletions => &Self {
                prompt: PromptShape::Messages,
                output_limits: TOKENS,
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::Completions => &Self {
                prompt: PromptShape::Prompt,
                output_limits: TOKENS,
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::Responses => &Self {
                prompt: PromptShape::Items,
                output_limits: &[OutputLimit::Predict, OutputLimit::OutputTokens],
                stream: StreamKind::Events,
                errors: ErrorForm::Responses,
            },
            Endpoint::Embeddings | Endpoint::Moderations => &Self {
                // vLLM also takes messages, and llama.cpp its own name.
                prompt: PromptShape::Fields(&["input", "messages", "content"]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::Messages => &Self {
                prompt: PromptShape::Blocks,
                output_limits: &[OutputLimit::Tokens],
                stream: StreamKind::Messages,
                errors: ErrorForm::Anthropic,
            },
            Endpoint::CountTokens => &Self {
                prompt: PromptShape::Blocks,
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::Anthropic,
            },
            Endpoint::Rerank => &Self {
                prompt: PromptShape::Fields(&["query", "documents", "texts"]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::Score => &Self {
                prompt: PromptShape::Fields(&[
                    "text_1",
                    "text_2",
                    "queries",
                    "documents",
                    "data_1",
                    "data_2",
                ]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::Classify | Endpoint::Pooling => &Self {
                prompt: PromptShape::Fields(&["input", "messages"]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::Tokenize => &Self {
                prompt: PromptShape::Fields(&["prompt", "content", "messages"]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::ImageGenerations | Endpoint::ImageEdits | Endpoint::ImageVariations => {
                &Self {
                    prompt: PromptShape::Fields(&["prompt"]),
                    output_limits: &[],
                    stream: StreamKind::Images,
                    errors: ErrorForm::OpenAi,
                }
            }
            Endpoint::Speech => &Self {
                prompt: PromptShape::Fields(&["input", "instructions"]),
                output_limits: &[],
                stream: StreamKind::Speech,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::LlamaCompletion => &Self {
                prompt: PromptShape::Fields(&["prompt"]),
                output_limits: &[OutputLimit::Tokens, OutputLimit::Predict],
                stream: StreamKind::Native,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::LlamaInfill => &Self {
                prompt: PromptShape::Fields(&[
                    "input_prefix",
                    "input_suffix",
                    "input_extra",
                    "prompt",
                ]),
                output_limits: &[OutputLimit::Tokens, OutputLimit::Predict],
                stream: StreamKind::Native,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::LlamaEmbedding => &Self {
                prompt: PromptShape::Fields(&["content", "input"]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::LlamaApplyTemplate => &Self {
                prompt: PromptShape::Fields(&["messages"]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::OllamaChat => &Self {
                prompt: PromptShape::Messages,
                // Caps are set as `options.num_predict`.
                output_limits: &[OutputLimit::Tokens],
                stream: StreamKind::Chunks,
                errors: ErrorForm::Ollama,
            },
            Endpoint::OllamaGenerate => &Self {
                prompt: PromptShape::Fields(&["system", "prompt", "suffix"]),
                // Caps are set as `options.num_predict`.
                output_limits: &[OutputLimit::Tokens],
                stream: StreamKind::Chunks,
                errors: ErrorForm::Ollama,
            },
            Endpoint::OllamaEmbed => &Self {
                prompt: PromptShape::Fields(&["input"]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::Ollama,
            },
            Endpoint::OllamaEmbeddings => &Self {
                prompt: PromptShape::Fields(&["prompt"]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::Ollama,
            },
            Endpoint::Transcriptions | Endpoint::Translations => &Self {
                prompt: PromptShape::Fields(&["prompt"]),
                output_limits: &[],
                stream: StreamKind::Transcripts,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::Detokenize => &Self {
                prompt: PromptShape::Fields(&["tokens"]),
                output_limits: &[],
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
            Endpoint::Other => &Self {
                prompt: PromptShape::Unknown,
                output_limits: TOKENS,
                stream: StreamKind::Chunks,
                errors: ErrorForm::OpenAi,
            },
        }
    }
}
