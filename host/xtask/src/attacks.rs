//! `cargo xtask test --attacks` and `cargo xtask soak`: attacks on a host that take minutes. Not
//! part of `cargo xtask test`, because they measure time and memory, and need the whole machine.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::{cargo, run, target_dir};

/// The test of the soak.
const SOAK: &str = "soak::honest_traffic_survives_all_attacks";
/// The soak of tenants that send more than their limits, which is short in `cargo xtask test`.
const OVERDRAW: &str = "limits::tenants_that_overdraw_get_their_limits_and_others_theirs";
/// Minutes of the soak: in the run of all attacks, and alone.
const MINUTES: u64 = 2;
const MINUTES_ALONE: u64 = 30;

/// Runs all attacks, and a short soak.
pub(crate) fn attacks(root: &Path) -> Result<()> {
    run_tests(root, "attacks", &[], MINUTES, None)
}

/// Runs the soak only, for `minutes`, and prints its figures. With `is_release`, those of the
/// binary that `cargo xtask dist` built.
pub(crate) fn soak(root: &Path, minutes: Option<&str>, is_release: bool) -> Result<()> {
    let minutes = match minutes {
        Some(minutes) => minutes.parse().context("--minutes: not a number")?,
        None => MINUTES_ALONE,
    };
    let program = is_release.then(|| target_dir().map(|target| target.join("dist/pointsman")));
    let program = program.transpose()?;
    if let Some(missing) = program.as_ref().filter(|program| !program.exists()) {
        bail!("{} is missing; build it with: cargo xtask dist", missing.display());
    }
    run_tests(root, "attacks", &["--exact", SOAK], minutes, program.as_deref())?;
    run_tests(root, "e2e", &["--exact", OVERDRAW], minutes, program.as_deref())
}

fn run_tests(
    root: &Path,
    target: &str,
    filter: &[&str],
    minutes: u64,
    program: Option<&Path>,
) -> Result<()> {
    let start = Instant::now();
    println!("== building the host");
    // The whole workspace, as for the tests: selecting packages would select other features of
    // their dependencies, and compile wasmtime twice.
    run(cargo(root)?.args(["build", "--workspace", "--bins", "--quiet"]))?;
    println!("== {target}, with a soak of {minutes} minutes");
    // The figures are of one test at a time, and part of the result.
    let mut tests = cargo(root)?;
    tests.args(["test", "--workspace", "--test", target, "--"]).args(filter);
    tests.args(["--test-threads", "1", "--nocapture"]);
    if let Some(program) = program {
        println!("== host: {}", program.display());
        tests.env("POINTSMAN_PROGRAM", program);
    }
    run(tests.env("SOAK_SECONDS", (60 * minutes).to_string()))?;
    println!("== all passed in {} s", start.elapsed().as_secs());
    Ok(())
}
