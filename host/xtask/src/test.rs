//! `cargo xtask test`: everything that CI runs.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;

use pointsman_xtask::command::{cargo, output, run, target_dir};
use pointsman_xtask::setup;

use crate::deny;

/// Installs the dependencies of the tests and runs all checks. The totals of the test runner come
/// last.
pub(crate) fn test(root: &Path) -> Result<()> {
    let start = Instant::now();
    println!("== dependencies of the tests");
    setup::make()?;
    let venv = setup::venv(true)?;
    let node = setup::node_modules(root)?;
    let promtool = setup::promtool()?;
    setup::systemd_analyze()?;

    println!("== format, lints, documentation");
    run(cargo(root)?.args(["fmt", "--all", "--check"]))?;
    run(cargo(root)?.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]))?;
    // `--all-targets` leaves these out, because they are not default tests.
    run(cargo(root)?
        .args(["clippy", "--workspace", "--test", "attacks", "--test", "packages"])
        .args(["--test", "real-vllm", "--test", "scale", "--quiet", "--", "-D", "warnings"]))?;
    run(cargo(root)?
        .args(["doc", "--workspace", "--no-deps", "--document-private-items", "--quiet"])
        .env("RUSTDOCFLAGS", "-D warnings"))?;

    println!("== dependencies: licences, sources, duplicates, advisories");
    deny::deny(root)?;

    println!("== programs");
    // The whole workspace, as for the tests: selecting packages would select other features of
    // their dependencies, and compile wasmtime twice.
    run(cargo(root)?.args(["build", "--workspace", "--bins", "--quiet"]))?;

    println!("== policies from source");
    let fresh = target_dir()?.join("guests").join("fresh");
    let mut guests = Command::new(target_dir()?.join("debug/pointsman-xtask-guests"));
    run(guests.arg("--out").arg(&fresh))?;

    println!("== tests");
    let with_settings = |command: &mut Command| {
        command
            .env("POINTSMAN_VENV", &venv)
            .env("POINTSMAN_NODE", &node)
            .env("POINTSMAN_PROMTOOL", &promtool)
            .env("POINTSMAN_FRESH_GUESTS", &fresh);
    };
    let mut doctests = cargo(root)?;
    doctests.args(["test", "--doc", "--workspace", "--quiet"]);
    run(&mut doctests)?;
    let mut tests = if has_nextest(root)? {
        let mut tests = cargo(root)?;
        tests.args(["nextest", "run", "--workspace"]);
        tests
    } else {
        let mut tests = cargo(root)?;
        tests.args(["test", "--workspace", "--all-targets", "--no-fail-fast"]);
        tests
    };
    with_settings(&mut tests);
    run(&mut tests)?;
    if setup::namespace_command().is_none() {
        println!(
            "== SKIPPED: Cortex's backend (e2e test `cortex`): network namespaces are not permitted"
        );
    }
    println!("== all passed in {} s", start.elapsed().as_secs());
    Ok(())
}

/// Returns true if cargo-nextest is installed. It reports slow tests and one line of totals;
/// otherwise `cargo test` is used.
fn has_nextest(root: &Path) -> Result<bool> {
    Ok(output(cargo(root)?.args(["nextest", "--version"])).is_some())
}
