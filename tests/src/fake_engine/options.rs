//! The options of the fake engine, from its command line or the environment variable `FAKE_ENGINE`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Deserialize;

/// The real engine that is imitated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// vLLM: refuses connections while it loads, and uses ids from `X-Request-Id`.
    Vllm,
    /// llama.cpp: responds 503 on every path while it loads.
    #[default]
    LlamaCpp,
}

/// A fake inference engine for tests.
#[derive(Debug, Clone, Parser)]
#[command(args_override_self = true)]
pub struct Options {
    /// Port; 0 selects and prints a free port.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Listen on this Unix socket instead.
    #[arg(long)]
    pub uds: Option<PathBuf>,
    /// Reported model name.
    #[arg(long, default_value = "fake")]
    pub alias: String,
    /// Model; with a model, responses have exactly the keys of the captured engine.
    #[arg(long)]
    pub model: Option<String>,
    /// Names of the model, instead of `--alias`.
    #[arg(long, num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// LoRA adapters as `name=path` (vLLM).
    #[arg(long, num_args = 1..)]
    pub lora_modules: Vec<String>,
    /// Reject requests without one of these keys.
    #[arg(long, num_args = 1..)]
    pub api_key: Vec<String>,
    /// Maximum sequence length in tokens.
    #[arg(long, value_parser = parse_tokens)]
    pub max_model_len: Option<u64>,
    /// Maximum number of concurrent requests; the others wait.
    #[arg(long)]
    pub max_num_seqs: Option<usize>,
    /// Seconds to drain after SIGTERM (vLLM).
    #[arg(long, default_value_t = 0)]
    pub shutdown_timeout: u64,
    /// Order of waiting requests: `fcfs` or `priority`.
    #[arg(long, default_value = "fcfs")]
    pub scheduling_policy: String,
    /// Send the header `x-request-id`.
    #[arg(long)]
    pub enable_request_id_headers: bool,
    /// Enable the sleep mode endpoints, if `VLLM_SERVER_DEV_MODE` is 1.
    #[arg(long)]
    pub enable_sleep_mode: bool,
    /// Accept requests with tools (vLLM), together with the parser.
    #[arg(long)]
    pub enable_auto_tool_choice: bool,
    /// Parser of tool calls (vLLM).
    #[arg(long)]
    pub tool_call_parser: Option<String>,
    /// What the model is used for (vLLM): `generate`, or `pooling` for embeddings and the like.
    #[arg(long, default_value = "auto")]
    pub runner: String,
    /// What a pooling model does (vLLM): `embed` or `classify`.
    #[arg(long, default_value = "auto")]
    pub convert: String,
    /// Embeddings may have fewer dimensions (vLLM).
    #[arg(long)]
    pub matryoshka: bool,
    /// Do not describe the routes at `/openapi.json` (vLLM).
    #[arg(long)]
    pub disable_fastapi_docs: bool,
    /// Serve embeddings (llama.cpp).
    #[arg(long, alias = "embedding")]
    pub embeddings: bool,
    /// Rank documents (llama.cpp).
    #[arg(long, alias = "rerank")]
    pub reranking: bool,
    /// The model reads images, audio and video.
    #[arg(long)]
    pub vision: bool,
    /// The model transcribes and speaks: the endpoints below `/v1/audio`.
    #[arg(long)]
    pub audio: bool,
    /// The model generates images: the endpoints below `/v1/images`.
    #[arg(long)]
    pub images: bool,
    /// Enable `/metrics` (llama.cpp with a model; otherwise always enabled).
    #[arg(long)]
    pub metrics: bool,
    /// Disable the access log (vLLM with a model).
    #[arg(long)]
    pub disable_uvicorn_access_log: bool,
    /// Engine to imitate.
    #[arg(long, value_enum, default_value_t = Flavour::LlamaCpp)]
    pub flavour: Flavour,
    /// Load time in milliseconds.
    #[arg(long, default_value_t = 0)]
    pub load_ms: u64,
    /// Exit with this code halfway through loading.
    #[arg(long)]
    pub fail_load: Option<u8>,
    /// Run out of memory while loading.
    #[arg(long)]
    pub oom: bool,
    /// Number of reported slots.
    #[arg(long, default_value_t = 2)]
    pub slots: usize,
    /// Folder of saved slots (llama.cpp).
    #[arg(long)]
    pub slot_save_path: Option<PathBuf>,
    /// Restore slots without effect, as some builds do, and all for models with a sliding window or
    /// a recurrent state (llama.cpp).
    #[arg(long)]
    pub useless_restores: bool,
    /// Save only a part of a slot, because the disk is full (llama.cpp).
    #[arg(long)]
    pub full_disk: bool,
    /// Exit immediately with this code.
    #[arg(long)]
    pub exit_code: Option<u8>,
    /// Print this file before exiting immediately (with code 1 unless `--exit-code` is given).
    #[arg(long)]
    pub last_words: Option<PathBuf>,
    /// Ignore SIGTERM.
    #[arg(long)]
    pub ignore_sigterm: bool,
    /// Wait this many milliseconds before exiting.
    #[arg(long, default_value_t = 0)]
    pub slow_exit_ms: u64,
    /// Start a child that outlives this process.
    #[arg(long)]
    pub fork_child: bool,
    /// Start a core process, which outlives this process, and without which this process exits.
    #[arg(long)]
    pub fork_core: bool,
    /// Milliseconds from the death of the core to the exit of this process.
    #[arg(long, default_value_t = 5900)]
    pub core_death_ms: u64,
    /// Directory of the memory that all engines of a test share.
    #[arg(long)]
    pub memory_root: Option<PathBuf>,
    /// Bytes of memory to hold.
    #[arg(long, default_value_t = 0)]
    pub memory_bytes: u64,
    /// Fraction of the device that has to be free at the start (vLLM).
    #[arg(long)]
    pub gpu_memory_utilization: Option<f64>,
    /// Size of the device in bytes as the runtime reports it, if it differs from the kernel's.
    #[arg(long)]
    pub device_total: Option<u64>,
    /// Milliseconds that the memory stays held after the process has exited.
    #[arg(long, default_value_t = 0)]
    pub memory_linger_ms: u64,
    /// Wait for memory instead of failing.
    #[arg(long)]
    pub memory_wait: bool,
    /// Respond immediately with a constant, for benchmarks.
    #[arg(long)]
    pub bench: bool,
    /// Response script as JSON (see [`super::ResponseScript`]).
    #[arg(long, default_value = "{}")]
    pub script: String,
}

impl Options {
    /// Returns the names of the model; the first one is used in responses.
    pub(super) fn names(&self) -> &[String] {
        if self.served_model_name.is_empty() {
            std::slice::from_ref(&self.alias)
        } else {
            &self.served_model_name
        }
    }

    /// Returns the LoRA adapters with their paths.
    pub(super) fn adapters(&self) -> impl Iterator<Item = (&str, &str)> {
        self.lora_modules.iter().filter_map(|module| module.split_once('='))
    }

    /// Returns true if the engine was started with the command line of a real engine.
    pub(super) fn faithful(&self) -> bool {
        self.model.is_some()
    }

    /// Returns true if vLLM is imitated.
    pub(super) fn vllm(&self) -> bool {
        self.flavour == Flavour::Vllm
    }
}

/// The error of an invalid number of tokens, in the words of Python's argparse.
#[derive(Debug, thiserror::Error)]
#[error("invalid int value: '{0}'")]
struct InvalidTokens(String);

/// Parses a number of tokens as vLLM does: `32k` is 32000 and `32K` is 32768.
fn parse_tokens(text: &str) -> Result<u64, InvalidTokens> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'k')) => (&text[..at], 1_000),
        Some((at, 'K')) => (&text[..at], 1_024),
        _ => (text, 1),
    };
    number
        .parse::<u64>()
        .map(|number| number.saturating_mul(unit))
        .map_err(|_| InvalidTokens(text.to_owned()))
}
