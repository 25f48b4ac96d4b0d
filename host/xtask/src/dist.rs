//! `cargo xtask dist`: the release binary, with its debug information in a file of its own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use pointsman_xtask::command::{cargo, run, target_dir};
use pointsman_xtask::setup;

/// Builds the release binary, and splits its symbols and line tables off.
///
/// The results are `dist/pointsman`, stripped, and `dist/pointsman.debug`, which debuggers and
/// backtraces find through the link in the binary when both are in one folder.
pub(crate) fn dist(root: &Path) -> Result<()> {
    if setup::missing("objcopy") {
        setup::debian_install(&["binutils"])?;
    }
    let target = target_dir()?.join("dist-build");
    let mut build = cargo(root)?;
    build.args(["build", "--release", "--package", "pointsman"]).env("CARGO_TARGET_DIR", &target);
    // The profile strips; here the symbols are needed once, to be split off.
    build.args(["--config", "profile.release.strip=false"]);
    build.args(["--config", "profile.release.debug='line-tables-only'"]);
    run(&mut build)?;

    let folder = target_dir()?.join("dist");
    std::fs::create_dir_all(&folder)?;
    let built = target.join("release/pointsman");
    let (binary, debug) = (folder.join("pointsman"), folder.join("pointsman.debug"));
    let objcopy = || {
        let mut command = Command::new("objcopy");
        command.current_dir(&folder);
        command
    };
    run(objcopy()
        .args(["--only-keep-debug", "--compress-debug-sections"])
        .arg(&built)
        .arg(&debug))?;
    run(objcopy().arg("--strip-all").arg(&built).arg(&binary))?;
    run(objcopy().arg("--add-gnu-debuglink=pointsman.debug").arg(&binary))?;
    for file in [&binary, &debug] {
        let size = std::fs::metadata(file).context("failed to read the size")?.len();
        println!("{}: {:.1} MB", file.display(), size as f64 / 1e6);
    }
    Ok(())
}
