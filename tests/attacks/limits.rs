//! The limits of clients, with their defaults.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pointsman_tests::attack::{
    HostileEngine, MemorySampler, RawClient, client_that_does_not_read, external_lane,
    idle_connections, launcher, request_head,
};
use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::wait_at_most;
use serde_json::json;

use crate::{CHAT, FAKE_ENGINE, MAX_MEMORY};

const SAMPLE_INTERVAL: Duration = Duration::from_millis(20);
/// The time of a response that is due at once.
const SOON: Duration = Duration::from_secs(5);
/// Longer than each time limit of clients.
const LONG: Duration = Duration::from_secs(150);

fn start(config: &str) -> Host {
    Host::start(&program(FAKE_ENGINE), config).wait_until_ready()
}

fn peak(samples: &[u64]) -> u64 {
    samples.iter().copied().max().unwrap_or(0)
}

/// Bodies of almost 32 MiB with this many pieces, by kind.
fn large_bodies() -> [(&'static str, &'static str, String); 5] {
    const SIZE: usize = 31 << 20;
    let many = |piece: &str| vec![piece; SIZE / (piece.len() + 1)].join(",");
    let chat = |messages: &str| format!(r#"{{"model":"a","messages":[{messages}]}}"#);
    let prompt = |prompt: String| format!(r#"{{"model":"a","prompt":{prompt}}}"#);
    [
        ("empty prompts", "/v1/completions", prompt(format!("[{}]", many("\"\"")))),
        ("messages", CHAT, chat(&many(r#"{"role":"a"}"#))),
        ("parts", CHAT, chat(&format!(r#"{{"role":"user","content":[{}]}}"#, many("{}")))),
        ("token ids", "/v1/completions", prompt(format!("[{}]", many("1")))),
        ("text", CHAT, chat(&format!(r#"{{"role":"user","content":"{}"}}"#, "x".repeat(SIZE)))),
    ]
}

/// Twenty clients send the largest bodies at a time; a client with small requests is served beside
/// them.
#[test]
fn large_bodies_take_little_memory_and_delay_no_others() {
    for (kind, path, body) in large_bodies() {
        let engine = HostileEngine::honest();
        let host = start(&external_lane("a", &["a"], &engine, ""));
        let sampler = MemorySampler::start(host.pid(), SAMPLE_INTERVAL);
        let done = AtomicBool::new(false);
        let longest = thread::scope(|scope| {
            let small = scope.spawn(|| {
                let mut longest = Duration::ZERO;
                while !done.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let response = post(host.port, CHAT, &chat("a", json!({})));
                    assert_eq!(response.status, 200, "{kind}: {}", response.text());
                    longest = longest.max(start.elapsed());
                }
                longest
            });
            let large: Vec<_> = (0..20)
                .map(|_| {
                    scope.spawn(|| {
                        let mut client = RawClient::connect(host.port);
                        client.send(request_head(path, body.len(), "connection: close\r\n"));
                        client.send(&body);
                        client.read_to_end(LONG).status()
                    })
                })
                .collect();
            let statuses: Vec<_> = large.into_iter().map(|large| large.join().unwrap()).collect();
            done.store(true, Ordering::Relaxed);
            println!("{kind}: {statuses:?}");
            small.join().unwrap()
        });
        let peak = peak(&sampler.stop());
        let after = host.resource_usage().resident;
        println!("{kind}: {} MiB at most, {} MiB after it", peak >> 20, after >> 20);
        println!("{kind}: {longest:?} at most for a small request");
        assert!(peak < MAX_MEMORY, "{kind}: {peak} bytes");
        assert!(longest < Duration::from_secs(5), "{kind}: {longest:?}");
        host.assert_no_request_lost();
    }
}

/// Twenty clients send almost all of a large body, and then nothing.
#[test]
fn stalled_uploads_end_with_a_timeout() {
    let host = start(&fake_lane(FAKE_ENGINE, "a", &["a"], "", &[]));
    let sampler = MemorySampler::start(host.pid(), SAMPLE_INTERVAL);
    let part = vec![b' '; 1 << 20];
    let mut clients: Vec<RawClient> = (0..20).map(|_| RawClient::connect(host.port)).collect();
    for client in &mut clients {
        client.send(request_head(CHAT, 32 << 20, ""));
        for _ in 0..31 {
            if !client.send(&part) {
                break;
            }
        }
    }
    let start = Instant::now();
    for mut client in clients {
        let response = client.read_response(LONG);
        let refused = matches!(response.status(), Some(408 | 503)) || response.closed;
        assert!(refused, "{:?} {}", response.status(), response.text());
    }
    let peak = peak(&sampler.stop());
    println!("stalled uploads: {} MiB at most, {:?}", peak >> 20, start.elapsed());
    assert!(peak < MAX_MEMORY, "{peak} bytes");
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn client_that_does_not_read_is_cut() {
    let arguments = ["--script", r#"{"echo": true}"#];
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], "slots = 1", &arguments);
    let host = start(&lane);
    let engines = host.descendants();
    let client = client_that_does_not_read(host.port, "a");
    let running = || host.metric("pointsman_lane_running", "");
    wait_at_most(LONG, "the slot is taken", || running() == 1.0);
    wait_at_most(LONG, "the client is cut", || running() == 0.0);
    host.assert_no_request_lost();
    assert_eq!(host.descendants(), engines, "no engine was started again");
    drop(client);
    host.stop();
}

/// A lane is not kept loaded by a client that does not read.
#[test]
fn client_that_does_not_read_does_not_block_a_switch() {
    let lane = |name: &str| {
        let more = "group = \"gpu\"\nmemory = \"8GiB\"\nload = \"on-demand\"";
        fake_lane(FAKE_ENGINE, name, &[name], more, &["--script", r#"{"echo": true}"#])
    };
    let config = format!(
        "queue = {{ max-wait = \"150s\" }}\n[[groups]]\nname = \"gpu\"\nmemory = \
         \"10GiB\"\n{}{}",
        lane("a"),
        lane("b")
    );
    let host = start(&config);
    let client = client_that_does_not_read(host.port, "a");
    let running = || host.metric("pointsman_lane_running", "lane=\"a\"");
    wait_at_most(LONG, "lane a serves", || running() == 1.0);
    let response = post(host.port, CHAT, &chat("b", json!({ "max_tokens": 1 })));
    assert_eq!(response.status, 200, "{}", response.text());
    drop(client);
    host.assert_no_request_lost();
    host.stop();
}

#[test]
fn ten_thousand_idle_connections_are_no_outage() {
    let dir = tempfile::tempdir().unwrap();
    let limited = launcher(dir.path(), &program(FAKE_ENGINE), "ulimit -n 4096");
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], "", &[]);
    let host = Host::start_in(&limited, dir, &lane, &[]).wait_until_ready();
    let idle = idle_connections(host.port, 10_000);
    let body = chat("a", json!({})).to_string();
    for _ in 0..100 {
        let mut client = RawClient::try_connect(host.port, SOON).unwrap();
        client.send(request_head(CHAT, body.len(), "connection: close\r\n"));
        client.send(&body);
        let response = client.read_to_end(SOON);
        assert_eq!(response.status(), Some(200), "{}", response.text());
    }
    println!("idle connections: {} opened", idle.len());
    drop(idle);
    host.assert_no_request_lost();
    host.stop();
}
