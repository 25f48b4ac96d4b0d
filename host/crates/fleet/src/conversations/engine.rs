//! llama.cpp's API of slots, and what identifies the state that a slot can be restored into.
//!
//! Seen with b11549: `save` and `restore` answer 200 with `n_saved`, `n_written` and `n_restored`,
//! and 501 without `--slot-save-path`. A file that does not fit, or is damaged, is 400. A save that
//! cannot write all of the file is 500, and leaves a part of it; in the sources of older builds, it
//! is 200 with `n_written` 0. Ids of slots beyond the last one wrap around. Multimodal models are
//! 501, by the sources.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use pointsman_domain::fnv1a_chain;
use serde_json::{Value, json};

use super::FOLDER_PLACEHOLDER;
use crate::launch::Launch;

/// Maximum time for a question that the engine answers without work.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a slot was not saved or restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SlotError {
    /// The engine has no such API, or not for this model.
    #[error("the engine cannot save or restore slots of this model")]
    Unsupported,
    /// The engine did not respond in time, or not at all.
    #[error("the engine did not respond in time")]
    Timeout,
    /// The engine refused.
    #[error("the engine refused with status {0}")]
    Refused(StatusCode),
    /// What the engine says it did is not what was asked for.
    #[error("the engine saved or restored something else")]
    Mismatch,
    /// The file could not be written.
    #[error("the file cannot be written")]
    Disk,
}

impl SlotError {
    /// Returns the value of the metric's `reason` label.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Timeout => "timeout",
            Self::Refused(_) => "refused",
            Self::Mismatch => "mismatch",
            Self::Disk => "disk",
        }
    }
}

/// What an engine saved.
#[derive(Debug, Clone, Copy)]
pub(super) struct Saved {
    pub(super) tokens: u32,
    pub(super) bytes: u64,
}

/// The host's own requests to an engine.
pub(crate) trait EngineCalls: Sync {
    /// Sends a request, and returns the status and the whole body; `None` if there is no response
    /// in time.
    fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&str>,
        timeout: Duration,
    ) -> impl Future<Output = Option<(StatusCode, Bytes)>> + Send;
}

/// Saves a slot into a file of the lane's folder.
pub(super) async fn save(
    engine: &impl EngineCalls,
    slot: u32,
    file: &str,
    timeout: Duration,
) -> Result<Saved, SlotError> {
    let response = act(engine, slot, "save", file, timeout).await;
    let full = SlotError::Refused(StatusCode::INTERNAL_SERVER_ERROR);
    let response = response.map_err(|error| if error == full { SlotError::Disk } else { error })?;
    let saved = tokens(&response["n_saved"]).zip(response["n_written"].as_u64());
    match saved {
        Some((_, 0)) => Err(SlotError::Disk),
        Some((tokens, bytes)) => Ok(Saved { tokens, bytes }),
        None => Err(SlotError::Mismatch),
    }
}

/// Restores a slot from a file of the lane's folder. Returns the number of tokens.
pub(super) async fn restore(
    engine: &impl EngineCalls,
    slot: u32,
    file: &str,
    timeout: Duration,
) -> Result<u32, SlotError> {
    let response = act(engine, slot, "restore", file, timeout).await?;
    tokens(&response["n_restored"]).ok_or(SlotError::Mismatch)
}

async fn act(
    engine: &impl EngineCalls,
    slot: u32,
    action: &str,
    file: &str,
    timeout: Duration,
) -> Result<Value, SlotError> {
    let path = format!("/slots/{slot}?action={action}");
    let body = json!({ "filename": file }).to_string();
    match engine.call(Method::POST, &path, Some(&body), timeout).await {
        None => Err(SlotError::Timeout),
        Some((StatusCode::NOT_IMPLEMENTED | StatusCode::NOT_FOUND, _)) => {
            Err(SlotError::Unsupported)
        }
        Some((status, body)) if status.is_success() => {
            serde_json::from_slice(&body).map_err(|_| SlotError::Mismatch)
        }
        Some((status, _)) => Err(SlotError::Refused(status)),
    }
}

async fn ask(engine: &impl EngineCalls, path: &str) -> Option<Value> {
    let (status, body) = engine.call(Method::GET, path, None, QUESTION_TIMEOUT).await?;
    status.is_success().then(|| serde_json::from_slice(&body).ok()).flatten()
}

/// Returns the adapters of an engine and their scales, which clients with the right to can change;
/// `None` if the engine has none.
pub(super) async fn adapters(engine: &impl EngineCalls) -> Option<String> {
    let list = ask(engine, "/lora-adapters").await?;
    let has_some = list.as_array().is_some_and(|list| !list.is_empty());
    has_some.then(|| list.to_string())
}

/// Returns what a ready engine is, or `None` if it does not say so.
pub(super) async fn facts(engine: &impl EngineCalls) -> Option<EngineFacts> {
    let props = ask(engine, "/props").await?;
    let settings = &props["default_generation_settings"];
    let parts = [&props["build_info"], &props["model_path"], &settings["n_ctx"]];
    // The command line may only have the name of the model on a hub.
    let model = props["model_path"].as_str().and_then(|path| describe(Path::new(path)));
    let parts = parts.map(Value::to_string).into_iter().chain(model);
    Some(EngineFacts {
        identity: parts.collect::<Vec<_>>().join("\n"),
        slots: tokens(&props["total_slots"]),
        adapters: adapters(engine).await,
    })
}

/// What a ready engine says about itself.
#[derive(Debug)]
pub(super) struct EngineFacts {
    identity: String,
    /// The number of slots.
    pub(super) slots: Option<u32>,
    /// Its adapters, if it has any.
    pub(super) adapters: Option<String>,
}

fn tokens(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|tokens| tokens.try_into().ok())
}

/// Returns what of an engine's launch determines the state of its slots: its command without what
/// differs between starts, its variables, and size and time of the files in its command line:
/// program, model, projector and adapters. `launch` has the port 0 and no folder yet.
pub(crate) fn launch_identity(launch: &Launch) -> String {
    // Of both environments: flags of llama-server are read from `LLAMA_ARG_…` too.
    let env = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let env = env.chain(launch.env.iter().cloned());
    let env = env.filter(|(name, _)| name.starts_with("LLAMA_"));
    let env = env.map(|(name, value)| format!("{name}={value}"));
    let program = launch.command.first().and_then(|program| find_program(program));
    let files = launch.command.iter().skip(1).filter(|word| !word.is_empty());
    let folder = launch.directory.clone().unwrap_or_default();
    let files = files.map(|word| folder.join(word));
    let files = program.into_iter().chain(files).filter_map(|path| describe(&path));
    let words = launch.command.iter().filter(|word| !word.contains(FOLDER_PLACEHOLDER)).cloned();
    words.chain(env).chain(files).collect::<Vec<_>>().join("\n")
}

/// Finds a program as the kernel does it for `execvp`.
fn find_program(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program));
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Describes the state of a file; `None` if there is no such file.
fn describe(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let (size, seconds, nanos) = (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
    Some(format!("{} {size} {seconds}.{nanos}", path.display()))
}

/// Returns the fingerprint of the state that slots of an engine can be restored into: that of its
/// model, its version and its settings.
pub(super) fn fingerprint(launch: &str, facts: &EngineFacts) -> u64 {
    let adapters = facts.adapters.as_deref().unwrap_or_default();
    let parts = [launch, "\0", &facts.identity, "\0", adapters];
    let size = parts.iter().map(|part| part.len()).sum();
    let hashes = fnv1a_chain(parts.iter().map(|part| part.as_bytes()), size, 1);
    hashes.first().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests;
