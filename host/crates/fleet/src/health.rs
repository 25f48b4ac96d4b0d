//! Health monitoring of a serving engine: liveness checks, and the engine's own metrics.
//!
//! A failing `/health` is believed, a passing one is not: engines have answered 200 for hours
//! without producing a token. Liveness is measured in bytes and tokens instead. With requests in
//! flight some progress has to be made, and an idle engine is asked for one token at intervals.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::driver::{Driver, Target};
use crate::scrape::{EngineMetrics, Rates, rates};
use crate::spec::Liveness;
use crate::upstream::{EngineError, Upstream};

/// The interval between health checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The maximum time for the response to a health check or a scrape. A busy engine may be slower,
/// so a timeout does not count as a failure.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Consecutive failed probes after which an engine is unhealthy.
const MAX_FAILED_PROBES: u32 = 2;

/// The reason why an engine is considered dead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unhealthy {
    /// The engine itself reports that it cannot serve.
    #[error("the engine is unhealthy: {path} returns a server error")]
    ServerError { path: String },
    /// Requests are in flight, and neither a byte nor a token has been produced for too long.
    #[error(
        "the engine hangs: no progress for {} s with {requests} requests in flight",
        .idle.as_secs()
    )]
    Stalled { requests: u32, idle: Duration },
    /// The idle engine failed to produce a token.
    #[error("the engine hangs: idle, but {failures} liveness probes in a row failed")]
    ProbesFailed { failures: u32 },
}

/// Logs why an engine is considered dead, and returns the event.
fn unhealthy(error: Unhealthy) -> HealthEvent {
    let in_flight = match &error {
        Unhealthy::Stalled { requests, .. } => Some(*requests),
        Unhealthy::ProbesFailed { .. } => Some(0),
        Unhealthy::ServerError { .. } => None,
    };
    match in_flight {
        Some(in_flight) => {
            tracing::warn!(event = "engine_hung", in_flight, %error, "engine hangs");
        }
        None => tracing::warn!(event = "engine_unhealthy", %error, "engine is unhealthy"),
    }
    HealthEvent::Unhealthy(error)
}

/// A finding of the [`HealthMonitor`].
pub(crate) enum HealthEvent {
    /// The engine's metrics, and the rates since the last scrape.
    Metrics(EngineMetrics, Rates),
    /// The engine hangs, or reports that it is dead.
    Unhealthy(Unhealthy),
}

/// A serving engine, and what its lane expects of it.
pub(crate) struct ServingEngine {
    /// The name of the lane.
    pub(crate) lane: String,
    pub(crate) slots: u32,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) target: Arc<Target>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) liveness: Liveness,
}

/// A monitor of one serving engine.
pub(crate) struct HealthMonitor {
    engine: ServingEngine,
    interval: Interval,
    last_scrape: Option<(EngineMetrics, Instant)>,
    /// When the engine's counters last showed progress.
    last_progress: Instant,
    /// Consecutive server errors of the health endpoint.
    failed_checks: u32,
    /// Consecutive failed liveness probes.
    failed_probes: u32,
    last_probe: Instant,
}

impl HealthMonitor {
    /// Creates a monitor of an engine that has become ready.
    pub(crate) fn new(engine: ServingEngine) -> Self {
        let now = Instant::now();
        let mut interval = tokio::time::interval(CHECK_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            engine,
            interval,
            last_scrape: None,
            last_progress: now,
            failed_checks: 0,
            failed_probes: 0,
            last_probe: now,
        }
    }

    /// Returns the next finding. Cancel-safe: dropping the future skips at most one check.
    pub(crate) async fn next(&mut self) -> HealthEvent {
        loop {
            self.interval.tick().await;
            if let Some(error) = self.check_health().await {
                return unhealthy(error);
            }
            let metrics = self.scrape().await;
            if let Some(error) = self.check_progress() {
                return unhealthy(error);
            }
            if let Some(error) = self.probe_idle().await {
                return unhealthy(error);
            }
            if let Some((metrics, rates)) = metrics {
                return HealthEvent::Metrics(metrics, rates);
            }
        }
    }

    /// Checks whether the engine itself reports that it cannot serve.
    async fn check_health(&mut self) -> Option<Unhealthy> {
        let path = self.engine.driver.ready_paths().first().copied()?.to_owned();
        match self.get(&path).await {
            Ok((status, _)) if status.is_server_error() => self.failed_checks += 1,
            // A refused connection or a timeout is left to the other checks: a process that has
            // ended is noticed by its supervisor, a busy one is alive.
            Ok(_) | Err(_) => self.failed_checks = 0,
        }
        (self.failed_checks >= MAX_FAILED_PROBES).then_some(Unhealthy::ServerError { path })
    }

    async fn get(&self, path: &str) -> Result<(StatusCode, Bytes), EngineError> {
        let ServingEngine { upstream, target, .. } = &self.engine;
        upstream.call(target, Method::GET, path, None, CHECK_TIMEOUT).await
    }

    async fn scrape(&mut self) -> Option<(EngineMetrics, Rates)> {
        let mut metrics: Option<EngineMetrics> = None;
        for (path, parse) in self.engine.driver.metrics_sources() {
            match self.get(path).await {
                Ok((status, body)) if status.is_success() => {
                    metrics = Some(metrics.unwrap_or_default().or(parse(&body)));
                }
                Ok((status, _)) => {
                    tracing::trace!(path, status = %status, "failed to scrape metrics");
                }
                Err(error) => tracing::debug!(path, error = %error, "failed to scrape metrics"),
            }
        }
        let (metrics, now) = (metrics?, Instant::now());
        self.compare_slots(&metrics);
        let rates = match &self.last_scrape {
            Some((earlier, scraped)) => rates(earlier, &metrics, now.duration_since(*scraped)),
            None => Rates::default(),
        };
        if rates.progressed == Some(true) {
            self.last_progress = now;
        }
        self.last_scrape = Some((metrics, now));
        Some((metrics, rates))
    }

    /// Warns once if the lane has more slots than its engine: the excess requests would queue
    /// inside the engine, in the engine's own order.
    fn compare_slots(&self, metrics: &EngineMetrics) {
        if self.last_scrape.is_none()
            && let Some(slots) = metrics.slots.filter(|slots| *slots < self.engine.slots)
        {
            tracing::warn!(
                lane_slots = self.engine.slots,
                engine_slots = slots,
                "lane has more slots than its engine; lower `slots`, or give the engine more"
            );
        }
    }

    /// Checks that a byte or a token has been produced recently if requests are in flight.
    fn check_progress(&self) -> Option<Unhealthy> {
        let stall_timeout = self.engine.liveness.stall;
        let (requests, idle_since) = self.engine.upstream.activity.in_flight();
        // Either kind of progress counts: bytes of responses, or tokens in the engine's counters.
        let idle = idle_since.min(self.last_progress.elapsed());
        (!stall_timeout.is_zero() && requests > 0 && idle >= stall_timeout)
            .then_some(Unhealthy::Stalled { requests, idle })
    }

    /// Asks the engine for one token if no request is in flight and the last probe is due again.
    async fn probe_idle(&mut self) -> Option<Unhealthy> {
        let Liveness { probe_interval, probe_timeout, .. } = self.engine.liveness;
        let (requests, idle_since) = self.engine.upstream.activity.in_flight();
        if probe_interval.is_zero()
            || requests > 0
            || idle_since.min(self.last_probe.elapsed()) < probe_interval
        {
            return None;
        }
        self.last_probe = Instant::now();
        let model = serde_json::Value::from(self.engine.driver.model(&self.engine.lane));
        let body = format!(r#"{{"model":{model},"prompt":"1","max_tokens":1}}"#);
        let path = "/v1/completions";
        let ServingEngine { upstream, target, .. } = &self.engine;
        let response = upstream.call(target, Method::POST, path, Some(&body), probe_timeout).await;
        match response {
            // A client error proves that the engine is alive: one that serves embeddings has no
            // completions endpoint.
            Ok((status, _))
                if !status.is_server_error() || status == StatusCode::NOT_IMPLEMENTED =>
            {
                self.failed_probes = 0;
            }
            // A request was sent meanwhile; its progress is checked instead.
            Ok(_) | Err(_) if self.engine.upstream.activity.in_flight().0 > 0 => {}
            Ok((status, _)) => {
                self.failed_probes += 1;
                tracing::warn!(status = %status, "liveness probe of the idle engine failed");
            }
            Err(error) => {
                self.failed_probes += 1;
                tracing::warn!(error = %error, "liveness probe of the idle engine failed");
            }
        }
        let failures = self.failed_probes;
        (failures >= MAX_FAILED_PROBES).then_some(Unhealthy::ProbesFailed { failures })
    }
}
