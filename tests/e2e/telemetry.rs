//! The access log and log files.

use std::fs;
use std::path::PathBuf;

use pointsman_tests::client::{chat, post};
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

/// Starts a host with two lanes, of which the first one fails.
fn host(head: &str, env: &[(&str, &str)]) -> Host {
    let lanes = ["a", "b"].map(|name| lane(name, &["m"], &[]));
    let config = format!("{head}\n{}", lanes.concat());
    let dir = tempfile::tempdir().unwrap();
    Host::start_in(&program(FAKE_ENGINE), dir, &config, env).wait_until_ready()
}

/// Returns the objects of a file, as soon as it has this number of lines.
fn lines(path: PathBuf, count: usize) -> Vec<Value> {
    let read = || fs::read_to_string(&path).unwrap_or_default();
    wait_until("the file has all lines", || read().lines().count() >= count);
    read().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn each_request_has_one_line_in_the_access_log() {
    let host =
        host("[log]\ndir = \"logs\"\naccess-client = \"network\"\naccess-omit = [\"id\"]", &[]);
    host.set_script("a", json!({ "status": 500 }));
    let forged = "x\n{\"status\":200}";
    let answers = [
        post(host.port, "/v1/chat/completions", &chat("m", json!({}))),
        post(host.port, "/v1/chat/completions", &chat(forged, json!({}))),
    ];
    assert_eq!(answers.map(|answer| answer.status), [200, 404]);
    host.get("/health");
    let logs = host.dir.path().join("logs");
    let [served, refused] = &lines(logs.join("access.log"), 2)[..] else { panic!("lines") };
    assert_eq!((&served["model"], &served["status"]), (&"m".into(), &200.into()), "{served}");
    assert_eq!((&served["client"], &served["lane"]), (&"127.0.0.0".into(), &"b".into()));
    assert_eq!((&served["outcome"], &served["attempts"]), (&"fell-back".into(), &2.into()));
    assert_eq!(
        (&served["endpoint"], &served["stream"]),
        (&"chat-completions".into(), &false.into())
    );
    assert!(served["output_tokens"].as_u64().unwrap() > 0, "{served}");
    assert!(served["response_bytes"].as_u64().unwrap() > 0, "{served}");
    assert!(served["duration_ms"].as_u64() >= served["ttft_ms"].as_u64(), "{served}");
    assert!(served.get("id").is_none() && served.get("trace_id").is_none(), "{served}");
    assert_eq!((&refused["status"], &refused["code"]), (&404.into(), &"model_not_found".into()));
    assert_eq!(refused["attempts"], 0);
    wait_until("the log file has the same events as the log", || {
        let text = fs::read_to_string(logs.join("pointsman.log")).unwrap_or_default();
        text.lines().filter(|line| line.contains("\"request_finished\"")).count() == 1
    });
    assert_eq!(host.metric("pointsman_access_log_lines_dropped_total", "reason=\"write\""), 0.0);
}

#[test]
fn log_directory_of_the_environment_is_used_and_files_may_be_moved() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let host = host("", &[("LOG_DIRECTORY", logs.to_str().unwrap())]);
    let ask = || post(host.port, "/v1/chat/completions", &chat("m", json!({})));
    assert_eq!(ask().status, 200);
    assert_eq!(lines(logs.join("access.log"), 1).len(), 1);
    fs::rename(logs.join("access.log"), logs.join("moved")).unwrap();
    assert_eq!(ask().status, 200);
    assert_eq!(lines(logs.join("access.log"), 1).len(), 1);
    assert_eq!(lines(logs.join("moved"), 1).len(), 1);
}

#[test]
fn log_files_that_cannot_be_written_harm_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let below_file = file.join("logs");
    let host = host("", &[("LOG_DIRECTORY", below_file.to_str().unwrap())]);
    host.wait_for_event("log_file_unavailable", &[]);
    let answer = post(host.port, "/v1/chat/completions", &chat("m", json!({})));
    assert_eq!(answer.status, 200);
    wait_until("the line is counted as dropped", || {
        host.metric("pointsman_access_log_lines_dropped_total", "reason=\"write\"") >= 1.0
    });
    host.stop();
}
