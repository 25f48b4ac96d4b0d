use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::scrape::{MAX_LINES, rates};

/// Recorded from vLLM 0.32.0.
const VLLM: &str = r#"
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.79523189758e+09
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="orchestrator"} 0.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="orchestrator"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="orchestrator",reason="capacity"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="orchestrator",reason="deferred"} 0.0
# TYPE vllm:engine_sleep_state gauge
vllm:engine_sleep_state{engine="0",model_name="orchestrator",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="orchestrator",sleep_state="weights_offloaded"} 0.0
vllm:engine_sleep_state{engine="0",model_name="orchestrator",sleep_state="discard_all"} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="orchestrator"} 0.0
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="orchestrator"} 86.0
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="orchestrator"} 1.795231949283146e+09
vllm:prefix_cache_hits_total{engine="0",model_name="orchestrator"} 0.0
vllm:prefix_cache_hits_created{engine="0",model_name="orchestrator"} 1.7952319492831964e+09
vllm:external_prefix_cache_queries_total{engine="0",model_name="orchestrator"} 0.0
vllm:num_preemptions_total{engine="0",model_name="orchestrator"} 0.0
vllm:num_preemptions_created{engine="0",model_name="orchestrator"} 1.795231949283338e+09
vllm:prompt_tokens_total{engine="0",model_name="orchestrator"} 86.0
vllm:prompt_tokens_created{engine="0",model_name="orchestrator"} 1.7952319492833798e+09
vllm:prompt_tokens_by_source_total{engine="0",model_name="orchestrator",source="local_compute"} 86.0
vllm:prompt_tokens_cached_total{engine="0",model_name="orchestrator"} 0.0
vllm:generation_tokens_total{engine="0",model_name="orchestrator"} 32.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="orchestrator"} 6.0
vllm:request_prompt_tokens_count{engine="0",model_name="orchestrator"} 6.0
vllm:request_prompt_tokens_sum{engine="0",model_name="orchestrator"} 86.0
vllm:iteration_tokens_total_count{engine="0",model_name="orchestrator"} 31.0
"#;

fn recorded() -> EngineMetrics {
    EngineMetrics {
        running: Some(0),
        waiting: Some(0),
        kv_used: Some(0),
        prefix_queries: Some(86),
        prefix_hits: Some(0),
        prompt_tokens: Some(86),
        generated_tokens: Some(32),
        preemptions: Some(0),
        asleep: Some(false),
        ..EngineMetrics::default()
    }
}

#[test]
fn recorded_vllm_metrics_are_parsed() {
    assert_eq!(vllm(VLLM), recorded());
    assert_eq!(vllm(&VLLM.replace('\n', "\r\n")), recorded());
    assert_eq!(vllm(&VLLM.replace("_total{", "{")), recorded());
    assert_eq!(vllm(VLLM.trim_end()), recorded());
}

#[test]
fn values_of_several_engines_are_merged() {
    let read = vllm(
        "vllm:num_requests_running{engine=\"0\"} 2.0\nvllm:num_requests_running{engine=\"1\"} 3.0\n\
         vllm:kv_cache_usage_perc{engine=\"0\"} 0.9994\nvllm:kv_cache_usage_perc{engine=\"1\"} \
         0.25\n\
         vllm:generation_tokens_total{engine=\"0\"} 1.5e+03\n\
         vllm:generation_tokens_total{engine=\"1\"} 7\n\
         vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 0.0\n\
         vllm:engine_sleep_state{engine=\"1\",sleep_state=\"awake\"} 1.0\n",
    );
    assert_eq!((read.running, read.kv_used), (Some(5), Some(999)));
    assert_eq!((read.generated_tokens, read.asleep), (Some(1507), Some(true)));
}

#[test]
fn sleep_state_is_parsed_at_every_level() {
    let state = |states: [&str; 3]| {
        let names = ["awake", "weights_offloaded", "discard_all"];
        let lines = names.iter().zip(states).filter(|(_, value)| !value.is_empty());
        let lines: String = lines
            .map(|(name, value)| {
                format!("vllm:engine_sleep_state{{sleep_state=\"{name}\"}} {value}\n")
            })
            .collect();
        vllm(&lines).asleep
    };
    assert_eq!(state(["1.0", "0.0", "0.0"]), Some(false));
    assert_eq!(state(["0.0", "1.0", "0.0"]), Some(true));
    assert_eq!(state(["0.0", "0.0", "1.0"]), Some(true));
    assert_eq!(state(["0.0", "0.0", "0.0"]), Some(true), "paused");
    assert_eq!(state(["", "0.0", "0.0"]), None);
    assert_eq!(state(["", "0.0", "1.0"]), Some(true));
    assert_eq!(state(["NaN", "0.0", "0.0"]), None);
    assert_eq!(vllm("vllm:engine_sleep_state 1\nvllm:engine_sleep_state{} 1").asleep, None);
}

#[test]
fn unusual_but_valid_lines_are_parsed() {
    for line in [
        "vllm:num_requests_running 4",
        "vllm:num_requests_running\t4",
        "  vllm:num_requests_running   4.0 1795231949000",
        "vllm:num_requests_running{} 4",
        "vllm:num_requests_running {engine=\"0\",} 4e0",
        "vllm:num_requests_running{a=\"}\",b=\"\\\"} 9\",c=\"\\\\\"} +4.000 # {trace=\"x\"} 1",
        "vllm:num_requests_running{model_name=\"ä{,=\\n\"}4",
    ] {
        assert_eq!(vllm(line).running, Some(4), "{line}");
    }
}

#[test]
fn invalid_values_are_ignored() {
    for value in [
        "NaN", "nan", "-nan", "+Inf", "-Inf", "inf", "-1", "-0.5", "", "x", "1,5", "0x10", "1e999",
        "{",
    ] {
        for labels in ["", "{engine=\"0\"}"] {
            let text = format!(
                "vllm:num_requests_running{labels} {value}\nvllm:kv_cache_usage_perc{labels} \
                 {value}\n\
                 vllm:prompt_tokens_total{labels} {value}\nvllm:engine_sleep_state{labels} \
                 {value}\n"
            );
            assert_eq!(vllm(&text), EngineMetrics::default(), "{text}");
        }
    }
    for line in [
        "vllm:num_requests_running",
        "vllm:num_requests_running{engine=\"0\"",
        "vllm:num_requests_running{engine=\"0} 4",
        "vllm:num_requests_running}4",
        "# vllm:num_requests_running 4",
        "xvllm:num_requests_running 4",
        "vllm:num_requests_running_total_total 4",
    ] {
        assert_eq!(vllm(line).running, None, "{line}");
    }
    let huge = vllm(
        "vllm:num_requests_running 1.79e+09\nvllm:num_requests_running 1e300\nvllm:prompt_tokens \
         1e300",
    );
    assert_eq!((huge.running, huge.prompt_tokens), (Some(u32::MAX), Some(u64::MAX)));
    assert_eq!(vllm("vllm:kv_cache_usage_perc 7").kv_used, Some(1000));
}

#[test]
fn number_of_lines_is_limited() {
    let last = "vllm:num_requests_running 4";
    assert_eq!(vllm(&("\n".repeat(MAX_LINES - 1) + last)).running, Some(4));
    assert_eq!(vllm(&("\n".repeat(MAX_LINES) + last)).running, None);
}

proptest! {
    #[test]
    fn any_text_is_accepted(text in "\\PC*", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for text in [&*text, &*String::from_utf8_lossy(&bytes)] {
            vllm(text);
        }
    }

    #[test]
    fn almost_valid_lines_are_accepted(
        lines in prop::collection::vec(
            concat!(
                "vllm:(num_requests_running|prompt_tokens(_cached)?|engine_sleep_state",
                "|kv_cache_usage_perc)(_total)?[ {}\"\\\\,=ä]{0,4}",
                "(sleep_state=\"(awake|discard_all|\\\\\"|é)?\"?,?){0,2}[}\" ]{0,3}",
                "([0-9.eE+-]{0,8}|NaN|[+-]?Inf)[\r ]?",
            ),
            0..8,
        ),
    ) {
        let metrics = vllm(&lines.join("\n"));
        prop_assert!(metrics.kv_used.unwrap_or(0) <= 1000);
        // Only a panic fails the test.
        rates(&metrics, &EngineMetrics::default(), Duration::from_millis(7));
        rates(&metrics, &metrics, Duration::MAX);
    }

    #[test]
    fn written_values_are_parsed(
        running in any::<u32>(),
        tokens in 0..1_u64 << 53,
        name in "[^\"\\\\\r\n]*",
        crlf in any::<bool>(),
    ) {
        let end = if crlf { "\r\n" } else { "\n" };
        let text = format!(
            "vllm:num_requests_running{{m=\"{name}\\\"\"}} {running}{end}\
             vllm:prompt_tokens_total{{m=\"{name}\"}} {tokens:e}{end}"
        );
        let read = vllm(&text);
        prop_assert_eq!((read.running, read.prompt_tokens), (Some(running), Some(tokens)));
    }
}
