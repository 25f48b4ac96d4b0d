//! The official OpenAI packages, as they are.

use std::path::PathBuf;
use std::process::Command;

use pointsman_tests::host::{Host, program, root};

use crate::{FAKE_ENGINE, lane};

/// A folder that `cargo xtask test` prepares.
pub(crate) fn prepared(variable: &str, name: &str) -> PathBuf {
    let folder = match std::env::var_os(variable) {
        Some(folder) => PathBuf::from(folder),
        None => {
            PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/pointsman").join(name)
        }
    };
    assert!(folder.exists(), "{} is missing; `cargo xtask test` prepares it", folder.display());
    folder
}

/// The lanes that the clients' scripts expect.
fn lanes() -> Host {
    let with = |name: &str, script: &str| lane(name, &[name], &["--script", script]);
    let lanes = [
        with("a", "{}"),
        with("broken", r#"{"status": 500}"#),
        with("busy", r#"{"status": 503}"#),
        with("cut", r#"{"end-after": 2}"#),
        with("slow", r#"{"hang": true}"#) + "[lanes.timeouts]\nfirst-byte = \"300ms\"\n",
    ];
    let config = format!("[[keys]]\ntenant = \"t\"\nenv = \"TEST_KEY\"\n{}", lanes.concat());
    Host::start_in(
        &program(FAKE_ENGINE),
        tempfile::tempdir().unwrap(),
        &config,
        &[("TEST_KEY", "sesame")],
    )
    .ready()
}

fn passes(mut command: Command) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.trim() == "all good", "{out}\n{err}");
}

#[test]
fn the_official_python_package_works() {
    let host = lanes();
    let mut command = Command::new(prepared("POINTSMAN_VENV", "venv").join("bin/python"));
    command
        .arg(root().join("tests/python/openai_client.py"))
        .arg(host.port.to_string())
        .arg("sesame");
    passes(command);
    host.assert_nothing_lost();
}

#[test]
fn the_official_node_package_works() {
    let host = lanes();
    let mut command = Command::new("node");
    command
        .arg(root().join("tests/node/openai_client.mjs"))
        .arg(host.port.to_string())
        .arg("sesame");
    command.arg(prepared("POINTSMAN_NODE", "node"));
    passes(command);
    host.assert_nothing_lost();
}
