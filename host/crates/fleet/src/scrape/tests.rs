use super::*;

#[test]
fn labels_are_found() {
    let labels = r#"a="sleep_state=\"x\",",b = "2" , sleep_state="awake",c="""#;
    assert_eq!(label(labels, "sleep_state"), Some("awake"));
    assert_eq!(label(labels, "b"), Some("2"));
    assert_eq!(label(labels, "c"), Some(""));
    assert_eq!(label(labels, "d"), None);
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
    assert_eq!(both, Rates { decode_tps: Some(50), prefix_hit: Some(750) });
    assert_eq!(rates(&first, &first, second), Rates::default());
    // Only prompt tokens were read.
    let read = rates(&first, &scrape(2, 101, 1000, 101, 50), second);
    assert_eq!(read, Rates { decode_tps: None, prefix_hit: Some(0) });
    // The engine may have been idle in between.
    for (before, after) in [(0, 2), (2, 0), (0, 0)] {
        let got = rates(&scrape(before, 0, 0, 0, 0), &scrape(after, 0, 100, 0, 0), second);
        assert_eq!(got, Rates { decode_tps: None, prefix_hit: None });
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
}

#[test]
fn progress_is_any_counter_that_moves() {
    let earlier = EngineMetrics {
        batches: Some(3),
        work_state: Some(1),
        kv_used: Some(10),
        ..scrape(1, 10, 10, 10, 10)
    };
    assert!(!has_progressed(&earlier, &earlier));
    // Requests that are accepted prove nothing, and neither does a metric that was not scraped.
    let accepted = EngineMetrics { running: Some(5), waiting: Some(9), ..earlier };
    assert!(!has_progressed(&earlier, &accepted));
    assert!(!has_progressed(&earlier, &EngineMetrics::default()));
    for later in [
        EngineMetrics { batches: Some(4), ..earlier },
        EngineMetrics { work_state: Some(2), ..earlier },
        EngineMetrics { kv_used: Some(11), ..earlier },
        EngineMetrics { generated_tokens: Some(11), ..earlier },
        EngineMetrics { prompt_tokens: Some(11), ..earlier },
    ] {
        assert!(has_progressed(&earlier, &later), "{later:?}");
    }
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
