//! vLLM's own metrics. The names are those of vLLM 0.32.0.

use crate::scrape::{EngineMetrics, Sample, add, add_requests, keep_max, label, samples};

/// Parses vLLM's `/metrics`. The values of several engines (data parallel) are added up.
pub(crate) fn vllm(text: &str) -> EngineMetrics {
    let mut metrics = EngineMetrics::default();
    for Sample { name, labels, value } in samples(text, "vllm:") {
        match name {
            "num_requests_running" => add_requests(&mut metrics.running, value),
            "num_requests_waiting" => add_requests(&mut metrics.waiting, value),
            // Some versions report both names, with the same value; the second one is older.
            "kv_cache_usage_perc" | "gpu_cache_usage_perc" => keep_max(&mut metrics.kv_used, value),
            "prefix_cache_queries" => add(&mut metrics.prefix_queries, value),
            "prefix_cache_hits" => add(&mut metrics.prefix_hits, value),
            "prompt_tokens" => add(&mut metrics.prompt_tokens, value),
            "generation_tokens" => add(&mut metrics.generated_tokens, value),
            "num_preemptions" => add(&mut metrics.preemptions, value),
            "engine_sleep_state" => sleep_state(&mut metrics.asleep, labels, value),
            _ => {}
        }
    }
    metrics
}

/// Reads a line of vLLM's sleep state, which has one line per state, with 1 for the current one.
/// All of them are 0 while the engine is only paused.
fn sleep_state(asleep: &mut Option<bool>, labels: &str, value: f64) {
    let is_asleep = match label(labels, "sleep_state") {
        Some("awake") => value == 0.0,
        // A 0 leaves open which of the other states is the current one.
        Some("weights_offloaded" | "discard_all") if value > 0.0 => true,
        _ => return,
    };
    *asleep = Some(is_asleep || *asleep == Some(true));
}

#[cfg(test)]
mod tests;
