//! llama.cpp's slots: which prompt each has, and its API that saves and restores them.
//!
//! As captured with b11549. A slot that a request names beyond the last one wraps around; anything
//! but a number is ignored. Restored prompts are in the prefix cache of the engine, which all slots
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

/// What a slot has.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot {
    pub(super) prompt: String,
    pub(super) tokens: u64,
    used: u64,
}

/// All slots.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    clock: u64,
    /// The slot that each request named.
    pub(super) named: Vec<Option<i64>>,
    pub(super) saves: u64,
    pub(super) restores: u64,
}

impl Slots {
    pub(super) fn new(count: usize) -> Self {
        let slots = vec![Slot::default(); count.max(1)];
        Self { slots, clock: 0, named: Vec::new(), saves: 0, restores: 0 }
    }

    /// Notes a request for a completion.
    pub(super) fn serve(&mut self, named: &Value, prompt: &str, tokens: u64) {
        let named = named.as_i64();
        self.named.push(named);
        let slot = match named.filter(|slot| *slot >= 0) {
            Some(slot) => self.wrapped(slot.unsigned_abs()),
            None => self.chosen(prompt),
        };
        self.clock += 1;
        self.slots[slot] = Slot { prompt: prompt.to_owned(), tokens, used: self.clock };
    }

    /// Returns the slot with the longest common prefix, if it is a tenth of the prompt, else the
    /// one that was not used for longest.
    fn chosen(&self, prompt: &str) -> usize {
        let common = |slot: &Slot| {
            slot.prompt
                .bytes()
                .zip(prompt.bytes())
                .take_while(|(left, right)| left == right)
                .count()
        };
        let similar = self.slots.iter().map(common).enumerate().max_by_key(|(_, common)| *common);
        match similar.filter(|(_, common)| common * 10 > prompt.len()) {
            Some((slot, _)) => slot,
            None => (0..self.slots.len()).min_by_key(|slot| self.slots[*slot].used).unwrap_or(0),
        }
    }

    fn wrapped(&self, slot: u64) -> usize {
        usize::try_from(slot % self.slots.len() as u64).unwrap_or(0)
    }

    /// Returns the tokens of a slot.
    pub(super) fn tokens(&self, slot: usize) -> u64 {
        self.slots.get(slot).map_or(0, |slot| slot.tokens)
    }
}

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
