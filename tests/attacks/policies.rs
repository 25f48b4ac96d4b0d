//! Policies under load, and policies that use up their time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::client::{chat, get, post};
use pointsman_tests::deployment::{chain, policy_dir};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{Host, program, root};
use serde_json::json;

use crate::{CHAT, FAKE_ENGINE};

/// A call that the system has interrupted is not a fault, so a busy machine does not switch a quota
/// off.
#[test]
fn quota_holds_on_a_busy_machine() {
    const QUOTA: u64 = 20;
    let policies = root().join("policies");
    let lane = external_lane("a", &["a"], &HostileEngine::honest(), "");
    let config = format!(
        "[policies]\ndir = {policies:?}\ncache = \"cache\"\n[[policies.chain]]\nname = \
         \"quota\"\nconfig = {{ window-s = 3600, default = {{ requests = {QUOTA} }} }}\n{lane}"
    );
    let host = Host::start(&program(FAKE_ENGINE), &config).wait_until_ready();
    let (answered, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let end = Instant::now() + Duration::from_secs(10);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while Instant::now() < end {
                    let counter = match post(host.port, CHAT, &chat("a", json!({}))).status {
                        200 => &answered,
                        429 => &refused,
                        other => panic!("unexpected status {other}"),
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let answered = answered.into_inner();
    println!("quota: {answered} answered, {} refused", refused.into_inner());
    // Twice, if the hour has changed meanwhile.
    assert!((QUOTA..=2 * QUOTA).contains(&answered), "{answered}");
    host.assert_no_request_lost();
}

/// Four policies that search a large text until they are stopped; `/livez` is answered meanwhile.
#[test]
fn hostile_policies_delay_no_others() {
    let needle = format!("{}b", "a".repeat(1000));
    let code = format!(
        "(USE request.contains $ask) (ADVISE (loop $again (drop (call $ask (TEXT \"{needle}\") \
         (i32.const 1))) (br $again)) (i32.const 2048))"
    );
    let guests: Vec<Guest> = ["p", "q", "r", "s"].map(|name| Guest::new(name).code(&code)).to_vec();
    let dir = policy_dir(&guests);
    let lane = external_lane("a", &["a"], &HostileEngine::honest(), "");
    let config = format!(
        "[policies]\ncache = \"cache\"\n{}{lane}",
        chain(&["p", "q", "r", "s"], "deadline = \"50ms\"")
    );
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready();
    let text = "a".repeat(1 << 20);
    let body = json!({ "model": "a", "messages": [{ "role": "user", "content": text }] });
    let end = Instant::now() + Duration::from_secs(10);
    let longest = thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while Instant::now() < end {
                    let status = post(host.port, CHAT, &body).status;
                    assert!(matches!(status, 200 | 503), "{status}");
                }
            });
        }
        let mut longest = Duration::ZERO;
        while Instant::now() < end {
            let start = Instant::now();
            assert_eq!(get(host.port, "/livez").status, 200);
            longest = longest.max(start.elapsed());
        }
        longest
    });
    println!("hostile policies: {longest:?} for /livez at most");
    assert!(longest < Duration::from_secs(1), "{longest:?}");
    host.assert_no_request_lost();
}
