//! `cargo xtask deny`: licences, sources, duplicates and advisories of all dependencies.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use pointsman_xtask::command::{cache_dir, cargo, output, run};

/// The version that is installed if there is none. Others may reject keys of `.cargo/deny.toml`.
const CARGO_DENY: &str = "cargo-deny@0.20.2";

/// Runs `cargo deny check`, and installs cargo-deny if it is missing.
///
/// The database of advisories is a Git repository outside of the package registry. If it cannot be
/// fetched, everything else is checked, and a notice is printed.
pub(crate) fn deny(root: &Path) -> Result<()> {
    let program = program(root)?;
    let fetched = output(
        Command::new("timeout").args(["60"]).arg(&program).args(["fetch", "db"]).current_dir(root),
    )
    .is_some();
    let mut check = Command::new(&program);
    // The configuration is found at `.cargo/deny.toml`.
    check.current_dir(root).args(["--workspace", "check", "--hide-inclusion-graph"]);
    check.args(["bans", "licenses", "sources"]);
    if fetched {
        check.arg("advisories");
    } else {
        println!("advisories are not checked: their database cannot be fetched");
    }
    run(&mut check)
}

/// Returns the path of cargo-deny.
fn program(root: &Path) -> Result<PathBuf> {
    if output(Command::new("cargo-deny").arg("--version")).is_some() {
        return Ok(PathBuf::from("cargo-deny"));
    }
    let tools = cache_dir()?.join("tools");
    let program = tools.join("bin/cargo-deny");
    if !program.exists() {
        println!("installing {CARGO_DENY} into {}", tools.display());
        let mut install = cargo(root)?;
        // Without optimisation: compiling is most of the cost, and a check takes a second.
        install.args(["install", "--quiet", "--locked", "--debug", "--root"]).arg(&tools);
        run(install.arg(CARGO_DENY))?;
    }
    Ok(program)
}
