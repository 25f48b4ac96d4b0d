//! The memory that a vLLM needs, and what reduces it.

use std::path::{Path, PathBuf};

use pointsman_files::read_regular;
use serde_json::Value;

use super::settings::VllmSettings;
use crate::footprint::{CacheType, Extra, Footprint, Serving, format_size};
use crate::model_need::{ExtraSpec, Model};

/// Tokens of a step (`--max-num-batched-tokens`), which layers with a window hold in addition: the
/// largest default of vLLM for a server.
const STEP: u64 = 8192;
/// Defaults of `--max-loras` and `--max-lora-rank`.
const MAX_LORAS: u64 = 1;
const MAX_RANK: u64 = 16;
/// Maximum size of an adapter's description in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// Returns how the model at `path` is served. Relative paths are those of `folder`.
pub(super) fn model(path: PathBuf, folder: &Path, settings: &VllmSettings, slots: u32) -> Model {
    let number = |flag| value(settings, flag).and_then(|text| text.parse::<u64>().ok());
    let serving = Serving {
        eager: settings.enforce_eager,
        keys: value(settings, "--kv-cache-dtype").and_then(CacheType::vllm),
        step: number("--max-num-batched-tokens").unwrap_or(STEP),
        single_precision: matches!(settings.dtype.as_deref(), Some("float32" | "float")),
        ..Serving::default()
    };
    let mut extras = Vec::new();
    if !settings.adapters.is_empty() {
        let rank = number("--max-lora-rank").unwrap_or(MAX_RANK);
        let sizes = settings.adapters.iter().map(|(_, path)| adapter(&folder.join(path), rank));
        // All places are as large as the largest adapter could be.
        let places = number("--max-loras").unwrap_or(MAX_LORAS);
        let bytes = sizes.max().unwrap_or(0).saturating_mul(places);
        extras.push(ExtraSpec::Known(Extra::new("LoRA adapters", bytes)));
    }
    extras.extend(draft(settings, folder, serving));
    // The flag counts for each GPU.
    let cache = settings.kv_cache_bytes.filter(|bytes| *bytes > 0);
    Model {
        path,
        context: settings.max_model_len,
        sequences: settings.max_num_seqs.unwrap_or(slots),
        serving,
        extras,
        cache: cache.map(|bytes| bytes.saturating_mul(settings.devices())),
        remedies,
    }
}

/// Returns the value of a flag among the additional arguments, the last one if there are several.
fn value<'a>(settings: &'a VllmSettings, flag: &str) -> Option<&'a str> {
    let words = &settings.arguments;
    let mut values = words.iter().enumerate().filter_map(|(place, word)| {
        let (name, joined) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word.as_str(), None),
        };
        let value = joined.or_else(|| words.get(place + 1).map(String::as_str));
        // vLLM treats underscores in a flag like dashes.
        value.filter(|_| name.replace('_', "-") == flag)
    });
    values.next_back()
}

/// Returns the bytes of an adapter in memory, which vLLM reserves for the maximum rank.
fn adapter(folder: &Path, max_rank: u64) -> u64 {
    let bytes = Extra::of_files("", folder).weights;
    let config = read_regular(&folder.join("adapter_config.json"), MAX_CONFIG).ok();
    let config = config.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let rank = config.and_then(|config| config["r"].as_u64()).filter(|rank| *rank > 0);
    rank.map_or(bytes, |rank| (bytes / rank).saturating_mul(max_rank.max(rank)))
}

/// Returns the model that drafts tokens, if it is another one than the model itself.
fn draft(settings: &VllmSettings, folder: &Path, serving: Serving) -> Option<ExtraSpec> {
    let config: Value = serde_json::from_str(value(settings, "--speculative-config")?).ok()?;
    let path = folder.join(config["model"].as_str()?);
    // What looks up n-grams is called a model, too, but is not a folder.
    path.is_dir().then_some(ExtraSpec::Draft { path, serving })
}

/// Returns what reduces the memory need, besides fewer tokens and slots.
fn remedies(footprint: &Footprint, room: Option<u64>) -> Vec<String> {
    let mut remedies = Vec::new();
    match room {
        Some(room) => remedies.push(format!(
            "set a shared KV cache with `kv-cache-memory`, up to {}",
            format_size(room)
        )),
        None if is_unquantised(footprint) => {
            // 4 bits per weight, scales for groups of 128, and embeddings that are not quantised.
            let weights = footprint.weights / 10 * 3;
            remedies.push(format!(
                "use a model with 4 bits per weight (AWQ or GPTQ), whose weights take about {}",
                format_size(weights)
            ));
            remedies.push("reduce the KV cache with `slots` or `kv-cache-memory`".to_owned());
        }
        None => remedies.push("use a smaller model".to_owned()),
    }
    remedies
        .push("use more GPUs with `tensor-parallel`, and raise the budget accordingly".to_owned());
    remedies
}

/// Returns true if the weights have 16 bits or more.
fn is_unquantised(footprint: &Footprint) -> bool {
    matches!(
        footprint.dtype.as_deref(),
        Some("bfloat16" | "float16" | "float32" | "half" | "float") | None
    )
}
