//! Three hosts that share limits, idempotency keys and the owners of responses in a real Redis,
//! which is killed at times.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pointsman_tests::client::{Response, chat, send};
use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::{pause, wait_until};
use serde_json::{Value, json};

use crate::FAKE_ENGINE;
use crate::redis::Redis;

const CHAT: &str = "/v1/chat/completions";
/// The hosts. The last one has no name of its own.
const NAMES: [&str; 3] = ["gpu-1", "gpu-2", ""];
/// The secret of the tests' key, and its digest.
const SECRET: &str = "pointsman-demo";
const DIGEST: &str = "23863e01147a00785cb3b4b69b8a38c527fb9b4656c21d313ba49059cd5ea7ac";
/// Limit of requests per minute, and the time between two requests of a client to a host.
const LIMIT: usize = 1000;
const PACE: Duration = Duration::from_millis(30);
/// Interval of the shared state.
const INTERVAL_MS: u32 = 50;

/// Starts a host with this name that shares by Redis.
fn host(name: &str, redis: &Redis, limits: &str, script: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let keys =
        format!("[[keys]]\nid = \"k\"\nhash = \"sha256:{DIGEST}\"\ntenant = \"t\"\n{limits}\n");
    std::fs::write(dir.path().join("keys.toml"), keys).unwrap();
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], "slots = 64", &["--script", script]);
    let config = format!(
        "[access]\nkeys = \"keys.toml\"\n[shared-state]\nurl = \"{}\"\nreplicas = 3\n\
         interval = \"{INTERVAL_MS}ms\"\n[fleet]\nname = \"{name}\"\n{lane}",
        redis.url()
    );
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready()
}

fn hosts(redis: &Redis, limits: &str, script: &str) -> [Host; 3] {
    let hosts = NAMES.map(|name| host(name, redis, limits, script));
    wait_for_redis(&hosts);
    hosts
}

fn wait_for_redis(hosts: &[Host; 3]) {
    for host in hosts {
        wait_until("the host shares", || host.metric("pointsman_shared_state_up", "") > 0.5);
    }
}

fn ask(host: &Host, path: &str, key: Option<&str>, body: &Value) -> Response {
    let bearer = format!("Bearer {SECRET}");
    let mut headers = vec![("content-type", "application/json"), ("authorization", &*bearer)];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    send(host.port, "POST", path, &headers, body.to_string().as_bytes())
}

fn get(host: &Host, path: &str) -> Response {
    let bearer = format!("Bearer {SECRET}");
    send(host.port, "GET", path, &[("authorization", &bearer)], b"")
}

/// The bound that `pointsman check` prints, for this rate of requests at each host.
fn bound() -> usize {
    let rate = 1.0 / PACE.as_secs_f64();
    let delay = 4.0 * f64::from(INTERVAL_MS) / 1000.0;
    // Cast: a small number.
    (3.0 * rate * delay).ceil() as usize
}

#[test]
fn a_limit_of_three_hosts_is_one_also_over_a_restart_of_redis() {
    let mut redis = Redis::run(&[]);
    let limits = format!("limits = {{ requests-per-minute = {LIMIT} }}");
    let hosts = hosts(&redis, &limits, "{}");
    let (admitted, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let begun = Instant::now();
    thread::scope(|scope| {
        for host in &hosts {
            scope.spawn(|| {
                // A host refuses until the first requests are a minute old.
                let mut refused = 0;
                while refused < 20 && !stop.load(Ordering::Relaxed) {
                    let next = Instant::now() + PACE;
                    let response = ask(host, CHAT, None, &chat("a", json!({})));
                    match response.status {
                        200 => admitted.fetch_add(1, Ordering::Relaxed),
                        429 => {
                            assert_eq!(response.error_code(), "rate_limit_exceeded");
                            refused += 1;
                            0
                        }
                        status => panic!("{status}: {}", response.text()),
                    };
                    pause(next.saturating_duration_since(Instant::now()));
                }
            });
        }
        wait_until("a third is used", || admitted.load(Ordering::Relaxed) > LIMIT / 3);
        redis.kill();
        let from = admitted.load(Ordering::Relaxed);
        wait_until("requests are served meanwhile", || {
            admitted.load(Ordering::Relaxed) > from + 20
        });
        redis.start();
        wait_for_redis(&hosts);
        let back = admitted.load(Ordering::Relaxed);
        if back > LIMIT - 100 {
            stop.store(true, Ordering::Relaxed);
            panic!("Redis is back too late for the test: {back} requests were admitted");
        }
    });
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(58), "too slow for the limit to count: {took:?}");
    let admitted = admitted.load(Ordering::Relaxed);
    assert!((LIMIT..=LIMIT + bound()).contains(&admitted), "{admitted}, bound {}", bound());
    // The clients learn what is left of all hosts together.
    let left = ask(&hosts[2], CHAT, None, &chat("a", json!({})));
    assert_eq!(left.status, 429);
    assert_eq!(left.header("x-ratelimit-remaining-requests"), Some("0"));
}

#[test]
fn idempotency_keys_and_responses_are_known_to_all_hosts() {
    let redis = Redis::run(&[]);
    let hosts = hosts(&redis, "", r#"{"tokens": 20, "token-ms": 50}"#);
    let body = chat("a", json!({}));
    let [one, other] = thread::scope(|scope| {
        let asked = [0, 1].map(|host| {
            scope.spawn({
                let (hosts, body) = (&hosts, &body);
                move || ask(&hosts[host], CHAT, Some("k1"), body)
            })
        });
        asked.map(|asked| asked.join().unwrap())
    });
    assert_eq!((one.status, other.status), (200, 200), "{} {}", one.text(), other.text());
    assert_eq!(one.body, other.body);
    let replays = [&one, &other].map(|response| response.header("idempotent-replayed").is_some());
    assert_ne!(replays[0], replays[1], "one is a replay");
    let attempts: f64 = hosts.iter().map(|host| host.metric("pointsman_attempts_total", "")).sum();
    assert!((attempts - 1.0).abs() < 0.1, "one engine sees it once");
    let again = ask(&hosts[2], CHAT, Some("k1"), &body);
    assert_eq!((again.status, &again.body), (200, &one.body));
    let reused = ask(&hosts[2], CHAT, Some("k1"), &chat("a", json!({ "seed": 1 })));
    assert_eq!((reused.status, reused.error_code()), (422, "idempotency_key_reused".into()));

    let created = ask(&hosts[0], "/v1/responses", None, &json!({ "model": "a", "input": "x" }));
    assert_eq!(created.status, 200, "{}", created.text());
    let id = created.json()["id"].as_str().unwrap().to_owned();
    let path = format!("/v1/responses/{id}");
    assert_eq!(get(&hosts[0], &path).status, 200);
    wait_until("the other host knows who keeps it", || {
        get(&hosts[1], &path).error_code() == "response_elsewhere"
    });
    let elsewhere = get(&hosts[1], &path);
    assert_eq!(elsewhere.status, 404);
    assert!(elsewhere.text().contains("gpu-1"), "{}", elsewhere.text());
    let next = json!({ "model": "a", "input": "y", "previous_response_id": id });
    let continued = ask(&hosts[1], "/v1/responses", None, &next);
    assert_eq!((continued.status, continued.error_code()), (404, "response_elsewhere".into()));
    assert_eq!(ask(&hosts[0], "/v1/responses", None, &next).status, 200);
    let unknown = get(&hosts[1], "/v1/responses/resp_00000000000000000000000000000000");
    assert_eq!((unknown.status, unknown.error_code()), (404, "not_found".into()));
}

#[test]
fn nothing_is_refused_because_redis_is_killed() {
    let mut redis = Redis::run(&[]);
    let limits = "limits = { requests-per-minute = 100000, budget = [{ period = \"day\", \
                  tokens = 1000000000 }] }";
    let hosts = hosts(&redis, limits, "{}");
    let (served, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for host in &hosts {
            let (served, stop) = (&served, &stop);
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("{}-{number}", host.port);
                    let key = (number % 2 == 0).then_some(&*key);
                    let response = ask(host, CHAT, key, &chat("a", json!({})));
                    let input = json!({ "model": "a", "input": "x" });
                    let stored = ask(host, "/v1/responses", None, &input);
                    if (response.status, stored.status) != (200, 200) {
                        stop.store(true, Ordering::Relaxed);
                        panic!("{} {}", response.text(), stored.text());
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let more = |number: usize| {
            let from = served.load(Ordering::Relaxed);
            wait_until("more requests are served", || {
                stop.load(Ordering::Relaxed) || served.load(Ordering::Relaxed) > from + number
            });
        };
        more(30);
        redis.kill();
        for host in &hosts {
            wait_until("the host notices", || {
                stop.load(Ordering::Relaxed) || host.metric("pointsman_shared_state_up", "") < 0.5
            });
        }
        more(60);
        stop.store(true, Ordering::Relaxed);
    });
    hosts.iter().for_each(Host::assert_no_request_lost);
}
