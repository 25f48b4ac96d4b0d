//! Limits of keys and tenants under load: they hold, and can be used in full.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use pointsman_tests::client::{Response, open, send};
use pointsman_tests::host::{Host, program};
use pointsman_tests::{pause, wait_until};
use pointsman_xtask::sha256;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const COMPLETIONS: &str = "/v1/completions";
const MINUTE: Duration = Duration::from_secs(60);

/// Starts a host with this keys file.
fn host(keys: &str, arguments: &[&str]) -> Host {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("keys.toml"), keys).unwrap();
    let lane = lane("a", &["a"], arguments);
    let config = format!("[access]\nkeys = \"keys.toml\"\n{lane}");
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]).wait_until_ready()
}

/// Returns the secret of the key with this name.
fn secret(name: &str) -> String {
    format!("pm_secret-of-{name}")
}

/// Returns a key in the keys file.
fn key(name: &str, tenant: &str, limits: &str) -> String {
    let hash = sha256(secret(name).as_bytes());
    format!(
        "[[keys]]\nid = \"{name}\"\nhash = \"sha256:{hash}\"\ntenant = \"{tenant}\"\n\
         limits = {{ {limits} }}\n"
    )
}

fn completion(host: &Host, name: &str, body: &Value) -> Response {
    let authorization = format!("Bearer {}", secret(name));
    let headers = [("content-type", "application/json"), ("authorization", &authorization)];
    send(host.port, "POST", COMPLETIONS, &headers, body.to_string().as_bytes())
}

fn body(max_tokens: u32) -> Value {
    json!({ "model": "a", "prompt": "one two three four five", "max_tokens": max_tokens })
}

/// Returns the tokens that count of a response.
fn tokens(response: &Response) -> u64 {
    let usage = &response.json()["usage"];
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let cached = number(&usage["prompt_tokens_details"]["cached_tokens"]);
    number(&usage["total_tokens"]) - cached
}

/// A request that was accepted: when it was sent, when the response came, and its tokens.
#[derive(Debug, Clone, Copy)]
struct Accepted {
    sent: Instant,
    received: Instant,
    tokens: u64,
}

/// What became of the requests of a client.
#[derive(Debug, Clone, Default)]
struct Sent {
    accepted: Vec<Accepted>,
    refused: u64,
}

/// Sends requests with a key until the time is over. Every response that is not one of an engine is
/// a refusal by a limit per minute.
fn client(host: &Host, name: &str, stop: &AtomicBool, every: Duration) -> Sent {
    let mut all = Sent::default();
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let response = completion(host, name, &body(20));
        match response.status {
            200 => {
                let (received, tokens) = (Instant::now(), tokens(&response));
                all.accepted.push(Accepted { sent, received, tokens });
            }
            status => {
                assert_eq!((status, response.error_code()), (429, "rate_limit_exceeded".into()));
                let after: u64 = response.header("retry-after").unwrap().parse().unwrap();
                assert!((1..=61).contains(&after), "{after}");
                all.refused += 1;
            }
        }
        pause(every);
    }
    all
}

/// Runs clients with these keys for a time, each with a pause between its requests. Returns what
/// became of the requests of each.
fn run(host: &Host, clients: &[(&str, Duration)], time: Duration) -> Vec<Sent> {
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = clients
            .iter()
            .map(|(name, every)| scope.spawn(move || client(host, name, stop, *every)))
            .collect();
        pause(time);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

/// Requests and tokens that were certainly within 60 seconds, at most.
fn most(accepted: &[Accepted]) -> (u64, u64) {
    let sums = accepted.iter().map(|first| {
        let end = first.sent + MINUTE;
        let within = accepted.iter().filter(|one| one.sent >= first.sent && one.received < end);
        within.fold((0, 0), |(count, sum), one| (count + 1, sum + one.tokens))
    });
    sums.fold((0, 0), |most, sum| (most.0.max(sum.0), most.1.max(sum.1)))
}

#[test]
fn limits_hold_for_64_clients_and_can_be_used_in_full() {
    let keys = key("requests", "one", "requests-per-minute = 300")
        + &key("tokens", "two", "tokens-per-minute = 8000");
    let host = host(&keys, &["--script", r#"{"tokens": 20}"#]);
    let clients = [("requests", Duration::ZERO), ("tokens", Duration::ZERO)].repeat(32);
    let sent = run(&host, &clients, Duration::from_secs(6));
    let of = |name: &str| {
        let clients = clients.iter().zip(&sent).filter(|((client, _), _)| *client == name);
        let all: Vec<Accepted> = clients.flat_map(|(_, sent)| &sent.accepted).copied().collect();
        (all.len() as u64, all.iter().map(|one| one.tokens).sum::<u64>())
    };
    let ((requests, _), (_, tokens)) = (of("requests"), of("tokens"));
    assert_eq!(requests, 300);
    assert!((7920..=8000).contains(&tokens), "{tokens}");
    host.assert_no_request_lost();
}

#[test]
fn streams_that_are_left_give_back_what_they_did_not_use() {
    let keys = key("a", "one", "tokens-per-minute = 1000, concurrent = 1");
    let host = host(&keys, &["--script", r#"{"tokens": 500, "token-ms": 20}"#]);
    let authorization = format!("Bearer {}", secret("a"));
    let headers = [("content-type", "application/json"), ("authorization", &authorization)];
    let mut long = body(900);
    long["stream"] = true.into();
    let mut stream = open(host.port, "POST", COMPLETIONS, &headers, long.to_string().as_bytes());
    assert_eq!(stream.status, 200);
    assert!(stream.read_until("word"));
    let busy = completion(&host, "a", &body(20));
    assert_eq!((busy.status, busy.error_code()), (429, "concurrency_limit".into()));
    drop(stream);
    wait_until("the request has ended", || host.metric("pointsman_in_flight", "") < 0.5);
    // Most of the 900 tokens are left for others.
    host.set_script("a", json!({ "tokens": 5 }));
    let response = completion(&host, "a", &body(600));
    assert_eq!(response.status, 200, "{}", response.text());
    let left: u64 = response.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
    assert!(left < 400, "{left}");
}

/// Two tenants that send far more than their limits, with two keys each, and one that stays below
/// its own: it is never refused. Runs for `SOAK_SECONDS` (5): `cargo xtask soak`.
#[test]
fn tenants_that_overdraw_get_their_limits_and_others_theirs() {
    let seconds = std::env::var("SOAK_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let time = Duration::from_secs(seconds.unwrap_or(5));
    let mut keys = String::new();
    for (tenant, requests) in [("greedy", 120), ("greedier", 60), ("modest", 900)] {
        keys += &format!(
            "[[tenants]]\nname = \"{tenant}\"\nlimits = {{ requests-per-minute = {requests} }}\n"
        );
    }
    for (name, tenant) in [
        ("greedy-1", "greedy"),
        ("greedy-2", "greedy"),
        ("greedier-1", "greedier"),
        ("greedier-2", "greedier"),
        ("modest-1", "modest"),
    ] {
        keys += &key(name, tenant, "tokens-per-minute = 1000000");
    }
    let host = host(&keys, &["--script", r#"{"tokens": 2}"#]);
    let (fast, slow) = (Duration::from_millis(5), Duration::from_millis(100));
    let clients = [
        ("greedy-1", fast),
        ("greedy-2", fast),
        ("greedier-1", fast),
        ("greedier-2", fast),
        ("modest-1", slow),
    ];
    let sent = run(&host, &clients, time);
    let minutes = time.as_secs() / 60;
    for (tenant, limit, of) in [("greedy", 120, 0..2), ("greedier", 60, 2..4)] {
        let all: Vec<Accepted> = sent[of].iter().flat_map(|sent| &sent.accepted).copied().collect();
        let (requests, _) = most(&all);
        assert!(requests <= limit, "{tenant}: {requests} in 60 seconds");
        let total = all.len() as u64;
        assert!(total * 100 >= limit * minutes.max(1) * 99, "{tenant}: {total}");
    }
    assert!(sent[..4].iter().all(|sent| sent.refused > 0));
    assert!(sent[4].refused == 0 && !sent[4].accepted.is_empty(), "{:?}", sent[4]);
    host.assert_no_request_lost();
}

/// Streams of engine paths have no usage unless the client asks for it, and count nevertheless. The
/// unit tests of the gateway have engines that report nothing at all.
#[test]
fn engine_paths_count_without_reported_usage() {
    const LIMIT: u64 = 100_000;
    let limits = format!("tokens-per-minute = {LIMIT}");
    let host = host(&format!("{}engine-admin = true\n", key("k", "t", &limits)), &[]);
    let authorization = format!("Bearer {}", secret("k"));
    let headers = [("content-type", "application/json"), ("authorization", &authorization)];
    let send = |method: &str, path: &str, body: &str| {
        send(host.port, method, &format!("/upstream/a{path}"), &headers, body.as_bytes())
    };
    // Does not count itself.
    let used = || {
        let response = send("GET", "/health", "");
        let left: u64 = response.header("x-ratelimit-remaining-tokens").unwrap().parse().unwrap();
        LIMIT - left
    };
    let mut request = body(20);
    let response = send("POST", COMPLETIONS, &request.to_string());
    let mut expected = tokens(&response);
    wait_until("the reported usage is counted", || used() == expected);

    request["stream"] = true.into();
    let request = request.to_string();
    let response = send("POST", COMPLETIONS, &request);
    assert!(response.status == 200 && !response.text().contains("\"usage\":{"));
    // What llama.cpp says instead, in the last event.
    let text = response.text();
    let event = text.lines().rfind(|line| line.contains("\"timings\":")).unwrap();
    let event: Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
    let timings = &event["timings"];
    expected += timings["prompt_n"].as_u64().unwrap() + timings["predicted_n"].as_u64().unwrap();
    wait_until("the timings are counted", || used() == expected);

    for (path, body) in [("/tokenize", "{\"model\":\"a\",\"prompt\":\"a b\"}"), ("/slots/0", "{}")]
    {
        send("POST", path, body);
        wait_until("nothing else is counted", || used() == expected);
    }
    host.stop();
}
