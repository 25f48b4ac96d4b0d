//! Reads `[log]`: what is logged, how, and where.

use std::path::{Path, PathBuf};

use pointsman_settings::{Code, Section};

/// What is logged, how, and where.
#[derive(Debug, Clone)]
pub struct Log {
    /// The filter: a level, or directives of `tracing`.
    pub filter: String,
    /// The format of a line.
    pub format: LogFormat,
    /// Folder of the log files; `None` if the environment decides.
    pub dir: Option<PathBuf>,
    /// Limits of the files.
    pub files: LogFileLimits,
    /// The access log.
    pub access: AccessLog,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Limits of a log file and of those that it was rotated to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogFileLimits {
    /// Maximum size of a file in bytes.
    pub max_size: u64,
    /// Maximum number of earlier files.
    pub keep: u32,
    /// Maximum size of all files of one log in bytes.
    pub max_total: u64,
    /// Begin a file each day (UTC).
    pub daily: bool,
}

impl Default for LogFileLimits {
    fn default() -> Self {
        Self { max_size: 64 << 20, keep: 9, max_total: 1 << 30, daily: true }
    }
}

/// What is written of each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLog {
    /// Where it is written; `None` for the default: a file if there are log files, else nowhere.
    pub output: Option<AccessOutput>,
    /// The fields that are left out, of [`ACCESS_FIELDS`].
    pub omit: Vec<&'static str>,
    /// What is shown of the addresses of clients.
    pub client: ShownAddress,
}

/// Where the access log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessOutput {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Standard error, between the lines of the log.
    Stderr,
    /// A file in the folder of log files.
    File,
}

/// What is shown of the address of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShownAddress {
    /// All of it.
    Full,
    /// The first 24 bits of an IPv4 address, and 48 of an IPv6 address.
    Network,
}

/// The fields of a line of the access log, in their order.
pub const ACCESS_FIELDS: [&str; 24] = [
    "time",
    "id",
    "client",
    "tenant",
    "key",
    "endpoint",
    "model",
    "lane",
    "policy",
    "status",
    "outcome",
    "result",
    "code",
    "stream",
    "attempts",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "queue_ms",
    "ttft_ms",
    "duration_ms",
    "request_bytes",
    "response_bytes",
    "trace_id",
];

/// Reads the section.
pub(super) fn read(section: &Section<'_>, folder: &Path) -> Log {
    let filter =
        section.parsed("level", |text| match text.parse::<tracing_subscriber::EnvFilter>() {
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!(
                "invalid log filter \"{text}\" ({error}): expected for example \"info\""
            )),
        });
    let format = section.choice(
        "format",
        &[("text", LogFormat::Text), ("json", LogFormat::Json)],
        LogFormat::Text,
    );
    let dir = section.string("dir").filter(|dir| !dir.is_empty()).map(|dir| folder.join(dir));
    let (files, access) = (read_limits(section), read_access(section));
    section.report_unknown();
    Log { filter: filter.unwrap_or_else(|| "info".to_owned()), format, dir, files, access }
}

fn read_limits(section: &Section<'_>) -> LogFileLimits {
    let default = LogFileLimits::default();
    let max_size = section.bytes("max-size").unwrap_or(default.max_size);
    if !(1 << 16..=1 << 40).contains(&max_size) {
        section.error_at("max-size", Code::OutOfRange.with("must be between 64KiB and 1TiB"));
    }
    let max_total = section.bytes("max-total").unwrap_or(default.max_total.max(max_size));
    if max_total < max_size {
        section.error_at("max-total", Code::OutOfRange.with("must be at least `max-size`"));
    }
    let keep = section.integer("keep", 0..=1000, 9);
    LogFileLimits { max_size, keep, max_total, daily: section.bool("daily", default.daily) }
}

fn read_access(section: &Section<'_>) -> AccessLog {
    let outputs = [
        ("off", AccessOutput::Off),
        ("stdout", AccessOutput::Stdout),
        ("stderr", AccessOutput::Stderr),
        ("file", AccessOutput::File),
    ];
    let output = section.choice("access", &outputs, AccessOutput::Off);
    let shown = [("full", ShownAddress::Full), ("network", ShownAddress::Network)];
    let client = section.choice("access-client", &shown, ShownAddress::Full);
    let mut omit = Vec::new();
    for name in section.strings("access-omit").unwrap_or_default() {
        match ACCESS_FIELDS.into_iter().find(|known| *known == name) {
            Some(known) => omit.push(known),
            None => {
                let known = ACCESS_FIELDS.join(", ");
                let problem = format!("unknown field \"{name}\": expected one of {known}");
                section.error_at("access-omit", problem);
            }
        }
    }
    AccessLog { output: section.has("access").then_some(output), omit, client }
}
