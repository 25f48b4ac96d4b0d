//! Runs and logs commands.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Returns the root folder of the workspace.
///
/// # Errors
/// If the program was not started by cargo, or not from a package of the workspace.
pub fn root() -> Result<PathBuf> {
    // Read at run time: two clones may share a target directory, and with it this binary.
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .context("CARGO_MANIFEST_DIR is not set; run `cargo xtask`")?;
    let root = Path::new(&package).ancestors().find(|folder| folder.join("Cargo.lock").exists());
    root.map(Path::to_owned).context("failed to find the workspace root")
}

/// Returns the target folder of cargo. It is outside the workspace and shared by all checkouts, so
/// that wasmtime is compiled only once.
///
/// # Errors
/// If neither `CARGO_TARGET_DIR` nor `HOME` is usable.
pub fn target_dir() -> Result<PathBuf> {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => std::path::absolute(dir).context("CARGO_TARGET_DIR"),
        None => Ok(cache_dir()?.join("target")),
    }
}

/// Returns the folder for downloads, virtual environments and builds.
///
/// # Errors
/// If `HOME` is not set.
pub fn cache_dir() -> Result<PathBuf> {
    let home = std::env::var_os("HOME").context("the environment variable HOME is not set")?;
    Ok(PathBuf::from(home).join(".cache").join("pointsman"))
}

/// Returns a cargo command that runs in the workspace.
///
/// # Errors
/// If the target folder cannot be determined.
pub fn cargo(root: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).env("CARGO_TARGET_DIR", target_dir()?);
    Ok(command)
}

/// Prints and runs a command, and fails if the command fails.
///
/// # Errors
/// If the command cannot be started or fails.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    println!("$ {line}");
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("failed to start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Returns the standard output of a command, or `None` if it fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
