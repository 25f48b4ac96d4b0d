//! llama.cpp's own metrics: `/metrics`, and `/slots`. The names are those of b11434.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::Value;

use crate::driver::MetricsSource;
use crate::scrape::{EngineMetrics, Sample, add, add_requests, keep_max, samples};

/// There are metrics only with `--metrics`; there are slots unless started with `--no-slots`.
pub(super) const SOURCES: [MetricsSource; 2] =
    [("/metrics", |body| llama_cpp(&String::from_utf8_lossy(body))), SLOTS];

/// The slots, as metrics.
pub(crate) const SLOTS: MetricsSource = ("/slots", |body| {
    let (slots, slots_busy) = slots(body).unzip();
    let work_state = work_state(body);
    EngineMetrics { slots, slots_busy, running: slots_busy, work_state, ..EngineMetrics::default() }
});

/// Parses llama.cpp's `/metrics`, which exists only with `--metrics`.
pub(crate) fn llama_cpp(text: &str) -> EngineMetrics {
    let mut metrics = EngineMetrics::default();
    let mut computed = None;
    for Sample { name, value, .. } in samples(text, "llamacpp:") {
        match name {
            "requests_processing" => add_requests(&mut metrics.running, value),
            "requests_deferred" => add_requests(&mut metrics.waiting, value),
            // Builds of 2025 and older.
            "kv_cache_usage_ratio" => keep_max(&mut metrics.kv_used, value),
            "prompt_tokens" => add(&mut computed, value),
            "prompt_tokens_cached" => add(&mut metrics.prefix_hits, value),
            "n_decode" => add(&mut metrics.batches, value),
            "tokens_predicted" => add(&mut metrics.generated_tokens, value),
            _ => {}
        }
    }
    // Each prompt token is counted as either computed or cached, and every one is looked up.
    let total = |cached: u64| computed.map(|computed: u64| computed.saturating_add(cached));
    metrics.prefix_queries = metrics.prefix_hits.and_then(total);
    metrics.prompt_tokens = total(metrics.prefix_hits.unwrap_or(0));
    metrics
}

/// Parses llama.cpp's `/slots`: the number of slots, and of those in use. The endpoint does not
/// exist with `--no-slots`.
pub(crate) fn slots(json: &[u8]) -> Option<(u32, u32)> {
    let Ok(Value::Array(slots)) = serde_json::from_slice(json) else { return None };
    let mut busy = 0;
    for slot in &slots {
        // Builds before November 2024 report a number, 0 for idle.
        let state = || slot["state"].as_u64().map(|state| state != 0);
        busy += u32::from(slot["is_processing"].as_bool().or_else(state)?);
    }
    Some((u32::try_from(slots.len()).ok()?, busy))
}

/// Returns a number that changes with the progress of any slot: the tokens of its prompt that were
/// processed, and those that it has generated. `None` if the slots do not report them.
pub(crate) fn work_state(json: &[u8]) -> Option<u64> {
    let Ok(Value::Array(slots)) = serde_json::from_slice(json) else { return None };
    let mut hasher = DefaultHasher::new();
    let mut known = false;
    for slot in &slots {
        for key in ["id_task", "n_prompt_tokens_processed", "n_past", "n_decoded", "next_token"] {
            let value = slot.get(key).map(Value::to_string);
            known |= value.is_some();
            value.hash(&mut hasher);
        }
    }
    known.then(|| hasher.finish())
}

#[cfg(test)]
mod tests;
