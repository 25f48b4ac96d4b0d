//! Compiling in a child: the real program, with limits that a component of this test is beyond.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_policy::{
    Allocator, ChainSpec, Change, CompileLimits, Compiler, Metering, Policies, PolicyMetrics,
    PolicySpec, Runtime, RuntimeSettings,
};
use prometheus_client::registry::Registry;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pointsman");
const SMALL: &str = include_str!("../crates/policy/fixtures/small.wat");

/// A folder with a policy of this text.
fn policy(text: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("policy.toml"), "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n")
        .unwrap();
    fs::write(dir.path().join("policy.wasm"), wat::parse_str(text).unwrap()).unwrap();
    dir
}

/// A policy that takes seconds to compile.
fn large() -> TempDir {
    let mut more = String::from("(core module");
    for number in 0..1500 {
        let step = "(local.set 0 (i64.add (i64.mul (local.get 0) (local.get 1)) (i64.rotl (local.get 1) (local.get 0))))
                    (if (i64.eqz (local.get 0)) (then (local.set 1 (i64.sub (local.get 0) (local.get 1)))))";
        write!(
            more,
            "(func (param i64 i64) (result i64) {} (i64.const {number}))",
            step.repeat(60)
        )
        .unwrap();
    }
    policy(&format!("{} {more}))", SMALL.trim_end().strip_suffix(')').unwrap()))
}

/// Load it with the real program as its compiler; what is wrong, if it cannot be loaded.
fn load(dir: &Path, limits: CompileLimits) -> Result<String, String> {
    load_for(Metering::Wall, dir, limits)
}

fn load_for(metering: Metering, dir: &Path, limits: CompileLimits) -> Result<String, String> {
    let settings = RuntimeSettings {
        metering,
        compiler: Compiler::Child { program: PROGRAM.into(), limits },
        allocator: Allocator::Auto,
        warm_instances: 1,
        cache_dir: None,
    };
    let runtime = Runtime::new(settings).unwrap();
    let metrics: Arc<PolicyMetrics> = PolicyMetrics::register(&mut Registry::default());
    let policies = Policies::new(&runtime, &metrics, Box::new(|_| Err("no cases".into()))).unwrap();
    let spec = PolicySpec::new("small", dir.to_owned());
    match policies.apply(ChainSpec { policies: vec![spec], ..ChainSpec::default() }).remove(0).1 {
        Change::Failed(error) => Err(error.to_string()),
        _ => Ok(policies.status().remove(0).component_sha256),
    }
}

fn assert_fails(dir: &TempDir, limits: CompileLimits, sentence: &str) {
    let said = load(dir.path(), limits).unwrap_err();
    assert!(said.contains(sentence), "{said}");
}

#[test]
fn a_child_compiles_what_runs_here() {
    for metering in [Metering::Wall, Metering::Fuel] {
        let loaded = load_for(metering, policy(SMALL).path(), CompileLimits::default());
        assert_eq!(loaded.unwrap().len(), 64, "{metering:?}");
    }
}

#[test]
fn a_child_keeps_its_limits() {
    let large = large();
    let limits = CompileLimits::default();
    assert_fails(
        &large,
        CompileLimits { cpu: Duration::from_secs(1), ..limits },
        "compiling took more than 1 s of CPU time",
    );
    assert_fails(
        &large,
        CompileLimits { wall: Duration::from_millis(300), ..limits },
        "compiling took longer than 0.3 s",
    );
    assert_fails(
        &large,
        CompileLimits { memory: 120 << 20, ..limits },
        "compiling needed more memory than 120 MiB",
    );
    assert_fails(
        &policy(SMALL),
        CompileLimits { code: 4096, ..limits },
        "its compiled code is longer than 4096 bytes",
    );
}

#[test]
fn what_is_not_compiled_says_why() {
    let output = child(std::process::id(), b"\0asm\x0d\0\x01\0 and no more");
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{output:?}");
}

/// What the child does with these bytes, when it is told that this is its parent.
fn child(parent: u32, bytes: &[u8]) -> std::process::Output {
    let mut child = Command::new(PROGRAM)
        .args([
            "compile-policy",
            "--memory",
            "2147483648",
            "--cpu",
            "60",
            "--parent",
            &parent.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may not want to read them.
    drop(child.stdin.take().unwrap().write_all(bytes));
    child.wait_with_output().unwrap()
}

#[test]
fn a_child_does_not_outlive_its_parent() {
    let output = child(1, b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the parent has gone"), "{output:?}");

    // A parent of its own, which waits for its child, which waits for a component that does not come.
    let script = format!(
        "exec 3<&0; {PROGRAM} compile-policy --memory 2147483648 --cpu 60 --parent $$ <&3 >&2 & echo $!; wait"
    );
    let mut parent = Command::new("/bin/sh")
        .args(["-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pid = String::new();
    BufReader::new(parent.stdout.take().unwrap()).read_line(&mut pid).unwrap();
    let process = format!("/proc/{}", pid.trim());
    let limited = || {
        let limits = fs::read_to_string(format!("{process}/limits")).unwrap_or_default();
        limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 32 "))
    };
    wait_until("the child has its limits", limited);
    parent.kill().unwrap();
    parent.wait().unwrap();
    let gone =
        || fs::read_to_string(format!("{process}/stat")).map_or(true, |stat| stat.contains(") Z "));
    wait_until("the child is gone", gone);
    drop(parent.stdin.take());
}

#[test]
fn a_child_that_is_killed_is_named() {
    let large = large();
    let dir = large.path().to_owned();
    // No other test's child has this limit.
    let limits = CompileLimits { cpu: Duration::from_secs(119), ..CompileLimits::default() };
    let loading = std::thread::spawn(move || load(&dir, limits));
    let mut killed = None;
    wait_until("the child compiles", || {
        killed = compiling();
        killed.is_some()
    });
    let pid = killed.unwrap().to_string();
    assert!(
        Command::new("/bin/sh").args(["-c", &format!("kill -9 {pid}")]).status().unwrap().success()
    );
    let said = loading.join().unwrap().unwrap_err();
    assert!(said.contains("the compiler was killed by SIGKILL"), "{said}");
}

/// A child of this process that has this limit and is at work.
fn compiling() -> Option<u32> {
    let us = std::process::id().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let arguments = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let words = ["compile-policy", "119", &us];
        let threads = fs::read_dir(entry.path().join("task")).map_or(0, Iterator::count);
        if words.iter().all(|word| arguments.split('\0').any(|it| it == *word)) && threads > 1 {
            return Some(pid);
        }
    }
    None
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited too long: {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
