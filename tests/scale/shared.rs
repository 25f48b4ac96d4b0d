//! State that hosts share in a real Redis: limits over several hosts, and every way in which the
//! store can fail.

mod contributions;
mod failures;

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::scope;
use std::time::{Duration, Instant};

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, fake_lane, program, root};
use pointsman_tests::{pause, wait_until};
use serde_json::json;

use crate::FAKE_ENGINE;
use crate::redis::Redis;

const CHAT: &str = "/v1/chat/completions";
/// Longer than a test, so that all of it is in one window.
const WINDOW_S: u64 = 3600;

/// Returns the configuration of a host with a quota that is shared.
fn config(url: &str, requests: u32) -> String {
    let policies = root().join("policies");
    format!(
        "[shared-state]\nurl = {url:?}\nreplicas = 3\n[policies]\ndir = {policies:?}\n\
         [[policies.chain]]\nname = \"quota\"\nstate = \"shared\"\n\
         config = {{ window-s = {WINDOW_S}, default = {{ requests = {requests} }} }}\n{}",
        fake_lane(FAKE_ENGINE, "a", &["a"], "slots = 16", &[])
    )
}

/// Waits if the window of the quota ends soon.
fn avoid_end_of_window() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let left = WINDOW_S - now.as_secs() % WINDOW_S;
    if left < 90 {
        pause(Duration::from_secs(left));
    }
}

fn start(config: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    Host::start_in(&program(FAKE_ENGINE), dir, config, &[]).wait_until_ready()
}

fn is_up(host: &Host) -> bool {
    host.metric("pointsman_shared_state_up", "") > 0.5
}

/// Returns the number of requests per request/s of each host by which `pointsman check` says that a
/// limit may be exceeded.
fn printed_bound(config: &Path) -> f64 {
    let output = Command::new(program(FAKE_ENGINE)).arg("check").arg(config).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let bound = text.split("by at most ").nth(1).and_then(|rest| rest.split(' ').next());
    bound.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
}

/// Sends requests at a rate to each host until each has refused `enough` of them, and returns how
/// many were admitted. `every` is called with the number admitted by the first host.
fn send(hosts: &[Host], rate: f64, enough: usize, every: impl Fn(usize) + Sync) -> usize {
    let run = |number: usize, host: &Host| {
        let (mut admitted, mut refused, mut sent) = (0, 0, 0_u32);
        let started = Instant::now();
        while refused < enough {
            // Paced, because the bound depends on the rate.
            let due = started + Duration::from_secs_f64(f64::from(sent) / rate);
            pause(due.saturating_duration_since(Instant::now()));
            sent += 1;
            match post(host.port, CHAT, &chat("a", json!({}))).status {
                200 => admitted += 1,
                429 => refused += 1,
                status => panic!("status {status}"),
            }
            if number == 0 {
                every(admitted);
            }
        }
        admitted
    };
    scope(|scope| {
        let threads: Vec<_> = hosts
            .iter()
            .enumerate()
            .map(|(number, host)| scope.spawn(move || run(number, host)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

/// Three hosts share a quota of 1,000 requests. The store is killed on the way, loses all it has,
/// and comes back before the quota is used up.
#[test]
fn shared_quota_is_kept_by_three_hosts_across_a_restart_of_the_store() {
    const LIMIT: u32 = 1000;
    const RATE: f64 = 60.0;
    avoid_end_of_window();
    let redis = std::sync::Mutex::new(Redis::run(&[]));
    let config = config(&redis.lock().unwrap().url(), LIMIT);
    let hosts: Vec<Host> = (0..3).map(|_| start(&config)).collect();
    wait_until("all hosts reach the store", || hosts.iter().all(is_up));
    let bound = printed_bound(&hosts[0].dir.path().join("pointsman.toml")) * RATE;
    let is_killed = std::sync::atomic::AtomicBool::new(false);
    let admitted = send(&hosts, RATE, 20, |admitted| {
        if admitted == 100 && !is_killed.swap(true, Relaxed) {
            redis.lock().unwrap().kill();
        }
        // Each host has admitted some 200 then: the limit is not near.
        if is_killed.load(Relaxed) && !redis.lock().unwrap().is_running() {
            let is_down = |host: &Host| !host.events("shared_state_down", &[]).is_empty();
            if hosts.iter().all(is_down) {
                assert!(admitted < LIMIT as usize / 3, "{admitted}");
                redis.lock().unwrap().start();
            }
        }
    });
    println!("admitted {admitted} of {LIMIT}, bound {bound}");
    assert!(admitted >= LIMIT as usize, "{admitted}");
    assert!((admitted as f64) <= f64::from(LIMIT) + bound, "{admitted}");
    // Each failure is one line, and so is its end.
    for host in &hosts {
        host.wait_for_event("shared_state_down", &[]);
        assert_eq!(host.events("shared_state_down", &[]).len(), 1);
        assert_eq!(host.events("shared_state_up", &[]).len(), 2);
        assert!(host.metric("pointsman_shared_state_dropped_total", "") == 0.0);
        host.assert_no_request_lost();
    }
}

#[test]
fn shared_state_is_read_by_a_host_that_starts_again() {
    avoid_end_of_window();
    let redis = Redis::run(&[]);
    let config = config(&redis.url(), 5);
    let first = start(&config);
    let ask = |host: &Host| post(host.port, CHAT, &chat("a", json!({}))).status;
    assert_eq!((0..6).map(|_| ask(&first)).collect::<Vec<_>>(), [200, 200, 200, 200, 200, 429]);
    // A stop sends what is left.
    first.stop();
    let second = start(&config);
    assert_eq!(ask(&second), 429);
}

#[test]
fn operators_clear_a_shared_state_for_all_hosts() {
    avoid_end_of_window();
    let redis = Redis::run(&[]);
    let config = config(&redis.url(), 3);
    let hosts = [start(&config), start(&config)];
    let ask = |host: &Host| post(host.port, CHAT, &chat("a", json!({}))).status;
    wait_until("the quota of one host is used up", || ask(&hosts[0]) == 429);
    wait_until("the other host knows", || ask(&hosts[1]) == 429);
    let mut clear = Command::new(program(FAKE_ENGINE));
    clear.args(["state", "clear", "--policy", "quota", "--socket"]);
    let output = clear.arg(hosts[1].admin_socket().unwrap()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait_until("the other host admits requests", || ask(&hosts[0]) == 200);
    wait_until("the quota is used up again", || ask(&hosts[0]) == 429 && ask(&hosts[1]) == 429);
}

#[test]
fn shared_store_that_is_absent_at_the_start_refuses_nothing() {
    avoid_end_of_window();
    let mut redis = Redis::prepare(&[]);
    let hosts = [start(&config(&redis.url(), 8)), start(&config(&redis.url(), 8))];
    let ask = |host: &Host| post(host.port, CHAT, &chat("a", json!({}))).status;
    for host in &hosts {
        assert_eq!((0..4).map(|_| ask(host)).collect::<Vec<_>>(), [200; 4]);
        host.wait_for_event("shared_state_down", &[]);
        assert!(!is_up(host));
        assert!(host.metric("pointsman_shared_state_pending", "") >= 1.0);
    }
    // What was counted meanwhile is merged.
    redis.start();
    wait_until("both hosts reach the store", || hosts.iter().all(is_up));
    wait_until("nothing is pending", || {
        hosts.iter().all(|host| host.metric("pointsman_shared_state_pending", "") == 0.0)
    });
    let total = |host: &Host| ask(host) == 429;
    wait_until("the hosts know of each other", || hosts.iter().all(total));
}

#[test]
fn shared_state_of_another_password_is_not_logged() {
    let redis = Redis::run(&["--requirepass", "correct-horse"]);
    let dir = tempfile::tempdir().unwrap();
    let url = format!("redis://:wrong-staple@127.0.0.1:{}", redis.port);
    let text = config("unused", 10).replace("url = \"unused\"", "url-env = \"SHARED_URL\"");
    let env = [("SHARED_URL", url.as_str())];
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &text, &env).wait_until_ready();
    host.wait_for_event("shared_state_down", &[]);
    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200);
    assert!(!host.log_text().contains("wrong-staple"));
}
