//! Runs the type checker of the policy's language, if it is installed in the policy's folder.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::output::print;
use crate::policy::progress::with_progress;

/// A type checker: its program, the file that configures it, and its arguments.
struct Checker {
    program: &'static str,
    config: &'static str,
    args: &'static [&'static str],
}

const CHECKERS: [Checker; 2] = [
    Checker {
        program: "node_modules/.bin/tsc",
        config: "tsconfig.json",
        args: &["--noEmit", "--pretty", "false"],
    },
    Checker { program: ".venv/bin/pyright", config: "pyrightconfig.json", args: &[] },
];

/// Runs the type checkers in a folder. Returns false if one of them finds an error.
pub(super) fn run(dir: &Path) -> Result<bool> {
    let mut has_passed = true;
    for checker in &CHECKERS {
        let program = dir.join(checker.program);
        if !program.exists() || !dir.join(checker.config).exists() {
            continue;
        }
        // Relative to the folder that the checker runs in.
        let program = std::path::absolute(&program)?;
        let mut command = Command::new(&program);
        command.args(checker.args).current_dir(dir).stdin(Stdio::null());
        let output = with_progress("checking types", || command.output());
        let output = output.with_context(|| format!("failed to run {}", program.display()))?;
        if !output.status.success() {
            has_passed = false;
            print(&String::from_utf8_lossy(&output.stdout))?;
            print(&String::from_utf8_lossy(&output.stderr))?;
        }
    }
    Ok(has_passed)
}
