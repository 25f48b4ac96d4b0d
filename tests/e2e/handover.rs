//! The host is replaced by another process while it serves. `POINTSMAN_HANDOVERS` (3) sets the
//! number of upgrades in a row.

mod failures;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pointsman_tests::client::{Response, chat, get_unix, post, stream};
use pointsman_tests::host::{Host, is_alive, program, send_signal};
use pointsman_tests::upgrade::UpgradedHost;
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

const CHAT: &str = "/v1/chat/completions";
/// Streams of a second.
const STREAMING: [&str; 2] = ["--script", r#"{"token-ms": 20, "tokens": 50}"#];

fn start(config: &str) -> UpgradedHost {
    let program = program(FAKE_ENGINE);
    UpgradedHost::new(Host::start(&program, config).wait_until_ready(), &program)
}

fn begin_stream(port: u16) -> pointsman_tests::client::ResponseStream {
    let mut response = stream(port, CHAT, &chat("a", json!({ "stream": true })));
    assert!(response.read_until("data: "));
    response
}

/// Returns the texts of a complete stream.
fn contents((response, is_complete): (Response, bool)) -> Vec<String> {
    assert!(is_complete);
    let text = response.text();
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let values = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    values.map(|value| value["choices"][0]["delta"]["content"].to_string()).collect()
}

/// Returns the number of requests that the host has counted.
fn counted(host: &Host) -> u64 {
    let usage = get_unix(host.admin_socket().unwrap(), "/usage?from=2026-01-01").unwrap().json();
    let rows = usage["rows"].as_array().unwrap();
    rows.iter().map(|row| row["requests"].as_u64().unwrap()).sum()
}

/// Sends requests with several clients while `work` runs, and returns their number.
fn under_load(port: u16, clients: usize, work: impl FnOnce()) -> u64 {
    let (stop, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let response = post(port, CHAT, &chat("a", json!({ "max_tokens": 1 })));
                    assert_eq!(response.status, 200, "{}", response.text());
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Also if it panics: the clients would never end.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    sent.into_inner()
}

#[test]
fn streams_and_engines_survive_upgrades_under_load() {
    let count = std::env::var("POINTSMAN_HANDOVERS").map_or(3, |count| count.parse().unwrap());
    let mut host = start(&lane("a", &["a"], &STREAMING));
    let port = host.host.port;
    let engine = host.host.engine_pid("a");
    let expected = contents(begin_stream(port).finish());
    let mut streams = 1;
    // More than there are slots, so that some requests wait.
    let sent = under_load(port, 6, || {
        for _ in 0..count {
            let running = begin_stream(port);
            let result = host.upgrade();
            assert!(is_alive(host.pid()));
            // A tenth of a second at most is wanted; the machine may be busy.
            assert!(result["pause_ms"].as_u64().unwrap() < 5000, "{result}");
            assert_eq!(contents(running.finish()), expected);
            streams += 1;
        }
    });
    assert!(sent > 0);
    assert!(host.wait_for_first().success());
    host.wait_for_earlier();
    let lane = host.host.lane("a");
    assert_eq!((&lane["pid"], &lane["starts"]), (&json!(engine), &json!(1)));
    assert_eq!(host.host.events("engine_not_adopted", &[]).len(), 0);
    wait_until("all requests are counted", || counted(&host.host) == sent + streams);
    host.stop();
    assert!(!is_alive(engine));
}

/// A stop of the new host ends the streams of the old one as well, after the drain.
#[test]
fn stop_after_upgrade_waits_for_streams_of_both_hosts() {
    let mut host = start(&lane("a", &["a"], &STREAMING));
    let (port, engine) = (host.host.port, host.host.engine_pid("a"));
    let old = begin_stream(port);
    host.upgrade();
    let new = begin_stream(port);
    send_signal(host.pid(), Signal::TERM);
    let (old, new) = (contents(old.finish()), contents(new.finish()));
    assert_eq!(old, new);
    assert!(host.wait_for_first().success());
    wait_until("no process is left", || !is_alive(host.pid()) && !is_alive(engine));
}

/// A signal upgrades as well.
#[test]
fn signal_replaces_the_host() {
    let mut host = start(&lane("a", &["a"], &STREAMING));
    host.host.signal(Signal::USR2);
    let next = host.host.wait_for_event("handed_over", &[]).text("pid").parse().unwrap();
    host.note_successor(next);
    assert!(host.wait_for_first().success());
    assert_eq!(post(host.host.port, CHAT, &chat("a", json!({}))).status, 200);
    host.stop();
}

/// The successor has the slots that streams of the old host still use.
#[test]
fn slots_of_the_old_host_are_counted() {
    let config = pointsman_tests::host::fake_lane(
        FAKE_ENGINE,
        "a",
        &["a"],
        "slots = 1",
        &["--script", r#"{"token-ms": 30, "tokens": 50}"#],
    );
    let mut host = start(&config);
    let port = host.host.port;
    let running = begin_stream(port);
    // Waits in the queue of the old host.
    let waiting = std::thread::spawn(move || post(port, CHAT, &chat("a", json!({}))));
    wait_until("a request waits", || host.host.metric("pointsman_lane_queued", "") == 1.0);
    host.upgrade();
    wait_until("both are known", || {
        let metric = |name: &str| host.host.metric(name, "");
        metric("pointsman_lane_running") == 1.0 && metric("pointsman_lane_queued") == 1.0
    });
    assert!(!waiting.is_finished());
    contents(running.finish());
    assert_eq!(waiting.join().unwrap().status, 200);
    wait_until("the slot is free", || host.host.metric("pointsman_lane_running", "") == 0.0);
    assert!(host.wait_for_first().success());
    host.stop();
}

/// Starts a host as the service manager does, with a socket on which it listens.
fn start_activated(dir: &Path, socket: &TcpListener) -> Child {
    let address = socket.local_addr().unwrap();
    let file = dir.join("pointsman.toml");
    let config = format!(
        "server.listen = \"{address}\"\nstate.dir = \"state\"\n{}",
        lane("a", &["a"], &STREAMING)
    );
    std::fs::write(&file, config).unwrap();
    let as_manager = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" serve \"$1\" 3<&0 0</dev/null";
    let mut command = Command::new("sh");
    command.args(["-c", as_manager]).arg(program(FAKE_ENGINE)).arg(file);
    command.stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    command.stderr(std::fs::File::create(dir.join("log")).unwrap());
    command.spawn().unwrap()
}

/// This process has the socket open as well, so that the host cannot bind the address.
#[test]
fn socket_of_the_service_manager_is_used_and_handed_over() {
    let dir = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut child = start_activated(dir.path(), &socket);
    let admin = dir.path().join("state/admin.sock");
    let ask = || post(port, CHAT, &chat("a", json!({ "max_tokens": 1 }))).status;
    // The connections wait in the socket until the host accepts them.
    wait_until("the host serves", || ask() == 200);
    let mut command = Command::new(program(FAKE_ENGINE));
    let output = command.args(["upgrade", "--json", "--socket"]).arg(&admin).output().unwrap();
    let log = || std::fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(output.status.success(), "{output:?}\n{}", log());
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let next = result["pid"].as_u64().unwrap().try_into().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(ask(), 200);
    send_signal(next, Signal::TERM);
    wait_until("the host has ended", || !is_alive(next));
}

/// Sends a request on a connection that stays open. Returns the head of the response and its body.
fn ask_on(connection: &mut BufReader<TcpStream>, path: &str, body: &Value) -> (String, Value) {
    let body = body.to_string();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.get_mut().write_all(request.as_bytes()).unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(connection.read_line(&mut head).unwrap() > 0, "{head}");
    }
    head.make_ascii_lowercase();
    let mut body = Vec::new();
    // Chunks, as of all responses whose length is not known at their beginning.
    loop {
        let mut size = String::new();
        connection.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or_else(|_| panic!("{head}"));
        let mut chunk = vec![0; size + 2];
        connection.read_exact(&mut chunk).unwrap();
        body.extend_from_slice(&chunk[..size]);
        if size == 0 {
            return (head, serde_json::from_slice(&body).unwrap());
        }
    }
}

/// Returns a request for a response that follows an earlier one.
fn turn(text: &str, previous: Option<&Value>) -> Value {
    json!({ "model": "a", "input": text, "previous_response_id": previous })
}

/// A connection that is idle during the upgrade gets one more response of the old host, which reads
/// and writes what the new one stores.
#[test]
fn idle_connections_are_served_once_more() {
    let mut host = start(&lane("a", &["a"], &[]));
    let port = host.host.port;
    let connect = || {
        let connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        BufReader::new(connection)
    };
    let path = "/v1/responses";
    let mut idle = connect();
    let (head, first) = ask_on(&mut idle, path, &turn("one", None));
    assert!(head.starts_with("http/1.1 200 ") && !head.contains("connection: close"), "{head}");
    host.upgrade();
    let second = post(port, path, &turn("two", Some(&first["id"]))).json();
    assert!(second["id"].is_string(), "{second}");
    let (head, third) = ask_on(&mut idle, path, &turn("three", Some(&second["id"])));
    assert!(head.starts_with("http/1.1 200 ") && head.contains("connection: close"), "{head}");
    assert!(host.wait_for_first().success());
    let fourth = post(port, path, &turn("four", Some(&third["id"])));
    assert_eq!(fourth.status, 200, "{}", fourth.text());
    wait_until("all requests are counted", || counted(&host.host) == 4);
    host.stop();
}
