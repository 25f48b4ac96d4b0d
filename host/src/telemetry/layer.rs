//! Receives events and spans, and makes lines of them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Instant;

use pointsman_config::LogFormat;
use pointsman_gateway::Feed;
use serde_json::Value;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use super::control::CurrentFormat;
use super::fields::{ENGINE, Fields, MESSAGE};
use super::format::{Format, Line, Style, feed_entry};
use super::metrics::{DropReason, LogMetrics};
use super::rate_limit::{Admission, Kind, RateLimiter, Suppressed};
use super::writer::Sink;

/// Maximum number of warnings, errors and failed requests of a kind in one window.
pub(super) const MAX_FAILURES: u32 = 20;
/// Maximum number of lines of one engine or policy in one window.
pub(super) const MAX_FOREIGN_LINES: u32 = 1000;

/// Makes lines of events.
#[derive(Debug)]
pub(super) struct LogLayer {
    pub(super) format: CurrentFormat,
    pub(super) limiter: Arc<RateLimiter>,
    pub(super) metrics: LogMetrics,
    pub(super) outputs: Outputs,
    pub(super) feed: Feed,
}

/// Where the log is written: standard error, and files.
#[derive(Debug, Clone, Default)]
pub(super) struct Outputs(pub(super) Vec<Output>);

/// One place where the log is written.
#[derive(Debug, Clone)]
pub(super) struct Output {
    pub(super) sink: Sink,
    pub(super) style: Style,
}

impl Outputs {
    /// Writes a line to all outputs; never blocks.
    pub(super) fn push(&self, format: LogFormat, line: impl Fn(Format) -> String) {
        for Output { sink, style } in &self.0 {
            sink.push(&line(style.of_lines(format)));
        }
    }
}

impl<S> Layer<S> for LogLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let target = attributes.metadata().target();
        let fields = Fields::collect(target, |visitor| attributes.record(visitor));
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        // Before the lock: formatting a value may panic, and the panic is logged.
        let newer = Fields::collect("", |visitor| values.record(visitor));
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            fields.merge(newer);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let fields = Fields::collect(metadata.target(), |visitor| event.record(visitor));
        let mut hasher = DefaultHasher::new();
        metadata.callsite().hash(&mut hasher);
        fields.hash_identity(&mut hasher);
        let spans = || context.event_scope(event).into_iter().flat_map(|scope| scope.from_root());
        for span in spans() {
            if let Some(fields) = span.extensions().get::<Fields>() {
                fields.hash_identity(&mut hasher);
            }
        }
        if !self.admits(metadata, &fields, hasher.finish()) {
            self.metrics.dropped(DropReason::Rate, 1);
            return;
        }
        let spans: Vec<(&'static str, Fields)> = spans()
            .map(|span| {
                (span.name(), span.extensions().get::<Fields>().cloned().unwrap_or_default())
            })
            .collect();
        let line = Line::new(metadata, &fields, &spans);
        self.outputs.push(self.format.get(), |format| format.line(&line));
        self.feed.push(feed_entry(&line).into());
    }
}

impl LogLayer {
    /// Applies the rate limit of an event. Logs how many were left out before.
    fn admits(&self, metadata: &'static Metadata<'static>, fields: &Fields, key: u64) -> bool {
        let Some(max) = max_lines(metadata, fields) else { return true };
        let kind = || Kind {
            level: *metadata.level(),
            target: metadata.target(),
            name: ["code", "event"]
                .iter()
                .find_map(|name| fields.get(name).and_then(Value::as_str))
                .unwrap_or(metadata.name())
                .to_owned(),
        };
        match self.limiter.admit(key, max, Instant::now(), kind) {
            Admission::Log(suppressed) => {
                if let Some(suppressed) = suppressed {
                    let line = |format| suppressed_line(format, &suppressed);
                    self.outputs.push(self.format.get(), line);
                }
                true
            }
            Admission::Suppress => false,
        }
    }
}

/// Returns the maximum number of lines in one window; `None` without a limit. Served requests are
/// not limited, because engines limit them, nor what only an operator who debugs sees.
fn max_lines(metadata: &Metadata<'_>, fields: &Fields) -> Option<u32> {
    let level = *metadata.level();
    if [ENGINE, "policy"].contains(&metadata.target()) {
        return Some(MAX_FOREIGN_LINES);
    }
    let is_failure = level <= Level::WARN
        || (level == Level::INFO
            && (fields.get("code").is_some() || fields.get("error").is_some()));
    is_failure.then_some(MAX_FAILURES)
}

/// Returns the line about events that were left out.
pub(super) fn suppressed_line(format: Format, suppressed: &Suppressed) -> String {
    let Suppressed { kind, count } = suppressed;
    let mut fields = Fields::default();
    fields.set(MESSAGE, format!("{count} more events like `{}` were not logged", kind.name).into());
    fields.set("event", "log_suppressed".into());
    fields.set("like", kind.name.as_str().into());
    fields.set("count", (*count).into());
    format.line(&Line { level: kind.level, target: kind.target, fields: &fields, spans: &[] })
}

/// Returns the line about lines that the reader of the log did not take.
pub(super) fn dropped_line(format: Format, count: u64) -> String {
    let mut fields = Fields::default();
    fields.set(MESSAGE, "log lines were dropped: their reader was too slow, or absent".into());
    fields.set("event", "log_dropped".into());
    fields.set("count", count.into());
    let target = "pointsman::telemetry";
    format.line(&Line { level: Level::WARN, target, fields: &fields, spans: &[] })
}
