//! Where the log and the access log are written.

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pointsman_config::{AccessLog, AccessOutput, Log, LogFileLimits};
use tracing::Level;

use super::LogHandle;
use super::access::AccessWriter;
use super::format::{Style, priority};
use super::journal::{self, JournalWriter};
use super::rotating_file::RotatingFile;
use super::writer::{FILE_DELAY, Sink};

/// The environment variable with the folder of log files, unless the configuration names one.
const DIRECTORY_VARIABLE: &str = "LOG_DIRECTORY";
/// The environment variable with device and inode of the journal's stream (`systemd.exec(5)`).
const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";

/// Returns the folder of log files, if there are to be any.
pub(super) fn folder(log: &Log) -> Option<PathBuf> {
    let variable = || std::env::var_os(DIRECTORY_VARIABLE).filter(|dir| !dir.is_empty());
    log.dir.clone().or_else(|| variable().map(PathBuf::from))
}

/// Returns a log file. If it cannot be used now, adds why to `unusable`.
pub(super) fn file(
    dir: &Path,
    name: &'static str,
    limits: LogFileLimits,
    unusable: &mut Vec<(PathBuf, io::Error)>,
) -> Option<RotatingFile> {
    let mut file = RotatingFile::new(dir, name, limits);
    if let Err(error) = file.prepare() {
        unusable.push((dir.join(name).with_extension("log"), error));
    }
    Some(file)
}

/// Returns what writes to standard error, or to the journal if that is what reads it, and how lines
/// are written there.
pub(super) fn standard_error() -> io::Result<(Box<dyn Write + Send>, Style)> {
    let file = copy(io::stderr().as_fd())?;
    let has_colors = io::stderr().is_terminal();
    if !is_journal(&file) {
        return Ok((Box::new(file), Style { has_colors, ..Style::default() }));
    }
    Ok(match JournalWriter::new(Path::new(journal::SOCKET), file) {
        Ok(writer) => (Box::new(writer), Style { is_entry: true, ..Style::default() }),
        Err(file) => (Box::new(file), Style { has_priority: true, ..Style::default() }),
    })
}

/// Copies a stream. Not `Stderr` or `Stdout` itself, whose lock the writing thread would hold while
/// the reader stalls.
fn copy(stream: BorrowedFd<'_>) -> io::Result<File> {
    stream.try_clone_to_owned().map(File::from)
}

/// Returns true if standard error is a stream to the journal.
fn is_journal(standard_error: &File) -> bool {
    std::env::var(JOURNAL_VARIABLE).is_ok_and(|value| {
        let meta = standard_error.metadata();
        meta.is_ok_and(|meta| value == format!("{}:{}", meta.dev(), meta.ino()))
    })
}

/// Starts the access log. `file` opens its file.
pub(super) fn access(
    settings: &AccessLog,
    has_files: bool,
    log: &LogHandle,
    file: impl FnOnce() -> Option<RotatingFile>,
) -> io::Result<Option<AccessWriter>> {
    let default = if has_files { AccessOutput::File } else { AccessOutput::Off };
    // Lines that were dropped are only counted: the access log has no lines of its own.
    let own_lines = |_| String::new();
    let metrics = log.access.clone();
    let mut prefix = "";
    let sink = match settings.output.unwrap_or(default) {
        AccessOutput::Off => return Ok(None),
        AccessOutput::Stdout => {
            Sink::start(copy(io::stdout().as_fd())?, FILE_DELAY, metrics, own_lines)?
        }
        // By the thread of the log, so that lines of both do not mix.
        AccessOutput::Stderr => {
            let Some(output) = log.outputs.0.first() else { return Ok(None) };
            if output.style.has_priority {
                prefix = priority(Level::INFO);
            }
            output.sink.clone()
        }
        AccessOutput::File => match file() {
            Some(file) => Sink::start(file, FILE_DELAY, metrics, own_lines)?,
            None => return Ok(None),
        },
    };
    Ok(Some(AccessWriter { settings: settings.clone(), sink, prefix }))
}
