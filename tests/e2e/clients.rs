//! The unmodified official packages of OpenAI, Anthropic and Ollama as clients. `tests/clients` has
//! their features, and those of many other libraries.

use std::path::PathBuf;
use std::process::Command;

use pointsman_tests::host::{Host, program, root};

use crate::{FAKE_ENGINE, lane};

/// Returns a directory that `cargo xtask test` prepares.
pub(crate) fn prepared_dir(variable: &str, name: &str) -> PathBuf {
    let folder = match std::env::var_os(variable) {
        Some(folder) => PathBuf::from(folder),
        None => {
            PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/pointsman").join(name)
        }
    };
    assert!(folder.exists(), "{} is missing; `cargo xtask test` prepares it", folder.display());
    folder
}

/// Starts a host with these lanes and a key.
pub(crate) fn start_keyed(lanes: &str) -> Host {
    let config = format!("[[keys]]\ntenant = \"t\"\nenv = \"TEST_KEY\"\n{lanes}");
    Host::start_in(
        &program(FAKE_ENGINE),
        tempfile::tempdir().unwrap(),
        &config,
        &[("TEST_KEY", "sesame")],
    )
    .wait_until_ready()
}

/// Starts a host with the lanes that the client scripts expect.
fn start_host() -> Host {
    let with = |name: &str, script: &str| lane(name, &[name], &["--script", script]);
    let lanes = [
        with("a", "{}"),
        with("broken", r#"{"status": 500}"#),
        with("busy", r#"{"status": 503}"#),
        with("truncated", r#"{"end-after": 2}"#),
        with("slow", r#"{"hang": true}"#) + "[lanes.timeouts]\nfirst-byte = \"300ms\"\n",
    ];
    start_keyed(&lanes.concat())
}

pub(crate) fn assert_succeeds(mut command: Command) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.trim() == "ok", "{out}\n{err}");
}

#[test]
fn official_python_package_works() {
    let host = start_host();
    let mut command = Command::new(prepared_dir("POINTSMAN_VENV", "venv").join("bin/python"));
    command
        .arg(root().join("tests/python/openai_client.py"))
        .arg(host.port.to_string())
        .arg("sesame");
    assert_succeeds(command);
    let truncated = [("lane", "truncated"), ("cause", "unfinished")];
    host.wait_for_event("response_aborted", &truncated);
    host.assert_no_request_lost();
}

#[test]
fn official_node_package_works() {
    let host = start_host();
    let mut command = Command::new("node");
    command
        .arg(root().join("tests/node/openai_client.mjs"))
        .arg(host.port.to_string())
        .arg("sesame");
    command.arg(prepared_dir("POINTSMAN_NODE", "node"));
    assert_succeeds(command);
    let truncated = [("lane", "truncated"), ("cause", "unfinished")];
    host.wait_for_event("response_aborted", &truncated);
    host.assert_no_request_lost();
}

/// Returns the command that runs features of client libraries.
fn features() -> Command {
    let mut command = Command::new(prepared_dir("POINTSMAN_VENV", "venv").join("bin/python"));
    command.arg(root().join("tests/clients/run.py"));
    command
}

fn assert_passes(command: &mut Command) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn features_of_official_packages_work() {
    let mut command = features();
    command.arg("--short").arg("--pointsman").arg(program(FAKE_ENGINE));
    command.arg("--venv").arg(prepared_dir("POINTSMAN_VENV", "venv"));
    command.arg("--node").arg(prepared_dir("POINTSMAN_NODE", "node"));
    assert_passes(&mut command);
}

/// The page is written by `cargo xtask test --clients`.
#[test]
fn page_lists_all_features_and_versions() {
    assert_passes(features().arg("--check").arg(root().join("host/docs/clients.md")));
}
