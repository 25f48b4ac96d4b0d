//! Pickers that die, or hang, while requests wait in them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::Host;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::json;

use super::{PATH, picker};
use crate::envoy::{Engine, Envoy};

const CLIENTS: usize = 16;
/// Slots of the lane at each picker.
const SLOTS: usize = 2;

/// Two pickers of one engine, which has fewer slots than there are clients.
struct Pickers {
    pickers: [Host; 2],
    envoy: Envoy,
    engine: Engine,
}

/// What became of the requests: status and time of each.
struct Outcome(Vec<(u16, Duration)>);

impl Pickers {
    fn start() -> Self {
        let engine = Engine::start(&json!({ "token-ms": 100 }));
        let lanes = [engine.lane("a", &format!("slots = {SLOTS}"))];
        let pickers = [picker(&lanes, ""), picker(&lanes, "")];
        let ports = pickers.each_ref().map(|picker| picker.port);
        let envoy = Envoy::start(ports, [engine.port; 2], |text| text);
        Self { pickers, envoy, engine }
    }

    /// Sends requests all the time, and a signal to the first picker when some wait in it.
    fn signal_under_load(&self, signal: Signal, body_size: usize) -> Outcome {
        let (is_over, outcomes) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let body = json!({ "max_tokens": 2, "user": "x".repeat(body_size) });
        let body = chat("m", body);
        let client = || {
            while !is_over.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let response = post(self.envoy.port, PATH, &body);
                outcomes.lock().unwrap().push((response.status, begun.elapsed()));
            }
        };
        std::thread::scope(|scope| {
            (0..CLIENTS).for_each(|_| _ = scope.spawn(client));
            wait_until("requests wait in the first picker", || {
                let lane = self.pickers[0].lane("a");
                lane["running"] == SLOTS && lane["queued"].as_u64() >= Some(3)
            });
            self.pickers[0].signal(signal);
            let ended = || outcomes.lock().unwrap().len();
            let before = ended();
            wait_until("the other picker serves all", || ended() > before + 3 * CLIENTS);
            is_over.store(true, Ordering::Relaxed);
        });
        Outcome(outcomes.into_inner().unwrap())
    }

    /// Asserts that only requests failed that an engine had, and that it had none twice.
    fn assert_only_begun_requests_lost(&self, outcome: &Outcome) {
        let served = outcome.0.iter().filter(|(status, _)| *status == 200).count();
        let lost = outcome.0.len() - served;
        let longest = outcome.0.iter().map(|(_, took)| took).max().unwrap();
        println!("{served} served, {lost} lost, the longest {longest:.1?}");
        assert!(lost <= SLOTS, "{lost} lost\n{}", self.envoy.log_text());
        wait_until("the engine has ended all", || self.engine.running() == 0);
        let had = self.engine.ended();
        assert!((served..=served + lost).contains(&had), "the engine had {had} of {served}");
    }
}

#[test]
fn requests_that_wait_in_a_picker_that_is_killed_are_served() {
    let pickers = Pickers::start();
    let outcome = pickers.signal_under_load(Signal::KILL, 0);
    pickers.assert_only_begun_requests_lost(&outcome);
}

#[test]
fn requests_that_wait_in_a_picker_that_hangs_are_served() {
    let pickers = Pickers::start();
    let outcome = pickers.signal_under_load(Signal::STOP, 0);
    pickers.assert_only_begun_requests_lost(&outcome);
    let is_bounded = |(_, took): &(u16, Duration)| *took < Duration::from_secs(15);
    assert!(outcome.0.iter().all(is_bounded));
}

/// Envoy keeps no more of a request that it might send again.
#[test]
fn large_requests_that_wait_in_a_picker_that_is_killed_end_at_once() {
    let pickers = Pickers::start();
    let outcome = pickers.signal_under_load(Signal::KILL, 100_000);
    let lost = outcome.0.iter().filter(|(status, _)| *status != 200).count();
    println!("{lost} lost");
    assert!(lost > SLOTS && lost <= CLIENTS);
}
