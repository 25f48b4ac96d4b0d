//! What the fake engine can be told on its command line, or in the environment variable `FAKE_ENGINE`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use serde::Deserialize;

/// Whose manners it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// Refuses connections while it loads; ids from `X-Request-Id`.
    Vllm,
    /// Answers 503 on every path while it loads.
    #[default]
    LlamaCpp,
}

/// What it is to do.
#[derive(Debug, Clone, Parser)]
#[command(args_override_self = true)]
pub struct Options {
    /// Port; 0 picks one and prints it.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Listen on this socket instead.
    #[arg(long)]
    pub uds: Option<PathBuf>,
    /// Model name that it reports.
    #[arg(long, default_value = "fake")]
    pub alias: String,
    /// The model; with one it is strict, and its answers are those of the recorded engine and nothing more.
    #[arg(long)]
    pub model: Option<String>,
    /// Names of the model, instead of `--alias`.
    #[arg(long, num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// Refuse requests without one of these keys.
    #[arg(long, num_args = 1..)]
    pub api_key: Vec<String>,
    /// Longest sequence in tokens.
    #[arg(long, value_parser = tokens)]
    pub max_model_len: Option<u64>,
    /// Requests at once; the others wait. Without it there is no limit.
    #[arg(long)]
    pub max_num_seqs: Option<usize>,
    /// Seconds that vLLM goes on after SIGTERM.
    #[arg(long, default_value_t = 0)]
    pub shutdown_timeout: u64,
    /// Order of those that wait: `fcfs` or `priority`.
    #[arg(long, default_value = "fcfs")]
    pub scheduling_policy: String,
    /// Answer with the header `x-request-id`.
    #[arg(long)]
    pub enable_request_id_headers: bool,
    /// Offer `/sleep` and the like, if `VLLM_SERVER_DEV_MODE` is 1 too.
    #[arg(long)]
    pub enable_sleep_mode: bool,
    /// Offer `/metrics` (llama.cpp with a model; the others always do).
    #[arg(long)]
    pub metrics: bool,
    /// Print no line for each request (vLLM with a model).
    #[arg(long)]
    pub disable_uvicorn_access_log: bool,
    /// Whose manners it has.
    #[arg(long, value_enum, default_value_t = Flavour::LlamaCpp)]
    pub flavour: Flavour,
    /// Milliseconds until it serves.
    #[arg(long, default_value_t = 0)]
    pub load_ms: u64,
    /// Exit with this code half way through loading.
    #[arg(long)]
    pub fail_load: Option<u8>,
    /// Find too little memory while loading.
    #[arg(long)]
    pub oom: bool,
    /// Slots that it shows.
    #[arg(long, default_value_t = 2)]
    pub slots: usize,
    /// Exit at once with this code.
    #[arg(long)]
    pub exit_code: Option<u8>,
    /// Take no notice of SIGTERM.
    #[arg(long)]
    pub ignore_sigterm: bool,
    /// Wait this many milliseconds before the end.
    #[arg(long, default_value_t = 0)]
    pub slow_exit_ms: u64,
    /// Start a child that would outlive us.
    #[arg(long)]
    pub fork_child: bool,
    /// Start a child that does vLLM's work: it outlives us, and without it we end.
    #[arg(long)]
    pub fork_core: bool,
    /// Milliseconds from the core's death to ours.
    #[arg(long, default_value_t = 5900)]
    pub core_death_ms: u64,
    /// The folder with the memory that all engines of a test share.
    #[arg(long)]
    pub memory_root: Option<PathBuf>,
    /// Bytes of memory that it holds.
    #[arg(long, default_value_t = 0)]
    pub memory_bytes: u64,
    /// Milliseconds that the memory stays held after the process has gone.
    #[arg(long, default_value_t = 0)]
    pub memory_linger_ms: u64,
    /// Wait for memory instead of failing.
    #[arg(long)]
    pub memory_wait: bool,
    /// Answer at once, and nothing but a constant.
    #[arg(long)]
    pub bench: bool,
    /// How it answers, as JSON (see [`super::Script`]).
    #[arg(long, default_value = "{}")]
    pub script: String,
}

impl Options {
    /// Names of the model, the one for answers first.
    pub(super) fn names(&self) -> &[String] {
        if self.served_model_name.is_empty() {
            std::slice::from_ref(&self.alias)
        } else {
            &self.served_model_name
        }
    }

    /// Started as the real one is.
    pub(super) fn faithful(&self) -> bool {
        self.model.is_some()
    }

    /// Has the manners of vLLM.
    pub(super) fn vllm(&self) -> bool {
        self.flavour == Flavour::Vllm
    }
}

/// A number of tokens as vLLM reads it: `32k` is 32000, and `32K` 32768.
fn tokens(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 'k')) => (&text[..at], 1_000),
        Some((at, 'K')) => (&text[..at], 1_024),
        _ => (text, 1),
    };
    number
        .parse::<u64>()
        .map(|number| number.saturating_mul(unit))
        .map_err(|_| format!("invalid int value: '{text}'"))
}
