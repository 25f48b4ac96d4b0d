//! `pointsman pick` behind real Envoy.

mod conformance;
mod death;
mod hosts;

use std::fs;
use std::time::{Duration, Instant};

use pointsman_tests::client::{Response, chat, post, stream};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::FAKE_ENGINE;
use crate::envoy::{Engine, Envoy, free_port};

const PATH: &str = "/v1/chat/completions";

/// Starts a picker for these lanes, and waits until all of them are ready. `more` are further
/// tables.
pub(crate) fn picker(lanes: &[String], more: &str) -> Host {
    let config = format!("{more}\n[pick]\n{}", lanes.concat());
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start_picker(&program(FAKE_ENGINE), dir, &config);
    wait_until("all lanes are ready", || {
        let status = host.status();
        let lanes = status["lanes"].as_array().unwrap();
        lanes.iter().all(|lane| lane["state"] == "ready")
    });
    host
}

/// Starts Envoy for one picker.
pub(crate) fn envoy(picker: &Host, engines: &[Engine; 2]) -> Envoy {
    let engines = [engines[0].port, engines[1].port];
    Envoy::start([picker.port, free_port()], engines, |text| text)
}

pub(crate) fn engines(scripts: [Value; 2]) -> [Engine; 2] {
    scripts.map(|script| Engine::start(&script))
}

fn send(envoy: &Envoy) -> Response {
    post(envoy.port, PATH, &chat("m", json!({})))
}

#[test]
fn request_goes_to_the_picked_engine_as_it_expects_it() {
    let engines = engines([json!({ "echo": true }), json!({})]);
    let picker = picker(&[engines[0].lane("a", "engine-model = \"real\"")], "");
    let envoy = envoy(&picker, &engines);
    let response = post(envoy.port, PATH, &chat("m", json!({ "temperature": 0.5 })));
    let text = response.text();
    assert_eq!(response.status, 200, "{text}\n{}\n{}", envoy.log_text(), picker.log_text());
    assert_eq!(response.header("x-pointsman-lane"), Some("a"));
    assert!(response.header("x-request-id").is_some());
    assert!(text.contains("real") && text.contains("0.5"), "{text}");
    assert!(!text.contains("x-pointsman-"), "{text}");
    let finished = picker.wait_for_event("request_finished", &[("lane", "a")]);
    assert_eq!((finished.text("status"), finished.text("attempts")), ("200".into(), "1".into()));
}

#[test]
fn errors_are_those_of_the_api() {
    let mut engines = engines([json!({}), json!({})]);
    let picker = picker(&[engines[0].lane("a", "")], "");
    let envoy = envoy(&picker, &engines);
    let unknown = post(envoy.port, PATH, &chat("other", json!({})));
    assert_eq!((unknown.status, unknown.error_code()), (404, json!("model_not_found")));
    let invalid = post(envoy.port, PATH, &json!({ "model": "m" }));
    assert_eq!(invalid.status, 400, "{}", invalid.text());
    let models = pointsman_tests::client::get(envoy.port, "/v1/models").text();
    assert!(models.contains("\"m\""), "{models}");
    engines[0].kill();
    wait_until("the lane is down", || picker.lane("a")["state"] != "ready");
    let down = send(&envoy);
    assert_eq!((down.status, down.error_code()), (503, json!("no_lane_available")));
    assert!(down.header("retry-after").is_some());
}

#[test]
fn stream_passes_chunk_by_chunk() {
    let script = json!({ "tokens": 6, "token-ms": 200 });
    let engines = engines([script, json!({})]);
    let picker = picker(&[engines[0].lane("a", "")], "");
    let envoy = envoy(&picker, &engines);
    let begun = Instant::now();
    let mut response = stream(envoy.port, PATH, &chat("m", json!({ "stream": true })));
    assert!(response.read_until("data: "), "{}", picker.log_text());
    assert!(begun.elapsed() < Duration::from_millis(900), "the first event waits for others");
    let (response, is_complete) = response.finish();
    assert!(is_complete && response.text().ends_with("data: [DONE]\n\n"), "{}", response.text());
    assert!(!response.text().contains("usage"), "the host has asked for it");
    let finished = picker.wait_for_event("request_finished", &[]);
    assert_eq!(finished.text("output_tokens"), "6");
}

#[test]
fn second_endpoint_serves_if_the_first_is_gone_and_the_outcome_names_it() {
    let mut engines = engines([json!({}), json!({})]);
    let lanes = [engines[0].lane("a", ""), engines[1].lane("b", "")];
    // The picker does not notice that an engine has gone.
    let lanes = lanes.map(|lane| lane.replace("200ms", "60s"));
    let picker = picker(&lanes, "");
    let envoy = envoy(&picker, &engines);
    let first = send(&envoy);
    let (gone, other) = match first.header("x-pointsman-lane") {
        Some("a") => (0, "b"),
        _ => (1, "a"),
    };
    engines[gone].kill();
    // Sooner or later, the lane that is gone is the first choice.
    let mut fell_back = None;
    for _ in 0..20 {
        let response = send(&envoy);
        assert_eq!(response.status, 200, "{}", response.text());
        assert_eq!(response.header("x-pointsman-lane"), Some(other));
        if response.header("x-pointsman-attempts") == Some("2") {
            fell_back = Some(response);
            break;
        }
    }
    assert!(fell_back.is_some(), "{}", picker.log_text());
    let finished = picker.wait_for_event("request_finished", &[("attempts", "2")]);
    assert_eq!(
        (finished.text("lane"), finished.text("outcome")),
        (other.into(), "fell-back".into())
    );
}

#[test]
fn request_is_held_until_a_slot_is_free_and_leaves_if_its_client_does() {
    let engines = engines([json!({ "tokens": 6, "token-ms": 700 }), json!({})]);
    let picker = picker(&[engines[0].lane("a", "slots = 1")], "");
    let envoy = envoy(&picker, &engines);
    let begun = Instant::now();
    let mut first = stream(envoy.port, PATH, &chat("m", json!({ "stream": true })));
    assert!(first.read_until("data: "));
    let port = envoy.port;
    std::thread::scope(|scope| {
        let held = scope.spawn(move || post(port, PATH, &chat("m", json!({ "max_tokens": 1 }))));
        wait_until("a request waits", || picker.lane("a")["queued"] == 1);
        // A client that hangs up.
        let gone = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let body = chat("m", json!({})).to_string();
        let length = body.len();
        let head = format!(
            "POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\
             content-type: application/json"
        );
        std::io::Write::write_all(&mut &gone, format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        wait_until("two requests wait", || picker.lane("a")["queued"] == 2);
        drop(gone);
        wait_until("one request waits", || picker.lane("a")["queued"] == 1);
        assert!(first.finish().1);
        assert_eq!(held.join().unwrap().status, 200);
    });
    assert!(begun.elapsed() > Duration::from_millis(2500));
    wait_until("all requests have ended", || picker.lane("a")["running"] == 0);
}

#[test]
fn without_pickers_envoy_refuses_or_chooses_itself_as_it_is_told() {
    let engines = engines([json!({}), json!({})]);
    let ports = [engines[0].port, engines[1].port];
    let gone = [free_port(), free_port()];
    let closed = Envoy::start(gone, ports, |text| text);
    assert!(send(&closed).status >= 500);
    let open = Envoy::start(gone, ports, |text| {
        text.replace("failure_mode_allow: false", "failure_mode_allow: true")
    });
    let response = send(&open);
    let (status, log) = (response.status, open.log_text());
    assert_eq!(status, 200, "{}\n{log}", response.text());
    assert_eq!(response.header("x-pointsman-lane"), None);
}

#[test]
fn file_of_endpoints_is_followed_and_the_last_good_one_kept() {
    let engines = engines([json!({}), json!({})]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("endpoints.toml");
    fs::write(&file, engines[0].lane("a", "")).unwrap();
    let config = format!("[pick]\nendpoints = {:?}\n", file.display().to_string());
    let home = tempfile::tempdir().unwrap();
    let picker = Host::start_picker(&program(FAKE_ENGINE), home, &config);
    picker.wait_for_lane("a", "ready");
    let envoy = envoy(&picker, &engines);
    assert_eq!(send(&envoy).header("x-pointsman-lane"), Some("a"));
    let replace = |text: &str| {
        let new = dir.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &file).unwrap();
    };
    replace(&engines[1].lane("b", ""));
    wait_until("lane b is there", || {
        let status = picker.status();
        let lanes = status["lanes"].as_array().unwrap();
        lanes.iter().any(|lane| lane["name"] == "b" && lane["state"] == "ready")
    });
    let response = send(&envoy);
    assert_eq!(response.header("x-pointsman-lane"), Some("b"), "{}", response.text());
    replace("[[lanes]]\nname = \"c\"\nslots = \"many\"\n");
    let failed = picker.wait_for_event("config_reload_failed", &[]);
    let error = failed.text("error");
    assert!(error.contains("endpoints.toml:3: ") && error.contains("[wrong_type]"), "{error}");
    assert_eq!(send(&envoy).header("x-pointsman-lane"), Some("b"));
}
