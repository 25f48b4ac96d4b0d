//! The compiler process: the real program compiles components, and enforces its limits.
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
use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_pointsman");
const SMALL: &str = include_str!("../crates/policy/fixtures/small.wat");

/// Returns a directory with a policy of this WebAssembly text.
fn policy_dir(text: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("policy.toml"), "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n")
        .unwrap();
    fs::write(dir.path().join("policy.wasm"), wat::parse_str(text).unwrap()).unwrap();
    dir
}

/// Returns a directory with a policy that takes seconds to compile.
fn large_policy_dir() -> TempDir {
    let mut more = String::from("(core module");
    for number in 0..1500 {
        let step = "(local.set 0 (i64.add (i64.mul (local.get 0) (local.get 1))
                      (i64.rotl (local.get 1) (local.get 0))))
                    (if (i64.eqz (local.get 0))
                      (then (local.set 1 (i64.sub (local.get 0) (local.get 1)))))";
        write!(
            more,
            "(func (param i64 i64) (result i64) {} (i64.const {number}))",
            step.repeat(60)
        )
        .unwrap();
    }
    policy_dir(&format!("{} {more}))", SMALL.trim_end().strip_suffix(')').unwrap()))
}

/// Loads the policy with the real program as the compiler; returns the digest of the component, or
/// the error in the status of the policy.
fn load(dir: &Path, limits: CompileLimits) -> Result<String, Value> {
    load_for(Metering::Wall, dir, limits)
}

fn load_for(metering: Metering, dir: &Path, limits: CompileLimits) -> Result<String, Value> {
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
    let chain = ChainSpec { policies: vec![spec], ..ChainSpec::default() };
    let change = policies.apply(chain).remove(0).1;
    let status = serde_json::to_value(policies.status().remove(0)).unwrap();
    match change {
        Change::Failed(_) => Err(status["error"].clone()),
        _ => Ok(status["component_sha256"].as_str().unwrap().to_owned()),
    }
}

/// Asserts that loading fails with this code, and that the error has the value of the limit.
fn assert_fails(dir: &TempDir, limits: CompileLimits, code: &str, limit: &str) {
    let error = load(dir.path(), limits).unwrap_err();
    assert_eq!(error["code"], code, "{error}");
    assert!(error["message"].as_str().unwrap().contains(limit), "{error}");
}

#[test]
fn compiler_process_compiles_policies() {
    for metering in [Metering::Wall, Metering::Fuel] {
        let loaded = load_for(metering, policy_dir(SMALL).path(), CompileLimits::default());
        assert_eq!(loaded.unwrap().len(), 64, "{metering:?}");
    }
}

#[test]
fn compiler_process_enforces_limits() {
    let large = large_policy_dir();
    let limits = CompileLimits::default();
    assert_fails(
        &large,
        CompileLimits { cpu: Duration::from_secs(1), ..limits },
        "compile_cpu_limit",
        "1 s",
    );
    assert_fails(
        &large,
        CompileLimits { wall: Duration::from_millis(300), ..limits },
        "compile_timeout",
        "0.3 s",
    );
    assert_fails(
        &large,
        CompileLimits { memory: 120 << 20, ..limits },
        "compile_memory_limit",
        "120 MiB",
    );
    assert_fails(
        &policy_dir(SMALL),
        CompileLimits { code: 4096, ..limits },
        "compile_output_limit",
        "4096",
    );
}

#[test]
fn invalid_component_has_error_output() {
    let output = run_compiler(std::process::id(), b"\0asm\x0d\0\x01\0 and no more");
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{output:?}");
}

/// Runs the compiler process with these bytes as its input, and with this parent process id.
fn run_compiler(parent: u32, bytes: &[u8]) -> std::process::Output {
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
    // The process may exit before it has read its input.
    child.stdin.take().unwrap().write_all(bytes).ok();
    child.wait_with_output().unwrap()
}

#[test]
fn compiler_process_does_not_outlive_parent() {
    let output = run_compiler(1, b"");
    assert_eq!(output.status.code(), Some(1));
    // Not the exit code of an invalid component: the process has not read its input.
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.stdout.is_empty() && err.contains("parent"), "{output:?}");

    // A shell as the parent, which waits for the compiler, which waits for its input.
    let script = format!(
        "exec 3<&0; {PROGRAM} compile-policy --memory 2147483648 --cpu 60 --parent $$ <&3 >&2 & \
         echo $!; wait"
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
    wait_until("the compiler has its limits", limited);
    parent.kill().unwrap();
    parent.wait().unwrap();
    let has_exited =
        || fs::read_to_string(format!("{process}/stat")).map_or(true, |stat| stat.contains(") Z "));
    wait_until("the compiler has exited", has_exited);
    drop(parent.stdin.take());
}

#[test]
fn killed_compiler_process_is_reported() {
    let large = large_policy_dir();
    let dir = large.path().to_owned();
    // No other compiler process of the tests has this limit.
    let limits = CompileLimits { cpu: Duration::from_secs(119), ..CompileLimits::default() };
    let loading = std::thread::spawn(move || load(&dir, limits));
    let mut killed = None;
    wait_until("the compiler is compiling", || {
        killed = running_compiler();
        killed.is_some()
    });
    let pid = killed.unwrap().to_string();
    assert!(
        Command::new("/bin/sh").args(["-c", &format!("kill -9 {pid}")]).status().unwrap().success()
    );
    let error = loading.join().unwrap().unwrap_err();
    assert_eq!(error["code"], "compiler_failed", "{error}");
    assert!(error["message"].as_str().unwrap().contains("SIGKILL"), "{error}");
}

/// Returns the compiler process that this process has started with that limit, once it is
/// compiling.
fn running_compiler() -> Option<u32> {
    let parent = std::process::id().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let arguments = fs::read_to_string(entry.path().join("cmdline")).unwrap_or_default();
        let words = ["compile-policy", "119", &parent];
        let threads = fs::read_dir(entry.path().join("task")).map_or(0, Iterator::count);
        if words.iter().all(|word| arguments.split('\0').any(|argument| argument == *word))
            && threads > 1
        {
            return Some(pid);
        }
    }
    None
}

fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "timed out waiting until {what}");
        #[expect(clippy::disallowed_methods, reason = "polls a condition")]
        std::thread::park_timeout(Duration::from_millis(5));
    }
}
