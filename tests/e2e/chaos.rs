//! Many clients, crashing engines and disconnecting clients: no request is lost.
//!
//! The seed is printed; the environment variable `CHAOS_SEED` repeats a run.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_tests::client::{chat, post, stream, try_post};
use pointsman_tests::host::{Host, descendants_of, is_alive, send_signal};
use pointsman_tests::memory::assert_no_steady_growth;
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
    let seen = std::thread::scope(|scope| {
        let start_client = |client: u64| {
            let (port, random) = (host.port, Random(seed.wrapping_mul(client + 1) | 1));
            scope
                .spawn(move || run_client(port, &["a", "b", "m", "nope"], random, |sent| sent < 40))
        };
        let clients: Vec<_> = (0..12).map(start_client).collect();
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
        let seen = clients.into_iter().map(|client| client.join().unwrap());
        let seen = seen.reduce(Seen::plus).unwrap();
        done.store(true, Ordering::Relaxed);
        seen
    });
    host.assert_no_request_lost();
    println!("{seen:?}");
    seen.assert_counted(&host);
    assert!(seen.sent() == 480 && 8 * seen.served >= seen.sent(), "{seen:?}");
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

/// How the requests of a client have ended, as it has seen it.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    /// With a whole response.
    served: u32,
    /// With an error instead of a response, or within one.
    failed: u32,
    /// The client has disconnected.
    left: u32,
}

impl Seen {
    fn sent(self) -> u32 {
        self.served + self.failed + self.left
    }

    fn plus(self, other: Self) -> Self {
        Self {
            served: self.served + other.served,
            failed: self.failed + other.failed,
            left: self.left + other.left,
        }
    }

    /// Asserts that the host has counted each request once, as it has ended. A request whose client
    /// has left may have ended in any way.
    fn assert_counted(self, host: &Host) {
        let metric = |name: &str| host.metric(&format!("pointsman_{name}_total"), "");
        let within = |name: &str, count: f64, seen: u32| {
            let possible = f64::from(seen)..=f64::from(seen + self.left);
            assert!(possible.contains(&count), "{name}: {count}, clients: {self:?}");
        };
        assert_eq!(metric("accepted"), f64::from(self.sent()), "{self:?}");
        within("served", metric("answered") + metric("fell_back"), self.served);
        within("errors", metric("errors"), self.failed);
        within("client_gone", metric("client_gone"), 0);
    }
}

/// The time in seconds within which a request ends, however many lanes it waits for: twice the
/// maximum wait, and the timeouts of a stalled engine.
const MAX_RESPONSE_S: u64 = 10;

/// Runs one client, which sends requests of all kinds to these models while `more` returns true for
/// the number of requests so far.
fn run_client(port: u16, models: &[&str], mut random: Random, more: impl Fn(u32) -> bool) -> Seen {
    let mut seen = Seen::default();
    while more(seen.sent()) {
        let body = chat(random.choose(models), json!({ "stream": random.below(2) == 0 }));
        let mut response = stream(port, "/v1/chat/completions", &body);
        if random.below(3) == 0 {
            // Disconnects before the first event, or in the middle of the stream.
            if random.below(2) == 0 {
                response.read_until(random.choose(&["data:", "word3"]));
            }
            seen.left += 1;
            continue;
        }
        let (response, complete) = response.finish();
        if response.status == 200 && complete && !response.text().contains("\"error\":") {
            seen.served += 1;
        } else {
            seen.failed += 1;
        }
    }
    seen
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

const MODELS: [&str; 7] =
    ["orchestrator", "coder", "fast_rag", "any", "reader", "governance", "nope"];

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
    let mut resident = Vec::new();
    let clients: Vec<Seen> = std::thread::scope(|scope| {
        let start_client = |client: u64| {
            let (port, random) = (host.port, Random(seed.wrapping_mul(2 * client + 3) | 1));
            scope.spawn(move || run_client(port, &MODELS, random, |_| Instant::now() < end))
        };
        let clients: Vec<_> = (0..10).map(start_client).collect();
        let mut random = Random(seed | 1);
        while Instant::now() < end {
            pointsman_tests::pause(Duration::from_millis(100 + random.below(400)));
            inject_fault(&host, &mut random);
            // Equal intervals, after a fifth of the time for the memory that any load needs.
            let left = end.saturating_duration_since(Instant::now());
            if left
                <= Duration::from_secs(seconds) * 8_u32.saturating_sub(resident.len() as u32) / 10
            {
                resident.push(host.resource_usage().resident);
            }
        }
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    host.assert_no_request_lost();
    let all = clients.iter().copied().reduce(Seen::plus).unwrap();
    println!("{all:?}, resident memory {resident:?}");
    // What is limited fills up for a minute: the last lines of engines, for example. After that,
    // memory stays the same for 15 seconds and longer (CHAOS_SECONDS=150).
    assert_no_steady_growth(&resident, 128 << 10);
    all.assert_counted(&host);
    // Every client got responses all the time. At most half of the requests can be served, because
    // clients leave and some ask for an unknown model; the faults prevent some more.
    let slowest = clients.iter().map(|client| client.sent()).min().unwrap();
    assert!(u64::from(slowest) >= seconds / MAX_RESPONSE_S, "{clients:?}");
    assert!(8 * all.served >= all.sent(), "{all:?}");
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
