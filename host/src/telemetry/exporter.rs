//! Exports traces and metrics, in a thread of its own with its own runtime: a collector that stalls
//! does not hold up a request.
//!
//! Requests put their spans into a bounded queue; what does not fit is dropped and counted.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use parking_lot::{Condvar, Mutex};
use pointsman_config::OtlpProtocol;
use pointsman_fleet::{FinishedSwitch, Poster, ServiceUrl};
use pointsman_gateway::FinishedRequest;
use pointsman_otlp::{EncodedSpans, check_frame, grpc_frame, metrics_request, trace_request};
use tokio::sync::Notify;

use super::export_metrics::{ExportMetrics, Signal};
use super::otel::Export;
use super::spans::request_spans;
use super::switch_spans::SwitchIds;

/// Maximum number of traces that wait for their export.
const MAX_QUEUE: usize = 4096;
/// Traces of one export.
const MAX_BATCH: usize = 256;
/// Maximum time that a trace waits for others, which are exported with it.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// Attempts for one batch. Meanwhile the queue collects others.
const MAX_ATTEMPTS: u32 = 5;
/// Delay before the second attempt, which doubles with each further one.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Returns the metrics of the host, as text; `None` once it has stopped.
type MetricsSource = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// Accepts traces for the export. Clones share the same thread.
#[derive(Clone)]
pub(super) struct Exporter(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Wakes the thread: a batch is full, or the host stops.
    wake: Notify,
    ended: Condvar,
    metrics: ExportMetrics,
    source: OnceLock<MetricsSource>,
    /// True unless no traces are exported.
    has_traces: bool,
    switches: SwitchIds,
}

/// Spans of several requests and switches, which are exported together.
#[derive(Default)]
struct Batch {
    spans: EncodedSpans,
    traces: usize,
}

#[derive(Default)]
struct State {
    batches: VecDeque<Batch>,
    /// Traces of all batches.
    traces: usize,
    is_stopping: bool,
    has_ended: bool,
}

impl State {
    /// Adds the spans of a trace to the last batch. Returns true if that is full.
    fn add(&mut self, spans: &EncodedSpans) -> bool {
        // Copied: a buffer that another thread frees costs more.
        match self.batches.back_mut() {
            Some(batch) if batch.traces < MAX_BATCH => {
                batch.spans.append(spans);
                batch.traces += 1;
                batch.traces == MAX_BATCH
            }
            Some(_) | None => {
                self.batches.push_back(Batch { spans: spans.clone(), traces: 1 });
                false
            }
        }
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").finish_non_exhaustive()
    }
}

impl Exporter {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the thread or its runtime cannot be started.
    pub(super) fn start(export: Export, metrics: ExportMetrics) -> io::Result<Self> {
        let exporter = Self(Arc::new(Shared {
            state: Mutex::default(),
            wake: Notify::new(),
            ended: Condvar::new(),
            metrics,
            source: OnceLock::new(),
            has_traces: export
                .traces
                .as_ref()
                .is_some_and(|traces| traces.ratio > 0.0 || traces.follows_parent),
            switches: SwitchIds::default(),
        }));
        let shared = Arc::clone(&exporter.0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("telemetry".into()).spawn(move || {
            runtime.block_on(Sender::new(&export, &shared).run());
            shared.state.lock().has_ended = true;
            shared.ended.notify_all();
        })?;
        Ok(exporter)
    }

    /// Queues the spans of a request, if it is traced; never blocks.
    pub(super) fn push_request(&self, request: &FinishedRequest<'_>) {
        if let Some(spans) = request_spans(request, &self.0.switches) {
            self.queue(&spans);
        }
    }

    /// Queues the spans of a switch, whatever part of the requests is traced; never blocks.
    pub(super) fn push_switch(&self, switch: &FinishedSwitch) {
        if self.0.has_traces {
            self.queue(&self.0.switches.spans_of(switch));
        }
    }

    fn queue(&self, spans: &EncodedSpans) {
        let mut state = self.0.state.lock();
        if state.traces >= MAX_QUEUE || state.is_stopping {
            drop(state);
            self.0.metrics.dropped_from_queue();
            return;
        }
        state.traces += 1;
        let is_full = state.add(spans);
        drop(state);
        if is_full {
            self.0.wake.notify_one();
        }
    }

    /// Sets where the metrics come from. Only the first call has an effect.
    pub(super) fn set_metrics_source(&self, source: MetricsSource) {
        // Set once, by the start of the host.
        self.0.source.set(source).ok();
    }

    /// Exports what is queued, and the metrics a last time, for at most this time.
    pub(super) fn stop(&self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state.lock();
        state.is_stopping = true;
        self.0.wake.notify_one();
        while !state.has_ended {
            if self.0.ended.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

/// Why an export has failed.
struct Failure {
    error: String,
    is_transient: bool,
}

/// Sends batches, one after another.
struct Sender<'a> {
    shared: &'a Shared,
    export: &'a Export,
    poster: Poster,
    headers: HeaderMap,
    started: u64,
    has_failed: bool,
}

impl<'a> Sender<'a> {
    fn new(export: &'a Export, shared: &'a Shared) -> Self {
        let mut headers = export.headers.clone();
        let content_type = match export.protocol {
            OtlpProtocol::Http => "application/x-protobuf",
            OtlpProtocol::Grpc => "application/grpc",
        };
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        if export.protocol == OtlpProtocol::Grpc {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
        let poster = Poster::new(export.protocol == OtlpProtocol::Grpc, export.timeout);
        Self { shared, export, poster, headers, started: now(), has_failed: false }
    }

    /// Exports until the host stops.
    async fn run(mut self) {
        let mut metrics_at = Instant::now() + self.export.metrics_interval.unwrap_or(BATCH_DELAY);
        loop {
            // The result says whether it was woken, which makes no difference.
            tokio::time::timeout(BATCH_DELAY, self.shared.wake.notified()).await.ok();
            self.export_traces().await;
            let is_stopping = self.is_stopping();
            if let Some(interval) = self.export.metrics_interval
                && (is_stopping || Instant::now() >= metrics_at)
            {
                self.export_metrics().await;
                metrics_at = Instant::now() + interval;
            }
            if is_stopping {
                return;
            }
        }
    }

    fn is_stopping(&self) -> bool {
        self.shared.state.lock().is_stopping
    }

    async fn export_traces(&mut self) {
        loop {
            let batch = {
                let mut state = self.shared.state.lock();
                let batch = state.batches.pop_front();
                state.traces -= batch.as_ref().map_or(0, |batch| batch.traces);
                batch
            };
            let Some(batch) = batch else { return };
            let message = trace_request(&self.export.resource, &batch.spans);
            let is_sent = self.send(Signal::Traces, message).await;
            if !is_sent {
                self.shared.metrics.dropped_by_failure(batch.traces as u64);
            }
        }
    }

    async fn export_metrics(&mut self) {
        let Some(text) = self.shared.source.get().and_then(|source| source()) else { return };
        let times = (self.started, now());
        let message = metrics_request(&self.export.resource, &text, times);
        self.send(Signal::Metrics, message).await;
    }

    /// Sends a message, several times if need be. Returns true if it was accepted.
    async fn send(&mut self, signal: Signal, message: Vec<u8>) -> bool {
        let body = Bytes::from(match self.export.protocol {
            OtlpProtocol::Http => message,
            OtlpProtocol::Grpc => grpc_frame(&message),
        });
        let url = url(self.export, signal);
        let mut delay = RETRY_DELAY;
        for attempt in 1..=MAX_ATTEMPTS {
            let Err(failure) = self.post(&url, body.clone()).await else {
                self.shared.metrics.exported(signal, true);
                if std::mem::take(&mut self.has_failed) {
                    tracing::info!(event = "telemetry_exported", "telemetry is exported again");
                }
                return true;
            };
            self.shared.metrics.exported(signal, false);
            if !std::mem::replace(&mut self.has_failed, true) {
                tracing::warn!(
                    event = "telemetry_not_exported",
                    error = failure.error,
                    "failed to export telemetry; what does not fit into the queue is dropped"
                );
            }
            if !failure.is_transient || attempt == MAX_ATTEMPTS || self.is_stopping() {
                return false;
            }
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.stopped() => {}
            }
            delay *= 2;
        }
        false
    }

    /// Waits until the host stops.
    async fn stopped(&self) {
        while !self.is_stopping() {
            self.shared.wake.notified().await;
        }
    }

    async fn post(&self, url: &ServiceUrl, body: Bytes) -> Result<(), Failure> {
        let posted = self.poster.post(url, self.headers.clone(), body).await;
        let posted =
            posted.map_err(|error| Failure { error: error.to_string(), is_transient: true })?;
        let refused = |what: String, is_transient| Failure {
            error: format!("{url} refused the export: {what}"),
            is_transient,
        };
        if !posted.status.is_success() {
            let is_transient = matches!(
                posted.status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            );
            return Err(refused(posted.status.to_string(), is_transient));
        }
        if self.export.protocol == OtlpProtocol::Http {
            return Ok(());
        }
        let status = posted.headers.get(HeaderName::from_static("grpc-status"));
        check_frame(status.and_then(|status| status.to_str().ok()))
            .map_err(|error| refused(format!("gRPC status {}", error.status), error.is_transient()))
    }
}

fn url(export: &Export, signal: Signal) -> ServiceUrl {
    export.endpoint.join(match (export.protocol, signal) {
        (OtlpProtocol::Http, Signal::Traces) => "/v1/traces",
        (OtlpProtocol::Http, Signal::Metrics) => "/v1/metrics",
        (OtlpProtocol::Grpc, Signal::Traces) => {
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        }
        (OtlpProtocol::Grpc, Signal::Metrics) => {
            "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"
        }
    })
}

/// Returns the nanoseconds since the Unix epoch.
fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Until the year 2554.
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
