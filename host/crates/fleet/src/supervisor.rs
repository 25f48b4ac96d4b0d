//! One task per engine: it alone starts, watches, puts to sleep and ends it. It does what the dispatcher orders and says
//! what came of it; every decision, also when to try again after a failure, is the dispatcher's.
//!
//! ```text
//!             Load                     answers                     Unload
//!   nothing ────────> room ──> start ────────> serve until it ends ──────> stop ──> nothing
//!      ▲                │        │               │ ended, or hangs           │
//!      └── LoadFailed ──┴────────┘               └── Lost ──> nothing        └──> asleep ──Load──> wake ──> serve
//! ```

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::LaneId;
use pointsman_domain::dispatch::EngineEvent;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::LaneStatus;
use crate::actor::{Message, Order};
use crate::driver::{Driver, Target};
use crate::loading::LoadLog;
use crate::metrics::FleetMetrics;
use crate::probing::PROBE_LIMIT;
use crate::process::{Home, LastLines, Process, StillThere, explain, free_port};
use crate::room::Room;
use crate::sleeping::{self, Calling};
use crate::spec::{Liveness, ProcessSpec, SwitchStrategy};
use crate::upstream::Upstream;
use crate::vitals::{Seen, Vitals};
use crate::vllm::sleep::Canary;

/// Between two looks at an engine that is loading.
const LOADING_PROBE: Duration = Duration::from_millis(50);
/// Between two tries to end processes that do not end.
const STILL_THERE: Duration = Duration::from_secs(5);

pub(crate) struct Supervisor {
    pub(crate) lane: LaneId,
    pub(crate) name: String,
    pub(crate) slots: u32,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) mailbox: UnboundedSender<Message>,
    pub(crate) orders: UnboundedReceiver<Order>,
    pub(crate) status: watch::Sender<LaneStatus>,
    pub(crate) metrics: Arc<FleetMetrics>,
    pub(crate) stop: CancellationToken,
    pub(crate) home: Home,
    pub(crate) room: Option<Room>,
    pub(crate) liveness: Liveness,
    pub(crate) probe_every: Duration,
    /// Sleeping has gone wrong: stop and start from now on.
    pub(crate) demoted: bool,
    /// What the engine answered when it was first loaded.
    pub(crate) canary: Option<Canary>,
}

/// A running engine.
pub(crate) struct Engine {
    process: Process,
    target: Arc<Target>,
    log: LoadLog,
}

/// How a service of an engine ended.
enum Ended {
    /// It sleeps.
    Asleep(Box<Engine>),
    /// Nothing is left of it.
    Gone,
    /// The host stops, and nothing is left of it.
    Stopped,
}

impl Supervisor {
    /// Look after the engine until told to stop; ends when nothing of it is left.
    pub(crate) async fn run(mut self) {
        let stop = self.stop.clone();
        match self.driver.run().cloned() {
            Some(spec) => self.obey(&spec).await,
            None => drop(stop.run_until_cancelled(self.watch_external()).await),
        }
    }

    /// Do what is ordered, one order after the other.
    async fn obey(&mut self, spec: &ProcessSpec) {
        let mut asleep: Option<Engine> = None;
        loop {
            let order = match &mut asleep {
                None => tokio::select! {
                    () = self.stop.cancelled() => return,
                    order = self.orders.recv() => order,
                },
                Some(engine) => tokio::select! {
                    () = self.stop.cancelled() => None,
                    order = self.orders.recv() => order,
                    // It ended in its sleep, and so nothing is left to wake.
                    _ = engine.process.ended() => Some(Order::Unload { fully: true }),
                },
            };
            match order {
                Some(Order::Load) => {
                    let ended = match asleep.take() {
                        Some(engine) => self.wake(engine, spec).await,
                        None => self.load(spec).await,
                    };
                    match ended {
                        Ended::Asleep(engine) => asleep = Some(*engine),
                        Ended::Gone => {}
                        Ended::Stopped => return,
                    }
                }
                Some(Order::Unload { .. }) => {
                    if let Some(engine) = asleep.take() {
                        self.end(engine, spec).await;
                    }
                    self.news(EngineEvent::Stopped { asleep: false }, None);
                }
                None => {
                    if let Some(engine) = asleep.take() {
                        self.end(engine, spec).await;
                    }
                    return;
                }
            }
        }
    }

    /// Load the engine, and serve until that ends.
    async fn load(&mut self, spec: &ProcessSpec) -> Ended {
        let stop = self.stop.clone();
        if let Some(room) = &self.room {
            match stop.run_until_cancelled(room.wait(room.need, &self.status)).await {
                None => return Ended::Stopped,
                Some(Ok(took)) => self.metrics.freed(self.lane, took),
                Some(Err(why)) => return self.failed_to_load(why, "no-memory"),
            }
        }
        let engine = match self.start(spec) {
            Ok(engine) => engine,
            Err((why, reason)) => return self.failed_to_load(why, reason),
        };
        self.come_up(engine, spec).await
    }

    /// Start the process.
    fn start(&self, spec: &ProcessSpec) -> Result<Engine, (String, &'static str)> {
        let port = spec
            .port
            .map_or_else(free_port, Ok)
            .map_err(|error| (format!("there is no free port: {error}"), "no-port"))?;
        let prepared = self.driver.prepare(&self.name, port);
        for warning in prepared.warnings {
            tracing::warn!(lane = self.name, "{warning}");
        }
        let log = LoadLog::new(self.status.clone());
        let on_line = log.clone();
        let started =
            Process::start(&self.name, &prepared.launch, &self.home, move |line: &str| {
                on_line.line(line)
            });
        let process = started.map_err(|error| {
            let program = prepared.launch.words.first().map_or("", String::as_str);
            (format!("`{program}` cannot be started: {error}"), "no-start")
        })?;
        let pid = process.id();
        self.metrics.started(self.lane);
        self.status.send_modify(|status| {
            (status.pid, status.port) = (Some(pid), Some(port));
            status.starts += 1;
            status.progress = Some("started".to_owned());
        });
        tracing::info!(lane = self.name, pid, port, "the engine is starting");
        Ok(Engine { process, target: Arc::new(self.driver.target(port)), log })
    }

    /// Wait until the engine answers.
    async fn come_up(&mut self, mut engine: Engine, spec: &ProcessSpec) -> Ended {
        let begun = Instant::now();
        let ready = tokio::select! {
            () = self.stop.cancelled() => None,
            ended = engine.process.ended() => Some(Err(ended)),
            ready = tokio::time::timeout(spec.start_timeout, self.answers(&engine.target)) => Some(Ok(ready)),
        };
        match ready {
            None => {
                self.end(engine, spec).await;
                Ended::Stopped
            }
            Some(Err(ended)) => {
                let (why, reason) = self.lost(engine, ended, false).await;
                self.failed_to_load(why, &reason)
            }
            Some(Ok(Err(_))) => {
                let limit = spec.start_timeout.as_secs_f32();
                let progress = engine
                    .log
                    .progress()
                    .map(|at| format!("; it was at: {at}"))
                    .unwrap_or_default();
                self.kill(engine).await;
                let why =
                    format!("the engine did not answer within {limit} s of its start{progress}");
                self.failed_to_load(why, "start-timeout")
            }
            Some(Ok(Ok(()))) => {
                tracing::info!(
                    lane = self.name,
                    "the engine is ready after {} s",
                    begun.elapsed().as_secs_f32()
                );
                self.first_words(&engine).await;
                self.serve(engine, spec).await
            }
        }
    }

    /// What an engine that may be put to sleep answers now, to be compared after it was woken.
    async fn first_words(&mut self, engine: &Engine) {
        if self.driver.strategy() == SwitchStrategy::Restart
            || self.demoted
            || self.canary.is_some()
        {
            return;
        }
        let calls = Calling { upstream: &self.upstream, target: &engine.target };
        match crate::vllm::sleep::canary(&calls, self.driver.model(&self.name), PROBE_LIMIT * 4)
            .await
        {
            Ok(canary) => self.canary = Some(canary),
            Err(error) => self.demote(&error.to_string()),
        }
    }

    fn demote(&mut self, why: &str) {
        self.demoted = true;
        tracing::warn!(
            lane = self.name,
            "the engine is stopped and started instead of put to sleep from now on: {why}"
        );
    }

    /// Wake a sleeping engine; should anything be off, end it and start it anew.
    async fn wake(&mut self, engine: Engine, spec: &ProcessSpec) -> Ended {
        let stop = self.stop.clone();
        let woken = stop.run_until_cancelled(sleeping::wake(&engine.target, self)).await;
        match woken {
            None => {
                self.end(engine, spec).await;
                Ended::Stopped
            }
            Some(Ok(())) => self.serve(engine, spec).await,
            Some(Err(error)) => {
                self.demote(&error);
                self.kill(engine).await;
                self.load(spec).await
            }
        }
    }

    /// Serve until the engine ends, hangs or has to go.
    async fn serve(&mut self, mut engine: Engine, spec: &ProcessSpec) -> Ended {
        engine.log.ready();
        let mut vitals = Vitals::of(self, &engine.target);
        self.news(EngineEvent::Ready, Some(Arc::clone(&engine.target)));
        engine.process.note();
        loop {
            let seen = tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    self.end(engine, spec).await;
                    return Ended::Stopped;
                }
                ended = engine.process.ended() => {
                    let (why, reason) = self.lost(engine, ended, true).await;
                    return self.lost_while_serving(why, &reason);
                }
                order = self.orders.recv() => match order {
                    Some(Order::Unload { fully }) => return self.unload(engine, spec, fully).await,
                    _ => continue,
                },
                seen = vitals.next() => seen,
            };
            match seen {
                Seen::Figures(figures, rates) => {
                    let message = Message::Figures { lane: self.lane, figures, rates };
                    let _gone = self.mailbox.send(message);
                }
                Seen::Hangs(why) => {
                    self.news(EngineEvent::Dying(why.as_str().into()), None);
                    let why = with_last_words(why, engine.process.lines(), &engine.log);
                    self.kill(engine).await;
                    return self.lost_while_serving(why, "hang");
                }
            }
        }
    }

    async fn unload(&mut self, engine: Engine, spec: &ProcessSpec, fully: bool) -> Ended {
        if !fully
            && !self.demoted
            && self.driver.strategy() != SwitchStrategy::Restart
            && self.canary.is_some()
        {
            let stop = self.stop.clone();
            match stop
                .run_until_cancelled(sleeping::sleep(&engine.target, self, spec.stop_grace))
                .await
            {
                None => {
                    self.end(engine, spec).await;
                    return Ended::Stopped;
                }
                Some(Ok(())) => {
                    self.news(EngineEvent::Stopped { asleep: true }, None);
                    return Ended::Asleep(Box::new(engine));
                }
                Some(Err(error)) => self.demote(&error),
            }
        }
        self.end(engine, spec).await;
        self.news(EngineEvent::Stopped { asleep: false }, None);
        Ended::Gone
    }

    /// End an engine in good order, and return when nothing of it is left.
    async fn end(&self, engine: Engine, spec: &ProcessSpec) {
        tracing::info!(lane = self.name, "the engine is stopping");
        let begun = Instant::now();
        self.see_gone(engine.process.stop(spec.stop_grace).await).await;
        tracing::info!(
            lane = self.name,
            "the engine has stopped after {} ms",
            begun.elapsed().as_millis()
        );
        self.status
            .send_modify(|status| (status.pid, status.port, status.progress) = (None, None, None));
    }

    /// End an engine at once, and return when nothing of it is left.
    async fn kill(&self, engine: Engine) {
        self.see_gone(engine.process.kill().await).await;
        self.status
            .send_modify(|status| (status.pid, status.port, status.progress) = (None, None, None));
    }

    /// Processes that SIGKILL does not end are deep in a driver. What they hold is not free before they are gone.
    async fn see_gone(&self, mut gone: Result<(), StillThere>) {
        while let Err(still_there) = gone {
            let what = still_there.to_string();
            tracing::error!(lane = self.name, "{what}");
            self.status.send_modify(|status| status.progress = Some(what));
            tokio::time::sleep(STILL_THERE).await;
            gone = still_there.again().await;
        }
    }

    /// The engine ended unasked: clear away what is left, and say why as well as can be told.
    async fn lost(
        &self,
        engine: Engine,
        ended: std::io::Result<std::process::ExitStatus>,
        serving: bool,
    ) -> (String, String) {
        let (sentence, reason) = match ended {
            Ok(status) => explain(status),
            Err(error) => (format!("cannot be waited for: {error}"), "unknown".to_owned()),
        };
        let why = format!("the engine ended: {sentence}");
        if serving {
            // At once, so that nobody is sent there while the rest of it is cleared away.
            self.news(EngineEvent::Dying(why.as_str().into()), None);
        }
        let lines = engine.process.lines().clone();
        let log = engine.log.clone();
        self.kill(engine).await;
        (with_last_words(why, &lines, &log), reason)
    }

    fn failed_to_load(&self, why: String, reason: &str) -> Ended {
        tracing::error!(lane = self.name, "not loaded: {why}");
        self.metrics.exited(self.lane, reason);
        self.news(EngineEvent::LoadFailed(why.into()), None);
        Ended::Gone
    }

    fn lost_while_serving(&self, why: String, reason: &str) -> Ended {
        tracing::error!(lane = self.name, "{why}");
        self.metrics.exited(self.lane, reason);
        self.news(EngineEvent::Lost(why.into()), None);
        Ended::Gone
    }

    /// Wait until the engine answers that it can serve.
    async fn answers(&self, target: &Target) {
        while self.probe(target).await.is_err() {
            tokio::time::sleep(LOADING_PROBE).await;
        }
    }

    pub(crate) fn news(&self, news: EngineEvent, target: Option<Arc<Target>>) {
        // Without an actor there is nobody left to tell.
        let _gone = self.mailbox.send(Message::News { lane: self.lane, news, target });
    }
}

/// What the log tells about the cause, and the last lines of it.
fn with_last_words(why: String, lines: &LastLines, log: &LoadLog) -> String {
    let cause = log.fatal().map(|cause| format!("; {cause}")).unwrap_or_default();
    match lines.tail(3).join(" | ") {
        tail if tail.is_empty() => format!("{why}{cause}"),
        tail => format!("{why}{cause}; its last lines: {tail}"),
    }
}
