//! Many clients, crashing engines and disconnecting clients: no request is lost.
//!
//! The seed is printed; the environment variable `CHAOS_SEED` repeats a run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_tests::client::{chat, post, stream, try_post};
use pointsman_tests::host::{Host, descendants_of, is_alive, send_signal};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, host, lane};

/// A pseudo-random generator (xorshift64*): the same seed gives the same numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % end
    }

    /// Returns one of the items.
    fn choose<T: Copy>(&mut self, items: &[T]) -> T {
        items[usize::try_from(self.below(items.len() as u64)).unwrap()]
    }
}

/// Returns the seed from the environment, or a new one. Prints the seed.
fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = std::env::var("CHAOS_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(u64::from(now) + 1);
    println!("CHAOS_SEED={seed}");
    seed
}

#[test]
fn no_request_is_lost_while_engines_crash() {
    let seed = seed();
    let script = ["--script", r#"{"token-ms": 2, "tokens": 20}"#];
    let limits = "queue = { per-lane = 8, total = 12, max-wait = \"2s\" }\n";
    let host = host(
        &[limits.to_owned(), lane("a", &["a", "m"], &script), lane("b", &["b", "m"], &script)]
            .concat(),
    );
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12u64)
            .map(|client| {
                let port = host.port;
                scope.spawn(move || {
                    let mut random = Random(seed.wrapping_mul(client + 1) | 1);
                    for _ in 0..40 {
                        let model =
                            ["a", "b", "m", "nope"][usize::try_from(random.below(4)).unwrap()];
                        match random.below(3) {
                            0 => drop(post(port, "/v1/chat/completions", &chat(model, json!({})))),
                            1 => drop(
                                stream(
                                    port,
                                    "/v1/chat/completions",
                                    &chat(model, json!({ "stream": true })),
                                )
                                .finish(),
                            ),
                            // Disconnects in the middle of the stream.
                            _ => drop(
                                stream(
                                    port,
                                    "/v1/chat/completions",
                                    &chat(model, json!({ "stream": true })),
                                )
                                .read_until("word3"),
                            ),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut random = Random(seed | 1);
            while !done.load(Ordering::Relaxed) {
                let lane = ["a", "b"][usize::try_from(random.below(2)).unwrap()];
                if let Some(pid) = host.lane(lane)["pid"].as_u64() {
                    // The engine may have exited already.
                    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                    rustix::process::kill_process(pid, Signal::KILL).ok();
                }
                pointsman_tests::pause(std::time::Duration::from_millis(100 + random.below(400)));
            }
        });
        clients.into_iter().for_each(|client| client.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    host.assert_no_request_lost();
    assert_eq!(host.metric("pointsman_accepted_total", ""), 480.0);
    wait_until("both lanes are ready again", || {
        host.lane("a")["state"] == "ready" && host.lane("b")["state"] == "ready"
    });
    send_signal(host.engine_pid("a"), Signal::KILL);
    host.stop();
}

/// Returns a lane with a fake vLLM whose core is a separate process.
fn vllm_lane(name: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\nmodels = [{name:?}, \"any\"]\ngroup = \"gpu\"\n\
         memory = \"8GiB\"\nslots = 3\n\
         expected-load-time = \"500ms\"\nliveness = {{ stall-timeout = \"2s\" }}\n\
         timeouts = {{ idle = \"1500ms\" }}\n\
         [lanes.engine]\ndriver = \"vllm\"\nprogram = [{FAKE_ENGINE:?}]\n\
         model = \"/models/{name}\"\nshutdown-timeout = \"1s\"\n\
         stop-grace = \"2s\"\nbackoff = {{ initial = \"100ms\", max = \"500ms\", max-failures = 0 \
         }}\n\
         env = {{ FAKE_ENGINE = \"--load-ms 300 --fork-core --core-death-ms 300\" }}\n"
    )
}

const VLLM_SCRIPT: [&str; 6] = [
    r#"{"token-ms": 5, "tokens": 20}"#,
    r#"{"token-ms": 5, "tokens": 20}"#,
    r#"{"token-ms": 5, "stall-after": 3}"#,
    r#"{"status": 500}"#,
    r#"{"error-after": 2}"#,
    r#"{"end-after": 4}"#,
];

/// Returns the engine processes that this host has started, including reparented ones: they have
/// inherited its state directory in their environment.
fn processes_of(host: &Host) -> Vec<u32> {
    let marker = format!("XDG_STATE_HOME={}", host.dir.path().display());
    let processes = std::fs::read_dir("/proc").unwrap();
    let of_host = processes.filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let marked = environ.windows(marker.len()).any(|part| part == marker.as_bytes());
        (marked && pid != host.pid() && is_alive(pid)).then_some(pid)
    });
    of_host.collect()
}

/// Returns the resident memory of a process in kilobytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Runs one client, which sends requests of all kinds until the deadline.
fn run_client(port: u16, mut random: Random, until: Instant) {
    while Instant::now() < until {
        let model = random.choose(&[
            "orchestrator",
            "coder",
            "fast_rag",
            "any",
            "reader",
            "governance",
            "nope",
        ]);
        let body = chat(model, json!({ "stream": random.below(2) == 0 }));
        match random.below(3) {
            0 | 1 => drop(stream(port, "/v1/chat/completions", &body).finish()),
            _ => {
                let mut event_stream = stream(port, "/v1/chat/completions", &body);
                // Disconnects before the first event, or in the middle of the stream.
                if random.below(2) == 0 {
                    event_stream.read_until("data:");
                }
            }
        }
    }
}

/// Injects a random fault into a random lane.
fn inject_fault(host: &Host, random: &mut Random) {
    let lane = random.choose(&["orchestrator", "coder", "fast_rag", "reader", "governance"]);
    let status = host.lane(lane);
    let (Some(pid), Some(port)) = (status["pid"].as_u64(), status["port"].as_u64()) else { return };
    let pid = u32::try_from(pid).unwrap();
    match random.below(4) {
        // The leader, without its descendants.
        0 => signal(pid, Signal::KILL),
        // The descendants, without the leader.
        1 => descendants_of(pid).into_iter().for_each(|child| signal(child, Signal::KILL)),
        2 => signal(pid, Signal::TERM),
        _ => {
            let script: Value = serde_json::from_str(random.choose(&VLLM_SCRIPT)).unwrap();
            // The engine may be loading or have exited.
            drop(try_post(u16::try_from(port).unwrap(), "/fake/script", &script));
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    // The process may have exited already.
    rustix::process::kill_process(pid, signal).ok();
}

/// Three lanes that share memory and two that are always loaded. Engines crash, stall and return
/// errors; clients connect and disconnect. Runs for twenty seconds, or for `CHAOS_SECONDS`.
#[test]
fn no_request_is_lost_while_lanes_switch_and_engines_fail() {
    let seed = seed();
    let seconds =
        std::env::var("CHAOS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let script = ["--load-ms", "200", "--script", r#"{"token-ms": 2, "tokens": 20}"#];
    let config = [
        "queue = { per-lane = 16, total = 40, max-wait = \"3s\" }\n\
         switching = { starvation-timeout = \"2s\" }\n"
            .to_owned(),
        "server = { keep-alive = \"300ms\", drain-timeout = \"2s\" }\n[[groups]]\nname = \"gpu\"\n\
         memory = \"10GiB\"\n"
            .to_owned(),
        ["orchestrator", "coder", "fast_rag"].map(vllm_lane).concat(),
        lane("reader", &["reader", "any"], &script),
        lane("governance", &["governance"], &script),
    ]
    .concat();
    let host = host(&config);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut early = 0;
    std::thread::scope(|scope| {
        for client in 0..10u64 {
            let (port, random) = (host.port, Random(seed.wrapping_mul(2 * client + 3) | 1));
            scope.spawn(move || run_client(port, random, end));
        }
        let mut random = Random(seed | 1);
        while Instant::now() < end {
            pointsman_tests::pause(Duration::from_millis(100 + random.below(400)));
            inject_fault(&host, &mut random);
            if early == 0
                && end.saturating_duration_since(Instant::now())
                    < Duration::from_secs(seconds) * 2 / 3
            {
                early = resident(host.pid());
            }
        }
    });
    host.assert_no_request_lost();
    let (late, accepted) = (resident(host.pid()), host.metric("pointsman_accepted_total", ""));
    println!("{accepted} requests, resident {early} kB and then {late} kB");
    assert!(late < early + 20_000, "memory grows: {early} kB and then {late} kB");
    assert!(accepted > 50.0 && host.metric("pointsman_answered_total", "") > 10.0);
    // Without further faults every lane serves again.
    for lane in ["orchestrator", "coder", "fast_rag", "reader", "governance"] {
        wait_until(&format!("{lane} serves"), || {
            if let Some(port) = host.lane(lane)["port"].as_u64() {
                drop(try_post(u16::try_from(port).unwrap(), "/fake/script", &json!({})));
            }
            post(host.port, "/v1/chat/completions", &chat(lane, json!({}))).status == 200
        });
    }
    let left = || processes_of(&host);
    host.signal(Signal::TERM);
    wait_until("no process is left", || left().is_empty());
    let mut host = host;
    assert!(host.wait_for_exit().success());
}
