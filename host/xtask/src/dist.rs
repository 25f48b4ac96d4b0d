//! `cargo xtask dist`: the release binary, with its debug information in a file of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use pointsman_xtask::command::{cargo, run, target_dir};
use pointsman_xtask::setup;

/// The cargo features of what is released: all that several machines need.
pub(crate) const FEATURES: &str = "pointsman/scale";

/// Builds the release binary without a commit in its version, and prints the sizes.
pub(crate) fn dist(root: &Path) -> Result<()> {
    for file in build(root, None)? {
        let size = std::fs::metadata(&file).context("failed to read the size")?.len();
        println!("{}: {:.1} MB", file.display(), size as f64 / 1e6);
    }
    Ok(())
}

/// Builds the release binary, and splits its symbols and line tables off. Returns both files.
///
/// The results are `dist/pointsman`, stripped, and `dist/pointsman.debug`, which debuggers and
/// backtraces find through the link in the binary when both are in one folder. `commit` is what the
/// binary tells as its own.
pub(crate) fn build(root: &Path, commit: Option<&str>) -> Result<[PathBuf; 2]> {
    if setup::missing("objcopy") {
        setup::debian_install(&["binutils"])?;
    }
    let target = target_dir()?.join("dist-build");
    let mut build = cargo(root)?;
    build.args(["build", "--release", "--package", "pointsman", "--features", FEATURES]);
    build.env("CARGO_TARGET_DIR", &target);
    build.env("CARGO_ENCODED_RUSTFLAGS", rust_flags(root, &target)?);
    if let Some(commit) = commit {
        build.env("POINTSMAN_COMMIT", commit);
    }
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
    Ok([binary, debug])
}

/// Returns the flags of rustc, in cargo's encoding: those of `RUSTFLAGS`, and names for the folders
/// of this machine, which messages of panics and debug information would contain otherwise.
fn rust_flags(root: &Path, target: &Path) -> Result<String> {
    let given = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut flags: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
    let cargo_home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cargo"),
    };
    // The last one that fits applies: the target folder may be in the workspace.
    for (folder, name) in
        [(cargo_home.as_path(), "cargo"), (root, "pointsman"), (target, "pointsman-build")]
    {
        flags.push(format!("--remap-path-prefix={}=/usr/src/{name}", folder.display()));
    }
    Ok(flags.join("\x1f"))
}
