//! The program's own log, on standard error.

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Begin to log. `filter` comes before what the configuration says.
pub(crate) fn start(log: &Log, filter: Option<&str>) -> Result<()> {
    let text = filter.unwrap_or(&log.filter);
    let filter: EnvFilter =
        text.parse().with_context(|| format!("--log: `{text}` is no level or filter"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("the log cannot be set up: {error}"))
}
