//! The log: it never harms the host, and only the host writes lines into it.

use std::time::Duration;

use pointsman_tests::attack::{RawClient, launcher, request_head};
use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, program};
use serde_json::json;

use super::{CHAT, MODELS};
use crate::{FAKE_ENGINE, lane};

const SOON: Duration = Duration::from_secs(10);

/// Starts a host with one lane by a shell script, which does `prepare` first. In the script, `$LOG`
/// is a new named pipe.
fn host_by(prepare: &str, redirect: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let prepare = format!("LOG={}/pipe\nmkfifo $LOG\n{prepare}", dir.path().display());
    let script = launcher(dir.path(), &program(FAKE_ENGINE), &prepare);
    let text = std::fs::read_to_string(&script).unwrap();
    std::fs::write(&script, text.trim_end().to_owned() + redirect + "\n").unwrap();
    Host::start_in(&script, dir, &lane("a", &["a"], &[]), &[]).wait_until_ready()
}

/// Sends requests that write far more into the log than a pipe holds; each is answered soon.
fn is_served(host: &Host) {
    let body = chat("unknown", json!({})).to_string();
    for _ in 0..400 {
        let mut client = RawClient::connect(host.port);
        client.send(request_head(CHAT, body.len(), "connection: close\r\n"));
        client.send(&body);
        let response = client.read_response(SOON);
        assert_eq!(response.status(), Some(404), "{}", response.text());
    }
    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200);
}

fn assert_serves_and_stops(mut host: Host) {
    is_served(&host);
    host.assert_no_request_lost();
    host.signal(rustix::process::Signal::TERM);
    assert!(host.wait_for_exit().success());
}

#[test]
fn reader_of_the_log_that_goes_away_harms_nothing() {
    let host = host_by("head -c 1 < $LOG > /dev/null &", " 2> $LOG");
    assert_serves_and_stops(host);
}

#[test]
fn reader_of_the_log_that_stalls_harms_nothing() {
    // Opens the pipe and never reads; not a child of the host.
    let host = host_by("(sleep 60 < $LOG &)", " 2> $LOG");
    assert_serves_and_stops(host);
}

/// In the text format, what a client sends begins no line and has no control characters.
#[test]
fn client_cannot_forge_lines_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    // The configuration of tests selects JSON in its first line.
    let config = dir.path().join("pointsman.toml");
    let prepare = format!("sed -i 1d '{}'", config.display());
    let script = launcher(dir.path(), &program(FAKE_ENGINE), &prepare);
    let host = Host::start_in(&script, dir, &lane("a", &["a"], &[]), &[]).wait_until_ready();
    let forged = "x\n2031-01-01T00:00:00Z ERROR forged\u{1b}[31m\u{202e}\0\r";
    let response = post(host.port, CHAT, &chat(forged, json!({})));
    assert_eq!(response.status, 404, "{}", response.text());
    let mut client = RawClient::connect(host.port);
    client.send(format!(
        "GET {MODELS}/q%0a2031-01-01T00:00:00Z%20ERROR%20forged HTTP/1.1\r\nhost: \
         localhost\r\nconnection: close\r\n\r\n"
    ));
    assert_eq!(client.read_response(SOON).status(), Some(404));
    let mut host = host;
    host.signal(rustix::process::Signal::TERM);
    assert!(host.wait_for_exit().success());
    let log = host.log_text();
    assert!(!log.starts_with('{'), "the format is text");
    assert!(log.contains("forged") && log.lines().all(|line| !line.starts_with("2031")), "{log}");
    assert!(!log.contains(['\u{202e}', '\0']), "{log}");
}

/// Lines about errors that clients cause are limited in number.
#[test]
fn flood_of_errors_does_not_fill_the_log() {
    let host = crate::one_lane(&[]);
    let before = host.log_text().len();
    for _ in 0..1000 {
        assert_eq!(post(host.port, CHAT, &chat("unknown", json!({}))).status, 404);
    }
    let written = host.log_text().len() - before;
    // Without a limit, 1,000 errors are about 300 KiB at least.
    assert!(written < 128 << 10, "{written} bytes");
    host.assert_no_request_lost();
}
