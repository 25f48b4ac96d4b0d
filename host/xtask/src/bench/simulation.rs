//! Accuracy and speed of the simulator.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::server::peak_resident;
use pointsman_xtask::command::{run, target_dir};

/// Lanes and traffic: fifty requests per second for five lanes, three of which share a GPU with
/// memory for two.
const SCENARIO: &str = include_str!("many.toml");
/// Simulated seconds that contain a hundred thousand requests.
const DURATION_S: u64 = 2_000;

/// Compares a workload served by a host with scripted engines with its simulation.
pub(super) fn truth(root: &Path) -> Result<()> {
    let program = target_dir()?.join("release/truth");
    run(Command::new(program).env("CARGO_MANIFEST_DIR", root.join("tests")))
}

/// Measures simulated requests per second by policy, whether a long run needs more memory than a
/// short one, and a scenario with many seeds.
pub(super) fn speed(root: &Path) -> Result<()> {
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder)?;
    println!(
        "{:<26}{:>12}{:>10}{:>12}{:>14}",
        "", "requests", "seconds", "requests/s", "peak memory"
    );
    let tree = root.join("policies/cortex");
    let none = "policies = []\n".to_owned();
    let rust = policy("cortex", &tree);
    let mut cases = vec![
        ("no policy".to_owned(), none.clone(), 1),
        ("no policy".to_owned(), none, 10),
        ("cortex (Rust)".to_owned(), rust.clone(), 1),
        ("cortex (Rust)".to_owned(), rust, 10),
    ];
    let fresh = target_dir()?.join("guests/fresh");
    for language in ["rust", "c", "javascript", "python"] {
        let dir = fresh.join(format!("team-lanes-{language}"));
        if dir.join("policy.wasm").exists() {
            cases.push((format!("team-lanes ({language})"), policy("team-lanes", &dir), 1));
        } else {
            println!(
                "team-lanes ({language}) is not built; run `cargo xtask guests --out {}`",
                fresh.display()
            );
        }
    }
    for (name, policies, times) in cases {
        one_run(&folder, &name, &policies, times)?;
    }
    let first_come = policy("first-come", &root.join("policies/first-come"));
    many_seeds(&folder, &policy("cortex", &tree), &first_come)
}

/// Returns a scenario line with a chain of one policy.
fn policy(name: &str, dir: &Path) -> String {
    format!("policies = [{{ name = {name:?}, dir = {dir:?} }}]\n")
}

fn one_run(folder: &Path, name: &str, policies: &str, times: u64) -> Result<()> {
    let head = format!("duration = \"{}s\"\nseeds = 1\n{policies}", DURATION_S * times);
    let file = folder.join("many.toml");
    fs::write(&file, head + SCENARIO)?;
    let json = folder.join("many.json");
    let mut command = pointsman()?;
    command.args(["simulate", "--quiet", "--jobs", "1", "--json"]).arg(&json).arg(&file);
    let (took, memory) = measured(&mut command)?;
    let requests = 100_000 * times;
    println!(
        "{name:<26}{requests:>12}{:>10.1}{:>12.0}{:>10} KiB",
        took.as_secs_f64(),
        requests as f64 / took.as_secs_f64(),
        memory
    );
    Ok(())
}

/// Measures a hundred thousand requests with twenty seeds, two policies and an HTML report.
fn many_seeds(folder: &Path, policies: &str, others: &str) -> Result<()> {
    let head = format!("duration = \"{DURATION_S}s\"\nseeds = 20\n{policies}");
    let file = folder.join("seeds.toml");
    fs::write(&file, format!("{head}{SCENARIO}\n[[variants]]\nname = \"other\"\n{others}"))?;
    let html = folder.join("seeds.html");
    let mut command = pointsman()?;
    command.args(["simulate", "--quiet", "--html"]).arg(&html).arg(&file);
    let (took, memory) = measured(&mut command)?;
    println!(
        "two policies, 20 seeds each, 100000 requests per run, report of {} KiB: {:.1} s, peak \
         {memory} KiB",
        fs::metadata(&html)?.len() / 1024,
        took.as_secs_f64()
    );
    Ok(())
}

fn pointsman() -> Result<Command> {
    Ok(Command::new(target_dir()?.join("release/pointsman")))
}

/// Runs a command and returns its duration and its peak memory in KiB.
fn measured(command: &mut Command) -> Result<(Duration, u64)> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("failed to start pointsman")?;
    let mut memory = 0;
    loop {
        // The peak only grows, so the last value before the exit counts.
        memory = peak_resident(child.id()).unwrap_or(0).max(memory);
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("pointsman simulate failed: {status}");
            }
            return Ok((start.elapsed(), memory));
        }
        pointsman_xtask::wait::pause(Duration::from_millis(20));
    }
}
