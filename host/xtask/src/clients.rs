//! `cargo xtask test --clients`: client libraries in front of a host, and random requests for all
//! of its routes. Not part of `cargo xtask test`, because the libraries take 1 GB.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use pointsman_xtask::command::{cache_dir, cargo, run, target_dir};

/// Seconds of random requests, over all routes.
const RANDOM_SECONDS: &str = "120";

/// Installs the libraries, runs all features, and writes the table of results.
pub(crate) fn clients(root: &Path) -> Result<()> {
    let start = Instant::now();
    println!("== building the host");
    // The whole workspace, as for the tests: selecting packages would select other features of
    // their dependencies, and compile wasmtime twice.
    run(cargo(root)?.args(["build", "--workspace", "--bins", "--quiet"]))?;
    let (scripts, folder) = (root.join("tests/clients"), cache_dir()?.join("clients"));
    println!("== client libraries");
    run(Command::new("python3").arg(scripts.join("run.py")).arg("--install").arg(&folder))?;
    println!("== features");
    let python = folder.join("venv/bin/python");
    let host = target_dir()?.join("debug/pointsman");
    let mut features = Command::new(&python);
    features.arg(scripts.join("run.py")).arg("--pointsman").arg(&host);
    features.arg("--venv").arg(folder.join("venv")).arg("--node").arg(folder.join("node"));
    run(features.arg("--write").arg(root.join("host/docs/clients.md")))?;
    println!("== random requests");
    let mut random = Command::new(&python);
    random.arg(scripts.join("random_requests.py")).arg("--pointsman").arg(&host);
    run(random.args(["--seconds", RANDOM_SECONDS]))?;
    println!("== all passed in {} s", start.elapsed().as_secs());
    Ok(())
}
