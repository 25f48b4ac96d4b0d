//! `pointsman upgrade` of a picker behind Envoy, under load.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use pointsman_tests::client::{ResponseStream, chat, post, stream};
use pointsman_tests::host::{Host, program};
use pointsman_tests::upgrade::UpgradedHost;
use pointsman_tests::wait_until;
use serde_json::json;

use crate::FAKE_ENGINE;
use crate::envoy::{Engine, Envoy, free_port};

const PATH: &str = "/v1/chat/completions";
const CLIENTS: usize = 4;

/// Stops the clients, also if the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn upgrade_under_load_refuses_no_pick_and_cuts_no_stream() {
    // A stream of some seconds, and requests of a few milliseconds.
    let scripts = [json!({ "tokens": 30, "token-ms": 100 }), json!({})];
    let engines = scripts.map(|script| Engine::start(&script));
    let lanes = [engines[0].lane("slow", "engine-model = \"m\""), engines[1].lane("fast", "")];
    let lanes = [lanes[0].replace("[\"m\"]", "[\"slow\"]"), lanes[1].clone()].concat();
    let config = format!("[server]\ndrain-timeout = \"60s\"\n[pick]\n{lanes}");
    let dir = tempfile::tempdir().unwrap();
    let picker = Host::start_picker(&program(FAKE_ENGINE), dir, &config);
    picker.wait_for_lane("slow", "ready");
    picker.wait_for_lane("fast", "ready");
    let ports = [engines[0].port, engines[1].port];
    let envoy = Envoy::start([picker.port, free_port()], ports, |text| text);
    let mut picker = UpgradedHost::new(picker, &program(FAKE_ENGINE));
    let (served, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let send = || {
        while !stop.load(Ordering::Relaxed) {
            let response = post(envoy.port, PATH, &chat("m", json!({})));
            if response.status != 200 {
                stop.store(true, Ordering::Relaxed);
                panic!("{}: {}\n{}", response.status, response.text(), envoy.log_text());
            }
            served.fetch_add(1, Ordering::Relaxed);
        }
    };
    thread::scope(|scope| {
        let stop_clients = StopOnDrop(&stop);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(send)).collect();
        // A process with a stream is left with that one; one without ends at once.
        for has_stream in [false, true, false, true, false, false] {
            let long = has_stream.then(|| {
                let mut long = stream(envoy.port, PATH, &chat("slow", json!({ "stream": true })));
                assert_eq!(long.status, 200, "{}", picker.host.log_text());
                assert!(long.read_chunk(), "the stream has begun before the upgrade");
                long
            });
            picker.upgrade();
            let before = served.load(Ordering::Relaxed);
            wait_until("the next process serves", || {
                stop.load(Ordering::Relaxed) || served.load(Ordering::Relaxed) > before + 40
            });
            if let Some((long, is_whole)) = long.map(ResponseStream::finish) {
                assert!(is_whole && long.text().contains("[DONE]"), "{}", long.text());
            }
        }
        drop(stop_clients);
        for client in clients {
            client.join().unwrap();
        }
    });
    assert!(picker.wait_for_first().success(), "{}", picker.host.log_text());
    picker.wait_for_earlier();
    let finished = post(envoy.port, PATH, &chat("m", json!({})));
    assert_eq!(finished.status, 200, "{}", finished.text());
    picker.stop();
}
