//! Tools and expected results of the tests of packages.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pointsman_tests::host::root;
use pointsman_xtask::command::cache_dir;

/// Set to have the expected results written instead of compared.
const WRITE_GOLDENS: &str = "POINTSMAN_WRITE_GOLDENS";

/// Returns a program of the virtual environment that `cargo xtask test --packages` makes.
pub(crate) fn venv_program(name: &str) -> PathBuf {
    let venv = match std::env::var_os("POINTSMAN_VENV") {
        Some(venv) => PathBuf::from(venv),
        None => cache_dir().unwrap().join("venv"),
    };
    venv.join("bin").join(name)
}

/// Runs a program that has to succeed; returns its standard output.
pub(crate) fn run(command: &mut Command) -> String {
    let (is_success, text) = run_any(command);
    assert!(is_success, "{command:?}: {text}");
    text
}

/// Runs a program; returns whether it succeeds and, if so, its standard output, else all of its
/// output.
pub(crate) fn run_any(command: &mut Command) -> (bool, String) {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let is_success = output.status.success();
    let text = if is_success { output.stdout } else { [output.stdout, output.stderr].concat() };
    (is_success, String::from_utf8(text).unwrap())
}

/// Compares a text with the file of this name in `tests/packages/golden`, in which `{version}`
/// stands for the version of the workspace.
pub(crate) fn assert_golden(name: &str, actual: &str) {
    let file = root().join("tests/packages/golden").join(name);
    let actual = actual.replace(env!("CARGO_PKG_VERSION"), "{version}");
    if std::env::var_os(WRITE_GOLDENS).is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    if expected == actual {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("actual");
    std::fs::write(&new, &actual).unwrap();
    panic!("{name} differs; set {WRITE_GOLDENS}=1 to accept:\n{}", difference(&file, &new));
}

fn difference(expected: &Path, actual: &Path) -> String {
    let output = Command::new("diff").arg("-uN").args([expected, actual]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the maximum number of seconds of a shutdown with a configuration that is made for a
/// container. Its policies are those of the repository, its secrets are files in `secrets`.
///
/// # Panics
/// If the host does not accept the configuration.
pub(crate) fn shutdown_limit(program: &Path, config: &str, secrets: &Path) -> u64 {
    let policies = root().join("policies").display().to_string();
    let config = config
        .replace("/usr/share/pointsman/policies", &policies)
        .replace("/run/secrets/pointsman", &secrets.display().to_string());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pointsman.toml");
    std::fs::write(&file, config).unwrap();
    let report = run(Command::new(program).arg("check").arg(&file));
    let (_, limit) = report.split_once("shutdown: ").unwrap();
    let limit = limit.split(" at most").next().unwrap();
    let (number, unit) = limit.split_at(limit.len() - 1);
    let number: u64 = number.parse().unwrap();
    if unit == "m" { number * 60 } else { number }
}
