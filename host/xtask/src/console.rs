//! `cargo xtask test --console`: the console in headless Chromium in front of a running host. Not
//! part of `cargo xtask test`, because Chromium takes 300 MB.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use pointsman_xtask::command::{cargo, run, target_dir};
use pointsman_xtask::setup;

/// Packages of Debian: the browser, and a font for its pictures.
const PACKAGES: [&str; 2] = ["chromium", "fonts-dejavu-core"];

/// Installs the browser, uses every page and every action, and writes the pictures of the
/// documentation.
pub(crate) fn console(root: &Path) -> Result<()> {
    let start = Instant::now();
    println!("== browser");
    setup::debian_install(&PACKAGES)?;
    println!("== building the host");
    // The whole workspace, as for the tests: selecting packages would select other features of
    // their dependencies, and compile wasmtime twice.
    run(cargo(root)?.args(["build", "--workspace", "--bins", "--quiet"]))?;
    println!("== pages and actions");
    let programs = target_dir()?.join("debug");
    let mut test = Command::new("python3");
    test.arg(root.join("tests/console/run.py"));
    test.arg("--pointsman").arg(programs.join("pointsman"));
    test.arg("--engine").arg(programs.join("fake-engine"));
    run(test.arg("--pictures").arg(root.join("host/docs/console")))?;
    println!("== all passed in {} s", start.elapsed().as_secs());
    Ok(())
}
