//! The metrics of the fake engine, with the names of the captured engines.

use std::sync::atomic::Ordering;

use super::engine::Engine;

/// Returns the metrics of vLLM.
pub(super) fn vllm(engine: &Engine) -> String {
    let model = engine.name();
    let (running, waiting) = engine.queue.counts();
    let script = engine.script();
    let usage = script.kv_usage.unwrap_or_else(|| (running as f64 / 100.0).min(1.0));
    let sleep_state = engine.sleep_state().level;
    let counts = engine.counts();
    let (running, waiting) = (running as f64, waiting as f64);
    let mut all = String::new();
    // Adds a family from its name, help, type, and values with further labels.
    let mut family = |name: &str, help: &str, kind: &str, values: &[(&str, f64)]| {
        all += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in values {
            let (before, after) = labels.split_once('|').unwrap_or(("", labels));
            let labels = format!("engine=\"0\"{before},model_name=\"{model}\"{after}");
            all += &format!("{name}{{{labels}}} {value:?}\n");
        }
    };
    let help = "Number of requests in model execution batches.";
    family("vllm:num_requests_running", help, "gauge", &[("", running)]);
    let help = "Number of requests waiting to be processed.";
    family("vllm:num_requests_waiting", help, "gauge", &[("", waiting)]);
    let help = "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for \
        scheduling capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV \
        transfer, blocked status). Sum of all reasons equals vllm:num_requests_waiting.";
    let reasons = [(",reason=\"capacity\"", waiting), (",reason=\"deferred\"", 0.0)];
    family("vllm:num_requests_waiting_by_reason", help, "gauge", &reasons);
    let at =
        |level: Option<u8>| f64::from(u8::from(sleep_state.filter(|level| *level > 0) == level));
    family(
        "vllm:engine_sleep_state",
        "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; \
         weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.",
        "gauge",
        &[
            (",sleep_state=\"awake\"", at(None)),
            (",sleep_state=\"weights_offloaded\"", at(Some(1))),
            (",sleep_state=\"discard_all\"", at(Some(2))),
        ],
    );
    let help = "KV-cache usage. 1 means 100 percent usage.";
    family("vllm:kv_cache_usage_perc", help, "gauge", &[("", usage)]);
    let (queries, hits) = (counts.prompt_tokens as f64, counts.cached_tokens as f64);
    let help = "Prefix cache queries, in terms of number of queried tokens.";
    family("vllm:prefix_cache_queries_total", help, "counter", &[("", queries)]);
    let help = "Prefix cache hits, in terms of number of cached tokens.";
    family("vllm:prefix_cache_hits_total", help, "counter", &[("", hits)]);
    let help = "Number of prefill tokens processed.";
    family("vllm:prompt_tokens_total", help, "counter", &[("", queries)]);
    let help = "Number of generation tokens processed.";
    let generated = counts.generation_tokens as f64;
    family("vllm:generation_tokens_total", help, "counter", &[("", generated)]);
    family(
        "vllm:request_success_total",
        "Count of successfully processed requests.",
        "counter",
        &[
            (",finished_reason=\"stop\"|", counts.stop as f64),
            (",finished_reason=\"length\"|", counts.length as f64),
            (",finished_reason=\"abort\"|", counts.abort as f64),
            (",finished_reason=\"error\"|", counts.error as f64),
            (",finished_reason=\"repetition\"|", 0.0),
        ],
    );
    all
}

/// Returns the metrics of llama.cpp.
pub(super) fn llama(engine: &Engine) -> String {
    let (running, waiting) = engine.queue.counts();
    let busy = engine.busy.load(Ordering::SeqCst);
    let counts = engine.counts();
    let fresh = counts.prompt_tokens - counts.cached_tokens;
    let made = counts.generation_tokens;
    let counters: [(&str, &str, u64); 10] = [
        (
            "prompt_tokens_total",
            "Number of prompt tokens processed, excluding cached tokens",
            fresh,
        ),
        (
            "prompt_tokens_cached_total",
            "Number of prompt tokens reused from the cache",
            counts.cached_tokens,
        ),
        ("prompt_seconds_total", "Total time spent processing prompts", 0),
        ("tokens_predicted_total", "Number of generation tokens processed", made),
        ("tokens_predicted_seconds_total", "Total time spent generating tokens", 0),
        (
            "n_decode_total",
            "Total number of llama_decode() calls, excluding speculative decoding and multimodal \
             decoding",
            counts.batches,
        ),
        ("n_tokens_max", "Largest observed sequence length (prompt + generation)", 0),
        ("spec_decode_num_draft_tokens_total", "Speculative: Total draft tokens generated", 0),
        (
            "spec_decode_num_accepted_tokens_total",
            "Speculative: Total draft tokens accepted by the target model",
            0,
        ),
        (
            "spec_decode_num_drafts_total",
            "Speculative: Total speculative decoding verification steps",
            0,
        ),
    ];
    let gauges: [(&str, &str, u64); 5] = [
        ("prompt_tokens_seconds", "Average prompt throughput in tokens/s", 0),
        ("predicted_tokens_seconds", "Average generation throughput in tokens/s", 0),
        ("requests_processing", "Number of requests processing", running as u64),
        ("requests_deferred", "Number of requests deferred", waiting as u64),
        (
            "n_busy_slots_per_decode",
            "Average number of busy slots per llama_decode() call",
            busy.min(1),
        ),
    ];
    let mut all = String::new();
    for (kind, families) in [("counter", &counters[..]), ("gauge", &gauges[..])] {
        for (name, help, value) in families {
            let name = format!("llamacpp:{name}");
            all += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
    }
    all
}
