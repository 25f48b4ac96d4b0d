//! Honest traffic of four tenants beside the worst attacks, for `SOAK_SECONDS` (120).

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use pointsman_tests::attack::{
    HostileEngine, MemorySampler, ReceivedRequest, STREAM_HEAD, answer, chunk, external_lane,
};
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::memory::assert_no_steady_growth;
use pointsman_tests::pause;

use crate::traffic::{ADDRESS, ATTACKS, Honest, attacker, honest_client};
use crate::{FAKE_ENGINE, MAX_MEMORY};

const TENANTS: [&str; 4] = ["one", "two", "three", "four"];
/// Growth from one tenth of the run to the next that is not a leak: an allocator's arena.
const TOLERANCE: u64 = 8 << 20;

/// Returns the time of the run.
fn duration() -> Duration {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(120))
}

/// Returns an engine that answers after a few milliseconds, and the number of requests in which it
/// has seen the address.
fn watching_engine() -> (HostileEngine, Arc<AtomicU64>) {
    let disclosed = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&disclosed);
    let engine = HostileEngine::start(move |request, stream| {
        if request.text().contains(ADDRESS) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        pause(Duration::from_millis(2));
        answer(request, stream)
    });
    (engine, disclosed)
}

/// Returns an engine that repeats this part of a stream until its connection is closed.
fn endless_engine(part: &'static str, interval: Duration) -> HostileEngine {
    let respond = move |_: &ReceivedRequest, stream: &mut std::net::TcpStream| {
        stream.write_all(STREAM_HEAD.as_bytes())?;
        loop {
            stream.write_all(&chunk(part.as_bytes()))?;
            pause(interval);
        }
    };
    HostileEngine::start(respond)
}

fn key(tenant: &str) -> String {
    format!("the-key-of-tenant-{tenant}")
}

/// Starts the host with all policies of the project that protect tenants.
fn start(engine: &HostileEngine) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let policies = root().join("policies");
    let mut config = String::new();
    for tenant in TENANTS.into_iter().chain(["attacker"]) {
        std::fs::write(dir.path().join(format!("{tenant}.key")), key(tenant)).unwrap();
        config += &format!("[[keys]]\ntenant = \"{tenant}\"\nfile = \"{tenant}.key\"\n");
    }
    config += &format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \
         \"redact\"\n"
    );
    let event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"0123456789\"}}]}\n\n";
    let endless = endless_engine(event, Duration::from_millis(1));
    let comments = endless_engine(": ping\n\n", Duration::from_millis(100));
    config += &external_lane("main", &["main"], engine, "");
    config += &external_lane("endless", &["endless"], &endless, "");
    config += &external_lane("comments", &["comments"], &comments, "");
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready()
}

/// Runs honest clients, and attackers if there are any, for this time.
fn run(host: &Host, time: Duration, is_attacked: bool, rounds: &[AtomicU64]) -> Honest {
    let stop = AtomicBool::new(false);
    let mut all = Honest::default();
    thread::scope(|scope| {
        let honest: Vec<_> = TENANTS
            .map(|tenant| scope.spawn(|| honest_client(host.port, &key(tenant), &stop)))
            .into_iter()
            .collect();
        let attacks = ATTACKS.iter().zip(rounds).filter(|_| is_attacked);
        for ((_, attack), rounds) in attacks {
            let stop = &stop;
            scope.spawn(move || attacker(*attack, host.port, &key("attacker"), stop, rounds));
        }
        pause(time);
        stop.store(true, Ordering::Relaxed);
        for client in honest {
            all.merge(client.join().unwrap());
        }
    });
    all
}

#[test]
fn honest_traffic_survives_all_attacks() {
    let (engine, disclosed) = watching_engine();
    let host = start(&engine);
    let rounds = ATTACKS.map(|_| AtomicU64::new(0));
    let time = duration();
    // Compiles nothing, opens no first connection: not a part of the figures.
    run(&host, Duration::from_secs(2), false, &rounds);
    let mut quiet = run(&host, time / 4, false, &rounds);
    let sampler = MemorySampler::start(host.pid(), Duration::from_millis(100));
    let mut attacked = run(&host, time, true, &rounds);
    let samples = sampler.stop();

    let peak = samples.iter().copied().max().unwrap_or(0);
    let tenth = samples.len().div_ceil(10).max(1);
    let medians: Vec<u64> = samples.chunks(tenth).map(median).collect();
    let (before, during) = (quiet.p99(), attacked.p99());
    println!("| figure | without attackers | with attackers |");
    println!("|---|---|---|");
    println!("| honest requests | {} | {} |", quiet.latencies.len(), attacked.latencies.len());
    println!("| lost | {} | {} |", quiet.lost, attacked.lost);
    println!("| 99th percentile | {before:.1?} | {during:.1?} |");
    println!("| addresses that the engine has seen | | {} |", disclosed.load(Ordering::Relaxed));
    println!("| peak memory | | {} MiB |", peak >> 20);
    let medians_mib: Vec<u64> = medians.iter().map(|bytes| bytes >> 20).collect();
    println!("| memory in each tenth, MiB | | {medians_mib:?} |");
    for ((name, _), rounds) in ATTACKS.iter().zip(&rounds) {
        println!("| rounds: {name} | | {} |", rounds.load(Ordering::Relaxed));
    }
    assert_eq!((quiet.lost, attacked.lost), (0, 0));
    assert_eq!(disclosed.load(Ordering::Relaxed), 0);
    assert!(peak < MAX_MEMORY, "{peak} bytes");
    assert_no_steady_growth(&medians, TOLERANCE);
    // An order of magnitude: the machine runs the attackers, too.
    assert!(during < before + Duration::from_secs(1), "{before:?} {during:?}");
    host.stop();
}

fn median(samples: &[u64]) -> u64 {
    let mut samples = samples.to_vec();
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().unwrap_or(0)
}
