//! The start of an engine: memory admission, process, readiness.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{EngineEvent, Problem};
use tokio::time::Instant;
use tracing::{Instrument as _, Span, field};

use super::configure::abandoned;
use super::ending::Failure;
use super::{Engine, Outcome, Supervisor};
use crate::conversations::launch_identity;
use crate::driver::{Driver, Target};
use crate::drivers::vllm::sleep::canary;
use crate::engine_spec::{ProcessSpec, UnloadMode};
use crate::failures::{FailureKind, without_secrets};
use crate::launch::{HOST, Launch};
use crate::learning::learn;
use crate::loading::LoadLog;
use crate::page_cache::WeightsInUse;
use crate::probing::{PROBE_TIMEOUT, probe};
use crate::process::{Note, Process, ProcessObserver, free_port};
use crate::upstream::Upstream;

/// The interval between readiness probes of an engine that is loading.
const LOADING_PROBE_INTERVAL: Duration = Duration::from_millis(50);
/// The maximum time for the first canary. Longer than that of a probe, because the first request
/// may compile kernels.
const CANARY_TIMEOUT: Duration = Duration::from_secs(4 * PROBE_TIMEOUT.as_secs());

/// What the service manager tells the host (`sd_notify(3)`, `sd_listen_fds(3)`), and an engine must
/// not take for itself.
const SERVICE_VARIABLES: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
];

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

    fn problem(&self) -> Problem {
        let code = match self {
            Self::NoPort(_) => "no_port",
            Self::Spawn { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "program_not_found",
                io::ErrorKind::PermissionDenied => "program_not_executable",
                _ => "program_not_started",
            },
        };
        FailureKind::with_code(code).problem_because(&self.to_string())
    }
}

/// How the start of an engine ended.
enum Start {
    Ready,
    Ended(io::Result<ExitStatus>),
    TimedOut,
    /// The lane was removed meanwhile, or has to be loaded in another way.
    Abandoned,
    HostStops,
}

impl Supervisor {
    /// Loads the engine, and serves until it ends.
    pub(super) async fn load(&mut self, spec: &ProcessSpec) -> Outcome {
        let stop = self.shared.stop.clone();
        let Some(weights) = stop.run_until_cancelled(self.use_weights()).await else {
            return Outcome::HostStopping;
        };
        if let Some(reservation) = self.reservation.clone() {
            let mut configs = Vec::new();
            let admitted = tokio::select! {
                biased;
                () = self.shared.stop.cancelled() => return Outcome::HostStopping,
                () = abandoned(&mut self.links.commands, &mut configs) => None,
                admitted = reservation.admit(reservation.need, &self.links.status) => {
                    Some(admitted)
                }
            };
            self.configure_all(configs);
            match admitted {
                None => {
                    self.links.reporter.event(EngineEvent::Stopped { asleep: false });
                    return Outcome::Ended;
                }
                Some(Ok(waited)) => self.shared.metrics.freed(self.lane, waited),
                Some(Err(error)) => {
                    let kind = FailureKind::with_code("memory_not_free");
                    return self.load_failed(kind.problem_because(&error.to_string()), "no-memory");
                }
            }
            let dropping = reservation.drop_page_cache(&self.shared.page_cache);
            if stop.run_until_cancelled(dropping).await.is_none() {
                return Outcome::HostStopping;
            }
        }
        let start = self.links.status.borrow().starts + 1;
        // At the error level for the same reason as the span of the lane.
        let span = tracing::error_span!("engine", start, pid = field::Empty, port = field::Empty);
        let started = async {
            match self.start(spec, &span, weights).await {
                Ok(engine) => self.await_ready(engine, spec).await,
                Err(error) => self.load_failed(error.problem(), error.reason()),
            }
        };
        started.instrument(span.clone()).await
    }

    /// Marks the files with weights as in use that the engine is about to read.
    pub(super) async fn use_weights(&self) -> WeightsInUse {
        let driver = Arc::clone(&self.driver);
        // On a thread of its own, because a folder may be on another machine that is slow.
        let files = tokio::task::spawn_blocking(move || driver.weights()).await;
        self.shared.page_cache.use_files(files.unwrap_or_default())
    }

    /// Starts the process. To be called within `span`, which gets the process id and the port.
    async fn start(
        &self,
        spec: &ProcessSpec,
        span: &Span,
        weights: WeightsInUse,
    ) -> Result<Engine, StartError> {
        let port = spec.port.map_or_else(free_port, Ok).map_err(StartError::NoPort)?;
        let prepared = self.driver.prepare(&self.name, port);
        for warning in prepared.warnings {
            tracing::warn!("{warning}");
        }
        let mut launch = prepared.launch;
        let note = Note {
            fingerprint: launch.fingerprint(self.driver.info().key),
            port: Some(port),
            starts: self.links.status.borrow().starts + 1,
            ..Note::default()
        };
        self.fit(&mut launch);
        launch.remove_env.extend(self.shared.secret_variables.iter().cloned());
        launch.remove_env.extend(SERVICE_VARIABLES.map(str::to_owned));
        let is_kept = self.keeps_conversations(&mut launch);
        let log = LoadLog::new(self.links.status.clone()).with_estimate(self.driver.estimate());
        let on_line = self.line_reader(&log);
        let started = Process::start(&self.name, &launch, note, &self.shared.state_dir, on_line);
        let process = started.await.map_err(|source| {
            let program = launch.command.first().cloned().unwrap_or_default();
            StartError::Spawn { program, source }
        })?;
        let pid = process.id();
        span.record("pid", pid).record("port", port);
        self.shared.metrics.started(self.lane);
        self.links.status.send_modify(|status| {
            (status.pid, status.port) = (Some(pid), Some(port));
            status.starts += 1;
            status.progress = Some("started".to_owned());
        });
        tracing::info!(event = "engine_starting", pid, port, "engine started");
        let target = self.target(port, is_kept);
        Ok(Engine { process, target, port, log, span: span.clone(), _weights: weights })
    }

    /// Completes the command of an engine whose conversations are saved, and returns true if they
    /// are.
    pub(super) fn keeps_conversations(&self, launch: &mut Launch) -> bool {
        self.driver.keeps_conversations() && self.shared.conversations.prepare(&self.name, launch)
    }

    /// Returns where the engine is reached.
    pub(super) fn target(&self, port: u16, has_conversations: bool) -> Arc<Target> {
        let mut target = self.driver.target(port);
        let conversations = &self.shared.conversations;
        target.conversations =
            has_conversations.then(|| conversations.session(&self.name, self.slots));
        Arc::new(target)
    }

    /// Completes the command of an engine that has to be told how much memory it may take.
    fn fit(&self, launch: &mut Launch) {
        let Some(reservation) = &self.reservation else { return };
        let device = self.links.status.borrow().device;
        // What was free counts once. A fraction that was too small would otherwise stay too small,
        // because vLLM only says what is free if a fraction is too large.
        self.links.status.send_modify(|status| {
            if let Some(device) = &mut status.device {
                device.free = None;
            }
        });
        if let Some(reason) = self.driver.fit(launch, &reservation.launch_memory(device)) {
            tracing::info!(event = "memory_fraction", "{reason}");
        }
    }

    /// Waits until the engine is ready, and serves until it ends.
    pub(super) async fn await_ready(&mut self, mut engine: Engine, spec: &ProcessSpec) -> Outcome {
        let begun = Instant::now();
        let observer = spec.check_listener.then(|| engine.process.observer());
        let mut configs = Vec::new();
        let driver = Arc::clone(&self.driver);
        let (upstream, target) = (Arc::clone(&self.links.upstream), Arc::clone(&engine.target));
        let ready = until_ready(&*driver, &upstream, &target, engine.port, observer);
        let result = tokio::select! {
            () = self.shared.stop.cancelled() => Start::HostStops,
            () = abandoned(&mut self.links.commands, &mut configs) => Start::Abandoned,
            ended = engine.process.ended() => Start::Ended(ended),
            ready = tokio::time::timeout(spec.start_timeout, ready) => match ready {
                Ok(()) => Start::Ready,
                Err(_) => Start::TimedOut,
            },
        };
        self.configure_all(configs);
        match result {
            Start::HostStops => {
                self.stop(engine, spec).await;
                Outcome::HostStopping
            }
            Start::Abandoned => {
                self.stop(engine, spec).await;
                self.links.reporter.event(EngineEvent::Stopped { asleep: false });
                Outcome::Ended
            }
            Start::Ended(ended) => {
                let Failure { problem, reason } = self.clean_up(engine, ended, false).await;
                self.load_failed(problem, &reason)
            }
            Start::TimedOut => {
                let timeout = spec.start_timeout.as_secs_f32();
                let progress = engine
                    .log
                    .progress()
                    .map(|progress| format!("; last progress: {}", without_secrets(&progress)))
                    .unwrap_or_default();
                // Only the line with the cause: the last ones are those of a start without errors.
                let cause = engine.log.cause().map(|cause| format!("log: {}", cause.line));
                self.kill(engine).await;
                let what =
                    format!("the engine was not ready within {timeout} s of its start{progress}");
                let problem = FailureKind::with_code("start_timeout").problem_because(&what);
                self.load_failed(problem.with_log(cause.unwrap_or_default()), "start-timeout")
            }
            Start::Ready => {
                let after_s = begun.elapsed().as_secs_f32();
                tracing::info!(event = "engine_ready", after_s, "engine is ready");
                self.begin_service(engine, spec).await
            }
        }
    }

    /// Learns what the engine says of itself, and serves until it ends.
    pub(super) async fn begin_service(&mut self, engine: Engine, spec: &ProcessSpec) -> Outcome {
        self.learn(&engine.target).await;
        self.begin_conversations(&engine.target).await;
        self.record_canary(&engine).await;
        // The configuration may have changed meanwhile.
        let spec = self.driver.run().unwrap_or(spec).clone();
        self.serve(engine, &spec).await
    }

    /// Asks the engine about its models, before requests are sent to it.
    async fn learn(&self, target: &Target) {
        let learned = learn(&*self.driver, &self.links.upstream, target, &self.models);
        if let Some(card) = self.shared.stop.run_until_cancelled(learned).await {
            self.links.reporter.learned(card);
        }
    }

    /// Asks the engine what it is, before conversations are restored into its slots.
    async fn begin_conversations(&self, target: &Target) {
        let Some(session) = &target.conversations else { return };
        let identity = launch_identity(&self.driver.prepare(&self.name, 0).launch);
        let api = self.api(target);
        self.shared.stop.run_until_cancelled(session.begin(&api, &identity)).await;
    }

    /// Records the canary baseline of an engine that may be put to sleep later.
    async fn record_canary(&mut self, engine: &Engine) {
        if self.driver.strategy() == UnloadMode::Restart
            || self.sleep_disabled
            || self.canary_baseline.is_some()
        {
            return;
        }
        let api = self.api(&engine.target);
        match canary(&api, self.driver.model(&self.name), CANARY_TIMEOUT).await {
            Ok(canary) => self.canary_baseline = Some(canary),
            Err(error) => self.disable_sleep(&error),
        }
    }
}

/// Waits until the engine is ready to serve requests. Nothing is sent to the port before the
/// `observer` has found the engine's own processes listening on it.
async fn until_ready(
    driver: &dyn Driver,
    upstream: &Upstream,
    target: &Target,
    port: u16,
    observer: Option<ProcessObserver>,
) {
    let mut unverified = observer;
    let mut warned = false;
    loop {
        if let Some(observer) = &unverified
            && is_bound(port).await
        {
            let listens = observer.listens_on(port).await;
            if listens == Some(false) && !warned {
                warned = true;
                tracing::warn!(
                    event = "foreign_listener",
                    port,
                    "another process listens on the engine's port; waiting for the engine \
                     (`check-listener = false` for an engine in a container)"
                );
            }
            if listens != Some(false) {
                unverified = None;
            }
        }
        if unverified.is_none() && probe(driver, upstream, target).await.is_ok() {
            return;
        }
        tokio::time::sleep(LOADING_PROBE_INTERVAL).await;
    }
}

/// Returns true if a process listens on the port.
async fn is_bound(port: u16) -> bool {
    let connected = tokio::net::TcpStream::connect((HOST, port));
    tokio::time::timeout(PROBE_TIMEOUT, connected).await.is_ok_and(|connected| connected.is_ok())
}
