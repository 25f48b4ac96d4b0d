//! Starts a fleet, or makes one that is as after a start.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{Dispatcher, Effect, EngineEvent, Event, GroupSetup};
use pointsman_domain::{FleetView, LaneId, LaneState, Topology};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Fleet, FleetTasks};
use crate::actor::{Actor, LaneFactory, LaneHandle, SharedActor, Statuses, SupervisorTasks, Turns};
use crate::history::LaneHistory;
use crate::memory::Machine;
use crate::message::Mailbox;
use crate::metrics::FleetMetrics;
use crate::peers::new_host_id;
use crate::process::{KeeperSpec, StateDir, StateDirError, reap_orphans};
use crate::spec::{FleetSpec, LaneSpec, Residency};
use crate::status::LaneStatus;
use crate::supervisor::Shared;
use crate::switches::SwitchObserver;

impl Fleet {
    /// Starts all lanes: ends the engines that an earlier host left running, and loads the lanes
    /// that are to be loaded. Blocks while it ends them, and returns while the new ones are
    /// starting. Must be called within a runtime, on a thread that lives as long as the host.
    ///
    /// # Errors
    /// Returns an error if the state directory cannot be used or is in use by another host.
    pub fn start(
        spec: &FleetSpec,
        metrics: &Arc<FleetMetrics>,
    ) -> Result<(Self, FleetTasks), StateDirError> {
        let state_dir = StateDir::open(spec.state_dir.as_deref(), &spec.keeper)?;
        state_dir.keep_adoptable(spec);
        // Logs what it finds. Before the first load, so that the memory of old engines is free.
        state_dir.sweep();
        Ok(Self::start_with(spec, metrics, state_dir))
    }

    /// Starts all lanes like [`Fleet::start`], with a state directory that has been opened, whose
    /// engines have been [sorted out](StateDir::keep_adoptable) and [swept](StateDir::sweep)
    /// before: that blocks for some seconds.
    pub fn start_with(
        spec: &FleetSpec,
        metrics: &Arc<FleetMetrics>,
        state_dir: StateDir,
    ) -> (Self, FleetTasks) {
        let mut parts = Parts::new(spec, metrics, state_dir);
        let factory = &mut parts.factory;
        spawn_housekeeping(&factory.supervisors, &factory.shared);
        spawn_sampler(factory, parts.statuses.1.clone());
        let mut dispatcher = dispatcher(spec);
        let lanes = start_lanes(factory, &mut dispatcher, &parts.topology, spec);
        let first = FleetView::idle(Arc::clone(&parts.topology), LaneState::Starting);
        let (fleet, mut tasks) = parts.assemble(spec, (dispatcher, lanes), first);
        tasks.actor_task.spawn(Arc::clone(&tasks.actor).run(tasks.mailbox.clone()));
        (fleet, tasks)
    }

    /// Returns lanes as they are after a start at which all engines have loaded: those that are
    /// loaded at a start serve, and so do the servers that the host does not start. Nothing is
    /// started, connected to, recorded or measured, and the lanes stay as they are.
    ///
    /// # Errors
    /// Returns an error if `/proc` is not available.
    pub fn at_rest(
        spec: &FleetSpec,
        metrics: &Arc<FleetMetrics>,
    ) -> Result<(Self, FleetTasks), StateDirError> {
        let keeper = KeeperSpec { program: None, ..spec.keeper.clone() };
        let parts = Parts::new(spec, metrics, StateDir::open(None, &keeper)?);
        let mut dispatcher = dispatcher(spec);
        let now = load_at_start(&mut dispatcher, spec);
        let lanes = parts.topology.lanes().iter().zip(&spec.lanes);
        let lanes = lanes.map(|(info, lane)| parts.factory.handle(info.id, lane, spec)).collect();
        let view = FleetView::new(Arc::clone(&parts.topology), dispatcher.stats(now));
        Ok(parts.assemble(spec, (dispatcher, lanes), view))
    }
}

/// What a fleet is made of, besides its lanes.
struct Parts {
    topology: Arc<Topology>,
    factory: LaneFactory,
    statuses: (watch::Sender<Statuses>, watch::Receiver<Statuses>),
    metrics: Arc<FleetMetrics>,
}

impl Parts {
    fn new(spec: &FleetSpec, metrics: &Arc<FleetMetrics>, state_dir: StateDir) -> Self {
        let topology = Topology::new(1, spec.lanes.iter().map(LaneSpec::info).collect());
        let factory = LaneFactory {
            mailbox: Mailbox::new(),
            shared: Shared::new(spec, metrics, state_dir),
            machine: Arc::new(Machine::new(&spec.machine)),
            supervisors: SupervisorTasks::default(),
            epochs: 0,
        };
        metrics.measurements.configure(spec);
        let statuses = watch::channel(Statuses::default());
        Self { topology: Arc::new(topology), factory, statuses, metrics: Arc::clone(metrics) }
    }

    /// Makes the fleet, whose actor has no task yet. `first` is its view until the first change.
    fn assemble(
        self,
        spec: &FleetSpec,
        (dispatcher, lanes): (Dispatcher, Vec<LaneHandle>),
        first: FleetView,
    ) -> (Fleet, FleetTasks) {
        let Self { topology, factory, statuses: (statuses_sender, statuses), metrics } = self;
        let (mailbox, supervisors) = (factory.mailbox.clone(), factory.supervisors.clone());
        let Shared { conversations, logs, stop, state_dir, peers, .. } = factory.shared.clone();
        let (view_sender, view) = watch::channel(Arc::new(first));
        let prefixes = Arc::new(spec.peering.prefix_index(spec.lanes.len()));
        let (history, switches) = (LaneHistory::default(), SwitchObserver::default());
        let (started, measurements) = (Instant::now(), metrics.measurements.clone());
        let actor = SharedActor::new(Actor {
            dispatcher,
            prefixes: Arc::clone(&prefixes),
            topology,
            earlier: Vec::new(),
            lanes,
            held: HashMap::new(),
            unsettled: Vec::new(),
            spec: spec.clone(),
            factory,
            statuses: statuses_sender,
            started,
            mailbox: mailbox.clone(),
            view: view_sender,
            metrics,
            history: history.clone(),
            switches: (switches.clone(), 0),
            waiting: HashMap::new(),
            effects: Vec::new(),
            turns: Turns::default(),
        });
        let tasks = FleetTasks {
            mailbox: mailbox.clone(),
            supervisors,
            actor: Arc::clone(&actor),
            actor_task: JoinSet::new(),
            stop,
            state_dir,
            conversations: conversations.clone(),
        };
        let fleet = Fleet {
            mailbox,
            actor,
            view,
            statuses,
            prefixes,
            tickets: Arc::default(),
            started,
            conversations,
            logs,
            measurements,
            history,
            switches,
            host_id: new_host_id(),
            peers,
        };
        (fleet, tasks)
    }
}

/// Spawns the tasks that belong to no lane.
fn spawn_housekeeping(tasks: &SupervisorTasks, shared: &Shared) {
    let (stop, state_dir) = (shared.stop.clone(), shared.state_dir.clone());
    tasks.spawn(async move {
        let ended = stop.run_until_cancelled(reap_orphans(state_dir)).await;
        if let Some(Err(error)) = ended {
            tracing::warn!(error = %error, "orphans of engines are reaped only at their end");
        }
    });
    let (stop, conversations) = (shared.stop.clone(), shared.conversations.clone());
    tasks.spawn(async move {
        stop.run_until_cancelled(conversations.expire()).await;
    });
}

/// Spawns the task that measures the memory of engines and the machine.
fn spawn_sampler(factory: &LaneFactory, statuses: watch::Receiver<Statuses>) {
    let LaneFactory { shared, machine, supervisors: tasks, .. } = factory;
    let engines = move || -> Vec<(String, u32)> {
        let statuses = Arc::clone(&statuses.borrow());
        let engine = |status: &watch::Receiver<LaneStatus>| {
            let status = status.borrow();
            Some((status.name.clone(), status.pid?))
        };
        statuses.iter().filter_map(engine).collect()
    };
    let sample = shared.metrics.measurements.clone().sample(Arc::clone(machine), engines);
    let stop = shared.stop.clone();
    tasks.spawn(async move {
        stop.run_until_cancelled(sample).await;
    });
}

/// Starts the supervisors of all lanes. Those with an engine of the last host take it over.
fn start_lanes(
    factory: &mut LaneFactory,
    dispatcher: &mut Dispatcher,
    topology: &Topology,
    spec: &FleetSpec,
) -> Vec<LaneHandle> {
    let mut lanes = Vec::new();
    for (info, lane) in topology.lanes().iter().zip(&spec.lanes) {
        let handle = factory.start(info.id, lane, spec);
        if factory.shared.state_dir.has_adoptable(&lane.name) {
            // It is loaded, or loading.
            handle.adopt();
            dispatcher.adopt(info.id);
        }
        lanes.push(handle);
    }
    lanes
}

fn dispatcher(spec: &FleetSpec) -> Dispatcher {
    let groups: Vec<GroupSetup> =
        spec.groups.iter().map(|group| GroupSetup { budget: group.budget }).collect();
    Dispatcher::new(spec.lanes.iter().map(LaneSpec::setup).collect(), &groups, spec.rules)
}

/// Loads the lanes that are loaded at a start, each in the time that its load is expected to take.
/// Returns the time at which the last one serves.
fn load_at_start(dispatcher: &mut Dispatcher, spec: &FleetSpec) -> Duration {
    let (mut now, mut effects) = (Duration::ZERO, Vec::new());
    dispatcher.on(Event::Tick, now, &mut effects);
    for (id, lane) in (0..).map(LaneId).zip(&spec.lanes) {
        if lane.residency == Residency::External {
            let ready = Event::Engine { lane: id, news: EngineEvent::Ready };
            dispatcher.on(ready, now, &mut effects);
        }
    }
    let mut effects = VecDeque::from(effects);
    // Each lane is loaded once at a start, and may have to go for another one.
    for _ in 0..2 * spec.lanes.len() {
        let (lane, news) = match effects.pop_front() {
            Some(Effect::Load(lane)) => {
                let lane_spec = spec.lanes.get(lane.index());
                // Saturating: a configuration may expect any time.
                let load = lane_spec.map_or(Duration::ZERO, |lane| lane.expected_load);
                now = now.saturating_add(load);
                (lane, EngineEvent::Ready)
            }
            Some(Effect::Unload { lane, .. }) => (lane, EngineEvent::Stopped { asleep: false }),
            Some(
                Effect::Grant { .. }
                | Effect::Reject { .. }
                | Effect::Abort { .. }
                | Effect::Switched(_),
            ) => continue,
            None => break,
        };
        let mut more = Vec::new();
        dispatcher.on(Event::Engine { lane, news }, now, &mut more);
        effects.extend(more);
    }
    now
}

#[cfg(test)]
mod tests;
