//! A thousand streams at a time. `STREAMS_SECONDS` (30) and `STREAMS_RATE` (2 frames per second
//! and stream) extend the test: see `cargo xtask test --streams`.

use std::time::{Duration, Instant};

use pointsman_tests::attack::MemorySampler;
use pointsman_tests::memory::assert_no_steady_growth;
use pointsman_tests::streams::{
    FrameEngine, Received, StreamShape, measure, raise_descriptor_limit,
};
use pointsman_tests::wait_until;

use crate::host;

const STREAMS: u32 = 1000;
/// Seconds of one stream.
const STREAM_SECONDS: u32 = 10;
/// Growth of memory from one tenth of the run to the next that is not a leak: an allocator's arena.
const TOLERANCE: u64 = 4 << 20;

fn setting(variable: &str, default: u32) -> u32 {
    let value = std::env::var(variable).ok();
    value.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable}: {value}")))
}

fn print_table(direct: &mut Received, routed: &mut Received, samples: &[u64]) {
    let peak = samples.iter().copied().max().unwrap_or(0) >> 20;
    let delay = |received: &mut Received, percent| format!("{:.1?}", received.delay(percent));
    println!("| figure | directly | through the host |");
    println!("|---|---|---|");
    println!("| streams, complete | {} | {} |", direct.complete, routed.complete);
    println!("| frames | {} | {} |", direct.frames, routed.frames);
    println!("| frames lost | {} | {} |", direct.lost, routed.lost);
    println!("| frames repeated or reordered | {} | {} |", direct.misplaced, routed.misplaced);
    println!("| delivery, median | {} | {} |", delay(direct, 50), delay(routed, 50));
    println!("| delivery, 99th percentile | {} | {} |", delay(direct, 99), delay(routed, 99));
    println!("| peak memory of the host | | {peak} MiB |");
}

fn assert_nothing_lost(received: &Received) {
    assert!(received.broken.is_empty(), "{:?}", received.broken);
    assert_eq!((received.lost, received.misplaced), (0, 0));
    assert!(received.complete >= u64::from(STREAMS), "{} streams", received.complete);
}

#[test]
fn thousand_streams_lose_no_frame() {
    // A client and an engine for each stream.
    raise_descriptor_limit(u64::from(STREAMS) * 3);
    let (seconds, rate) = (setting("STREAMS_SECONDS", 30), setting("STREAMS_RATE", 2));
    let time = Duration::from_secs(seconds.into());
    let shape = StreamShape {
        frames: STREAM_SECONDS * rate,
        interval: Duration::from_secs(1) / rate,
        epoch: Instant::now(),
    };
    let engine = FrameEngine::start(shape);
    let host = host(&format!(
        "[[lanes]]\nname = \"m\"\nslots = {STREAMS}\n[lanes.engine]\ndriver = \"external\"\n\
         url = \"http://127.0.0.1:{}/v1\"\n",
        engine.port
    ));
    let mut direct = measure(engine.port, "m", shape, STREAMS, Duration::from_secs(1));
    let descriptors = host.descriptors();
    let sampler = MemorySampler::start(host.pid(), Duration::from_millis(200));
    let mut routed = measure(host.port, "m", shape, STREAMS, time);
    let samples = sampler.stop();
    print_table(&mut direct, &mut routed, &samples);
    assert_nothing_lost(&direct);
    assert_nothing_lost(&routed);
    let tenths = samples.chunks(samples.len().div_ceil(10).max(1)).map(median);
    assert_no_steady_growth(&tenths.collect::<Vec<u64>>(), TOLERANCE);
    wait_until("all connections of the host are closed", || host.descriptors() <= descriptors);
    // An order of magnitude, because the machine may run other tests.
    assert!(routed.delay(50) < direct.delay(50) + Duration::from_millis(500));
    host.assert_no_request_lost();
    host.stop();
}

fn median(samples: &[u64]) -> u64 {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0)
}
