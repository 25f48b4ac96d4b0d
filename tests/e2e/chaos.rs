//! Many clients, engines that die, clients that leave: no request is lost. The seed is printed; `CHAOS_SEED` repeats it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use pointsman_tests::client::{chat, post, stream};
use pointsman_tests::host::kill;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use crate::{host, lane};

/// xorshift64*: enough randomness to shuffle a test, and the same from the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % most
    }
}

#[test]
fn nothing_is_lost_whatever_happens() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let seed =
        std::env::var("CHAOS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(u64::from(now) + 1);
    println!("CHAOS_SEED={seed}");
    let script = ["--script", r#"{"token-ms": 2, "tokens": 20}"#];
    let limits = "queue = { per-lane = 8, total = 12, max-wait = \"2s\" }\n";
    let host =
        host(&[limits.to_owned(), lane("a", &["a", "m"], &script), lane("b", &["b", "m"], &script)].concat());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..12u64)
            .map(|client| {
                let port = host.port;
                scope.spawn(move || {
                    let mut random = Random(seed.wrapping_mul(client + 1) | 1);
                    for _ in 0..40 {
                        let model = ["a", "b", "m", "nope"][usize::try_from(random.below(4)).unwrap()];
                        match random.below(3) {
                            0 => drop(post(port, "/v1/chat/completions", &chat(model, json!({})))),
                            1 => drop(
                                stream(port, "/v1/chat/completions", &chat(model, json!({ "stream": true })))
                                    .finish(),
                            ),
                            // Leaves in the middle.
                            _ => drop(
                                stream(port, "/v1/chat/completions", &chat(model, json!({ "stream": true })))
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
                std::thread::park_timeout(std::time::Duration::from_millis(100 + random.below(400)));
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
