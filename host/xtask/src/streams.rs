//! `cargo xtask test --streams`: a thousand streams at a time for minutes. `cargo xtask test` has
//! the same test for half a minute.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use pointsman_xtask::command::{cargo, run, target_dir};

const TEST: &str = "streams::thousand_streams_lose_no_frame";
/// Duration, and frames per second of a stream.
const SECONDS: u32 = 300;
const RATE: u32 = 5;

/// Runs the test and prints its figures. With `is_release`, those of the binary that `cargo xtask
/// dist` built.
pub(crate) fn streams(root: &Path, is_release: bool) -> Result<()> {
    let start = Instant::now();
    println!("== programs");
    // The whole workspace, as for the tests: selecting packages would select other features of
    // their dependencies, and compile wasmtime twice.
    run(cargo(root)?.args(["build", "--workspace", "--bins", "--quiet"]))?;
    println!("== streams, for {SECONDS} s");
    let mut tests = cargo(root)?;
    tests.args(["test", "--workspace", "--test", "e2e", "--", "--exact", TEST, "--nocapture"]);
    tests.env("STREAMS_SECONDS", SECONDS.to_string()).env("STREAMS_RATE", RATE.to_string());
    if is_release {
        let program = target_dir()?.join("dist/pointsman");
        if !program.exists() {
            bail!("{} is missing; build it with: cargo xtask dist", program.display());
        }
        tests.env("POINTSMAN_PROGRAM", program);
    }
    run(&mut tests)?;
    println!("== passed in {} s", start.elapsed().as_secs());
    Ok(())
}
