//! The simulator: how true it is, and how fast.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::resident_most;
use crate::command::{run, target_dir};

/// Lanes and traffic: fifty requests a second for five lanes, three of which share a GPU that has room for two.
const SCENARIO: &str = include_str!("many.toml");
/// Seconds of it that are a hundred thousand requests.
const HUNDRED_THOUSAND: u64 = 2_000;

/// One workload, served by a host with engines that do as they are told, and simulated.
pub(super) fn truth(root: &Path) -> Result<()> {
    let program = target_dir()?.join("release/truth");
    run(Command::new(program).env("CARGO_MANIFEST_DIR", root.join("tests")))
}

/// Requests in a second by who decides, and whether a long run needs more memory than a short one; then a day with many seeds.
pub(super) fn speed(root: &Path) -> Result<()> {
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder)?;
    println!(
        "{:<26}{:>12}{:>10}{:>12}{:>14}",
        "", "requests", "seconds", "requests/s", "most memory"
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
                "team-lanes ({language}) has not been built: cargo xtask guests --out {}",
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

/// The chain of one policy, as a line of a scenario.
fn policy(name: &str, dir: &Path) -> String {
    format!("policies = [{{ name = {name:?}, dir = {dir:?} }}]\n")
}

fn one_run(folder: &Path, name: &str, policies: &str, times: u64) -> Result<()> {
    let head = format!("lasts = \"{}s\"\nseeds = 1\n{policies}", HUNDRED_THOUSAND * times);
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

/// A hundred thousand requests, twenty seeds, two policies, and a report with plots.
fn many_seeds(folder: &Path, policies: &str, others: &str) -> Result<()> {
    let head = format!("lasts = \"{HUNDRED_THOUSAND}s\"\nseeds = 20\n{policies}");
    let file = folder.join("seeds.toml");
    fs::write(&file, format!("{head}{SCENARIO}\n[[variants]]\nname = \"other\"\n{others}"))?;
    let html = folder.join("seeds.html");
    let mut command = pointsman()?;
    command.args(["simulate", "--quiet", "--html"]).arg(&html).arg(&file);
    let (took, memory) = measured(&mut command)?;
    println!(
        "two policies, 20 seeds each, 100000 requests in each run, and a report of {} KiB: {:.1} s, {memory} KiB at most",
        fs::metadata(&html)?.len() / 1024,
        took.as_secs_f64()
    );
    Ok(())
}

fn pointsman() -> Result<Command> {
    Ok(Command::new(target_dir()?.join("release/pointsman")))
}

/// How long it took, and the most memory that it had, in KiB.
fn measured(command: &mut Command) -> Result<(Duration, u64)> {
    let begun = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("pointsman cannot be started")?;
    let mut memory = 0;
    loop {
        // It grows only, so that the last look before the end is the one that counts.
        memory = resident_most(child.id()).unwrap_or(0).max(memory);
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!("pointsman simulate failed: {status}");
            }
            return Ok((begun.elapsed(), memory));
        }
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
