//! The handle to all lanes, and the tasks behind it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pointsman_domain::dispatch::{AcquireError, Dispatcher, GroupSetup, LaneHint, Ticket};
use pointsman_domain::{FleetView, LaneId, LaneState, PrefixIndex, SlotRequest, Topology};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::actor::{Actor, LaneFactory, LaneHandle, SharedActor, Statuses, SupervisorTasks, Turns};
use crate::conversations::Conversations;
use crate::engine_log::EngineLogs;
use crate::handover::PausedFleet;
use crate::history::{LaneHistory, LaneTransition};
use crate::lease::Lease;
use crate::measurements::{Measurements, MemoryReport};
use crate::memory::Machine;
use crate::message::{Grant, Mailbox, Message};
use crate::metrics::FleetMetrics;
use crate::peers::{Peers, new_host_id};
use crate::process::{StateDir, StateDirError, reap_orphans};
use crate::reconfigure::LaneChange;
use crate::spec::{FleetSpec, LaneSpec};
use crate::status::LaneStatus;
use crate::supervisor::Shared;
use crate::switches::{FinishedSwitch, SwitchObserver};

/// A handle to all lanes. Clones share the same lanes.
#[derive(Debug, Clone)]
pub struct Fleet {
    pub(crate) mailbox: Mailbox,
    actor: Arc<SharedActor>,
    view: watch::Receiver<Arc<FleetView>>,
    pub(crate) statuses: watch::Receiver<Statuses>,
    prefixes: Arc<PrefixIndex>,
    tickets: Arc<AtomicU64>,
    started: Instant,
    conversations: Conversations,
    pub(crate) logs: EngineLogs,
    measurements: Measurements,
    history: LaneHistory,
    switches: SwitchObserver,
    host_id: Arc<str>,
    peers: Peers,
}

/// The tasks of a fleet. Dropping them aborts the tasks and kills the engines without a grace
/// period.
#[derive(Debug)]
pub struct FleetTasks {
    mailbox: Mailbox,
    pub(crate) supervisors: SupervisorTasks,
    actor: Arc<SharedActor>,
    _actor_task: JoinSet<()>,
    stop: CancellationToken,
    state_dir: StateDir,
    conversations: Conversations,
}

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
        let topology = Arc::new(Topology::new(1, spec.lanes.iter().map(LaneSpec::info).collect()));
        let first = FleetView::idle(Arc::clone(&topology), LaneState::Starting);
        let (view_sender, view) = watch::channel(Arc::new(first));
        let (mailbox, started) = (Mailbox::new(), Instant::now());
        let supervisors = SupervisorTasks::default();
        let (statuses_sender, statuses) = watch::channel(Statuses::default());
        let shared = Shared::new(spec, metrics, state_dir);
        let Shared { conversations, logs, stop, state_dir, peers, .. } = shared.clone();
        spawn_housekeeping(&supervisors, &shared);
        metrics.measurements.configure(spec);
        let machine = Arc::new(Machine::new(&spec.machine));
        spawn_sampler(&supervisors, &shared, &machine, statuses.clone());
        let mut dispatcher = dispatcher(spec);
        let mut factory = LaneFactory {
            mailbox: mailbox.clone(),
            shared,
            machine,
            supervisors: supervisors.clone(),
            epochs: 0,
        };
        let lanes = start_lanes(&mut factory, &mut dispatcher, &topology, spec);
        let prefixes = Arc::new(spec.peering.prefix_index(spec.lanes.len()));
        let (history, switches) = (LaneHistory::default(), SwitchObserver::default());
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
            metrics: Arc::clone(metrics),
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
            _actor_task: JoinSet::from_iter([Arc::clone(&actor).run(mailbox.clone())]),
            stop,
            state_dir,
            conversations: conversations.clone(),
        };
        let fleet = Self {
            mailbox,
            actor,
            view,
            statuses,
            prefixes,
            tickets: Arc::default(),
            started,
            conversations,
            logs,
            measurements: metrics.measurements.clone(),
            history,
            switches,
            host_id: new_host_id(),
            peers,
        };
        (fleet, tasks)
    }

    /// Takes up another configuration of lanes, groups and rules, at once and as a whole. Returns
    /// what has changed when the new topology is published; engines restart and end after that.
    /// Requests in flight finish as they were granted. The configuration has to be valid; its state
    /// directory, its keeper and its machine are ignored.
    pub async fn reconfigure(&self, new: FleetSpec) -> BTreeMap<String, LaneChange> {
        let (reply, response) = oneshot::channel();
        // Fails only if the actor has ended: nothing changes then.
        self.mailbox.send(Message::Reconfigure { spec: Box::new(new), reply }).ok();
        response.await.unwrap_or_default()
    }

    /// Returns the random text by which other hosts know this process.
    pub fn host_id(&self) -> &str {
        &self.host_id
    }

    /// Returns the other hosts that are watched, because of lanes that are theirs or by others who
    /// share the connections.
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// Returns the current state of the lanes.
    pub fn view(&self) -> Arc<FleetView> {
        self.actor.refresh();
        Arc::clone(&self.view.borrow())
    }

    /// Returns the index of the prompts that the lanes have served. Leases keep it up to date.
    pub fn prefix_index(&self) -> &PrefixIndex {
        &self.prefixes
    }

    /// Returns the saved conversations of all lanes.
    pub fn conversations(&self) -> &Conversations {
        &self.conversations
    }

    /// Waits until `condition` holds for the current view, and returns that view. Pends forever
    /// once the fleet has been shut down.
    pub async fn wait_for(&self, condition: impl FnMut(&Arc<FleetView>) -> bool) -> Arc<FleetView> {
        self.actor.refresh();
        let mut view = self.view.clone();
        let found = view.wait_for(condition).await.map(|view| Arc::clone(&view));
        match found {
            Ok(view) => view,
            // The actor has ended, so the view cannot change any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Returns the status of each lane, in the order of their ids, which may have gaps.
    pub fn status(&self) -> Vec<LaneStatus> {
        self.actor.refresh();
        self.statuses.borrow().iter().map(|status| status.borrow().clone()).collect()
    }

    /// Returns what the memory of the lanes, their groups and the machine was when it was measured
    /// last, some seconds ago.
    pub fn memory_report(&self) -> MemoryReport {
        self.measurements.report()
    }

    /// Returns the last changes of the states of lanes, oldest first.
    pub fn history(&self) -> Vec<LaneTransition> {
        self.history.list()
    }

    /// Calls a function with each load of a lane that ends from now on, which must not block. Only
    /// the first call has an effect.
    pub fn observe_switches(&self, observe: impl Fn(FinishedSwitch) + Send + Sync + 'static) {
        self.switches.set(observe);
    }

    /// Sets a hint to load, keep or release a lane for `duration`, replacing the previous hint;
    /// `None` removes it.
    pub fn hint(&self, lane: LaneId, hint: Option<LaneHint>, duration: Duration) {
        // Fails only if the actor has ended; a hint has no effect then.
        self.mailbox.send(Message::Hinted { lane, hint, duration }).ok();
    }

    /// Waits for a slot. Dropping the future cancels the request and leaves the queue.
    ///
    /// # Errors
    /// Returns the reason why the dispatcher rejected the request.
    pub async fn acquire(&self, request: SlotRequest) -> Result<Lease, AcquireError> {
        self.acquire_as(self.ticket(), request).await
    }

    /// Returns a new ticket.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    /// Waits for a slot like [`Fleet::acquire`], with a ticket by which the place in the queue can
    /// be found.
    ///
    /// # Errors
    /// As those of [`Fleet::acquire`].
    pub async fn acquire_as(
        &self,
        ticket: Ticket,
        request: SlotRequest,
    ) -> Result<Lease, AcquireError> {
        self.enqueue(ticket, request)?.granted().await
    }

    /// Asks for a slot, after all requests that have asked before.
    pub(crate) fn enqueue(
        &self,
        ticket: Ticket,
        request: SlotRequest,
    ) -> Result<PendingLease, AcquireError> {
        let request = request.arrival(ticket, self.started.elapsed());
        let (reply, response) = oneshot::channel();
        if self.mailbox.send(Message::SlotRequest { request, reply }).is_err() {
            return Err(AcquireError::Closing);
        }
        let cancel = CancelOnDrop { mailbox: self.mailbox.clone(), ticket: Some(ticket) };
        Ok(PendingLease { response, cancel })
    }
}

/// A request for a slot that waits. Dropping it cancels the request.
#[derive(Debug)]
pub(crate) struct PendingLease {
    response: oneshot::Receiver<Result<Grant, AcquireError>>,
    cancel: CancelOnDrop,
}

impl PendingLease {
    /// Waits for the slot.
    pub(crate) async fn granted(mut self) -> Result<Lease, AcquireError> {
        let result = (&mut self.response).await.unwrap_or(Err(AcquireError::Closing));
        self.cancel.ticket = None;
        result.map(Lease::new)
    }
}

impl FleetTasks {
    /// Announces that the host stops, so that no engine is kept if the host is killed before its
    /// end.
    pub fn announce_stop(&self) {
        self.state_dir.announce_stop();
    }

    /// Stops to dispatch requests, once no engine is being stopped or has to be; returns what
    /// another host has to know to go on.
    pub async fn pause(&self) -> Option<PausedFleet> {
        let (reply, paused) = oneshot::channel();
        // Fails only if the actor has ended.
        self.mailbox.send(Message::Pause { reply }).ok();
        paused.await.ok()
    }

    /// Waits until what is to be kept of conversations is written.
    pub async fn flush_conversations(&self) {
        self.conversations.flush().await;
    }

    /// Returns the state directory.
    pub fn state_dir(&self) -> &StateDir {
        &self.state_dir
    }

    /// Ends all supervisors. Another host has the engines.
    pub fn release(&self) {
        self.supervisors.abort_all();
    }

    /// Rejects all queued requests, stops all engines concurrently, and returns when none of their
    /// processes is left. In-flight responses are aborted: drain first.
    pub async fn shutdown(self) {
        self.announce_stop();
        // Fails only if the actor has ended; no request is queued then.
        self.mailbox.send(Message::Close).ok();
        self.stop.cancel();
        self.supervisors.join_all().await;
        self.conversations.flush().await;
    }
}

impl Drop for FleetTasks {
    fn drop(&mut self) {
        // The actor has a handle to these tasks, too.
        self.supervisors.abort_all();
        self.actor.end(&self.mailbox);
    }
}

#[derive(Debug)]
struct CancelOnDrop {
    mailbox: Mailbox,
    ticket: Option<Ticket>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            // Fails only if the actor has ended, and its queue with it.
            self.mailbox.send(Message::Cancelled(ticket)).ok();
        }
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
fn spawn_sampler(
    tasks: &SupervisorTasks,
    shared: &Shared,
    machine: &Arc<Machine>,
    statuses: watch::Receiver<Statuses>,
) {
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
