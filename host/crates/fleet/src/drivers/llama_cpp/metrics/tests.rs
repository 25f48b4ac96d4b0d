use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::scrape::rates;

/// Recorded from a llama.cpp server, without most of the help texts.
const LLAMA_CPP: &str =
    "# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed, excluding cached tokens
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 0
llamacpp:prompt_tokens_cached_total 0
llamacpp:prompt_seconds_total 0
llamacpp:tokens_predicted_total 0
llamacpp:tokens_predicted_seconds_total 0
llamacpp:n_decode_total 0
llamacpp:n_tokens_max 0
llamacpp:spec_decode_num_draft_tokens_total 0
llamacpp:prompt_tokens_seconds 0
llamacpp:predicted_tokens_seconds 0
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 0
llamacpp:requests_deferred 0
llamacpp:n_busy_slots_per_decode 0
";

#[test]
fn recorded_llama_cpp_metrics_are_parsed() {
    let idle = EngineMetrics {
        running: Some(0),
        waiting: Some(0),
        prefix_queries: Some(0),
        prefix_hits: Some(0),
        prompt_tokens: Some(0),
        generated_tokens: Some(0),
        batches: Some(0),
        ..EngineMetrics::default()
    };
    assert_eq!(llama_cpp(LLAMA_CPP), idle);

    let busy = LLAMA_CPP
        .replace("prompt_tokens_total 0", "prompt_tokens_total 100")
        .replace("prompt_tokens_cached_total 0", "prompt_tokens_cached_total 50")
        .replace("requests_processing 0", "requests_processing 2");
    let read = llama_cpp(&busy);
    assert_eq!(
        (read.prefix_queries, read.prefix_hits, read.prompt_tokens),
        (Some(150), Some(50), Some(150))
    );
    assert_eq!((read.running, read.waiting), (Some(2), Some(0)));

    // Builds that do not count cached tokens, and had a gauge for the KV cache.
    let old = llama_cpp("llamacpp:prompt_tokens_total 7\nllamacpp:kv_cache_usage_ratio 0.25\n");
    assert_eq!((old.prefix_queries, old.prefix_hits, old.prompt_tokens), (None, None, Some(7)));
    assert_eq!(old.kv_used, Some(250));
}

#[test]
fn slots_are_counted() {
    let recorded = br#"[
        {"id":0,"n_ctx":1024,"speculative":false,"is_processing":false},
        {"id":1,"n_ctx":1024,"speculative":false,"is_processing":false}
    ]"#;
    assert_eq!(slots(recorded), Some((2, 0)));
    assert_eq!(slots(br#"[{"is_processing":true},{"is_processing":false}]"#), Some((2, 1)));
    assert_eq!(slots(br#"[{"state":1},{"state":0}]"#), Some((2, 1)));
    assert_eq!(slots(b"[]"), Some((0, 0)));
    for other in [
        "",
        "{}",
        "[1]",
        "[{}]",
        "[null]",
        r#"[{"is_processing":1}]"#,
        r#"{"error":{"code":501}}"#,
        "[[",
    ] {
        assert_eq!(slots(other.as_bytes()), None, "{other}");
    }
}

#[test]
fn work_on_a_prompt_changes_the_state() {
    // As in the capture of a long prompt.
    let slots = |read: u32, decoded: u32| {
        let next = format!("{{\"has_next_token\":true,\"n_decoded\":{decoded}}}");
        let slot = format!(
            "[{{\"id\":0,\"is_processing\":true,\"n_prompt_tokens_processed\":{read},\
             \"next_token\":[{next}]}}]"
        );
        work_state(slot.as_bytes()).unwrap()
    };
    assert_eq!(slots(0, 0), slots(0, 0));
    assert_ne!(slots(0, 0), slots(2048, 0));
    assert_ne!(slots(3781, 0), slots(3781, 1));
    for other in ["", "{}", r#"[{"id":0,"is_processing":false}]"#] {
        assert_eq!(work_state(other.as_bytes()), None, "{other}");
    }
}

proptest! {
    #[test]
    fn any_text_is_accepted(text in "\\PC*", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for text in [&*text, &*String::from_utf8_lossy(&bytes)] {
            llama_cpp(text);
            slots(text.as_bytes());
        }
    }

    #[test]
    fn almost_valid_lines_are_accepted(
        lines in prop::collection::vec(
            concat!(
                "llamacpp:(requests_processing|prompt_tokens(_cached)?)(_total)?",
                "[ {}\"\\\\,=ä]{0,4}",
                "(sleep_state=\"(awake|discard_all|\\\\\"|é)?\"?,?){0,2}[}\" ]{0,3}",
                "([0-9.eE+-]{0,8}|NaN|[+-]?Inf)[\r ]?",
            ),
            0..8,
        ),
    ) {
        let metrics = llama_cpp(&lines.join("\n"));
        prop_assert!(metrics.kv_used.unwrap_or(0) <= 1000);
        // Only a panic fails the test.
        rates(&metrics, &EngineMetrics::default(), Duration::from_millis(7));
        rates(&metrics, &metrics, Duration::MAX);
    }
}
