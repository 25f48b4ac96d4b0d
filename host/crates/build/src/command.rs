//! Running a tool: what it prints goes to the log, and its end into the error when it fails.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::BuildError;

/// Lines of a tool's output that an error shows.
const SHOWN_LINES: usize = 40;

/// Run a tool to its end.
pub(crate) fn run(command: &mut Command, log: &mut dyn FnMut(&str)) -> Result<(), BuildError> {
    let program = command.get_program();
    let tool =
        std::path::Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned();
    let words = std::iter::once(program).chain(command.get_args());
    log(&format!("$ {}", words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")));
    let failed =
        |status: String, output: String| BuildError::Failed { tool: tool.clone(), status, output };
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed("it cannot be started".to_owned(), error.to_string()))?;
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
    let shown = lines.split_off(lines.len().saturating_sub(SHOWN_LINES));
    Err(failed(output.status.to_string(), shown.join("\n")))
}

/// What a command prints, if it succeeds.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
