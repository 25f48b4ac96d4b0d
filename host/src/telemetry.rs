//! The program's own log, on standard error and in files, and the access log.
//!
//! ```text
//!   event ──> fields: cut ──> rate limit ──> format: escaped ──> bounded buffer ──> thread
//!   request that has ended ──> access: cut, escaped ───────────> bounded buffer ──> thread
//!                        └───> spans: if it is traced ─────────> bounded queue ───> exporter
//! ```
//!
//! Under systemd, the thread sends the lines to the journal, with their fields (`journal.rs`).
//!
//! Logging never blocks and never fails: a thread of its own writes the lines, and what its reader
//! does not take is dropped and counted (`pointsman_log_lines_dropped_total`). Both formats show
//! the fields of the spans around an event, such as id and lane of a request, with their current
//! values. The JSON format has them in `span` for the innermost span and in `spans` for all of
//! them, outermost first.

mod access;
mod control;
mod export_metrics;
mod exporter;
mod fields;
mod format;
mod journal;
mod layer;
mod metrics;
mod observer;
mod otel;
mod outputs;
mod rate_limit;
mod rotating_file;
mod spans;
mod switch_spans;
mod writer;

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use prometheus_client::registry::Registry;
use tracing::Subscriber;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, reload};

use pointsman_config::{Config, LogFormat};
use pointsman_gateway::Feed;

use self::control::CurrentFormat;
pub(crate) use self::control::LogControl;
use self::export_metrics::ExportMetrics;
use self::exporter::Exporter;
use self::format::Style;
use self::layer::{LogLayer, Output, Outputs, dropped_line, suppressed_line};
use self::metrics::LogMetrics;
pub(crate) use self::observer::Observer;
pub(crate) use self::otel::export;
use self::rate_limit::RateLimiter;
use self::writer::{FILE_DELAY, Sink};

/// Maximum time to write the last lines when the host ends.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum time to export the last traces and metrics when the host ends.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the number of events that the rate limit left out is logged.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// A handle to the log. Dropping it writes the last lines, for at most a second.
#[derive(Debug)]
pub(crate) struct LogHandle {
    outputs: Outputs,
    metrics: LogMetrics,
    control: LogControl,
    files: LogMetrics,
    access: LogMetrics,
    exports: ExportMetrics,
    observer: Option<Arc<Observer>>,
    feed: Feed,
}

impl LogHandle {
    /// Registers the metrics of the log.
    pub(crate) fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        self.files.register_output(
            registry,
            "pointsman_log_file_lines_dropped",
            "Lines that were not written to the log file, by reason",
        );
        self.access.register_output(
            registry,
            "pointsman_access_log_lines_dropped",
            "Lines of the access log that were not written, by reason",
        );
        self.exports.register(registry);
    }

    /// Returns the lines as JSON objects, for operators.
    pub(crate) fn feed(&self) -> Feed {
        self.feed.clone()
    }

    /// Returns what changes the log while the host runs.
    pub(crate) fn control(&self) -> LogControl {
        self.control.clone()
    }

    /// Returns what writes of requests that have ended.
    pub(crate) fn observer(&self) -> Option<Arc<Observer>> {
        self.observer.clone()
    }

    /// Waits until all lines are written, or the time is over. Returns true if they are.
    fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let access = self.observer.iter().filter_map(|observer| observer.access.as_ref());
        let sinks = access.map(|access| &access.sink);
        let sinks = sinks.chain(self.outputs.0.iter().map(|output| &output.sink));
        let flush = |sink: &Sink| sink.flush(deadline.saturating_duration_since(Instant::now()));
        // All of them, also if one has stalled.
        sinks.filter(|sink| !flush(sink)).count() == 0
    }
}

impl Drop for LogHandle {
    fn drop(&mut self) {
        // Before the log, which tells of exports that fail.
        let exporter = self.observer.as_ref().and_then(|observer| observer.exporter.as_ref());
        if let Some(exporter) = exporter {
            exporter.stop(EXPORT_TIMEOUT);
        }
        // If the reader has stalled, there is no one left to tell.
        self.flush(FLUSH_TIMEOUT);
    }
}

/// Installs the global subscriber, and logs panics. `filter`, from the command line, overrides the
/// configuration.
///
/// # Errors
/// If the filter is invalid or a subscriber is already installed.
pub(crate) fn start(config: &Config, filter: Option<&str>) -> Result<LogHandle> {
    let log = &config.log;
    let (text, is_overridden) = (filter.unwrap_or(&log.filter), filter.is_some());
    let filter: EnvFilter = text.parse().with_context(|| {
        format!("--log: invalid level or filter \"{text}\": expected for example \"info\"")
    })?;
    let (out, style) = outputs::standard_error().context("failed to open standard error")?;
    let dir = outputs::folder(log);
    let mut unusable = Vec::new();
    let mut open = |name| outputs::file(dir.as_deref()?, name, log.files, &mut unusable);
    let file = open("pointsman");
    let started = subscriber(filter, (log.format, style), out, file);
    let (subscriber, mut handle) = started.context("failed to spawn the log thread")?;
    let opened = outputs::access(&log.access, dir.is_some(), &handle, || open("access"));
    let access = opened.context("failed to spawn the thread of the access log")?;
    let mut ignored = Vec::new();
    let export = otel::resolve(
        &config.telemetry,
        |name| std::env::var(name).ok(),
        |name| ignored.push(name),
    );
    let exporter = export.map(|export| Exporter::start(export, handle.exports.clone()));
    let exporter = exporter.transpose().context("failed to start the export of telemetry")?;
    if access.is_some() || exporter.is_some() {
        handle.observer = Some(Arc::new(Observer { access, exporter }));
    }
    handle.control.is_overridden = is_overridden;
    subscriber.try_init().context("failed to initialize logging")?;
    log_panics();
    for variable in ignored {
        tracing::warn!(variable, "ignored a variable of the environment: invalid value");
    }
    for (path, error) in unusable {
        // Tried again with each line: the disk may be mounted later.
        tracing::warn!(event = "log_file_unavailable", path = %path.display(), %error, "cannot \
            write a log file");
    }
    Ok(handle)
}

fn subscriber(
    filter: EnvFilter,
    (format, style): (LogFormat, Style),
    out: impl Write + Send + 'static,
    file: Option<rotating_file::RotatingFile>,
) -> std::io::Result<(impl Subscriber + Send + Sync, LogHandle)> {
    let (limiter, metrics) = (Arc::<RateLimiter>::default(), LogMetrics::default());
    let files = LogMetrics::default();
    let format = CurrentFormat::new(format);
    let mut outputs = Outputs::default();
    if let Some(file) = file {
        let (style, format) = (Style::default(), format.clone());
        let own_lines = move |dropped: u64| match dropped {
            0 => String::new(),
            dropped => dropped_line(style.of_lines(format.get()), dropped),
        };
        let sink = Sink::start(file, FILE_DELAY, files.clone(), own_lines)?;
        outputs.0.push(Output { sink, style });
    }
    let own_lines = own_lines(Arc::clone(&limiter), (format.clone(), style), outputs.clone());
    let sink = Sink::start(out, Duration::ZERO, metrics.clone(), own_lines)?;
    outputs.0.insert(0, Output { sink, style });
    let (filter, handle) = reload::Layer::new(filter);
    let control = LogControl { filter: handle, format: format.clone(), is_overridden: false };
    let feed = Feed::default();
    let handle = LogHandle {
        outputs: outputs.clone(),
        metrics: metrics.clone(),
        control,
        feed: feed.clone(),
        files,
        access: LogMetrics::default(),
        exports: ExportMetrics::default(),
        observer: None,
    };
    let layer = LogLayer { format, limiter, metrics, outputs, feed };
    Ok((tracing_subscriber::registry().with(filter).with(layer), handle))
}

/// Returns what makes the log's own lines for standard error: about lines that were dropped there,
/// and about events that the rate limit left out, which the `others` get as well.
fn own_lines(
    limits: Arc<RateLimiter>,
    (format, style): (CurrentFormat, Style),
    others: Outputs,
) -> impl FnMut(u64) -> String {
    let mut swept_at = Instant::now();
    move |dropped: u64| {
        let format = format.get();
        let dropped = (dropped > 0).then(|| dropped_line(style.of_lines(format), dropped));
        // Not each time that a line is written, because all kinds of events are looked at.
        let is_due = swept_at.elapsed() >= SWEEP_INTERVAL;
        let suppressed = if is_due { limits.sweep(Instant::now()) } else { Vec::new() };
        if is_due {
            swept_at = Instant::now();
        }
        for kind in &suppressed {
            others.push(format, |format| suppressed_line(format, kind));
        }
        let suppressed =
            suppressed.iter().map(|kind| suppressed_line(style.of_lines(format), kind));
        dropped.into_iter().chain(suppressed).collect()
    }
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
