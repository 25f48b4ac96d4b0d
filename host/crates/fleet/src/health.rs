//! Health monitoring of a serving engine: liveness checks, and the engine's own metrics.
//!
//! A failing `/health` is believed, a passing one is not: engines have answered 200 for hours
//! without producing a token. With requests in flight, liveness is judged from what the engine does
//! (see [`crate::progress`]), and an idle engine is asked for one token at intervals.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use pointsman_domain::dispatch::Problem;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::driver::{Driver, Target};
use crate::failures::FailureKind;
use crate::process::ProcessObserver;
use crate::progress::{Hang, Observation, Progress};
use crate::scrape::{EngineMetrics, Rates, has_progressed, rates};
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
    /// Requests are in flight, and the engine has made no progress for too long.
    #[error(
        "the engine hangs: no progress for {} s with {requests} requests in flight",
        .idle.as_secs()
    )]
    Stalled { requests: u32, idle: Duration },
    /// The idle engine failed to produce a token.
    #[error("the engine hangs: idle, but {failures} liveness probes in a row failed")]
    ProbesFailed { failures: u32 },
}

impl Unhealthy {
    /// Returns true if the engine hangs; false if it reports its failure itself.
    pub(crate) fn is_hang(&self) -> bool {
        match self {
            Self::Stalled { .. } | Self::ProbesFailed { .. } => true,
            Self::ServerError { .. } => false,
        }
    }

    /// Returns the problem of the engine.
    pub(crate) fn problem(&self) -> Problem {
        let code = if self.is_hang() { "engine_hung" } else { "engine_unhealthy" };
        FailureKind::with_code(code).problem_because(&self.to_string())
    }
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
    /// The engine's processes; `None` in tests.
    pub(crate) processes: Option<ProcessObserver>,
}

/// A monitor of one serving engine.
pub(crate) struct HealthMonitor {
    engine: ServingEngine,
    interval: Interval,
    last_scrape: Option<(EngineMetrics, Instant)>,
    progress: Progress,
    /// The last known value of each counter. A busy engine may not respond to each scrape.
    counters: Option<EngineMetrics>,
    /// A counter has moved since the last check of the progress.
    counters_moved: bool,
    /// [`Activity::received`](crate::activity::Activity::received) at that check, and its time.
    received: u64,
    last_check: Instant,
    /// [`Activity::traffic`](crate::activity::Activity::traffic), and when it was seen to change.
    traffic: (u64, Instant),
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
        let evidence = engine.driver.progress_evidence();
        let activity = &engine.target.activity;
        Self {
            progress: Progress::new(engine.liveness.stall, evidence),
            received: activity.received(),
            traffic: (activity.traffic(), now),
            engine,
            interval,
            last_scrape: None,
            counters: None,
            counters_moved: false,
            last_check: now,
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
            if let Some(error) = self.check_progress().await {
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
        if let Some(earlier) = &self.counters {
            self.counters_moved |= has_progressed(earlier, &metrics);
        }
        self.counters = Some(metrics.or(self.counters.unwrap_or_default()));
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

    /// Judges whether the engine is alive while requests are in flight.
    async fn check_progress(&mut self) -> Option<Unhealthy> {
        let (now, activity) = (Instant::now(), &self.engine.target.activity);
        let received = activity.received();
        let mut seen = Observation {
            elapsed: now.duration_since(self.last_check),
            in_flight: activity.in_flight(),
            progressed: self.counters_moved || received != self.received,
            reports: self.counters.is_some(),
            computed: None,
        };
        (self.last_check, self.received, self.counters_moved) = (now, received, false);
        if self.progress.needs_computed(&seen)
            && let Some(processes) = &self.engine.processes
        {
            seen.computed = processes.computed().await;
        }
        let Hang { requests, idle } = self.progress.observe(&seen)?;
        Some(Unhealthy::Stalled { requests, idle })
    }

    /// Returns the number of requests in flight, and the time since there was any traffic.
    fn idle_since(&mut self) -> (u32, Duration) {
        let activity = &self.engine.target.activity;
        let traffic = activity.traffic();
        if traffic != self.traffic.0 {
            self.traffic = (traffic, Instant::now());
        }
        (activity.in_flight().total(), self.traffic.1.elapsed())
    }

    /// Asks the engine for one token if no request is in flight and the last probe is due again.
    async fn probe_idle(&mut self) -> Option<Unhealthy> {
        let Liveness { probe_interval, probe_timeout, .. } = self.engine.liveness;
        let (requests, idle_since) = self.idle_since();
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
            Ok(_) | Err(_) if self.engine.target.activity.in_flight().total() > 0 => {}
            failed => self.count_failed_probe(failed.map(|(status, _)| status)).await,
        }
        let failures = self.failed_probes;
        (failures >= MAX_FAILED_PROBES).then_some(Unhealthy::ProbesFailed { failures })
    }

    /// Counts a failed probe, unless the engine has worked meanwhile: for a client that does not
    /// use the host, for example.
    async fn count_failed_probe(&mut self, failed: Result<StatusCode, EngineError>) {
        self.scrape().await;
        if std::mem::take(&mut self.counters_moved) {
            self.failed_probes = 0;
            return;
        }
        self.failed_probes += 1;
        let status = failed.as_ref().ok().map(|status| tracing::field::display(*status));
        let error = failed.as_ref().err().map(tracing::field::display);
        tracing::warn!(status, error, "liveness probe of the idle engine failed");
    }
}
