//! llama.cpp's API that saves and restores slots.
//!
//! As captured with b11549. Restored prompts are in the prefix cache of the engine, which all slots
//! share in the fake, as they do with the prompt cache of the real one.

use std::path::Path;
use std::sync::Arc;

use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::engine::Engine;
use super::options::Options;
use super::responses::{Reply, llama_error, ok};
use super::slots::Slot;

/// Returns true for the path of a slot.
pub(super) fn has(path: &str) -> bool {
    path.strip_prefix("/slots/").is_some_and(|id| !id.is_empty() && !id.contains('/'))
}

/// Saves, restores or erases a slot.
pub(super) async fn respond(engine: Arc<Engine>, request: Request<Incoming>) -> Reply {
    let id = request.uri().path().trim_start_matches("/slots/").parse::<u64>();
    let action = request.uri().query().unwrap_or_default();
    let action =
        action.split('&').find_map(|part| part.strip_prefix("action=")).unwrap_or_default();
    let action = action.to_owned();
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let options = &engine.options;
    let bad = |message: &str| {
        llama_error(&engine, StatusCode::BAD_REQUEST, message, "invalid_request_error")
    };
    let unsupported = |message: &str| {
        llama_error(&engine, StatusCode::NOT_IMPLEMENTED, message, "not_supported_error")
    };
    let Some(folder) = &options.slot_save_path else {
        return unsupported(
            "This server does not support slots action. Start it with `--slot-save-path`",
        );
    };
    let Ok(id) = id else { return bad("Invalid slot ID") };
    let name = body["filename"].as_str();
    match (action.as_str(), name) {
        ("erase", _) => {
            let mut slots = engine.slots();
            let slot = slots.wrapped(id);
            let erased = std::mem::take(&mut slots.slots[slot]).tokens;
            ok(&engine, &json!({ "id_slot": id, "n_erased": erased }))
        }
        ("save" | "restore", None) => {
            bad("[json.exception.out_of_range.403] key 'filename' not found")
        }
        ("save" | "restore", Some(name)) if name.contains(['/', '\\']) || name.starts_with('.') => {
            bad("Invalid filename")
        }
        ("save" | "restore", Some(_)) if options.vision => {
            unsupported("This feature is not supported by multimodal")
        }
        ("save", Some(name)) => match save(&engine, id, name, &folder.join(name)) {
            Some(saved) => ok(&engine, &saved),
            None => {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                llama_error(&engine, status, "Unable to save slot", "server_error")
            }
        },
        ("restore", Some(name)) => match restore(&engine, id, name, &folder.join(name)) {
            Some(restored) => ok(&engine, &restored),
            None => bad(
                "Unable to restore slot: No available space in KV cache or invalid slot save file",
            ),
        },
        _ => bad("Invalid action"),
    }
}

/// Saves a slot; returns `None` if the disk is full, with a part of the file left on it.
fn save(engine: &Engine, id: u64, name: &str, path: &Path) -> Option<Value> {
    let mut slots = engine.slots();
    slots.saves += 1;
    let slot = slots.slots[slots.wrapped(id)].clone();
    let content = json!({ "model": model(&engine.options), "prompt": slot.prompt,
        "tokens": slot.tokens })
    .to_string();
    let end = if engine.options.full_disk { content.len() / 2 } else { content.len() };
    std::fs::write(path, &content.as_bytes()[..end]).ok()?;
    (end == content.len()).then(|| {
        json!({ "id_slot": id, "filename": name, "n_saved": slot.tokens, "n_written": end,
            "timings": { "save_ms": 7.335 } })
    })
}

/// Restores a slot; returns `None` for a file that does not exist, or of another model.
fn restore(engine: &Engine, id: u64, name: &str, path: &Path) -> Option<Value> {
    let content = std::fs::read(path).ok()?;
    let file: Value = serde_json::from_slice(&content).ok()?;
    if file["model"].as_str() != Some(model(&engine.options)) {
        return None;
    }
    let (prompt, tokens) = (file["prompt"].as_str()?, file["tokens"].as_u64()?);
    let mut slots = engine.slots();
    slots.restores += 1;
    slots.clock += 1;
    let (slot, used) = (slots.wrapped(id), slots.clock);
    slots.slots[slot] = Slot { prompt: prompt.to_owned(), tokens, used };
    drop(slots);
    // Builds and models for which a restore has no effect answer in the same way.
    if !engine.options.useless_restores {
        engine.counts().prompt(prompt, tokens);
    }
    Some(json!({ "id_slot": id, "filename": name, "n_restored": tokens, "n_read": content.len(),
        "timings": { "restore_ms": 4.087 } }))
}

fn model(options: &Options) -> &str {
    options.model.as_deref().unwrap_or_default()
}
