//! Many clients, engines that die, clients that leave: no request is lost. The seed is printed; `CHAOS_SEED` repeats it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_tests::client::{chat, post, stream, try_post};
use pointsman_tests::host::{Host, alive, below, kill};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, host, lane};

/// xorshift64*: enough randomness to shuffle a test, and the same from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % most
    }

    /// One of several.
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// From the environment, or a new one; printed either way.
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
fn nothing_is_lost_whatever_happens() {
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
                            // Leaves in the middle.
                            _ => drop(
                                stream(
                                    port,
                                    "/v1/chat/completions",
                                    &chat(model, json!({ "stream": true })),
                                )
                                .until("word3"),
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
                    // It may be gone already.
                    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                    let _gone = rustix::process::kill_process(pid, Signal::KILL);
                }
                std::thread::park_timeout(std::time::Duration::from_millis(
                    100 + random.below(400),
                ));
            }
        });
        clients.into_iter().for_each(|client| client.join().unwrap());
        done.store(true, Ordering::Relaxed);
    });
    host.assert_nothing_lost();
    assert_eq!(host.metric("pointsman_accepted_total", ""), 480.0);
    wait_until("both lanes are back", || {
        host.lane("a")["state"] == "ready" && host.lane("b")["state"] == "ready"
    });
    kill(host.engine_pid("a"), Signal::KILL);
    host.stop();
}

/// A lane with a fake vLLM whose core lives in a process of its own.
fn vllm_lane(name: &str) -> String {
    format!(
        "[[lanes]]\nname = {name:?}\nmodels = [{name:?}, \"any\"]\ngroup = \"gpu\"\nmemory = \"8GiB\"\nslots = 3\n\
         expected-load-time = \"500ms\"\nliveness = {{ stall-timeout = \"2s\" }}\ntimeouts = {{ idle = \"1500ms\" }}\n\
         [lanes.engine]\ndriver = \"vllm\"\nprogram = [{FAKE_ENGINE:?}]\nmodel = \"/models/{name}\"\nshutdown-timeout = \"1s\"\n\
         stop-grace = \"2s\"\nbackoff = {{ initial = \"100ms\", max = \"500ms\", max-failures = 0 }}\n\
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

/// Processes of engines that this host has started, wherever they have gone: they have inherited its state directory.
fn processes_of(host: &Host) -> Vec<u32> {
    let mark = format!("XDG_STATE_HOME={}", host.dir.path().display());
    let processes = std::fs::read_dir("/proc").unwrap();
    let of_host = processes.filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let environ = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let marked = environ.windows(mark.len()).any(|part| part == mark.as_bytes());
        (marked && pid != host.pid() && alive(pid)).then_some(pid)
    });
    of_host.collect()
}

/// Resident memory of a process in kilobytes.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// One client: requests of all kinds until the time is over.
fn bother(port: u16, mut random: Random, until: Instant) {
    while Instant::now() < until {
        let model = random.one(&[
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
                let mut answer = stream(port, "/v1/chat/completions", &body);
                // Leaves: before the answer, or in the middle.
                if random.below(2) == 0 {
                    answer.until("data:");
                }
            }
        }
    }
}

/// Something goes wrong.
fn break_something(host: &Host, random: &mut Random) {
    let lane = random.one(&["orchestrator", "coder", "fast_rag", "reader", "governance"]);
    let status = host.lane(lane);
    let (Some(pid), Some(port)) = (status["pid"].as_u64(), status["port"].as_u64()) else { return };
    let pid = u32::try_from(pid).unwrap();
    match random.below(4) {
        // The first process, and not what it has started.
        0 => signal(pid, Signal::KILL),
        // What it has started.
        1 => below(pid).into_iter().for_each(|child| signal(child, Signal::KILL)),
        2 => signal(pid, Signal::TERM),
        _ => {
            let script: Value = serde_json::from_str(random.one(&VLLM_SCRIPT)).unwrap();
            // It may be loading, or gone.
            drop(try_post(u16::try_from(port).unwrap(), "/fake/script", &script));
        }
    }
}

fn signal(pid: u32, signal: Signal) {
    // It may be gone already.
    let _gone = rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid.cast_signed()).unwrap(),
        signal,
    );
}

/// Three lanes that take turns and two that are always on; engines die, stall, fail and lie, clients come and leave. Twenty
/// seconds of it, or as many as `CHAOS_SECONDS` says.
#[test]
fn lanes_that_take_turns_lose_nothing_whatever_happens() {
    let seed = seed();
    let seconds =
        std::env::var("CHAOS_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let script = ["--load-ms", "200", "--script", r#"{"token-ms": 2, "tokens": 20}"#];
    let config = [
        "queue = { per-lane = 16, total = 40, max-wait = \"3s\" }\nswitching = { starvation-timeout = \"2s\" }\n".to_owned(),
        "server = { keep-alive = \"300ms\", drain-timeout = \"2s\" }\n[[groups]]\nname = \"gpu\"\nmemory = \"10GiB\"\n".to_owned(),
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
            scope.spawn(move || bother(port, random, end));
        }
        let mut random = Random(seed | 1);
        while Instant::now() < end {
            std::thread::park_timeout(Duration::from_millis(100 + random.below(400)));
            break_something(&host, &mut random);
            if early == 0
                && end.saturating_duration_since(Instant::now())
                    < Duration::from_secs(seconds) * 2 / 3
            {
                early = resident(host.pid());
            }
        }
    });
    host.assert_nothing_lost();
    let (late, accepted) = (resident(host.pid()), host.metric("pointsman_accepted_total", ""));
    println!("{accepted} requests, resident {early} kB and then {late} kB");
    assert!(late < early + 20_000, "memory grows: {early} kB and then {late} kB");
    assert!(accepted > 50.0 && host.metric("pointsman_answered_total", "") > 10.0);
    // In good order again, every lane serves.
    for lane in ["orchestrator", "coder", "fast_rag", "reader", "governance"] {
        wait_until(&format!("{lane} answers"), || {
            if let Some(port) = host.lane(lane)["port"].as_u64() {
                drop(try_post(u16::try_from(port).unwrap(), "/fake/script", &json!({})));
            }
            post(host.port, "/v1/chat/completions", &chat(lane, json!({}))).status == 200
        });
    }
    let left = || processes_of(&host);
    host.signal(Signal::TERM);
    wait_until("nothing is left", || left().is_empty());
    let mut host = host;
    assert!(host.ended().success());
}
