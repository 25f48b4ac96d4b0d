//! `cargo xtask fuzz`: fuzzes for longer than the tests do, guided by the code that inputs reach.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::{cache_dir, cargo, run};

/// Seconds for each target.
const SECONDS: u64 = 60;

/// A fuzz target: a test in the file `src/fuzz.rs` of a package.
struct Target {
    package: String,
    name: String,
}

/// Runs the targets that the arguments name, or all, for `--seconds N` each.
///
/// Inputs that reach new code are kept in the cache folder, for the next run.
pub(crate) fn fuzz(root: &Path, arguments: &[&str]) -> Result<()> {
    let (names, seconds) = match arguments {
        [names @ .., "--seconds", seconds] => {
            (names, seconds.parse().context("--seconds: not a number")?)
        }
        names => (names, SECONDS),
    };
    let targets = targets(root)?;
    if let Some(unknown) = names.iter().find(|name| targets.iter().all(|one| one.name != **name)) {
        let known: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
        bail!("unknown target `{unknown}`; expected some of {}", known.join(", "));
    }
    for Target { package, name } in &targets {
        if !names.is_empty() && !names.contains(&name.as_str()) {
            continue;
        }
        println!("== {name} ({package}), {seconds} s");
        let test = format!("fuzz::{name}");
        run(cargo(root)?
            .args(["test", "--quiet", "--package", package, "--lib", "--"])
            .args(["--exact", &test, "--nocapture"])
            .env("RUSTC_WORKSPACE_WRAPPER", root.join("host/fuzz/rustc-with-coverage"))
            .env("POINTSMAN_FUZZ_SECONDS", seconds.to_string())
            .env("POINTSMAN_FUZZ_FOUND", cache_dir()?.join("fuzz").join(name)))?;
    }
    Ok(())
}

/// Finds all targets.
fn targets(root: &Path) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for entry in fs::read_dir(root.join("host/crates"))? {
        let folder = entry?.path();
        let Ok(text) = fs::read_to_string(folder.join("src/fuzz.rs")) else { continue };
        let name = folder.file_name().context("no name")?.to_string_lossy();
        let tests = text.split("#[test]\nfn ").skip(1);
        targets.extend(tests.filter_map(|test| test.split_once('(')).map(|(test, _)| Target {
            package: format!("pointsman-{name}"),
            name: test.to_owned(),
        }));
    }
    targets.sort_by(|one, other| (&one.package, &one.name).cmp(&(&other.package, &other.name)));
    Ok(targets)
}
