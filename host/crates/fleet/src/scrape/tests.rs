use proptest::prelude::*;

use super::*;

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
        slots: None,
        slots_busy: None,
    }
}

#[test]
fn recorded_vllm_metrics_are_parsed() {
    assert_eq!(vllm(VLLM), recorded());
    assert_eq!(vllm(&VLLM.replace('\n', "\r\n")), recorded());
    assert_eq!(vllm(&VLLM.replace("_total{", "{")), recorded());
    assert_eq!(vllm(VLLM.trim_end()), recorded());
    assert_eq!(llama_cpp(VLLM), EngineMetrics::default());
}

#[test]
fn recorded_llama_cpp_metrics_are_parsed() {
    let idle = EngineMetrics {
        running: Some(0),
        waiting: Some(0),
        prefix_queries: Some(0),
        prefix_hits: Some(0),
        prompt_tokens: Some(0),
        generated_tokens: Some(0),
        ..EngineMetrics::default()
    };
    assert_eq!(llama_cpp(LLAMA_CPP), idle);
    assert_eq!(vllm(LLAMA_CPP), EngineMetrics::default());

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
    let labels = r#"a="sleep_state=\"x\",",b = "2" , sleep_state="awake",c="""#;
    assert_eq!(label(labels, "sleep_state"), Some("awake"));
    assert_eq!(label(labels, "b"), Some("2"));
    assert_eq!(label(labels, "c"), Some(""));
    assert_eq!(label(labels, "d"), None);
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

fn scrape(running: u32, prompt: u64, generated: u64, queries: u64, hits: u64) -> EngineMetrics {
    EngineMetrics {
        running: Some(running),
        prompt_tokens: Some(prompt),
        generated_tokens: Some(generated),
        prefix_queries: Some(queries),
        prefix_hits: Some(hits),
        ..EngineMetrics::default()
    }
}

#[test]
fn rates_are_computed_from_two_scrapes() {
    let second = Duration::from_secs(1);
    let first = scrape(2, 100, 1000, 100, 50);
    let both = rates(&first, &scrape(4, 500, 1300, 500, 350), 2 * second);
    assert_eq!(both, Rates { decode_tps: Some(50), prefix_hit: Some(750), progressed: Some(true) });
    assert_eq!(
        rates(&first, &first, second),
        Rates { progressed: Some(false), ..Rates::default() }
    );
    // Only prompt tokens were read.
    let read = rates(&first, &scrape(2, 101, 1000, 101, 50), second);
    assert_eq!(read, Rates { decode_tps: None, prefix_hit: Some(0), progressed: Some(true) });
    // The engine may have been idle in between.
    for (before, after) in [(0, 2), (2, 0), (0, 0)] {
        let got = rates(&scrape(before, 0, 0, 0, 0), &scrape(after, 0, 100, 0, 0), second);
        assert_eq!(got, Rates { decode_tps: None, prefix_hit: None, progressed: Some(true) });
    }
    assert_eq!(rates(&first, &scrape(2, 100, 1300, 100, 50), Duration::ZERO).decode_tps, None);
    assert_eq!(
        rates(&first, &scrape(2, 100, u64::MAX, 100, 50), Duration::from_nanos(1)).decode_tps,
        Some(u32::MAX)
    );
    // More hits than queries: counted at different moments.
    assert_eq!(rates(&first, &scrape(2, 100, 1000, 110, 90), second).prefix_hit, Some(1000));
}

#[test]
fn missing_metrics_have_no_rate() {
    let none = EngineMetrics::default();
    let some = scrape(1, 10, 10, 10, 10);
    for (earlier, later) in [(none, some), (some, none), (none, none)] {
        assert_eq!(rates(&earlier, &later, Duration::from_secs(1)), Rates::default());
    }
    let half = EngineMetrics { prompt_tokens: None, ..scrape(1, 0, 20, 10, 10) };
    assert_eq!(rates(&some, &half, Duration::from_secs(1)).progressed, Some(true));
    let half = EngineMetrics { prompt_tokens: None, ..some };
    assert_eq!(rates(&some, &half, Duration::from_secs(1)).progressed, None);
}

#[test]
fn restarted_engine_has_no_rates() {
    let earlier = EngineMetrics { preemptions: Some(3), ..scrape(1, 10, 10, 10, 10) };
    for later in [
        scrape(1, 9, 1000, 1000, 1000),
        scrape(1, 1000, 9, 1000, 1000),
        scrape(1, 1000, 1000, 9, 1000),
        scrape(1, 1000, 1000, 1000, 9),
        EngineMetrics { preemptions: Some(2), ..scrape(1, 1000, 1000, 1000, 1000) },
    ] {
        assert_eq!(rates(&earlier, &later, Duration::from_secs(1)), Rates::default(), "{later:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_accepted(text in "\\PC*", bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let foreign = String::from_utf8_lossy(&bytes);
        for text in [&*text, &*foreign] {
            let (a, b) = (vllm(text), llama_cpp(text));
            rates(&a, &b, Duration::from_millis(7));
            slots(text.as_bytes());
        }
        slots(&bytes);
    }

    #[test]
    fn almost_valid_lines_are_accepted(
        lines in prop::collection::vec(
            concat!(
                "(vllm|llamacpp):(num_requests_running|requests_processing|prompt_tokens(_cached)?",
                "|engine_sleep_state|kv_cache_usage_perc)(_total)?[ {}\"\\\\,=ä]{0,4}",
                "(sleep_state=\"(awake|discard_all|\\\\\"|é)?\"?,?){0,2}[}\" ]{0,3}",
                "([0-9.eE+-]{0,8}|NaN|[+-]?Inf)[\r ]?",
            ),
            0..8,
        ),
    ) {
        let text = lines.join("\n");
        let (a, b) = (vllm(&text), llama_cpp(&text));
        prop_assert!(a.kv_used.unwrap_or(0) <= 1000);
        rates(&a, &b, Duration::from_millis(7));
        rates(&b, &a, Duration::MAX);
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
