//! The program's own log, on standard error.
//!
//! ```text
//!   event ──> fields: cut ──> rate limit ──> format: escaped ──> bounded buffer ──> thread
//! ```
//!
//! Logging never blocks and never fails: a thread of its own writes the lines, and what its reader
//! does not take is dropped and counted (`pointsman_log_lines_dropped_total`). Both formats show
//! the fields of the spans around an event, such as id and lane of a request, with their current
//! values. The JSON format has them in `span` for the innermost span and in `spans` for all of
//! them, outermost first.

mod control;
mod fields;
mod format;
mod layer;
mod metrics;
mod rate_limit;
mod writer;

use std::fs::File;
use std::io::{IsTerminal as _, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use prometheus_client::registry::Registry;
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, reload};

use pointsman_config::Log;

use self::control::CurrentFormat;
pub(crate) use self::control::LogControl;
use self::format::Format;
use self::layer::{LogLayer, dropped_line, suppressed_line};
use self::metrics::LogMetrics;
use self::rate_limit::RateLimiter;
use self::writer::Sink;

/// Maximum time to write the last lines when the host ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the number of events that the rate limit left out is logged.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A handle to the log. Dropping it writes the last lines, for at most a second.
#[derive(Debug)]
pub(crate) struct LogHandle {
    sink: Sink,
    metrics: LogMetrics,
    control: LogControl,
}

impl LogHandle {
    /// Registers the metrics of the log.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
    }

    /// Returns what changes the log while the host runs.
    pub(crate) fn control(&self) -> LogControl {
        self.control.clone()
    }
}

impl Drop for LogHandle {
    fn drop(&mut self) {
        // If the reader has stalled, there is no one left to tell.
        self.sink.flush(FLUSH_TIMEOUT);
    }
}

/// Installs the global subscriber, and logs panics. `filter`, from the command line, overrides the
/// configuration.
///
/// # Errors
/// If the filter is invalid or a subscriber is already installed.
pub(crate) fn start(log: &Log, filter: Option<&str>) -> Result<LogHandle> {
    let (text, is_overridden) = (filter.unwrap_or(&log.filter), filter.is_some());
    let filter: EnvFilter = text.parse().with_context(|| {
        format!("--log: invalid level or filter \"{text}\": expected for example \"info\"")
    })?;
    let has_colors = std::io::stderr().is_terminal();
    // Not `Stderr`, whose lock the writing thread would hold while the reader stalls.
    let descriptor = std::io::stderr().as_fd().try_clone_to_owned();
    let out = File::from(descriptor.context("failed to open standard error")?);
    let format = Format { format: log.format, has_colors };
    let (subscriber, mut handle) =
        subscriber(filter, format, out).context("failed to spawn the log thread")?;
    handle.control.is_overridden = is_overridden;
    subscriber.try_init().context("failed to initialize logging")?;
    log_panics();
    Ok(handle)
}

fn subscriber(
    filter: EnvFilter,
    format: Format,
    out: impl Write + Send + 'static,
) -> std::io::Result<(impl Subscriber + Send + Sync, LogHandle)> {
    let (limiter, metrics) = (Arc::<RateLimiter>::default(), LogMetrics::default());
    let limits = Arc::clone(&limiter);
    let format = CurrentFormat::new(format);
    let own_format = format.clone();
    let mut swept_at = Instant::now();
    let own_lines = move |dropped: u64| {
        let format = own_format.get();
        let dropped = (dropped > 0).then(|| dropped_line(format, dropped));
        // Not each time that a line is written, because all kinds of events are looked at.
        let is_due = swept_at.elapsed() >= SWEEP_INTERVAL;
        let suppressed = if is_due { limits.sweep(Instant::now()) } else { Vec::new() };
        if is_due {
            swept_at = Instant::now();
        }
        let suppressed = suppressed.iter().map(|kind| suppressed_line(format, kind));
        dropped.into_iter().chain(suppressed).collect()
    };
    let sink = Sink::start(out, metrics.clone(), own_lines)?;
    let (filter, handle) = reload::Layer::new(filter);
    let control = LogControl { filter: handle, format: format.clone(), is_overridden: false };
    let handle = LogHandle { sink: sink.clone(), metrics: metrics.clone(), control };
    let layer = LogLayer { format, limiter, metrics, sink };
    Ok((tracing_subscriber::registry().with(filter).with(layer), handle))
}

/// Logs panics as events. The hook of the standard library writes to standard error, and would wait
/// for a reader that stalls.
fn log_panics() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload_as_str().unwrap_or("no message");
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(event = "panic", location, "panicked: {payload}");
        // For developers, who want the backtrace.
        if std::env::var_os("RUST_BACKTRACE").is_some() {
            default_hook(panic);
        }
    }));
}

#[cfg(test)]
mod tests;
