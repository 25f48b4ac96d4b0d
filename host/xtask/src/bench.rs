//! `cargo xtask bench`: benchmarks of the parts (criterion) and of the whole (routed requests
//! compared with direct ones, and with HAProxy in front of the same engine). There are no
//! assertions about times, because machines differ and are noisy.

mod guard;
mod handover;
mod in_process;
mod instructions;
mod keys;
mod load;
mod pick;
mod reload;
mod request;
mod server;
mod simulation;
mod switch;
mod telemetry;
mod waiting;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use pointsman_xtask::command::{cargo, run, target_dir};
use pointsman_xtask::setup;

use self::load::table;
use self::server::{free_port, haproxy, pointsman, resident, start};

/// The key that the load generator sends.
const SECRET: &str = "pm_bench";

/// A part of the benchmark: name, title and function.
type Part = (&'static str, &'static str, fn(&Path) -> Result<()>);

const PARTS: [Part; 14] = [
    ("parts", "the parts", parts),
    (
        "turns",
        "the same workload with first come first served, the dispatcher's rules and cortex",
        turns,
    ),
    ("cached", "conversations with and without the weight `cached-tokens`", cached),
    (
        "policies",
        "policies: in four languages, in chains, concurrent, as candidates, replaced",
        policies,
    ),
    ("request", "the cost of one request", request::request),
    ("whole", "the whole: one local engine that responds immediately", whole),
    ("switch", "conversations with three lanes of a real model that take turns", switch::switch),
    ("keys", "keys, limits and usage: CPU time per request", keys::keys),
    ("telemetry", "access log and traces: CPU time per request", telemetry::telemetry),
    ("reload", "reload of a configuration with 100 lanes under load", reload::reload),
    (
        "handover",
        "hand-over to the next process under load: pause of requests, gaps of streams",
        handover::handover,
    ),
    (
        "pick",
        "an endpoint picker behind Envoy: added latency, and requests of one core",
        pick::pick,
    ),
    ("truth", "a workload in real time and simulated", simulation::truth),
    ("simulation", "the speed of the simulator", simulation::speed),
];

/// Runs these parts, or all of them, and prints the results.
pub(crate) fn bench(root: &Path, only: &[&str]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|only| PARTS.iter().all(|part| part.0 != **only)) {
        bail!("unknown part `{unknown}`; expected one of {}", PARTS.map(|part| part.0).join(", "));
    }
    build(root)?;
    for (_, title, measure) in PARTS.iter().filter(|part| only.is_empty() || only.contains(&part.0))
    {
        println!("== {title}");
        measure(root)?;
    }
    Ok(())
}

/// Runs the part `request` in about a minute, with fewer rows and less certain figures.
pub(crate) fn short_request(root: &Path) -> Result<()> {
    build(root)?;
    request::short_request(root)
}

/// Compares the instructions of the hottest paths with the committed ones, or replaces these.
pub(crate) fn guard(root: &Path, is_writing: bool) -> Result<()> {
    guard::guard(root, is_writing)
}

fn build(root: &Path) -> Result<()> {
    println!("== building with optimizations");
    let packages = ["--package", "pointsman", "--package", "pointsman-tests", "--bins"];
    run(cargo(root)?.args(["build", "--release", "--quiet"]).args(packages))?;
    // Building a benchmark replaces the programs of its package, by those of another profile.
    let (release, programs) = (target_dir()?.join("release"), programs()?);
    fs::create_dir_all(&programs)?;
    for entry in fs::read_dir(release)? {
        let entry = entry?;
        let (name, copy) = (entry.file_name(), programs.join(entry.file_name()));
        if !entry.file_type()?.is_file() || Path::new(&name).extension().is_some() {
            continue;
        }
        // Not overwritten: it may still be running.
        if copy.exists() {
            fs::remove_file(&copy)?;
        }
        fs::copy(entry.path(), copy)?;
    }
    Ok(())
}

/// Returns the folder of the programs that are measured.
fn programs() -> Result<PathBuf> {
    Ok(target_dir()?.join("bench").join("programs"))
}

fn parts(root: &Path) -> Result<()> {
    let parts = [
        "pointsman-openai",
        "pointsman-domain",
        "pointsman-record",
        "pointsman-access",
        "pointsman",
    ]
    .map(|package| ["--package", package]);
    let benches = ["wire", "dispatch", "record", "keys", "advise", "policy_state"]
        .map(|bench| ["--bench", bench]);
    run(cargo(root)?
        .arg("bench")
        .args(parts.concat())
        .args(benches.concat())
        .args(["--", "--noplot", "--quiet"]))
}

fn turns(root: &Path) -> Result<()> {
    run(cargo(root)?.args(["bench", "--package", "pointsman", "--bench", "turns", "--quiet"]))
}

fn cached(root: &Path) -> Result<()> {
    let venv = setup::venv(false)?;
    run(cargo(root)?
        .args(["bench", "--package", "pointsman", "--bench", "cached", "--quiet"])
        .env("POINTSMAN_VENV", venv))
}

fn policies(root: &Path) -> Result<()> {
    let fresh = target_dir()?.join("guests").join("fresh");
    crate::guests(root, &["--out", &fresh.to_string_lossy()])?;
    run(cargo(root)?
        .args(["bench", "--package", "pointsman", "--bench", "policies", "--quiet"])
        .env("POINTSMAN_FRESH_GUESTS", &fresh))
}

fn whole(root: &Path) -> Result<()> {
    let release = programs()?;
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder)?;
    let engine = start(
        "direct",
        Command::new(release.join("fake-engine")).args(["--bench", "--port"]),
        free_port()?,
        true,
    )?;
    let mut servers = vec![haproxy(&folder, engine.port)?];
    for (name, policy) in
        [("pointsman", ""), ("pointsman + cortex", "[[policies.chain]]\nname = \"cortex\"\n")]
    {
        servers.push(pointsman(root, &release, &folder, name, policy, engine.port)?);
    }
    servers.insert(0, engine);
    for (title, arguments) in [
        ("one connection, whole answers", &["--connections", "1"][..]),
        ("32 connections, whole answers", &["--connections", "32"]),
        ("one connection, streams", &["--connections", "1", "--stream"]),
        ("32 connections, streams of 10 chunks", &["--connections", "32", "--stream"]),
        ("one connection, prompts of 100 KB", &["--connections", "1", "--prompt", "100000"]),
    ] {
        table(&release, title, arguments, &servers)?;
    }
    for server in &servers[2..] {
        println!("{}: {} KiB resident", server.name, resident(server.child.id()).unwrap_or(0));
    }
    drop(servers);
    println!("\nwaiting");
    waiting::waiting(&release, &folder)?;
    Ok(())
}
