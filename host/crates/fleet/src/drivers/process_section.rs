//! Reads the keys that engines with a process share: how it is run, and its command line.

use std::path::Path;
use std::time::Duration;

use pointsman_domain::{derived_names, is_local_path};
use pointsman_settings::{Code, Section, missing};

use crate::driver::Prepared;
use crate::engine_spec::{Backoff, CommandLine, ProcessSpec};
use crate::launch::{HOST, Launch};

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Reads how a process is run. `start_timeout` and `stop_grace` are the defaults. The caller passes
/// the command to [`allow_foreign_listener`] when it has read it.
pub(super) fn read_run(
    section: &Section<'_>,
    folder: &Path,
    start_timeout: Duration,
    stop_grace: Duration,
) -> ProcessSpec {
    let port = section.integer("port", 1..=65_535, 0u16);
    let backoff = section.section("backoff");
    let initial = backoff.duration("initial", SECOND);
    let max = backoff.duration("max", 60 * SECOND);
    if initial.is_zero() || max < initial {
        let message = "`initial` must be greater than zero, and `max` not less than `initial`";
        backoff.error_at("max", Code::OutOfRange.with(message));
    }
    let spec = ProcessSpec {
        directory: Some(folder.join(section.string("directory").unwrap_or("."))),
        port: (port != 0).then_some(port),
        check_listener: section.bool("check-listener", true),
        start_timeout: section.positive_duration("start-timeout", start_timeout),
        stop_grace: section.duration("stop-grace", stop_grace),
        backoff: Backoff {
            first: initial,
            most: max,
            reset_after: backoff.duration("reset-after", 60 * SECOND),
            max_failures: backoff.integer("max-failures", 0..=1000, 5),
            retry_failed_after: backoff.positive_duration("retry-failed-after", 600 * SECOND),
        },
    };
    backoff.report_unknown();
    spec
}

/// Turns the check of the listener off for an engine in a container, unless the file sets it: its
/// port is held by a process of the container runtime.
pub(super) fn allow_foreign_listener(
    section: &Section<'_>,
    command: &[String],
    run: &mut ProcessSpec,
) {
    if is_container(command) && !section.has("check-listener") {
        run.check_listener = false;
    }
}

/// Returns true if the program of a command is a container tool.
pub(super) fn is_container(command: &[String]) -> bool {
    let name = command.first().map(|word| word.rsplit('/').next().unwrap_or(word));
    matches!(name, Some("docker" | "podman" | "nerdctl"))
}

/// Warns about a model that is not there, unless `command` starts a container, which has other
/// files. Relative paths are those of the engine's working directory.
pub(super) fn missing_model(
    model: &str,
    command: &[String],
    directory: Option<&Path>,
) -> Option<String> {
    let path = directory.unwrap_or(Path::new("")).join(model);
    let is_missing = !model.starts_with('~') && !is_container(command) && !path.exists();
    is_missing.then(|| format!("the model {} does not exist", path.display()))
}

/// Reads a command from the file. `{port}` must be in the command or its environment unless the
/// port is fixed.
pub(super) fn read_command_line(section: &Section<'_>, example: &str) -> Option<CommandLine> {
    let command = section.strings("command");
    let env = read_env(section);
    let has_port = |word: &String| word.contains("{port}");
    let mut values = env.iter().map(|(_, value)| value);
    match &command {
        None if !section.has("command") => {
            section.error_at("command", missing(format!("`{example}`")));
        }
        Some(command) if command.first().is_none_or(|word| word.trim().is_empty()) => {
            section.error_at(
                "command",
                format!("must begin with a program; set for example `{example}`"),
            );
        }
        Some(command)
            if !section.has("port") && !command.iter().any(has_port) && !values.any(has_port) =>
        {
            section.error_at(
                "command",
                "does not pass the port to the engine; put `{port}` into the command or `env`, or \
                 set `port`",
            );
        }
        _ => {}
    }
    Some(CommandLine { command: command?, env })
}

pub(super) fn read_env(section: &Section<'_>) -> Vec<(String, String)> {
    let env = section.string_pairs("env");
    for (name, value) in &env {
        // The message leaves the value out: it may be a secret.
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            section.error_at(
                "env",
                format!("invalid environment variable \"{}\"", name.escape_debug()),
            );
        }
    }
    env
}

/// Returns the names by which clients may know the model that is `written` in the file, and that is
/// at `path` if it is not on a hub.
pub(super) fn names_of_model(written: &str, path: &Path) -> Vec<String> {
    let is_path = is_local_path(written) || path.exists();
    let absolute = is_path.then(|| std::path::absolute(path).ok()).flatten();
    derived_names(written, absolute.as_deref().and_then(Path::to_str))
}

/// Replaces the placeholders for lane, host and port in a command line.
pub(super) fn fill(
    command_line: &CommandLine,
    run: &ProcessSpec,
    lane: &str,
    port: u16,
) -> Prepared {
    let fill = |word: &String| {
        word.replace("{port}", &port.to_string()).replace("{host}", HOST).replace("{lane}", lane)
    };
    let launch = Launch {
        command: command_line.command.iter().map(fill).collect(),
        env: command_line.env.iter().map(|(name, value)| (name.clone(), fill(value))).collect(),
        remove_env: Vec::new(),
        directory: run.directory.clone(),
    };
    Prepared { launch, warnings: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::is_container;

    #[test]
    fn container_tools_are_recognized_with_or_without_their_path() {
        for (program, expected) in [
            ("docker", true),
            ("/usr/bin/podman", true),
            ("nerdctl", true),
            ("vllm", false),
            ("docker/server", false),
        ] {
            assert_eq!(is_container(&[program.to_owned(), "run".to_owned()]), expected);
        }
        assert!(!is_container(&[]));
    }
}
