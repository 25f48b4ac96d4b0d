use super::*;
use crate::fleet::DecodeRates;
use crate::random::Distribution;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Returns a model that prefills 1000 tokens per second, and decodes 10 for one response and 16 in
/// total for two and more.
fn model() -> EngineModel {
    EngineModel {
        load_time: Distribution::Fixed(40.0),
        stop_time: Distribution::Fixed(5.0),
        service: ServiceModel::Rates {
            overhead: Distribution::Fixed(0.1),
            prefill: 1000.0,
            decode: DecodeRates(vec![(1, 10.0), (2, 16.0)]),
        },
        kv_tokens: None,
        prefix_cache: false,
        hang_detection_time: ms(30_000),
    }
}

fn job(prompt: u32, output: u32) -> Job {
    Job {
        prompt,
        output,
        class_prefix: (ClassId(0), 0),
        session_prefix: (0, 0),
        recorded_times: None,
    }
}

/// An engine with a log of its progress.
struct EngineHarness {
    engine: Engine,
    log: Vec<(u64, ResponseProgress)>,
}

impl EngineHarness {
    fn new(model: &EngineModel) -> Self {
        let mut engine = Engine::new(model, Random::new(1, "test"));
        engine.start(Duration::ZERO);
        Self { engine, log: Vec::new() }
    }

    fn run_until(&mut self, time: Duration) {
        while let Some(next) = self.engine.next_event().filter(|next| *next <= time) {
            let mut progress = Vec::new();
            self.engine.advance(next, &mut progress);
            self.log.extend(progress.into_iter().map(|event| (next.as_micros() as u64, event)));
        }
    }

    fn at(&mut self, time: Duration) -> &mut Engine {
        self.run_until(time);
        &mut self.engine
    }

    /// Runs to the end, and returns when responses began and ended, in microseconds.
    fn run(&mut self) -> Vec<(RequestKey, &'static str, u64)> {
        self.run_until(Duration::MAX);
        let line = |(at, progress): (u64, ResponseProgress)| match progress {
            ResponseProgress::FirstToken(key) => (key, "first", at),
            ResponseProgress::Done(key, _) => (key, "done", at),
        };
        self.log.drain(..).map(line).collect()
    }
}

#[test]
fn prefill_is_sequential_and_decode_is_parallel() {
    let mut harness = EngineHarness::new(&model());
    harness.at(ms(0)).submit(1, job(500, 11), ms(0));
    harness.at(ms(100)).submit(2, job(1000, 5), ms(100));
    // 1: overhead until 0.1 s, prefill until 0.6 s, first token at 0.7 s. 2: waits for prefill
    // until 0.6 s, prefill until 1.6 s. By then 1 has 10 tokens and one left; from then on each
    // gets 8 per second, so that a token takes 0.125 s. 2 has its first token then, too. Alone, it
    // needs another 0.4 s for four tokens.
    let expected = [
        (1, "first", 700_000),
        (1, "done", 1_725_000),
        (2, "first", 1_725_000),
        (2, "done", 2_125_000),
    ];
    assert_eq!(harness.run(), expected);
    assert_eq!(harness.engine.next_event(), None);
}

#[test]
fn cancelled_request_frees_its_share() {
    let mut harness = EngineHarness::new(&model());
    for key in 1..=3 {
        harness.at(ms(0)).submit(key, job(100, 100), ms(0));
    }
    // Prefill ends at 0.2 s, 0.3 s and 0.4 s. 3 is cancelled during its prefill, and 2 a second
    // after its prefill.
    let usage = harness.at(ms(350)).cancel(3, ms(350));
    assert_eq!(usage, TokenUsage::default());
    // 1 gets one token until 0.3 s; from then on both get 8 per second: 2 has 8 at 1.3 s.
    let usage = harness.at(ms(1300)).cancel(2, ms(1300));
    assert_eq!(usage, TokenUsage { cached: 0, generated: 8 });
    // 1 has 9 by then, and 91 left at 10 per second.
    assert_eq!(
        harness.run(),
        [(1, "first", 300_000), (2, "first", 425_000), (1, "done", 10_400_000)]
    );
}

#[test]
fn request_queues_when_kv_cache_is_full() {
    let mut harness = EngineHarness::new(&EngineModel { kv_tokens: Some(300), ..model() });
    for (key, prompt) in [(1, 190), (2, 190), (3, 10)] {
        harness.at(ms(0)).submit(key, job(prompt, 10), ms(0));
    }
    let metrics = harness.at(ms(1000)).metrics(ms(1000)).unwrap();
    assert_eq!(
        (metrics.waiting, metrics.kv_used, metrics.age_ms(ms(1000))),
        (2, 666, 0),
        "3 does not overtake 2"
    );
    // 1: prefill until 0.29 s, done at 1.29 s. 2 and 3 start then: overhead, then prefill of 2
    // until 1.58 s and of 3 until 1.59 s.
    let times = harness.run();
    assert_eq!(times[..2], [(1, "first", 390_000), (1, "done", 1_290_000)]);
    assert_eq!(times.iter().filter(|(_, event, _)| *event == "done").count(), 3);
    assert_eq!(harness.engine.reserved, 0);
    // A request that is larger than the cache runs alone.
    harness.engine.submit(4, job(400, 1), ms(100_000));
    assert_eq!(harness.run(), [(4, "first", 100_600_000), (4, "done", 100_600_000)]);
}

#[test]
fn cached_prefixes_are_not_prefilled_again() {
    let mut harness = EngineHarness::new(&EngineModel { prefix_cache: true, ..model() });
    let turn = |prompt, shared| Job {
        session_prefix: (7, shared),
        class_prefix: (ClassId(0), 100),
        ..job(prompt, 1)
    };
    harness.engine.submit(1, turn(1000, 100), ms(0));
    // The history is 1000 tokens and the response. The client sends 1001 of it, so 500 are new.
    harness.at(ms(10_000)).submit(2, turn(1501, 1001), ms(10_000));
    // Another session shares the prefix of the class and nothing more.
    let other = Job { session_prefix: (8, 900), ..turn(1000, 0) };
    harness.at(ms(20_000)).submit(3, other, ms(20_000));
    harness.at(ms(30_000)).stop(ms(30_000));
    harness.engine.start(ms(30_000));
    harness.engine.submit(4, turn(1000, 1000), ms(30_000));
    harness.run_until(Duration::MAX);
    let done = harness.log.iter().filter_map(|(at, progress)| match progress {
        ResponseProgress::Done(key, usage) => Some((*key, usage.cached, *at)),
        ResponseProgress::FirstToken(_) => None,
    });
    let expected =
        [(1, 0, 1_200_000), (2, 1001, 10_700_000), (3, 100, 21_100_000), (4, 0, 31_200_000)];
    assert_eq!(done.collect::<Vec<_>>(), expected);
}

#[test]
fn fixed_service_times_scale_with_speed() {
    let service = ServiceModel::Fixed {
        first_token: Distribution::Fixed(1.0),
        rest: Distribution::Fixed(3.0),
        use_recorded: false,
    };
    let mut harness = EngineHarness::new(&EngineModel { service, ..model() });
    harness.engine.submit(1, job(100, 30), ms(0));
    harness.at(ms(500)).submit(2, job(100, 30), ms(500));
    // Half the speed for two seconds, then a hang of one second.
    harness.at(ms(2000)).set_speed(0.5, ms(2000));
    harness.at(ms(4000)).set_speed(0.0, ms(4000));
    assert_eq!(harness.engine.next_event(), None);
    harness.at(ms(5000)).set_speed(1.0, ms(5000));
    let expected = [
        (1, "first", 1_000_000),
        (2, "first", 1_500_000),
        (1, "done", 6_000_000),
        (2, "done", 6_500_000),
    ];
    assert_eq!(harness.run(), expected);
}

#[test]
fn stop_aborts_all_requests_and_clears_state() {
    let mut harness = EngineHarness::new(&model());
    harness.engine.submit(5, job(100, 30), ms(0));
    harness.engine.submit(2, job(100, 30), ms(0));
    harness.at(ms(1300)).submit(9, job(1, 0), ms(1300));
    // 5 is decoded from 0.2 s on, and 2 from 0.3 s on.
    let aborted = harness.at(ms(1300)).stop(ms(1300));
    let usage = |generated| TokenUsage { cached: 0, generated };
    assert_eq!(aborted, [(2, usage(8)), (5, usage(9)), (9, usage(0))]);
    assert_eq!((harness.engine.next_event(), harness.engine.metrics(ms(9000))), (None, None));
    harness.engine.start(ms(9000));
    harness.engine.submit(1, job(100, 0), ms(9000));
    assert_eq!(harness.run()[2..], [(1, "first", 9_200_000), (1, "done", 9_200_000)]);
}

#[test]
fn metrics_are_those_of_the_last_scrape() {
    let mut harness = EngineHarness::new(&model());
    for key in 1..=2 {
        harness.engine.submit(key, job(0, 1000), ms(0));
    }
    let scraped = |harness: &mut EngineHarness, at: u64| {
        let metrics = harness.at(ms(at)).metrics(ms(at)).unwrap();
        (metrics.at.as_millis(), metrics.decode_tps)
    };
    assert_eq!(scraped(&mut harness, 900), (0, 0), "one scrape does not show a speed");
    // Both are decoded from 0.1 s on.
    assert_eq!(scraped(&mut harness, 1999), (1000, 7));
    assert_eq!(scraped(&mut harness, 60_500), (60_000, 8), "scrapes in between were skipped");
    harness.engine.cancel(1, ms(60_500));
    assert_eq!(scraped(&mut harness, 61_100), (61_000, 9), "13 tokens of 1.5 responses");
    assert_eq!(scraped(&mut harness, 63_000), (63_000, 10));
}

#[test]
fn thousands_of_parallel_responses_end_on_time() {
    let decode = DecodeRates(vec![(1, 100.0), (64, 1600.0)]);
    let service = ServiceModel::Rates { overhead: Distribution::Fixed(0.0), prefill: 1e9, decode };
    let mut harness = EngineHarness::new(&EngineModel { service, ..model() });
    for key in 0..4000 {
        harness.engine.submit(key, job(1, 400), ms(0));
    }
    // 1600 tokens per second for 4000 responses of 400 tokens.
    let times = harness.run();
    let last = times.last().map(|(_, _, at)| *at).unwrap();
    assert!(last.abs_diff(1_000_000_000) <= 4000, "{last}");
    assert_eq!(times.len(), 8000);
}
