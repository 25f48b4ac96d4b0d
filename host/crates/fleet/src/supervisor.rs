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

mod adopt;
mod configure;
mod ending;
mod start;

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::LaneId;
use pointsman_domain::dispatch::EngineEvent;
use pointsman_peers::StaleLimits;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use self::ending::{Failure, with_log};
use crate::conversations::Conversations;
use crate::driver::{Driver, Target};
use crate::drivers::vllm::sleep::Canary;
use crate::engine_log::{EngineLog, EngineLogs};
use crate::engine_spec::{ProcessSpec, UnloadMode};
use crate::external::{ExternalEngine, watch_external};
use crate::health::{HealthEvent, HealthMonitor, ServingEngine};
use crate::lane_config::LaneConfig;
use crate::loading::LoadLog;
use crate::memory_admission::MemoryReservation;
use crate::message::{EngineReporter, SupervisorCommand};
use crate::metrics::FleetMetrics;
use crate::page_cache::{PageCache, WeightsInUse};
use crate::peer_lane::{WatchedLane, watch_peer};
use crate::peers::{PeerEndpoint, Peers};
use crate::post::ServiceUrl;
use crate::process::{Process, Stage, StateDir};
use crate::sleeping::Sleeper;
use crate::spec::{FleetSpec, Liveness};
use crate::status::LaneStatus;
use crate::upstream::Upstream;
use crate::upstream_api::UpstreamApi;

/// What the supervisors of all lanes share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) metrics: Arc<FleetMetrics>,
    /// The other hosts whose lanes are lanes here, and when they count as silent.
    pub(crate) peers: Peers,
    pub(crate) stale_limits: StaleLimits,
    pub(crate) stop: CancellationToken,
    pub(crate) state_dir: StateDir,
    pub(crate) conversations: Conversations,
    /// The last lines of the engines' output.
    pub(crate) logs: EngineLogs,
    /// Names of environment variables that hold secrets of the host.
    pub(crate) secret_variables: Arc<[String]>,
    /// The weights in the page cache.
    pub(crate) page_cache: PageCache,
}

impl Shared {
    /// Creates what the supervisors of a fleet share.
    pub(crate) fn new(spec: &FleetSpec, metrics: &Arc<FleetMetrics>, state_dir: StateDir) -> Self {
        let (dir, counters) = (state_dir.dir(), metrics.conversations.clone());
        let conversations = Conversations::open(spec.conversations, dir, counters);
        Self {
            conversations,
            logs: EngineLogs::default(),
            metrics: Arc::clone(metrics),
            peers: Peers::new(spec.peering.stale, metrics.peers.clone()),
            stale_limits: spec.peering.stale,
            stop: CancellationToken::new(),
            state_dir,
            secret_variables: spec.secret_variables.as_slice().into(),
            page_cache: PageCache::default(),
        }
    }
}

/// The connections of a supervisor to the rest of the fleet.
pub(crate) struct Links {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) reporter: EngineReporter,
    pub(crate) commands: UnboundedReceiver<SupervisorCommand>,
    pub(crate) status: watch::Sender<LaneStatus>,
}

/// The supervisor of one lane's engine.
pub(crate) struct Supervisor {
    lane: LaneId,
    name: String,
    slots: u32,
    /// Names of the lane's own model in the engine's list of models.
    models: Vec<String>,
    driver: Arc<dyn Driver>,
    links: Links,
    shared: Shared,
    reservation: Option<MemoryReservation>,
    liveness: Liveness,
    probe_interval: Duration,
    /// Set once sleeping has failed: from then on the engine is stopped and started instead.
    sleep_disabled: bool,
    /// The canary output of the engine when it was first loaded.
    canary_baseline: Option<Canary>,
}

/// A running engine.
pub(crate) struct Engine {
    process: Process,
    target: Arc<Target>,
    port: u16,
    log: LoadLog,
    /// The `engine` span of this start, entered again to stop the engine while it sleeps.
    span: Span,
    /// Keeps the weights in the page cache, until the engine has ended.
    _weights: WeightsInUse,
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

impl Supervisor {
    /// Creates the supervisor of a lane.
    pub(crate) fn new(
        lane: LaneId,
        name: &str,
        config: LaneConfig,
        links: Links,
        shared: Shared,
    ) -> Self {
        Self {
            lane,
            name: name.to_owned(),
            slots: config.slots,
            models: config.models,
            driver: config.driver,
            links,
            shared,
            reservation: config.reservation,
            liveness: config.liveness,
            probe_interval: config.probe_interval,
            sleep_disabled: false,
            canary_baseline: None,
        }
    }

    /// Supervises the engine until the host stops; returns when none of its processes is left.
    pub(crate) async fn run(mut self) {
        if let Some(spec) = self.driver.run().cloned() {
            return self.handle_commands(&spec).await;
        }
        let Links { upstream, reporter, .. } = &self.links;
        if let Some(spec) = self.driver.peer() {
            // Never: the reader of the configuration has checked it.
            let Ok(url) = ServiceUrl::parse(&spec.url) else { return };
            let host = PeerEndpoint { url, key: spec.key.clone(), ca: spec.ca.clone() };
            let limits = self.shared.stale_limits;
            let lane = WatchedLane { driver: &*self.driver, spec, limits, reporter };
            let watched = self.shared.peers.watch_lane(&self.name, &spec.lane, &host);
            self.shared.stop.run_until_cancelled(watch_peer(lane, watched.view())).await;
            return;
        }
        let engine = ExternalEngine {
            driver: &*self.driver,
            upstream,
            interval: self.probe_interval,
            models: &self.models,
            reporter,
        };
        self.shared.stop.run_until_cancelled(watch_external(engine)).await;
    }

    /// Carries out the commands of the dispatcher, one after the other.
    async fn handle_commands(&mut self, spec: &ProcessSpec) {
        let mut asleep: Option<Engine> = None;
        let first = spec;
        loop {
            // It may have changed.
            let spec = &self.driver.run().unwrap_or(first).clone();
            let command = match &mut asleep {
                None => tokio::select! {
                    biased;
                    () = self.shared.stop.cancelled() => return,
                    command = self.links.commands.recv() => command,
                },
                Some(engine) => tokio::select! {
                    () = self.shared.stop.cancelled() => None,
                    command = self.links.commands.recv() => command,
                    // The engine ended while asleep: there is nothing left to wake up.
                    _ = engine.process.ended() => Some(SupervisorCommand::Unload { fully: true }),
                },
            };
            match command {
                Some(SupervisorCommand::Load) => {
                    let resumed = match asleep.take() {
                        Some(engine) => self.wake(engine, spec).await,
                        None => self.adopt(spec).await,
                    };
                    let outcome = match resumed {
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
                    self.links.reporter.event(EngineEvent::Stopped { asleep: false });
                }
                Some(SupervisorCommand::Configure(config)) => {
                    self.configure(*config);
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
            let stop = self.shared.stop.clone();
            let sleeper = self.sleeper(&engine.target);
            let model = self.driver.model(&self.name);
            let woken = sleeper.wake(model, self.canary_baseline.as_ref(), &self.links.status);
            match stop.run_until_cancelled(woken).await {
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
        let mut spec = spec.clone();
        engine.log.ready();
        let mut monitor = HealthMonitor::new(self.serving(&engine));
        self.links.reporter.ready(&engine.target);
        let status = self.links.status.borrow().clone();
        engine.process.note(|note| {
            note.stage = Stage::Ready;
            note.memory =
                [status.weights_bytes, status.kv_bytes, status.kv_tokens, status.compute_bytes];
        });
        loop {
            let event = tokio::select! {
                // A stop of the host comes first; health is the least urgent.
                biased;
                () = self.shared.stop.cancelled() => {
                    self.save_conversations(&engine.target).await;
                    self.stop(engine, &spec).await;
                    return Outcome::HostStopping;
                }
                ended = engine.process.ended() => {
                    let Failure { problem, reason } = self.clean_up(engine, ended, true).await;
                    return self.lost(problem, &reason);
                }
                command = self.links.commands.recv() => match command {
                    Some(SupervisorCommand::Unload { fully }) => {
                        return self.unload(engine, &spec, fully).await;
                    }
                    Some(SupervisorCommand::Configure(config)) => {
                        if self.configure(*config) {
                            monitor = HealthMonitor::new(self.serving(&engine));
                        }
                        spec = self.driver.run().cloned().unwrap_or(spec);
                        continue;
                    }
                    Some(SupervisorCommand::Load) | None => continue,
                },
                event = monitor.next() => event,
            };
            match event {
                HealthEvent::Metrics(metrics, rates) => self.links.reporter.metrics(metrics, rates),
                HealthEvent::Unhealthy(error) => {
                    let problem = error.problem();
                    // First, so that requests that the engine's end breaks learn the reason.
                    if error.is_hang() {
                        engine.target.activity.hung().cancel();
                    }
                    self.links.reporter.event(EngineEvent::Dying(problem.clone()));
                    let problem = with_log(problem, engine.process.log_tail(), &engine.log);
                    self.kill(engine).await;
                    return self.lost(problem, "hang");
                }
            }
        }
    }

    async fn unload(&mut self, mut engine: Engine, spec: &ProcessSpec, fully: bool) -> Outcome {
        if !fully
            && !self.sleep_disabled
            && self.driver.strategy() != UnloadMode::Restart
            && self.canary_baseline.is_some()
        {
            let stop = self.shared.stop.clone();
            let sleeper = self.sleeper(&engine.target);
            match stop.run_until_cancelled(sleeper.sleep(spec.stop_grace)).await {
                None => {
                    self.stop(engine, spec).await;
                    return Outcome::HostStopping;
                }
                Some(Ok(())) => {
                    engine.process.note(|note| note.stage = Stage::Asleep);
                    self.links.reporter.event(EngineEvent::Stopped { asleep: true });
                    return Outcome::Asleep(Box::new(engine));
                }
                Some(Err(error)) => self.disable_sleep(&error),
            }
        }
        self.save_conversations(&engine.target).await;
        self.stop(engine, spec).await;
        self.links.reporter.event(EngineEvent::Stopped { asleep: false });
        Outcome::Ended
    }

    /// Returns what reads the lines of an engine's output.
    fn line_reader(&self, load: &LoadLog) -> impl Fn(&str) + Send + Sync + Clone + use<> {
        let (load, log): (LoadLog, EngineLog) = (load.clone(), self.shared.logs.get(&self.name));
        move |line| {
            log.push(line);
            load.line(line);
        }
    }

    /// Saves what the slots of an engine have cached, before it is stopped.
    async fn save_conversations(&self, target: &Target) {
        if let Some(session) = &target.conversations {
            session.save_all(&self.api(target)).await;
        }
    }

    fn api<'a>(&'a self, target: &'a Target) -> UpstreamApi<'a> {
        UpstreamApi { upstream: &self.links.upstream, target }
    }

    fn sleeper<'a>(&'a self, target: &'a Target) -> Sleeper<'a> {
        let (api, strategy) = (self.api(target), self.driver.strategy());
        Sleeper { api, strategy, reservation: self.reservation.as_ref() }
    }

    fn serving(&self, engine: &Engine) -> ServingEngine {
        ServingEngine {
            lane: self.name.clone(),
            slots: self.slots,
            driver: Arc::clone(&self.driver),
            target: Arc::clone(&engine.target),
            upstream: Arc::clone(&self.links.upstream),
            liveness: self.liveness,
            processes: Some(engine.process.observer()),
        }
    }
}
