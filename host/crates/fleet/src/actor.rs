//! The owner of all lane state. Every change arrives through one mailbox and is decided by the
//! [`Dispatcher`]; the result is published as a [`FleetView`]. [`SharedActor`] says who handles a
//! message: the thread of a request, or the task of the actor.
//!
//! ```text
//!   acquire ─SlotRequest──┐                              ┌─Grant/Reject─> requests
//!   drop    ─Cancelled────┤                              ├─Load/Unload──> supervisors
//!   Lease   ─Released─────┼──> mailbox ──> Dispatcher ───┤
//!   engines ─Engine───────┤                              └─FleetView────> watch
//!           ─EngineReport─┤
//!   Fleet   ─Reconfigure──┤
//!           ─Commanded────┘
//! ```

mod commands;
mod effects;
mod lane_factory;
mod lane_handle;
mod reconfigure;
mod shared;
mod successor;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{Dispatcher, Effect, EngineEvent, Enqueue, Event, Report, Ticket};
use pointsman_domain::{
    EngineKind, FleetView, LaneId, LaneInfo, LaneStat, PrefixIndex, Topology, TopologyUsage,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::lane_factory::{LaneFactory, SupervisorTasks};
pub(crate) use self::lane_handle::LaneHandle;
pub(crate) use self::shared::{SharedActor, Turns};
use crate::driver::Target;
use crate::history::LaneHistory;
use crate::message::{EngineSource, GrantSender, Mailbox, Message};
use crate::metrics::FleetMetrics;
use crate::model_card::ModelCard;
use crate::scrape::{EngineMetrics, Rates};
use crate::spec::FleetSpec;
use crate::status::LaneStatus;
use crate::switches::SwitchObserver;

#[derive(Debug)]
pub(crate) struct Waiting {
    reply: GrantSender,
    request: Enqueue,
}

/// The receivers of the status of each lane, in the order of their ids.
pub(crate) type Statuses = Arc<[watch::Receiver<LaneStatus>]>;

#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) topology: Arc<Topology>,
    /// Earlier topologies, by their generations, for as long as anything refers to them.
    pub(crate) earlier: Vec<(u64, TopologyUsage)>,
    pub(crate) prefixes: Arc<PrefixIndex>,
    /// By id. A lane that has been removed stays until its id is used again.
    pub(crate) lanes: Vec<LaneHandle>,
    /// The requests that have a slot.
    pub(crate) held: HashMap<Ticket, Enqueue>,
    /// Lanes that change once their engines have been unloaded.
    pub(crate) unsettled: Vec<LaneId>,
    /// The configuration.
    pub(crate) spec: FleetSpec,
    pub(crate) factory: LaneFactory,
    pub(crate) statuses: watch::Sender<Statuses>,
    pub(crate) started: Instant,
    pub(crate) mailbox: Mailbox,
    pub(crate) view: watch::Sender<Arc<FleetView>>,
    pub(crate) metrics: Arc<FleetMetrics>,
    pub(crate) history: LaneHistory,
    /// What is told of loads, and their number.
    pub(crate) switches: (SwitchObserver, u64),
    /// The requests that wait for a slot.
    pub(crate) waiting: HashMap<Ticket, Waiting>,
    /// What the dispatcher has decided, and is not carried out.
    pub(crate) effects: Vec<Effect>,
    pub(crate) turns: Turns,
}

impl Actor {
    fn handle(&mut self, message: Message, now: Duration) {
        let event = match message {
            Message::SlotRequest { request, reply } => {
                self.waiting.insert(request.ticket, Waiting { reply, request });
                Event::Arrived(request)
            }
            Message::Cancelled(ticket) => {
                self.waiting.remove(&ticket);
                Event::Cancelled(ticket)
            }
            Message::Released { ticket, lane, generation, flow, report } => {
                self.held.remove(&ticket);
                self.note_first_byte(lane, &report);
                Event::Released { lane, generation, flow, report }
            }
            Message::Engine { source: EngineSource { lane, epoch }, event, target } => {
                if self.lanes.get(lane.index()).is_none_or(|handle| handle.epoch != epoch) {
                    return;
                }
                self.note_engine(lane, &event, target);
                Event::Engine { lane, news: event }
            }
            Message::EngineReport { source: EngineSource { lane, epoch }, metrics, rates } => {
                let handle = self.lanes.get_mut(lane.index());
                if let Some(handle) = handle.filter(|handle| handle.epoch == epoch) {
                    handle.last_report = Some((metrics, rates, Instant::now()));
                    self.metrics.engine_report(lane, &metrics);
                }
                return;
            }
            Message::PeerReport { source: EngineSource { lane, epoch }, report } => {
                let handle = self.lanes.get_mut(lane.index());
                let Some(handle) = handle.filter(|handle| handle.epoch == epoch) else { return };
                let remote = report.remote;
                self.prefixes.set_remote(lane, Some(Arc::clone(&report.digest)));
                handle.peer_report = Some(report);
                Event::Remote { lane, remote }
            }
            Message::Learned { source, card } => {
                self.learn(source, *card);
                return;
            }
            Message::Reconfigure { spec, reply } => {
                let changes = self.reconfigure(*spec, now);
                // The caller finds the new view.
                self.publish(now);
                // Fails only if the caller does not want to know.
                drop(reply.send(changes));
                return;
            }
            Message::Commanded(command) => {
                self.commanded(command, now);
                return;
            }
            Message::QueuePositions { reply } => {
                // Fails only if the caller does not want to know.
                drop(reply.send(self.dispatcher.queue_positions(now).collect()));
                return;
            }
            Message::Hinted { lane, hint, duration } => {
                // Saturating: a policy may ask for any duration.
                Event::Hinted { lane, hint, until: now.saturating_add(duration) }
            }
            Message::Close => Event::Closed,
            Message::Pause { reply } => {
                self.turns.pausing = Some(reply);
                return;
            }
        };
        self.dispatcher.on(event, now, &mut self.effects);
    }

    /// Notes what has become of the engine of a lane.
    fn note_engine(&mut self, lane: LaneId, event: &EngineEvent, target: Option<Arc<Target>>) {
        // An engine has nothing cached when it starts or wakes up.
        self.prefixes.reset(lane, self.prefix_capacity(lane));
        let Some(handle) = self.lanes.get_mut(lane.index()) else { return };
        handle.target = target;
        if *event == EngineEvent::Ready {
            // A new generation: the token of the last one may have been cancelled.
            handle.abort = handle.abort.as_ref().map(|_| CancellationToken::new());
        } else {
            handle.last_report = None;
            handle.peer_report = None;
            self.prefixes.set_remote(lane, None);
        }
    }

    /// Notes the first byte of the first response after a switch.
    fn note_first_byte(&mut self, lane: LaneId, report: &Report) {
        if let Some(handle) =
            self.lanes.get_mut(lane.index()).filter(|handle| handle.first_after_switch)
            && let Some(first_byte) = report.first_byte
        {
            handle.first_after_switch = false;
            self.metrics.first_byte_after_switch(lane, first_byte);
        }
    }

    /// Notes what an engine says about its model. It stays known while the lane is unloaded; what
    /// the next start of the engine says replaces it. A different context, other adapters or other
    /// endpoints make a new topology. What the operator wrote stays.
    fn learn(&mut self, EngineSource { lane, epoch }: EngineSource, card: ModelCard) {
        let handle = self.lanes.get_mut(lane.index());
        let Some(handle) = handle.filter(|handle| handle.epoch == epoch) else { return };
        handle.learn(card);
        let mut lanes = self.topology.lanes().to_vec();
        if let Some(info) = lanes.iter_mut().find(|info| info.id == lane) {
            handle.complete(info);
        }
        if lanes != self.topology.lanes() {
            self.set_topology(lanes);
        }
    }

    /// Makes a new generation of the topology.
    fn set_topology(&mut self, lanes: Vec<LaneInfo>) {
        let generation = self.topology.generation() + 1;
        self.earlier.retain(|(_, usage)| usage.is_in_use());
        self.earlier.push((self.topology.generation(), self.topology.usage()));
        self.topology = Arc::new(Topology::with_ids(generation, lanes));
    }

    /// Returns the capacity of a lane's prefix cache in tokens, if the engine has reported it.
    fn prefix_capacity(&self, lane: LaneId) -> Option<u64> {
        match self.topology.lane(lane)?.engine {
            // It keeps prompts beyond its key-value cache in main memory (`--cache-ram`).
            EngineKind::LlamaCpp => None,
            EngineKind::Vllm | EngineKind::External | EngineKind::Other => {
                self.lanes.get(lane.index())?.status.borrow().kv_tokens
            }
        }
    }

    fn publish(&mut self, now: Duration) {
        self.turns.published();
        let mut stats = self.dispatcher.stats(now);
        for stat in &mut stats {
            let Some(handle) = self.lanes.get(stat.id.index()) else { continue };
            if let Some(report) = &handle.last_report {
                merge_engine_report(stat, report);
            }
            if let Some(report) = &handle.peer_report {
                report.merge_into(stat);
            }
            let engine = self.dispatcher.engine_state(stat.id).unwrap_or_default();
            let problem = self.dispatcher.problem(stat.id);
            let manual = self.manual_status(stat.id, handle);
            self.metrics.set_mode(stat.id, manual.as_ref().map(|manual| manual.mode));
            handle.status.send_if_modified(|status| {
                if status.state != stat.state {
                    self.history.push(&handle.name, stat.state);
                }
                let changed = status.state != stat.state
                    || status.engine != engine
                    || status.manual != manual;
                (status.state, status.engine) = (stat.state, engine);
                (status.problem, status.manual) = (problem, manual);
                changed
            });
        }
        self.metrics.lanes(&stats, &|lane| self.dispatcher.queued_by_priority(lane));
        self.metrics.measurements.set_reserved(self.dispatcher.memory_by_group());
        self.view.send_replace(Arc::new(FleetView::new(Arc::clone(&self.topology), stats)));
    }
}

/// Copies the engine's own metrics into the statistics of its lane.
fn merge_engine_report(
    stat: &mut LaneStat,
    (metrics, rates, scraped): &(EngineMetrics, Rates, Instant),
) {
    stat.waiting = metrics.waiting.unwrap_or(0);
    stat.kv_used = metrics.kv_used.unwrap_or(0);
    stat.decode_tps = rates.decode_tps.unwrap_or(0);
    // Saturates after 49 days without a scrape.
    stat.stale_ms = u32::try_from(scraped.elapsed().as_millis()).unwrap_or(u32::MAX);
}
