//! One task per engine: it alone starts, watches and ends it, and tells the actor what that means for the lane. The states
//! are those of [`EngineState`], whose table is the judge of every step.
//!
//! ```text
//!   start ──> wait until it answers ──> serve until it ends ──┐
//!     ▲              │ ended, or too slow                     │ ended
//!     │              ▼                                        │
//!     └────── pause (back-off) <──────────────────────────────┘          stop, from anywhere ──> end the group
//! ```

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{EngineEvent, EngineState, LaneId, LaneState};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::LaneStatus;
use crate::actor::Message;
use crate::driver::{Driver, Target};
use crate::metrics::FleetMetrics;
use crate::process::{Process, explain, free_port};
use crate::spec::ProcessSpec;
use crate::upstream::Upstream;

/// Between two looks at an engine that is loading.
const LOADING_PROBE: Duration = Duration::from_millis(100);
/// Longest answer of a probe.
const PROBE_LIMIT: Duration = Duration::from_secs(5);

pub(crate) struct Supervisor {
    pub(crate) lane: LaneId,
    pub(crate) name: String,
    pub(crate) driver: Box<dyn Driver>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) mailbox: UnboundedSender<Message>,
    pub(crate) status: watch::Sender<LaneStatus>,
    pub(crate) metrics: Arc<FleetMetrics>,
    pub(crate) stop: CancellationToken,
    pub(crate) probe_every: Duration,
}

/// How a life of an engine ended.
enum Ended {
    /// We were told to stop.
    Stopped,
    /// It failed; the time that it had served.
    Failed(Duration),
}

impl Supervisor {
    /// Look after the engine until told to stop; ends when nothing of it is left.
    pub(crate) async fn run(self) {
        let stop = self.stop.clone();
        match self.driver.process().cloned() {
            Some(spec) => self.keep_running(&spec).await,
            None => drop(stop.run_until_cancelled(self.watch_external()).await),
        }
        self.tell(LaneState::Unloaded, Duration::ZERO, None);
    }

    async fn keep_running(&self, spec: &ProcessSpec) {
        let mut state = EngineState::Cold;
        let mut failures = 0;
        let mut took = Duration::ZERO;
        loop {
            let event = if state == EngineState::Cold { EngineEvent::Started } else { EngineEvent::Retry };
            self.enter(&mut state, event, took, None);
            match self.live(spec, &mut state, &mut took).await {
                Ended::Stopped => return,
                Ended::Failed(served) if served >= spec.back_off.reset_after => failures = 1,
                Ended::Failed(_) => failures += 1,
            }
            let pause = spec.back_off.pause(failures);
            self.enter(&mut state, EngineEvent::Exited, pause + took, None);
            tracing::warn!(
                lane = self.name,
                failures,
                "starting the engine again in {} s",
                pause.as_secs_f32()
            );
            if self.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    /// One life: start, wait until it answers, serve until it ends.
    async fn live(&self, spec: &ProcessSpec, state: &mut EngineState, took: &mut Duration) -> Ended {
        let port = match spec.port.map_or_else(free_port, Ok) {
            Ok(port) => port,
            Err(error) => return self.failed(format!("there is no free port: {error}"), "no-port"),
        };
        let mut process = match Process::start(&self.name, spec, port) {
            Ok(process) => process,
            Err(error) => {
                let program = spec.command.first().map_or("", String::as_str);
                return self.failed(format!("`{program}` cannot be started: {error}"), "no-start");
            }
        };
        self.metrics.started(self.lane);
        let pid = process.id();
        self.status.send_modify(|status| {
            (status.pid, status.port, status.starts) = (Some(pid), Some(port), status.starts + 1)
        });
        tracing::info!(lane = self.name, pid, port, "the engine is starting");
        let started = Instant::now();
        let target = Arc::new(self.driver.target(port));

        let ready = tokio::select! {
            () = self.stop.cancelled() => None,
            ended = process.ended() => Some(Err(ended)),
            ready = tokio::time::timeout(spec.start_timeout, self.answers(&target)) => Some(Ok(ready)),
        };
        match ready {
            None => return self.stopped(process, spec, state).await,
            Some(Err(ended)) => return self.lost(process, ended, Duration::ZERO).await,
            Some(Ok(Err(_))) => {
                process.kill().await;
                let limit = spec.start_timeout.as_secs_f32();
                return self.failed(
                    format!("the engine did not answer within {limit} s of its start"),
                    "start-timeout",
                );
            }
            Some(Ok(Ok(()))) => {}
        }
        *took = started.elapsed();
        tracing::info!(lane = self.name, pid, port, "the engine is ready after {} s", took.as_secs_f32());
        self.enter(state, EngineEvent::Answers, Duration::ZERO, Some(target));
        self.status.send_modify(|status| status.problem = None);

        let serving = Instant::now();
        let ended = self.stop.run_until_cancelled(process.ended()).await;
        match ended {
            None => self.stopped(process, spec, state).await,
            Some(ended) => self.lost(process, ended, serving.elapsed()).await,
        }
    }

    /// Wait until the engine answers that it can serve.
    async fn answers(&self, target: &Target) {
        while self.probe(target).await.is_err() {
            tokio::time::sleep(LOADING_PROBE).await;
        }
    }

    /// One look: `Ok` if the engine can serve, or a sentence.
    async fn probe(&self, target: &Target) -> Result<(), String> {
        let mut problem = String::new();
        for path in self.driver.ready_paths() {
            match self.upstream.probe(target, path, PROBE_LIMIT).await {
                Ok(status) if status.is_success() => return Ok(()),
                Ok(http::StatusCode::NOT_FOUND) => problem = format!("it has no {path}"),
                Ok(status) => return Err(format!("it answers {status} to {path}")),
                Err(error) => return Err(error.to_string()),
            }
        }
        Err(problem)
    }

    async fn stopped(&self, process: Process, spec: &ProcessSpec, state: &mut EngineState) -> Ended {
        self.enter(state, EngineEvent::Stop, Duration::ZERO, None);
        tracing::info!(lane = self.name, "the engine is stopping");
        process.stop(spec.stop_grace).await;
        tracing::info!(lane = self.name, "the engine has stopped");
        self.status.send_modify(|status| (status.pid, status.port) = (None, None));
        Ended::Stopped
    }

    async fn lost(
        &self,
        process: Process,
        ended: std::io::Result<std::process::ExitStatus>,
        served: Duration,
    ) -> Ended {
        // At once, so that nobody is sent there while the rest of the group is cleared away.
        self.tell(LaneState::Down, Duration::ZERO, None);
        let last = process.lines().clone();
        process.kill().await;
        let (sentence, reason) = match ended {
            Ok(status) => explain(status),
            Err(error) => (format!("cannot be waited for: {error}"), "unknown".to_owned()),
        };
        let last = last.last().map(|line| format!("; its last line: {line}")).unwrap_or_default();
        self.failed(format!("the engine ended: {sentence}{last}"), &reason);
        Ended::Failed(served)
    }

    fn failed(&self, problem: String, reason: &str) -> Ended {
        tracing::error!(lane = self.name, "{problem}");
        self.metrics.exited(self.lane, reason);
        self.status
            .send_modify(|status| (status.pid, status.port, status.problem) = (None, None, Some(problem)));
        Ended::Failed(Duration::ZERO)
    }

    /// An engine that is not ours: ask it at intervals, and believe what it says.
    async fn watch_external(&self) {
        let target = Arc::new(self.driver.target(0));
        let mut serving = None;
        loop {
            let problem = self.probe(&target).await.err();
            if serving != Some(problem.is_none()) {
                serving = Some(problem.is_none());
                match &problem {
                    None => tracing::info!(lane = self.name, "the engine at {} answers", target.authority),
                    Some(problem) => {
                        tracing::warn!(lane = self.name, "the engine at {}: {problem}", target.authority)
                    }
                }
                let state = if problem.is_none() { LaneState::Ready } else { LaneState::Down };
                self.tell(state, self.probe_every, Some(Arc::clone(&target)));
            }
            self.status.send_modify(|status| status.problem = problem);
            tokio::time::sleep(self.probe_every).await;
        }
    }

    /// Take a step of the engine's life, and say what it means for the lane.
    fn enter(
        &self,
        state: &mut EngineState,
        event: EngineEvent,
        ready_in: Duration,
        target: Option<Arc<Target>>,
    ) {
        match state.on(event) {
            Some(next) => {
                *state = next;
                self.tell(next.lane_state(), ready_in, target);
            }
            None => {
                tracing::error!(lane = self.name, "{event:?} while {state:?} is no step of an engine's life")
            }
        }
    }

    fn tell(&self, state: LaneState, ready_in: Duration, target: Option<Arc<Target>>) {
        self.status.send_modify(|status| status.state = state);
        // Without an actor there is nobody left to tell.
        let _gone = self.mailbox.send(Message::Changed { lane: self.lane, state, ready_in, target });
    }
}
