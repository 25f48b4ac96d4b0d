//! How the fake engine answers.

use serde::Deserialize;

/// How it answers. Can be changed while it runs: `POST /fake/script`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Script {
    /// Tokens of an answer.
    pub tokens: u64,
    /// Milliseconds before each token.
    pub token_ms: u64,
    /// Answer every request with this status and an error body.
    pub status: Option<u16>,
    /// Never send the head of an answer.
    pub hang: bool,
    /// Send nothing more after this many tokens, as vLLM does after SIGTERM.
    pub stall_after: Option<u64>,
    /// End the process after this many tokens.
    pub die_after: Option<u64>,
    /// After this many tokens send an error event and then `[DONE]`, as vLLM does when its core has died.
    pub error_after: Option<u64>,
    /// End the stream after this many tokens without a word.
    pub end_after: Option<u64>,
    /// Send chunks of this many bytes, whatever that cuts apart.
    pub cut: Option<usize>,
    /// Answer with the request: its headers and body.
    pub echo: bool,
    /// Send a broken event after this many tokens; of an answer in one piece, only the first half.
    pub malformed: Option<u64>,
    /// `/health` says 200 whatever happens, and no request gets an answer.
    pub health_lies: bool,
    /// All streams fall silent, also those under way.
    pub stall_all: bool,
    /// Run out of memory after this many tokens: the core dies.
    pub oom_after: Option<u64>,
    /// `/wake_up` answers 500, and the core dies.
    pub wake_500: bool,
    /// After waking up the answers are nonsense.
    pub garbage_after_wake: bool,
    /// Sleeping frees no memory.
    pub sleep_keeps_memory: bool,
    /// `/sleep` never answers.
    pub sleep_hangs: bool,
    /// The answers are nonsense.
    pub garbage: bool,
    /// What `vllm:kv_cache_usage_perc` says, instead of one hundredth for each request.
    pub kv_usage: Option<f64>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            tokens: 5,
            token_ms: 0,
            status: None,
            hang: false,
            stall_after: None,
            die_after: None,
            error_after: None,
            end_after: None,
            cut: None,
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
