//! Engines as processes, lanes, the queue in front of them, and the connection to them.
//!
//! ```text
//!   Fleet::acquire ──> actor ──────────> Lease ──send──> engine
//!                        ▲ │  one task owns all lane state
//!                   news │ │ orders
//!                        │ ▼
//!                      supervisor (one per engine): room, start, probe, watch, sleep, stop
//! ```

mod actor;
mod driver;
mod footprint;
mod lease;
mod loading;
mod memory;
mod metrics;
mod probing;
mod process;
mod room;
mod scrape;
mod sleeping;
mod spec;
mod supervisor;
mod tls;
mod upstream;
mod vitals;
pub mod vllm;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pointsman_domain::dispatch::{
    AcquireError, Dispatcher, GroupSetup, LaneHint, LaneSetup, Ticket,
};
use pointsman_domain::{
    EngineState, FleetView, LaneId, LaneInfo, LaneState, SlotRequest, Topology,
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::actor::{Actor, LaneParts, Message};
use self::room::Room;
use self::supervisor::Supervisor;
use self::upstream::Upstream;

pub use self::footprint::{Footprint, FootprintError, Serving, gib, of_model};
pub use self::lease::Lease;
pub use self::memory::{Gpu, Holder, Machine, Pool};
pub use self::metrics::FleetMetrics;
pub use self::process::{Home, HomeError, keeper_main};
pub use self::spec::{
    BackOff, CommandLine, EngineSpec, ExternalSpec, FleetSpec, GroupSpec, LaneSpec, Liveness,
    ProcessSpec, Residency, Rules, Secret, SwitchStrategy, Timeouts, UrlError,
};
pub use self::upstream::{EngineBody, EngineError};

/// What people want to know of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneStatus {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: LaneState,
    /// Where its engine is in its life.
    pub engine: EngineState,
    /// Process id of its engine, if we started one.
    pub pid: Option<u32>,
    /// Port of its engine, if we started one.
    pub port: Option<u16>,
    /// How often its engine was started.
    pub starts: u64,
    /// How far its loading is.
    pub progress: Option<String>,
    /// What went wrong last, until it goes well again.
    pub problem: Option<String>,
    /// Memory of its model's weights, in bytes, as its engine said when it was loaded.
    pub weights_bytes: Option<u64>,
    /// Memory of its key-value cache, in bytes.
    pub kv_bytes: Option<u64>,
    /// Tokens that its key-value cache can hold.
    pub kv_tokens: Option<u64>,
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
    /// Start all lanes: end what an earlier run left behind, and load what is to be loaded. Must be called within a runtime,
    /// on a thread that lives as long as the host; returns with the engines starting.
    ///
    /// # Errors
    /// When the state directory cannot be used, or another host uses it.
    pub fn start(
        spec: &FleetSpec,
        metrics: &Arc<FleetMetrics>,
    ) -> Result<(Self, FleetTasks), HomeError> {
        let home = Home::open(spec.state_dir.as_deref(), spec.keeper.as_deref())?;
        for swept in home.sweep() {
            tracing::warn!(lane = swept.lane, "{}", swept.sentence);
        }
        let topology = Arc::new(Topology::new(1, spec.lanes.iter().map(LaneSpec::info).collect()));
        let first = FleetView::idle(Arc::clone(&topology), LaneState::Starting);
        let (view_sender, view) = watch::channel(Arc::new(first));
        let (mailbox, messages) = unbounded_channel();
        let started = Instant::now();
        let stop = CancellationToken::new();
        let machine = Arc::new(Machine::new(&spec.machine));
        let mut supervisors = JoinSet::new();
        let mut parts = Vec::new();
        let mut statuses = Vec::new();
        for (info, lane) in topology.lanes().iter().zip(&spec.lanes) {
            let driver = driver::driver(&lane.engine);
            let upstream = Arc::new(Upstream::new(lane.timeouts, lane.slots, &*driver));
            let (status, seen) =
                watch::channel(LaneStatus { name: lane.name.clone(), ..LaneStatus::default() });
            statuses.push(seen);
            let (orders, ordered) = unbounded_channel();
            parts.push(LaneParts {
                name: lane.name.as_str().into(),
                engine_model: lane.engine_model.as_deref().map(Arc::from),
                upstream: Arc::clone(&upstream),
                orders,
                status: status.clone(),
                target: None,
                cut: spec.rules.drain_timeout.map(|_| CancellationToken::new()),
                told: None,
                first_after_switch: false,
            });
            let group = lane.group.and_then(|group| spec.groups.get(group));
            let supervisor = Supervisor {
                lane: info.id,
                name: lane.name.clone(),
                slots: lane.slots,
                driver,
                upstream,
                mailbox: mailbox.clone(),
                orders: ordered,
                status,
                metrics: Arc::clone(metrics),
                stop: stop.clone(),
                home: home.clone(),
                room: group.and_then(|group| room(group, lane, &machine)),
                liveness: lane.liveness,
                probe_every: match &lane.engine {
                    EngineSpec::External(external) => external.probe_every,
                    _ => Duration::ZERO,
                },
                demoted: false,
                canary: None,
            };
            supervisors.spawn(supervisor.run());
        }
        let actor = Actor {
            dispatcher: dispatcher(spec),
            topology,
            lanes: parts,
            started,
            mailbox: mailbox.clone(),
            view: view_sender,
            metrics: Arc::clone(metrics),
        };
        let mut actors = JoinSet::new();
        actors.spawn(actor.run(messages));
        let tasks = FleetTasks { mailbox: mailbox.clone(), supervisors, _actor: actors, stop };
        Ok((
            Self { mailbox, view, statuses: statuses.into(), tickets: Arc::default(), started },
            tasks,
        ))
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

    /// Wish that a lane be loaded, kept or released, for a time; `None` takes the wish before back.
    pub fn hint(&self, lane: LaneId, hint: Option<LaneHint>, lasts: Duration) {
        // Without an actor there is nothing to be wished for.
        let _gone = self.mailbox.send(Message::Hinted { lane, hint, lasts });
    }

    /// Wait for a slot. Dropping the future gives up the place in the queue.
    ///
    /// # Errors
    /// With the reason why there is none.
    pub async fn acquire(&self, wanted: SlotRequest<'_>) -> Result<Lease, AcquireError> {
        let ticket = Ticket(self.tickets.fetch_add(1, Ordering::Relaxed));
        let arrival = wanted.arrival(ticket, self.started.elapsed());
        let (answer, answered) = oneshot::channel();
        if self.mailbox.send(Message::SlotRequest { arrival, answer }).is_err() {
            return Err(AcquireError::Closing);
        }
        let mut cancel = CancelOnDrop { mailbox: &self.mailbox, ticket: Some(ticket) };
        let result = answered.await.unwrap_or(Err(AcquireError::Closing));
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

impl LaneSpec {
    /// What policies see of it.
    pub fn info(&self) -> LaneInfo {
        LaneInfo {
            id: LaneId(0),
            name: self.name.clone(),
            engine: driver::driver(&self.engine).kind(),
            models: self.models.clone(),
            labels: self.labels.clone(),
            max_context: self.max_context,
            slots: self.slots,
            // Policies number groups from 1; 0 is none.
            group: self.group.and_then(|group| u32::try_from(group + 1).ok()).unwrap_or(0),
            cost_milli: self.cost_milli,
        }
    }

    /// What the dispatcher is told of it.
    pub fn setup(&self) -> LaneSetup {
        LaneSetup {
            slots: self.slots,
            group: self.group.unwrap_or(usize::MAX),
            need: self.need,
            asleep: self.asleep,
            residency: self.residency,
            expected_load: self.expected_load,
            back_off: self.engine.run().map_or(spec::NO_BACK_OFF, |run| run.back_off),
        }
    }
}

/// The memory that a lane is loaded into, if anybody is to look at it.
fn room(group: &GroupSpec, lane: &LaneSpec, machine: &Arc<Machine>) -> Option<Room> {
    let (machine, limit) = (Arc::clone(machine), group.free_timeout);
    group.pool.map(|pool| Room { machine, pool, need: lane.need, asleep: lane.asleep, limit })
}

fn dispatcher(spec: &FleetSpec) -> Dispatcher {
    let groups: Vec<GroupSetup> =
        spec.groups.iter().map(|group| GroupSetup { budget: group.budget }).collect();
    Dispatcher::new(spec.lanes.iter().map(LaneSpec::setup).collect(), &groups, spec.rules)
}

#[cfg(test)]
mod tests;
