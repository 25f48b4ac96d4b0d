//! Reads `[log]`: what is logged, and how.

use pointsman_settings::Section;

/// What is logged, and how.
#[derive(Debug)]
pub struct Log {
    /// The filter: a level, or directives of `tracing`.
    pub filter: String,
    /// The format of a line.
    pub format: LogFormat,
}

/// The format of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Reads the section.
pub(super) fn read(section: &Section<'_>) -> Log {
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
    section.report_unknown();
    Log { filter: filter.unwrap_or_else(|| "info".to_owned()), format }
}
