//! `examples/scale/run`: one command starts all, prints what to try, and ends all.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use pointsman_tests::client::{Response, send};
use pointsman_tests::host::{descendants_of, is_alive, program, root, send_signal};
use pointsman_tests::wait_until;
use rustix::process::Signal;

use crate::FAKE_ENGINE;

/// Ports that the example uses, from its first one.
const PORTS: u16 = 8;
/// The key of the example.
const AUTH: (&str, &str) = ("authorization", "Bearer pointsman-demo");

/// Returns the path of Envoy in the virtual environment that `cargo xtask test --scale` makes.
fn envoy() -> PathBuf {
    Path::new(&std::env::var_os("POINTSMAN_VENV").unwrap()).join("bin/envoy")
}

/// Returns the first of consecutive ports from `start` on that are free. Tests that run at the same
/// time start far from each other.
fn free_ports(start: u16) -> u16 {
    let free = |base: &u16| {
        let ports = (*base..*base + PORTS).map(|port| TcpListener::bind(("127.0.0.1", port)));
        ports.collect::<Result<Vec<_>, _>>().is_ok()
    };
    (start..start + 4000).step_by(100).find(free).unwrap()
}

/// Ends the example if the test fails.
struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            send_signal(self.0.id(), Signal::TERM);
            self.0.wait().unwrap();
        }
    }
}

/// Returns the processes of pickers among these.
fn pickers(processes: &HashSet<u32>) -> Vec<u32> {
    let is_picker = |pid: &&u32| {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split(|byte| *byte == 0).nth(1) == Some(b"pick")
    };
    processes.iter().filter(is_picker).copied().collect()
}

/// Asks a picker, by way of Envoy.
fn models(base: u16) -> Response {
    send(base, "GET", "/v1/models", &[AUTH], b"")
}

#[test]
fn example_starts_answers_and_ends() {
    let base = free_ports(20_000);
    // Where the tests run in the background, a shell has told them to ignore Ctrl-C.
    let mut command = Command::new("env");
    command.arg("--default-signal=INT").arg(root().join("examples/scale/run"));
    command.env("POINTSMAN", program(FAKE_ENGINE)).env("ENGINE", FAKE_ENGINE);
    command.env("ENVOY", envoy()).env("BASE_PORT", base.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut example = Example(command.spawn().unwrap());
    let mut lines = BufReader::new(example.0.stdout.take().unwrap()).lines();
    let mut text = String::new();
    let is_complete = lines.by_ref().map_while(Result::ok).any(|line| {
        text.push_str(&line);
        text.push('\n');
        line.contains("press Ctrl-C")
    });
    let mut errors = String::new();
    if !is_complete {
        example.0.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    }
    assert!(is_complete, "{text}{errors}");
    assert!(text.contains("-d '{\"model\": \"demo\", "), "commands can be read and pasted: {text}");
    // The request through Envoy, its original, and the replay at another host.
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 3, "{text}");
    assert_eq!(text.matches("idempotent-replayed: true").count(), 1, "{text}");
    let limit = text.matches("x-ratelimit-limit-requests: 6").count();
    assert_eq!(limit, 3, "{text}");
    // Six in a minute over all, of which two were before. One may pass while a picker does not know
    // of the others: the first of a key there.
    let codes = text.lines().rev().find(|line| line.contains("429")).unwrap_or_default();
    let passed = codes.matches("200").count();
    assert!((4..=5).contains(&passed), "{codes}\n{text}");
    let children = descendants_of(example.0.id());
    assert!(children.len() >= 10, "{children:?}");
    let pickers = pickers(&children);
    assert_eq!(pickers.len(), 2, "{children:?}");
    send_signal(pickers[0], Signal::KILL);
    wait_until("Envoy asks the other picker", || {
        (0..10).all(|_| models(base).status == 200 && models(base).text().contains("\"demo\""))
    });
    send_signal(example.0.id(), Signal::INT);
    assert!(example.0.wait().unwrap().success());
    wait_until("all processes have ended", || !children.iter().any(|pid| is_alive(*pid)));
}

#[test]
fn example_says_at_once_what_is_missing_or_has_ended() {
    let base = free_ports(25_000);
    let run = |engine: &str| {
        let mut command = Command::new(root().join("examples/scale/run"));
        command.env("POINTSMAN", program(FAKE_ENGINE)).env("ENGINE", engine);
        command.env("ENVOY", "false").env("BASE_PORT", base.to_string());
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let missing = run("/nowhere/engine");
    assert!(missing.contains("/nowhere/engine"), "{missing}");
    let ended = run(FAKE_ENGINE);
    assert!(ended.contains("envoy is not ready"), "{ended}");
}
