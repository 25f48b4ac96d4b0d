//! One task per engine, which alone starts, watches, puts to sleep and stops it. The supervisor
//! carries out the dispatcher's commands and reports the results; every decision, including when
//! to retry after a failure, is the dispatcher's.
//!
//! ```text
//!             Load                                   Unload
//!   nothing ──────> admit ──> start ──> serve until ended ──> stop ──> nothing
//!      ▲              │         │            │ ended, hangs    │
//!      └── LoadFailed ┴─────────┘            └─ Lost           └─> asleep ─Load─> wake ─> serve
//! ```

mod ending;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::LaneId;
use pointsman_domain::dispatch::EngineEvent;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span, field};

use self::ending::{Failure, with_log_tail};
use crate::LaneStatus;
use crate::actor::{Message, SupervisorCommand};
use crate::driver::{Driver, Target};
use crate::health::{HealthEvent, HealthMonitor};
use crate::loading::LoadLog;
use crate::memory_admission::MemoryReservation;
use crate::metrics::FleetMetrics;
use crate::probing::PROBE_TIMEOUT;
use crate::process::{Process, StateDir, free_port};
use crate::sleeping::{self, UpstreamApi};
use crate::spec::{Liveness, ProcessSpec, UnloadMode};
use crate::upstream::Upstream;
use crate::vllm::sleep::{Canary, canary};

/// The interval between readiness probes of an engine that is loading.
const LOADING_PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// The maximum time for the first canary. Longer than that of a probe, because the first request
/// may compile kernels.
const CANARY_TIMEOUT: Duration = Duration::from_secs(4 * PROBE_TIMEOUT.as_secs());

pub(crate) struct Supervisor {
    pub(crate) lane: LaneId,
    pub(crate) name: String,
    pub(crate) slots: u32,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) mailbox: UnboundedSender<Message>,
    pub(crate) commands: UnboundedReceiver<SupervisorCommand>,
    pub(crate) status: watch::Sender<LaneStatus>,
    pub(crate) metrics: Arc<FleetMetrics>,
    pub(crate) stop: CancellationToken,
    pub(crate) state_dir: StateDir,
    pub(crate) reservation: Option<MemoryReservation>,
    pub(crate) liveness: Liveness,
    pub(crate) probe_interval: Duration,
    /// Set once sleeping has failed: from then on the engine is stopped and started instead.
    pub(crate) sleep_disabled: bool,
    /// The canary output of the engine when it was first loaded.
    pub(crate) canary_baseline: Option<Canary>,
}

/// A running engine.
pub(crate) struct Engine {
    process: Process,
    target: Arc<Target>,
    log: LoadLog,
    /// The `engine` span of this start, entered again to stop the engine while it sleeps.
    span: Span,
}

/// How an engine's service ended.
enum Outcome {
    /// The engine is asleep.
    Asleep(Box<Engine>),
    /// The engine and all its processes have ended.
    Ended,
    /// The host stops, and the engine and all its processes have ended.
    HostStopping,
}

/// The reason why an engine's process could not be started.
#[derive(Debug, thiserror::Error)]
enum StartError {
    /// The kernel has no free port.
    #[error("failed to find a free port: {0}")]
    NoPort(#[source] io::Error),
    /// The program cannot be run.
    #[error("failed to start `{program}`: {source}")]
    Spawn { program: String, source: io::Error },
}

impl StartError {
    /// Returns the value of the metric's `reason` label.
    fn reason(&self) -> &'static str {
        match self {
            Self::NoPort(_) => "no-port",
            Self::Spawn { .. } => "no-start",
        }
    }
}

impl Supervisor {
    /// Supervises the engine until the host stops; returns when none of its processes is left.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        match self.driver.run().cloned() {
            Some(spec) => self.handle_commands(&spec).await,
            None => drop(stop.run_until_cancelled(self.watch_external()).await),
        }
    }

    /// Carries out the commands of the dispatcher, one after the other.
    async fn handle_commands(&mut self, spec: &ProcessSpec) {
        let mut asleep: Option<Engine> = None;
        loop {
            let command = match &mut asleep {
                None => tokio::select! {
                    () = self.stop.cancelled() => return,
                    command = self.commands.recv() => command,
                },
                Some(engine) => tokio::select! {
                    () = self.stop.cancelled() => None,
                    command = self.commands.recv() => command,
                    // The engine ended while asleep: there is nothing left to wake up.
                    _ = engine.process.ended() => Some(SupervisorCommand::Unload { fully: true }),
                },
            };
            match command {
                Some(SupervisorCommand::Load) => {
                    let woken = match asleep.take() {
                        Some(engine) => self.wake(engine, spec).await,
                        None => None,
                    };
                    let outcome = match woken {
                        Some(outcome) => outcome,
                        None => self.load(spec).await,
                    };
                    match outcome {
                        Outcome::Asleep(engine) => asleep = Some(*engine),
                        Outcome::Ended => {}
                        Outcome::HostStopping => return,
                    }
                }
                Some(SupervisorCommand::Unload { .. }) => {
                    if let Some(engine) = asleep.take() {
                        self.stop_asleep(engine, spec).await;
                    }
                    self.send_event(EngineEvent::Stopped { asleep: false }, None);
                }
                None => {
                    if let Some(engine) = asleep.take() {
                        self.stop_asleep(engine, spec).await;
                    }
                    return;
                }
            }
        }
    }

    /// Loads the engine, and serves until it ends.
    async fn load(&mut self, spec: &ProcessSpec) -> Outcome {
        let stop = self.stop.clone();
        if let Some(reservation) = &self.reservation {
            let admitted = reservation.admit(reservation.need, &self.status);
            match stop.run_until_cancelled(admitted).await {
                None => return Outcome::HostStopping,
                Some(Ok(waited)) => self.metrics.freed(self.lane, waited),
                Some(Err(error)) => return self.load_failed(error.to_string(), "no-memory"),
            }
        }
        let start = self.status.borrow().starts + 1;
        // At the error level for the same reason as the span of the lane.
        let span = tracing::error_span!("engine", start, pid = field::Empty, port = field::Empty);
        let started = async {
            match self.start(spec, &span) {
                Ok(engine) => self.await_ready(engine, spec).await,
                Err(error) => self.load_failed(error.to_string(), error.reason()),
            }
        };
        started.instrument(span.clone()).await
    }

    /// Starts the process. To be called within `span`, which gets the process id and the port.
    fn start(&self, spec: &ProcessSpec, span: &Span) -> Result<Engine, StartError> {
        let port = spec.port.map_or_else(free_port, Ok).map_err(StartError::NoPort)?;
        let prepared = self.driver.prepare(&self.name, port);
        for warning in prepared.warnings {
            tracing::warn!("{warning}");
        }
        let log = LoadLog::new(self.status.clone());
        let on_line = log.clone();
        let process =
            Process::start(&self.name, &prepared.launch, &self.state_dir, move |line: &str| {
                on_line.line(line)
            })
            .map_err(|source| {
                let program = prepared.launch.command.first().cloned().unwrap_or_default();
                StartError::Spawn { program, source }
            })?;
        let pid = process.id();
        span.record("pid", pid).record("port", port);
        self.metrics.started(self.lane);
        self.status.send_modify(|status| {
            (status.pid, status.port) = (Some(pid), Some(port));
            status.starts += 1;
            status.progress = Some("started".to_owned());
        });
        tracing::info!(event = "engine_starting", pid, port, "engine started");
        Ok(Engine { process, target: Arc::new(self.driver.target(port)), log, span: span.clone() })
    }

    /// Waits until the engine is ready, and serves until it ends.
    async fn await_ready(&mut self, mut engine: Engine, spec: &ProcessSpec) -> Outcome {
        let begun = Instant::now();
        let ready = tokio::select! {
            () = self.stop.cancelled() => None,
            ended = engine.process.ended() => Some(Err(ended)),
            ready = tokio::time::timeout(spec.start_timeout, self.until_ready(&engine.target)) => {
                Some(Ok(ready))
            }
        };
        match ready {
            None => {
                self.stop(engine, spec).await;
                Outcome::HostStopping
            }
            Some(Err(ended)) => {
                let Failure { description, reason } = self.clean_up(engine, ended, false).await;
                self.load_failed(description, &reason)
            }
            Some(Ok(Err(_))) => {
                let timeout = spec.start_timeout.as_secs_f32();
                let progress = engine
                    .log
                    .progress()
                    .map(|progress| format!("; last progress: {progress}"))
                    .unwrap_or_default();
                self.kill(engine).await;
                let description =
                    format!("the engine was not ready within {timeout} s of its start{progress}");
                self.load_failed(description, "start-timeout")
            }
            Some(Ok(Ok(()))) => {
                let after_s = begun.elapsed().as_secs_f32();
                tracing::info!(event = "engine_ready", after_s, "engine is ready");
                self.record_canary(&engine).await;
                self.serve(engine, spec).await
            }
        }
    }

    /// Records the canary baseline of an engine that may be put to sleep later.
    async fn record_canary(&mut self, engine: &Engine) {
        if self.driver.strategy() == UnloadMode::Restart
            || self.sleep_disabled
            || self.canary_baseline.is_some()
        {
            return;
        }
        let api = UpstreamApi { upstream: &self.upstream, target: &engine.target };
        match canary(&api, self.driver.model(&self.name), CANARY_TIMEOUT).await {
            Ok(canary) => self.canary_baseline = Some(canary),
            Err(error) => self.disable_sleep(&error),
        }
    }

    /// Falls back to stopping and starting the engine for the rest of the host's life.
    fn disable_sleep(&mut self, error: &dyn std::error::Error) {
        self.sleep_disabled = true;
        tracing::warn!(
            event = "sleep_disabled",
            %error,
            "sleep mode failed; restarting the engine from now on"
        );
    }

    /// Wakes a sleeping engine up, and serves until it ends. Returns `None` if the engine failed
    /// to wake up and was killed, so that it has to be loaded again.
    async fn wake(&mut self, engine: Engine, spec: &ProcessSpec) -> Option<Outcome> {
        let span = engine.span.clone();
        let woken = async {
            let stop = self.stop.clone();
            match stop.run_until_cancelled(sleeping::wake(&engine.target, self)).await {
                None => {
                    self.stop(engine, spec).await;
                    Some(Outcome::HostStopping)
                }
                Some(Ok(())) => Some(self.serve(engine, spec).await),
                Some(Err(error)) => {
                    self.disable_sleep(&error);
                    self.kill(engine).await;
                    None
                }
            }
        };
        woken.instrument(span).await
    }

    /// Serves until the engine ends, hangs or has to be unloaded.
    async fn serve(&mut self, mut engine: Engine, spec: &ProcessSpec) -> Outcome {
        engine.log.ready();
        let mut monitor = HealthMonitor::new(self, &engine.target);
        self.send_event(EngineEvent::Ready, Some(Arc::clone(&engine.target)));
        engine.process.record_resources();
        loop {
            let event = tokio::select! {
                // A stop of the host comes first; health is the least urgent.
                biased;
                () = self.stop.cancelled() => {
                    self.stop(engine, spec).await;
                    return Outcome::HostStopping;
                }
                ended = engine.process.ended() => {
                    let Failure { description, reason } = self.clean_up(engine, ended, true).await;
                    return self.lost(description, &reason);
                }
                command = self.commands.recv() => match command {
                    Some(SupervisorCommand::Unload { fully }) => {
                        return self.unload(engine, spec, fully).await;
                    }
                    Some(SupervisorCommand::Load) | None => continue,
                },
                event = monitor.next() => event,
            };
            match event {
                HealthEvent::Metrics(metrics, rates) => {
                    let message = Message::EngineReport { lane: self.lane, metrics, rates };
                    // Fails only if the actor has ended; the metrics are not needed then.
                    self.mailbox.send(message).ok();
                }
                HealthEvent::Unhealthy(error) => {
                    let description = error.to_string();
                    self.send_event(EngineEvent::Dying(description.as_str().into()), None);
                    let description =
                        with_log_tail(description, engine.process.log_tail(), &engine.log);
                    self.kill(engine).await;
                    return self.lost(description, "hang");
                }
            }
        }
    }

    async fn unload(&mut self, engine: Engine, spec: &ProcessSpec, fully: bool) -> Outcome {
        if !fully
            && !self.sleep_disabled
            && self.driver.strategy() != UnloadMode::Restart
            && self.canary_baseline.is_some()
        {
            let stop = self.stop.clone();
            match stop
                .run_until_cancelled(sleeping::sleep(&engine.target, self, spec.stop_grace))
                .await
            {
                None => {
                    self.stop(engine, spec).await;
                    return Outcome::HostStopping;
                }
                Some(Ok(())) => {
                    self.send_event(EngineEvent::Stopped { asleep: true }, None);
                    return Outcome::Asleep(Box::new(engine));
                }
                Some(Err(error)) => self.disable_sleep(&error),
            }
        }
        self.stop(engine, spec).await;
        self.send_event(EngineEvent::Stopped { asleep: false }, None);
        Outcome::Ended
    }

    /// Waits until the engine is ready to serve requests.
    async fn until_ready(&self, target: &Target) {
        while self.probe(target).await.is_err() {
            tokio::time::sleep(LOADING_PROBE_INTERVAL).await;
        }
    }

    /// Reports an event of the engine to the dispatcher, with the engine's address if it is ready.
    pub(crate) fn send_event(&self, event: EngineEvent, target: Option<Arc<Target>>) {
        // Fails only if the actor has ended, which needs no events.
        self.mailbox.send(Message::Engine { lane: self.lane, event, target }).ok();
    }
}
