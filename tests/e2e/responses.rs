//! The responses API: OpenAI's packages as clients, and what outlives the host.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use pointsman_tests::client::send;
use pointsman_tests::host::{Host, program, root};
use pointsman_tests::wait_until;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::clients::prepared_dir;
use crate::{FAKE_ENGINE, lane};

const KEYS: &str = "[[keys]]\ntenant = \"t\"\nenv = \"TEST_KEY\"\n\
                    [[keys]]\ntenant = \"u\"\nenv = \"OTHER_KEY\"\n";

fn start(dir: TempDir) -> Host {
    let slow = r#"{"token-ms": 60000}"#;
    let lanes = [
        lane("a", &["a", "m"], &[]),
        lane("b", &["b", "m"], &[]),
        lane("slow", &["slow"], &["--script", slow]),
    ];
    let config = format!("{KEYS}{}", lanes.concat());
    let env = [("TEST_KEY", "sesame"), ("OTHER_KEY", "poppy")];
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &env).wait_until_ready()
}

fn call(host: &Host, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let headers = [("content-type", "application/json"), ("authorization", "Bearer sesame")];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let response = send(host.port, method, path, &headers, body.as_bytes());
    (response.status, response.json())
}

fn store_of(host: &Host) -> PathBuf {
    let socket = host.admin_socket().unwrap();
    socket.with_file_name("store")
}

fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    let (out, err) = (output.stdout, String::from_utf8_lossy(&output.stderr).into_owned());
    let out = String::from_utf8(out).unwrap();
    assert!(output.status.success() && out.trim_end().ends_with("ok"), "{out}\n{err}");
    out
}

#[test]
fn official_packages_keep_conversations() {
    let host = start(tempfile::tempdir().unwrap());
    let mut python = Command::new(prepared_dir("POINTSMAN_VENV", "venv").join("bin/python"));
    python.arg(root().join("tests/python/responses_client.py")).arg(host.port.to_string());
    let out = output(python);
    let mut node = Command::new("node");
    node.arg(root().join("tests/node/responses_client.mjs")).arg(host.port.to_string());
    node.arg(prepared_dir("POINTSMAN_NODE", "node"));
    output(node);
    host.assert_no_request_lost();
    // Over a restart of the host.
    let id = out.lines().next().unwrap();
    let host = start(host.into_dir());
    let (status, kept) = call(&host, "GET", &format!("/v1/responses/{id}"), &Value::Null);
    assert_eq!((status, &kept["status"]), (200, &json!("completed")), "{kept}");
    let next = json!({ "model": "a", "input": "x", "previous_response_id": id });
    assert_eq!(call(&host, "POST", "/v1/responses", &next).0, 200);
}

/// A host that is killed loses at most what it was writing, and what it was doing has failed.
#[test]
fn responses_survive_a_kill_of_the_host() {
    let host = start(tempfile::tempdir().unwrap());
    let body = json!({ "model": "m", "input": "one" });
    let (_, first) = call(&host, "POST", "/v1/responses", &body);
    let slow = json!({ "model": "slow", "input": "one", "background": true });
    let (_, slow) = call(&host, "POST", "/v1/responses", &slow);
    assert_eq!(slow["status"], "queued", "{slow}");
    let path = |response: &Value| format!("/v1/responses/{}", response["id"].as_str().unwrap());
    assert_eq!(call(&host, "GET", &path(&slow), &Value::Null).1["status"], "in_progress");
    // The file is written in order: with the next response in it, the others are written.
    let (_, next) = call(&host, "POST", "/v1/responses", &body);
    wait_until("the response is written", || {
        let id = next["id"].as_str().unwrap();
        let store = fs::read(store_of(&host)).unwrap();
        store.windows(id.len()).any(|bytes| bytes == id.as_bytes())
    });
    let host = start(host.into_dir());
    let (status, again) = call(&host, "GET", &path(&first), &Value::Null);
    assert_eq!((status, &again["output"]), (200, &first["output"]), "{again}");
    let (_, ended) = call(&host, "GET", &path(&slow), &Value::Null);
    assert_eq!(ended["status"], "failed", "{ended}");
}
