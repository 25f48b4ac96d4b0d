//! Engines as processes, lanes, the queue in front of them, and the connection to them.
//!
//! ```text
//!   Fleet::acquire ──> actor ──────────> Lease ──send──> engine
//!                        ▲  one task owns all lane state
//!   supervisor (one per engine): start, probe, restart, stop
//! ```

mod actor;
mod driver;
mod lease;
mod metrics;
mod process;
mod spec;
mod supervisor;
mod upstream;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pointsman_domain::dispatch::{Arrival, QueueLimits, Refusal, Ticket};
use pointsman_domain::{FleetView, LaneId, LaneInfo, LaneState, Topology};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::actor::{Actor, LaneParts, Message};
use self::supervisor::Supervisor;
use self::upstream::Upstream;

pub use self::lease::Lease;
pub use self::metrics::FleetMetrics;
pub use self::spec::{BackOff, EngineSpec, ExternalSpec, LaneSpec, ProcessSpec, Secret, Timeouts, UrlError};
pub use self::upstream::{EngineBody, EngineError};

/// A request's wish for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Of this lane.
    pub lane: LaneId,
    /// Higher goes first.
    pub priority: i32,
    /// Longest wait.
    pub max_wait: Duration,
}

/// What people want to know of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneStatus {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: LaneState,
    /// Process id of its engine, if we started one.
    pub pid: Option<u32>,
    /// Port of its engine, if we started one.
    pub port: Option<u16>,
    /// How often its engine was started.
    pub starts: u64,
    /// What went wrong last, until it goes well again.
    pub problem: Option<String>,
}

/// All lanes. Cloning gives another handle to the same ones.
#[derive(Debug, Clone)]
pub struct Fleet {
    mailbox: UnboundedSender<Message>,
    view: watch::Receiver<Arc<FleetView>>,
    statuses: Arc<[watch::Receiver<LaneStatus>]>,
    tickets: Arc<AtomicU64>,
    started: Instant,
}

/// The tasks behind a fleet. Dropping it ends them, and kills the engines without ceremony.
#[derive(Debug)]
pub struct FleetTasks {
    mailbox: UnboundedSender<Message>,
    supervisors: JoinSet<()>,
    // Ends, by being aborted, after the supervisors.
    _actor: JoinSet<()>,
    stop: CancellationToken,
}

impl Fleet {
    /// Start all lanes. Must be called within a runtime; returns at once, with the engines starting.
    pub fn start(lanes: &[LaneSpec], limits: QueueLimits, metrics: &Arc<FleetMetrics>) -> (Self, FleetTasks) {
        let topology = Arc::new(Topology::new(1, lanes.iter().map(lane_info).collect()));
        let first = FleetView::idle(Arc::clone(&topology), LaneState::Starting);
        let (view_sender, view) = watch::channel(Arc::new(first));
        let (mailbox, messages) = unbounded_channel();
        let started = Instant::now();
        let stop = CancellationToken::new();
        let mut supervisors = JoinSet::new();
        let mut parts = Vec::new();
        let mut statuses = Vec::new();
        for (info, spec) in topology.lanes().iter().zip(lanes) {
            let upstream = Arc::new(Upstream::new(spec.timeouts, spec.slots));
            let status = LaneStatus {
                name: spec.name.clone(),
                state: LaneState::Starting,
                pid: None,
                port: None,
                starts: 0,
                problem: None,
            };
            let (status, seen) = watch::channel(status);
            statuses.push(seen);
            parts.push(LaneParts {
                name: spec.name.as_str().into(),
                engine_model: spec.engine_model.as_deref().map(Arc::from),
                upstream: Arc::clone(&upstream),
                target: None,
            });
            let supervisor = Supervisor {
                lane: info.id,
                name: spec.name.clone(),
                driver: driver::driver(&spec.engine),
                upstream,
                mailbox: mailbox.clone(),
                status,
                metrics: Arc::clone(metrics),
                stop: stop.clone(),
                probe_every: match &spec.engine {
                    EngineSpec::External(external) => external.probe_every,
                    EngineSpec::LlamaCpp(_) => Duration::ZERO,
                },
            };
            supervisors.spawn(supervisor.run());
        }
        let actor =
            Actor::new(topology, parts, limits, started, mailbox.clone(), view_sender, Arc::clone(metrics));
        let mut actors = JoinSet::new();
        actors.spawn(actor.run(messages));
        let tasks = FleetTasks { mailbox: mailbox.clone(), supervisors, _actor: actors, stop };
        (Self { mailbox, view, statuses: statuses.into(), tickets: Arc::default(), started }, tasks)
    }

    /// The lanes as they are now.
    pub fn view(&self) -> Arc<FleetView> {
        Arc::clone(&self.view.borrow())
    }

    /// Wait until the view is as wanted; at once, if it is.
    pub async fn wait_for(&self, wanted: impl FnMut(&Arc<FleetView>) -> bool) -> Arc<FleetView> {
        let mut view = self.view.clone();
        match view.wait_for(wanted).await {
            Ok(view) => Arc::clone(&view),
            // The actor is gone, and with it every hope of a change.
            Err(_) => std::future::pending().await,
        }
    }

    /// What people want to know of the lanes.
    pub fn status(&self) -> Vec<LaneStatus> {
        self.statuses.iter().map(|status| status.borrow().clone()).collect()
    }

    /// Wait for a slot. Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    /// With the reason why there is none.
    pub async fn acquire(&self, wanted: Wanted) -> Result<Lease, Refusal> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let deadline = self.started.elapsed() + wanted.max_wait;
        let arrival = Arrival { ticket, lane: wanted.lane, priority: wanted.priority, deadline };
        let (answer, answered) = oneshot::channel();
        if self.mailbox.send(Message::Wanted { arrival, answer }).is_err() {
            return Err(Refusal::Closing);
        }
        let mut cancel = CancelOnDrop { mailbox: &self.mailbox, ticket: Some(ticket) };
        let result = answered.await.unwrap_or(Err(Refusal::Closing));
        cancel.ticket = None;
        result
    }
}

impl FleetTasks {
    /// Refuse everybody who waits, stop all engines at once, and return when nothing of them is left. Requests that are
    /// still being answered are cut: drain first.
    pub async fn shutdown(mut self) {
        // Without an actor nobody waits.
        let _gone = self.mailbox.send(Message::Close);
        self.stop.cancel();
        while self.supervisors.join_next().await.is_some() {}
    }
}

struct CancelOnDrop<'a> {
    mailbox: &'a UnboundedSender<Message>,
    ticket: Option<Ticket>,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            let _gone = self.mailbox.send(Message::Cancelled(ticket));
        }
    }
}

fn lane_info(spec: &LaneSpec) -> LaneInfo {
    LaneInfo {
        id: LaneId(0),
        name: spec.name.clone(),
        engine: driver::driver(&spec.engine).kind(),
        models: spec.models.clone(),
        labels: spec.labels.clone(),
        max_context: spec.max_context,
        slots: spec.slots,
        group: spec.group,
        cost_milli: spec.cost_milli,
    }
}

#[cfg(test)]
mod tests;
