//! The metrics of an engine of which only the address is known: those of vLLM, llama.cpp and
//! SGLang are told apart by the prefixes of their names.

use crate::driver::MetricsSource;
use crate::drivers::{llama_cpp, vllm};
use crate::scrape::{EngineMetrics, Sample, add, add_requests, keep_max, label, samples};

/// The slots are llama.cpp's, which has them even without metrics.
pub(super) const SOURCES: [MetricsSource; 2] = [("/metrics", read), llama_cpp::metrics::SLOTS];

fn read(body: &[u8]) -> EngineMetrics {
    let text = String::from_utf8_lossy(body);
    let read = vllm::metrics::vllm(&text).or(llama_cpp::metrics::llama_cpp(&text));
    read.or(sglang(&text))
}

/// Parses SGLang's `/metrics`, which exists only with `--enable-metrics`. The values of several
/// engines (data parallel) are added up.
fn sglang(text: &str) -> EngineMetrics {
    let mut metrics = EngineMetrics::default();
    for Sample { name, labels, value } in samples(text, "sglang:") {
        // With priority scheduling, the requests are counted once more by priority.
        if label(labels, "priority").is_some_and(|priority| !priority.is_empty()) {
            continue;
        }
        match name {
            "num_running_reqs" => add_requests(&mut metrics.running, value),
            "num_queue_reqs" => add_requests(&mut metrics.waiting, value),
            "token_usage" => keep_max(&mut metrics.kv_used, value),
            "prompt_tokens" => {
                add(&mut metrics.prompt_tokens, value);
                add(&mut metrics.prefix_queries, value);
            }
            "cached_tokens" => add(&mut metrics.prefix_hits, value),
            "generation_tokens" => add(&mut metrics.generated_tokens, value),
            _ => {}
        }
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_is_recognised_by_its_names() {
        for text in [
            "vllm:num_requests_running{engine=\"0\"} 2.0\nvllm:num_requests_waiting 3.0\n\
             vllm:kv_cache_usage_perc 0.25\n",
            "llamacpp:requests_processing 2\nllamacpp:requests_deferred 3\n\
             llamacpp:kv_cache_usage_ratio 0.25\n",
            "sglang:num_running_reqs{model_name=\"m\"} 2.0\nsglang:num_queue_reqs 3.0\n\
             sglang:token_usage 0.25\n",
        ] {
            let EngineMetrics { running, waiting, kv_used, .. } = read(text.as_bytes());
            assert_eq!((running, waiting, kv_used), (Some(2), Some(3), Some(250)), "{text}");
        }
    }

    /// The names, labels and forms of numbers are those of SGLang's documentation
    /// (docs.sglang.io, "Production Metrics", November 2026).
    #[test]
    fn sglang_is_read_as_documented() {
        let read = sglang(
            "# HELP sglang:prompt_tokens_total Number of prefill tokens processed.\n\
             # TYPE sglang:prompt_tokens_total counter\n\
             sglang:prompt_tokens_total{model_name=\"org/m\"} 8.1e+03\n\
             sglang:cached_tokens_total{model_name=\"org/m\",cache_source=\"device\"} 2000.0\n\
             sglang:cached_tokens_total{model_name=\"org/m\",cache_source=\"host\"} 100.0\n\
             sglang:generation_tokens_total{model_name=\"org/m\"} 7.5e+02\n\
             sglang:token_usage{model_name=\"org/m\",dp_rank=\"0\"} 0.28\n\
             sglang:token_usage{model_name=\"org/m\",dp_rank=\"1\"} 0.5\n\
             sglang:cache_hit_rate{model_name=\"org/m\"} 0.0075\n\
             sglang:num_running_reqs{model_name=\"org/m\",dp_rank=\"0\",priority=\"\"} 3.0\n\
             sglang:num_running_reqs{model_name=\"org/m\",dp_rank=\"1\",priority=\"\"} 5.0\n\
             sglang:num_running_reqs{model_name=\"org/m\",dp_rank=\"0\",priority=\"0\"} 3.0\n\
             sglang:num_queue_reqs{model_name=\"org/m\"} 2.0\n",
        );
        let expected = EngineMetrics {
            running: Some(8),
            waiting: Some(2),
            kv_used: Some(500),
            prompt_tokens: Some(8100),
            generated_tokens: Some(750),
            prefix_queries: Some(8100),
            prefix_hits: Some(2100),
            ..EngineMetrics::default()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn other_pages_have_no_metrics() {
        for page in [&b"<html>"[..], b"", b"\xff\xfe", b"http_requests_total 5\n"] {
            assert_eq!(read(page), EngineMetrics::default());
        }
    }
}
