//! Runs tools. Their output is logged, and its last lines are part of the error if a tool fails.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::error::BuildError;

/// Maximum number of output lines in an error.
const MAX_ERROR_LINES: usize = 40;

/// Runs a tool and waits for it.
pub(crate) fn run(command: &mut Command, log: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
    let program = command.get_program();
    let tool =
        std::path::Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
    let words = std::iter::once(program).chain(command.get_args());
    log(&format!("$ {}", words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")));
    let failed = |status: String, output: String| BuildError::ToolFailed {
        tool: tool.clone(),
        status,
        output,
    };
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed("failed to start".to_owned(), error.to_string()))?;
    let mut lines: Vec<String> = Vec::new();
    for stream in [&output.stdout, &output.stderr] {
        lines.extend(String::from_utf8_lossy(stream).lines().map(str::to_owned));
    }
    for line in &lines {
        log(line);
    }
    if output.status.success() {
        return Ok(());
    }
    let shown = lines.split_off(lines.len().saturating_sub(MAX_ERROR_LINES));
    Err(failed(output.status.to_string(), shown.join("\n")))
}

/// Returns the standard output of a command, or `None` if it fails.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
