//! The scripted behaviour of the fake engine.

use serde::Deserialize;

/// How the fake engine responds. Tests change it at run time with `POST /fake/script`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ResponseScript {
    /// Number of tokens of a completion.
    pub tokens: u64,
    /// Milliseconds before each token.
    pub token_ms: u64,
    /// Milliseconds to read a prompt, before the first token.
    pub prompt_ms: u64,
    /// Number of batches in which a prompt is read. llama.cpp counts each of them when it is done;
    /// neither engine counts the tokens of a prompt before its first output.
    pub prompt_batches: u64,
    /// Use a processor while a prompt is read.
    pub computes: bool,
    /// Milliseconds between the comments that llama.cpp sends while it reads a prompt.
    pub ping_ms: u64,
    /// Respond to every request with this status and an error body.
    pub status: Option<u16>,
    /// Never send the head of a response.
    pub hang: bool,
    /// Send nothing more after this many tokens, as vLLM does after SIGTERM.
    pub stall_after: Option<u64>,
    /// Kill the own process after this many tokens.
    pub die_after: Option<u64>,
    /// Send an error event and `[DONE]` after this many tokens, as vLLM does when its core has
    /// died.
    pub error_after: Option<u64>,
    /// End the stream after this many tokens without an error event.
    pub end_after: Option<u64>,
    /// Send chunks of this many bytes, which may split events.
    pub chunk_size: Option<usize>,
    /// Respond with the headers and the body of the request.
    pub echo: bool,
    /// Send an invalid event after this many tokens. A response that is not streamed is truncated
    /// to its first half.
    pub malformed: Option<u64>,
    /// Respond 200 to `/health`, and never to any other request.
    pub health_lies: bool,
    /// Stall all streams, including in-flight ones.
    pub stall_all: bool,
    /// Run out of memory after this many tokens, which kills the core.
    pub oom_after: Option<u64>,
    /// Respond 500 to `/wake_up`, and kill the core.
    pub wake_500: bool,
    /// Generate wrong output after waking up.
    pub garbage_after_wake: bool,
    /// Keep the memory while asleep.
    pub sleep_keeps_memory: bool,
    /// Never respond to `/sleep`.
    pub sleep_hangs: bool,
    /// Generate wrong output.
    pub garbage: bool,
    /// The value of `vllm:kv_cache_usage_perc`, instead of one hundredth per request.
    pub kv_usage: Option<f64>,
}

impl Default for ResponseScript {
    fn default() -> Self {
        Self {
            tokens: 5,
            token_ms: 0,
            prompt_ms: 0,
            prompt_batches: 1,
            computes: false,
            ping_ms: 30_000,
            status: None,
            hang: false,
            stall_after: None,
            die_after: None,
            error_after: None,
            end_after: None,
            chunk_size: None,
            echo: false,
            malformed: None,
            health_lies: false,
            stall_all: false,
            oom_after: None,
            wake_500: false,
            garbage_after_wake: false,
            sleep_keeps_memory: false,
            sleep_hangs: false,
            garbage: false,
            kv_usage: None,
        }
    }
}
