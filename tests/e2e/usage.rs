//! What was used: counted, kept over kills and a full disk, and exported.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_tests::client::{Response, chat, get_unix, open, send};
use pointsman_tests::host::{Host, program};
use pointsman_tests::{pause, wait_until};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";

/// Secrets that must not be in any file.
const SECRETS: [(&str, &str); 2] = [("TEST_KEY", "sesame-9d1f"), ("OTHER_KEY", "poppy-77ab")];

const KEYS: &str = "[[keys]]\ntenant = \"t\"\nenv = \"TEST_KEY\"\n\
                    [[keys]]\ntenant = \"=u\"\nenv = \"OTHER_KEY\"\n";

/// What a kill may cost.
const MAX_LOSS: Duration = Duration::from_secs(1);

fn config() -> String {
    let failing = lane("bad", &["m"], &["--script", r#"{"status": 500}"#]);
    let good = lane("good", &["good", "m"], &[]);
    format!("{KEYS}{good}{failing}").replace("models = [\"m\"]", "models = [\"m\"]\nslots = 8")
}

fn start(dir: TempDir) -> Host {
    Host::start_in(&program(FAKE_ENGINE), dir, &config(), &SECRETS).wait_until_ready()
}

fn headers(key: usize) -> [(&'static str, String); 2] {
    let bearer = format!("Bearer {}", SECRETS[key].1);
    [("content-type", "application/json".to_owned()), ("authorization", bearer)]
}

fn ask(port: u16, key: usize, body: &Value) -> Response {
    let headers = headers(key);
    let headers = [(headers[0].0, &*headers[0].1), (headers[1].0, &*headers[1].1)];
    send(port, "POST", CHAT, &headers, body.to_string().as_bytes())
}

fn usage(host: &Host, query: &str) -> Response {
    get_unix(host.admin_socket().unwrap(), &format!("/usage?{query}")).unwrap()
}

fn rows(host: &Host, query: &str) -> Vec<Value> {
    let response = usage(host, query);
    assert_eq!(response.status, 200, "{}", response.text());
    response.json()["rows"].as_array().unwrap().clone()
}

/// Runs `pointsman usage` for a host, which may be running; returns exit code, standard output and
/// standard error.
fn command(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(["usage", "--config"]).arg(dir.join("pointsman.toml")).args(arguments);
    command.env("XDG_STATE_HOME", dir.join("state"));
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Returns the number of requests that a host has counted, from its store or its admin API.
fn requests(dir: &Path) -> u64 {
    let (code, out, err) = command(dir, &["--format", "json", "--from", "2026-01-01"]);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let rows = report["rows"].as_array().unwrap();
    rows.iter().map(|row| row["requests"].as_u64().unwrap()).sum()
}

fn store_of(host: &Host) -> PathBuf {
    host.admin_socket().unwrap().with_file_name("store")
}

#[test]
fn requests_streams_and_fallbacks_are_counted() {
    let host = start(tempfile::tempdir().unwrap());
    let used = ask(host.port, 0, &chat("good", json!({}))).json()["usage"].clone();
    let with_usage = json!({ "stream": true, "stream_options": { "include_usage": true } });
    assert_eq!(ask(host.port, 0, &chat("good", with_usage)).status, 200);
    assert_eq!(ask(host.port, 1, &chat("m", json!({}))).header("x-pointsman-attempts"), Some("2"));
    assert_eq!(ask(host.port, 1, &chat("none", json!({}))).status, 404);
    host.assert_no_request_lost();
    let by_lane = rows(&host, "by=tenant,lane,model");
    let find = |tenant: &str, lane: &str| {
        let of = |row: &&Value| row["tenant"] == tenant && row["lane"] == lane;
        let found: Vec<&Value> = by_lane.iter().filter(of).collect();
        assert_eq!(found.len(), 1, "{tenant} {lane}: {by_lane:?}");
        found[0]
    };
    let row = find("t", "good");
    let tokens = |name: &str| used[name].as_u64().unwrap() * 2;
    assert_eq!((&row["requests"], &row["failed"]), (&json!(2), &json!(0)), "{row}");
    assert_eq!(row["prompt_tokens"], tokens("prompt_tokens"), "{row}");
    assert_eq!(row["output_tokens"], tokens("completion_tokens"), "{row}");
    assert!(row["engine_seconds"].as_f64().unwrap() > 0.0, "{row}");
    // The lane that failed has worked, but the request is counted once.
    assert_eq!(find("=u", "bad")["requests"], 0);
    assert_eq!(find("=u", "good")["requests"], 1);
    // A name that no lane has is not kept.
    let unknown = find("=u", "");
    assert_eq!((&unknown["failed"], &unknown["model"]), (&json!(1), &json!("")));
    assert_eq!(host.metric("pointsman_tenant_requests_total", "tenant=\"t\""), 2.0);
    let output = host.metric("pointsman_tenant_tokens_total", "tenant=\"t\",kind=\"output\"");
    assert_eq!(json!(output as u64), tokens("completion_tokens"));
    // Clients do not see the metrics of other tenants.
    let headers = headers(0);
    let key = [(headers[0].0, &*headers[0].1), (headers[1].0, &*headers[1].1)];
    let metrics = send(host.port, "GET", "/metrics", &key, b"").text();
    assert!(metrics.contains("pointsman_requests_total") && !metrics.contains("pointsman_tenant"));
}

#[test]
fn usage_is_exported_and_bad_queries_are_refused() {
    let mut host = start(tempfile::tempdir().unwrap());
    (0..2).for_each(|key| drop(ask(host.port, key, &chat("good", json!({})))));
    host.assert_no_request_lost();
    let csv = usage(&host, "format=csv&by=tenant");
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    let text = csv.text();
    let lines: Vec<&str> = text.split("\r\n").collect();
    assert!(lines[0].starts_with("tenant,requests,failed,") && lines.len() == 4, "{text}");
    assert!(lines[1].starts_with("'=u,1,0,") && lines[2].starts_with("t,1,0,"), "{text}");
    assert_eq!(rows(&host, "by=hour,key&tenant=t").len(), 1);
    assert_eq!(rows(&host, "from=2020-01-01&to=2020-02-01").len(), 0);
    for bad in [
        "from=2026-02-30",
        "from=x",
        "by=user",
        "by=tenant,tenant",
        "format=xml",
        "fron=1",
        "from=2026-11-02&to=2026-11-01",
    ] {
        let response = usage(&host, bad);
        assert_eq!((response.status, response.error_code()), (400, json!("invalid_request")));
    }
    // Clients cannot see it.
    let client = headers(0);
    let client = [(client[0].0, &*client[0].1), (client[1].0, &*client[1].1)];
    assert_eq!(send(host.port, "GET", "/usage", &client, b"").status, 404);

    let dir = host.dir.path().to_owned();
    let (code, table, _) = command(&dir, &["--by", "tenant,model"]);
    assert!(code == 0 && table.starts_with("TENANT") && table.lines().count() == 3, "{table}");
    let (code, running, _) = command(&dir, &["--format", "csv"]);
    assert!(code == 0 && running == text, "{running}");
    let (code, _, error) = command(&dir, &["--from", "2026-02-30"]);
    assert!(code == 1 && error.contains("2026-02-30"), "{error}");
    // And when it does not run.
    host.signal(Signal::TERM);
    host.wait_for_exit();
    let (code, stopped, error) = command(&dir, &["--format", "csv"]);
    assert!(code == 0 && stopped == text, "{stopped}{error}");
}

/// Kills a host at random times. What was used more than a second before is in the store, and no
/// request is counted twice.
#[test]
fn at_most_a_second_of_usage_is_lost_by_a_kill() {
    let nanos = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let mut seed = u64::from(nanos);
    println!("seed {seed}");
    let mut dir = tempfile::tempdir().unwrap();
    let (mut at_least, mut at_most) = (0, 0);
    for _ in 0..4 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let host = start(dir);
        let (port, stop) = (host.port, AtomicBool::new(false));
        let (answered, killed) = std::thread::scope(|scope| {
            let client = || {
                let mut answered = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let head = headers(0);
                    let head = [(head[0].0, &*head[0].1), (head[1].0, &*head[1].1)];
                    let body = chat("good", json!({})).to_string();
                    let sent = std::panic::catch_unwind(|| {
                        open(port, "POST", CHAT, &head, body.as_bytes()).finish().1
                    });
                    match sent {
                        Ok(true) => answered.push(Some(Instant::now())),
                        // The host was killed; it may have counted the request.
                        Ok(false) | Err(_) => answered.push(None),
                    }
                }
                answered
            };
            let clients = [scope.spawn(client), scope.spawn(client)];
            pause(Duration::from_millis(1200 + (seed >> 33) % 1500));
            stop.store(true, Ordering::Relaxed);
            host.signal(Signal::KILL);
            let killed = Instant::now();
            let answered = clients.map(|client| client.join().unwrap());
            (answered.concat(), killed)
        });
        let is_old = |at: &&Option<Instant>| at.is_some_and(|at| killed - at > MAX_LOSS);
        let old = answered.iter().filter(is_old).count() as u64;
        dir = host.into_dir();
        let found = requests(dir.path());
        at_least += old;
        at_most += answered.len() as u64;
        println!("{found} of {at_most} requests, {at_least} of them older than a second");
        assert!((at_least..=at_most).contains(&found), "{at_least} {found} {at_most}");
        // What was lost stays lost.
        (at_least, at_most) = (found, found);
    }
    assert!(at_least > 0);
}

/// With a full disk, requests are served, and what they used is written when there is space.
#[test]
fn usage_is_written_after_the_disk_was_full() {
    let dir = tempfile::tempdir().unwrap();
    // A program that exceeds the limit gets a signal, unless it ignores it.
    let wrapper = dir.path().join("wrapper");
    let host = program(FAKE_ENGINE);
    fs::write(&wrapper, format!("#!/bin/sh\ntrap '' XFSZ\nexec {host:?} \"$@\"\n")).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o700)).unwrap();
    let host = Host::start_in(&wrapper, dir, &config(), &SECRETS).wait_until_ready();
    ask(host.port, 0, &chat("good", json!({})));
    wait_until("the usage is written", || host.metric("pointsman_usage_unwritten", "") == 0.0);
    let limit = |bytes: Option<u64>| {
        let pid = Pid::from_raw(i32::try_from(host.pid()).unwrap());
        prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
    };
    limit(Some(4096));
    for _ in 0..5 {
        assert_eq!(ask(host.port, 0, &chat("good", json!({}))).status, 200);
    }
    wait_until("the disk is full", || host.metric("pointsman_usage_unwritten", "") > 0.0);
    // The report has also what is not written.
    assert_eq!(ask(host.port, 0, &chat("good", json!({}))).status, 200);
    host.assert_no_request_lost();
    limit(None);
    wait_until("the usage is written", || host.metric("pointsman_usage_unwritten", "") == 0.0);
    let dir = host.into_dir();
    assert_eq!(requests(dir.path()), 7);
}

#[test]
fn nothing_secret_is_in_the_store() {
    let host = start(tempfile::tempdir().unwrap());
    (0..2).for_each(|key| drop(ask(host.port, key, &chat("good", json!({})))));
    host.assert_no_request_lost();
    assert_eq!(rows(&host, "by=key").len(), 2);
    let store = fs::read(store_of(&host)).unwrap();
    let has = |text: &[u8]| store.windows(text.len()).any(|window| window == text);
    assert!(has(b"env-"), "the names of the keys are there");
    for (_, secret) in SECRETS {
        assert!(!has(secret.as_bytes()), "{secret}");
    }
}

#[test]
fn reports_of_other_hosts_are_added_to_that_of_a_running_host() {
    let [host, other] = [(); 2].map(|()| start(tempfile::tempdir().unwrap()));
    let counts = [(&host, 0, 2), (&other, 0, 1), (&other, 1, 1)];
    for (host, key, count) in counts {
        for _ in 0..count {
            assert_eq!(ask(host.port, key, &chat("good", json!({}))).status, 200);
        }
    }
    wait_until("the requests are counted", || {
        (requests(host.dir.path()), requests(other.dir.path())) == (2, 2)
    });
    let by = ["--by", "tenant", "--format", "json"];
    let (code, report, error) = command(other.dir.path(), &by);
    assert_eq!(code, 0, "{error}");
    let file = other.dir.path().join("report.json");
    fs::write(&file, report).unwrap();
    let with = [&by[..], &["--with", file.to_str().unwrap()]].concat();
    let (code, sum, error) = command(host.dir.path(), &with);
    assert_eq!(code, 0, "{error}");
    let sum: Value = serde_json::from_str(&sum).unwrap();
    let requests = |tenant: &str| {
        let rows = sum["rows"].as_array().unwrap();
        rows.iter().find(|row| row["tenant"] == tenant).map(|row| row["requests"].clone())
    };
    assert_eq!((requests("t"), requests("=u")), (Some(json!(3)), Some(json!(1))), "{sum}");
    // A report by something else cannot be added.
    let (code, _, error) = command(host.dir.path(), &[&with[..], &["--by", "model"]].concat()[2..]);
    assert_eq!(code, 1, "{error}");
}
