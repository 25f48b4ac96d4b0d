//! The memory that a vLLM needs, and what reduces it.

use std::path::PathBuf;

use super::settings::VllmSettings;
use crate::driver::Model;
use crate::footprint::{Footprint, format_size};

/// Returns how the model at `path` is served.
pub(super) fn model(path: PathBuf, settings: &VllmSettings, slots: u32) -> Model {
    Model {
        path,
        context: settings.max_model_len,
        sequences: settings.max_num_seqs.unwrap_or(slots),
        eager: settings.enforce_eager,
        cache: settings.kv_cache_bytes.filter(|bytes| *bytes > 0),
        remedies,
    }
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
