use super::*;

const SECOND: Duration = Duration::from_secs(1);
const STALL: Duration = Duration::from_secs(120);

const VLLM: Evidence = Evidence { prompts: false, counters: true, computing: false };
const LLAMA_CPP: Evidence = Evidence { prompts: true, counters: true, computing: true };
const COMMAND: Evidence = Evidence { prompts: false, counters: false, computing: true };

const PROMPT: InFlight = InFlight { first_data: 1, data: 0, client: 0 };
const STREAM: InFlight = InFlight { first_data: 0, data: 1, client: 0 };
const BOTH: InFlight = InFlight { first_data: 1, data: 1, client: 0 };
const SLOW_CLIENT: InFlight = InFlight { first_data: 0, data: 0, client: 3 };

fn seen(in_flight: InFlight, computed: Option<bool>) -> Observation {
    Observation { elapsed: SECOND, in_flight, progressed: false, reports: true, computed }
}

/// Returns after how many seconds of silence the engine hangs, within an hour.
fn hangs_after(evidence: Evidence, observation: &Observation) -> Option<u32> {
    let mut progress = Progress::new(STALL, evidence);
    (1..=3600).find(|_| progress.observe(observation).is_some())
}

#[test]
fn silence_hangs_only_where_progress_is_due() {
    for (evidence, in_flight, computed, hangs) in [
        // A stream that has begun has to go on.
        (VLLM, STREAM, None, Some(120)),
        (LLAMA_CPP, STREAM, Some(false), Some(120)),
        (COMMAND, STREAM, Some(false), Some(120)),
        (COMMAND, STREAM, None, Some(120)),
        // The batch may have a part of a prompt.
        (VLLM, BOTH, None, Some(600)),
        (LLAMA_CPP, BOTH, Some(false), Some(600)),
        (COMMAND, BOTH, Some(false), Some(600)),
        // Before the first data only an engine that counts batches can be judged.
        (LLAMA_CPP, PROMPT, Some(false), Some(600)),
        (VLLM, PROMPT, None, Some(1200)),
        (COMMAND, PROMPT, Some(false), None),
        // Computing is life, but not forever.
        (LLAMA_CPP, PROMPT, Some(true), Some(1200)),
        (LLAMA_CPP, STREAM, Some(true), Some(1200)),
        (COMMAND, STREAM, Some(true), Some(1200)),
        // A client that does not read is not the engine's silence.
        (VLLM, SLOW_CLIENT, None, None),
        (LLAMA_CPP, SLOW_CLIENT, Some(false), None),
        (VLLM, InFlight::default(), None, None),
    ] {
        let context = format!("{evidence:?} {in_flight:?} {computed:?}");
        assert_eq!(hangs_after(evidence, &seen(in_flight, computed)), hangs, "{context}");
    }
    // Without metrics, or without access to its processes, llama.cpp is not judged before its first
    // data.
    let blind = Observation { reports: false, ..seen(PROMPT, Some(false)) };
    assert_eq!(hangs_after(LLAMA_CPP, &blind), None);
    assert_eq!(hangs_after(LLAMA_CPP, &seen(PROMPT, None)), Some(1200));
    let mut off = Progress::new(Duration::ZERO, LLAMA_CPP);
    assert!((1..=3600).all(|_| off.observe(&seen(STREAM, Some(false))).is_none()));
}

#[test]
fn progress_begins_the_silence_anew() {
    let mut progress = Progress::new(STALL, LLAMA_CPP);
    // A batch every 119 s, as on a slow processor, whose engine sleeps in between.
    for second in 1..=3600 {
        let progressed = second % 119 == 0;
        let observation = Observation { progressed, ..seen(PROMPT, Some(false)) };
        assert_eq!(progress.observe(&observation), None, "{second}");
    }
    // A request that ends, and the next one, are no progress: a hung engine whose clients give up
    // is found.
    let mut progress = Progress::new(STALL, VLLM);
    for _ in 1..120 {
        assert_eq!(progress.observe(&seen(STREAM, None)), None);
    }
    let two = InFlight { data: 2, ..InFlight::default() };
    let hang = progress.observe(&seen(two, None));
    assert_eq!(hang, Some(Hang { requests: 2, idle: STALL }));
}

#[test]
fn hung_engine_whose_only_client_tries_again_is_found() {
    let mut progress = Progress::new(STALL, VLLM);
    let hang = (1..=3600).find_map(|second| {
        // The client gives up after 5 minutes, and pauses for 10 s.
        let in_flight = if second % 310 < 300 { PROMPT } else { InFlight::default() };
        progress.observe(&seen(in_flight, None))
    });
    assert_eq!(hang, Some(Hang { requests: 1, idle: 10 * STALL }));
}

#[test]
fn engine_that_was_idle_is_not_judged_by_what_was_before() {
    let mut progress = Progress::new(STALL, VLLM);
    for _ in 0..10 {
        for _ in 0..1199 {
            assert_eq!(progress.observe(&seen(PROMPT, None)), None);
        }
        for _ in 0..120 {
            assert_eq!(progress.observe(&seen(InFlight::default(), None)), None);
        }
    }
}

#[test]
fn pause_of_the_host_is_not_silence_of_the_engine() {
    let mut progress = Progress::new(STALL, VLLM);
    let pause = Observation { elapsed: Duration::from_secs(3600), ..seen(STREAM, None) };
    assert_eq!(progress.observe(&pause), None);
}

#[test]
fn processor_time_is_measured_only_in_silence() {
    let progress = Progress::new(STALL, LLAMA_CPP);
    assert!(progress.needs_computed(&seen(STREAM, None)));
    assert!(progress.needs_computed(&seen(PROMPT, None)));
    assert!(!progress.needs_computed(&Observation { progressed: true, ..seen(STREAM, None) }));
    assert!(!progress.needs_computed(&seen(SLOW_CLIENT, None)));
    assert!(!Progress::new(STALL, VLLM).needs_computed(&seen(STREAM, None)));
}
