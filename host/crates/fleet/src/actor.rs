//! The task that owns all lane state. Everything that changes it comes through one mailbox and is decided by
//! [`Dispatcher`]; what it looks like is published as one [`FleetView`] per batch of messages.
//!
//! ```text
//!   acquire ──Wanted──┐                               ┌──Grant/Refuse──> whoever waits
//!   Lease   ─Released─┤                               ├──Load/Unload───> supervisors
//!   drop    ─Cancelled┼──> mailbox ──> Dispatcher ────┤
//!   engines ─News─────┤                               └──FleetView─────> watch
//!           ─Figures──┘
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{
    AcquireError, Dispatcher, Effect, EngineEvent, Enqueue, Event, Generation, LaneHint, Report,
    Ticket,
};
use pointsman_domain::{FleetView, LaneId, LaneStat, LaneState, Topology};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::LaneStatus;
use crate::driver::Target;
use crate::lease::Lease;
use crate::metrics::FleetMetrics;
use crate::scrape::{EngineMetrics, Rates};
use crate::upstream::Upstream;

/// What the actor is told. Every message belongs to a request or to an engine, whose numbers are limited, so the mailbox
/// needs no limit of its own; and a lease must be able to say from `drop` that it is free.
#[derive(Debug)]
pub(crate) enum Message {
    SlotRequest { arrival: Enqueue, answer: oneshot::Sender<Result<Lease, AcquireError>> },
    Cancelled(Ticket),
    Released { lane: LaneId, generation: Generation, report: Report },
    News { lane: LaneId, news: EngineEvent, target: Option<Arc<Target>> },
    Figures { lane: LaneId, figures: EngineMetrics, rates: Rates },
    Hinted { lane: LaneId, hint: Option<LaneHint>, lasts: Duration },
    Close,
}

/// What a supervisor is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Start the engine, or wake it.
    Load,
    /// Stop it, or let it sleep.
    Unload {
        /// Stop it, even if it could sleep.
        fully: bool,
    },
}

/// What the actor knows of a lane beyond the dispatcher.
#[derive(Debug)]
pub(crate) struct LaneParts {
    pub(crate) name: Arc<str>,
    pub(crate) engine_model: Option<Arc<str>>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) orders: UnboundedSender<Order>,
    pub(crate) status: watch::Sender<LaneStatus>,
    pub(crate) target: Option<Arc<Target>>,
    /// Cancelled to cut the leases of this life; `None` where the rules never cut.
    pub(crate) cut: Option<CancellationToken>,
    /// What the engine last said of itself, and when.
    pub(crate) told: Option<(EngineMetrics, Rates, Instant)>,
    /// The next answer is the first one after a switch.
    pub(crate) first_after_switch: bool,
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Result<Lease, AcquireError>>,
    priority: i32,
}

#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) topology: Arc<Topology>,
    pub(crate) lanes: Vec<LaneParts>,
    pub(crate) started: Instant,
    pub(crate) mailbox: UnboundedSender<Message>,
    pub(crate) view: watch::Sender<Arc<FleetView>>,
    pub(crate) metrics: Arc<FleetMetrics>,
}

impl Actor {
    /// Run until everybody who could send a message is gone, which our own sender prevents: so, until aborted by its owner.
    pub(crate) async fn run(mut self, mut messages: UnboundedReceiver<Message>) {
        const BATCH: usize = 256;
        let mut batch = Vec::with_capacity(BATCH);
        let mut effects = Vec::new();
        let mut waiting: HashMap<Ticket, Waiting> = HashMap::new();
        loop {
            let now = self.started.elapsed();
            for message in batch.drain(..) {
                self.take_in(message, now, &mut waiting, &mut effects);
            }
            self.dispatcher.on(Event::Tick, now, &mut effects);
            // Published first: whoever is answered finds a view in which the answer has happened.
            self.publish(now);
            for effect in effects.drain(..) {
                self.carry_out(effect, &mut waiting);
            }
            let wake = self.dispatcher.next_wake().map(|wake| self.started + wake);
            tokio::select! {
                count = messages.recv_many(&mut batch, BATCH) => {
                    if count == 0 { return }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    fn take_in(
        &mut self,
        message: Message,
        now: Duration,
        waiting: &mut HashMap<Ticket, Waiting>,
        effects: &mut Vec<Effect>,
    ) {
        let event = match message {
            Message::SlotRequest { arrival, answer } => {
                waiting.insert(arrival.ticket, Waiting { answer, priority: arrival.priority });
                Event::Arrived(arrival)
            }
            Message::Cancelled(ticket) => {
                waiting.remove(&ticket);
                Event::Cancelled(ticket)
            }
            Message::Released { lane, generation, report } => {
                if let Some(parts) =
                    self.lanes.get_mut(lane.index()).filter(|parts| parts.first_after_switch)
                    && let Some(first_byte) = report.first_byte
                {
                    parts.first_after_switch = false;
                    self.metrics.first_answer(lane, first_byte);
                }
                Event::Released { lane, generation, report }
            }
            Message::News { lane, news, target } => {
                if let Some(parts) = self.lanes.get_mut(lane.index()) {
                    parts.target = target;
                    if news == EngineEvent::Ready {
                        parts.cut = parts.cut.as_ref().map(|_| CancellationToken::new());
                    } else {
                        parts.told = None;
                    }
                }
                Event::Engine { lane, news }
            }
            Message::Figures { lane, figures, rates } => {
                if let Some(parts) = self.lanes.get_mut(lane.index()) {
                    parts.told = Some((figures, rates, Instant::now()));
                    self.metrics.told(lane, &figures);
                }
                return;
            }
            Message::Hinted { lane, hint, lasts } => {
                Event::Hinted { lane, hint, until: now.saturating_add(lasts) }
            }
            Message::Close => Event::Closed,
        };
        self.dispatcher.on(event, now, effects);
    }

    fn carry_out(&mut self, effect: Effect, waiting: &mut HashMap<Ticket, Waiting>) {
        match effect {
            Effect::Grant { ticket, lane, generation, waited } => {
                let Some(Waiting { answer, priority }) = waiting.remove(&ticket) else {
                    // Cancelled in the same batch: its slot is free again.
                    drop(self.lease(lane, generation, 0));
                    return;
                };
                self.metrics.granted(lane, priority, waited);
                // The engine may have gone down in the same batch. A lease that nobody takes is dropped, and so given back.
                let lost = || AcquireError::NotServing {
                    state: LaneState::Down,
                    reason: None,
                    retry_in: Duration::from_secs(1),
                };
                drop(answer.send(self.lease(lane, generation, priority).ok_or_else(lost)));
            }
            Effect::Reject { ticket, refusal } => {
                self.metrics.refused(&refusal);
                if let Some(Waiting { answer, .. }) = waiting.remove(&ticket) {
                    drop(answer.send(Err(refusal)));
                }
            }
            Effect::Load(lane) => self.order(lane, Order::Load),
            Effect::Unload { lane, fully } => self.order(lane, Order::Unload { fully }),
            Effect::Abort { lane, .. } => {
                if let Some(parts) = self.lanes.get(lane.index()) {
                    tracing::warn!(
                        lane = &*parts.name,
                        "cutting the answers that the lane still gives: it has to go"
                    );
                    if let Some(cut) = &parts.cut {
                        cut.cancel();
                    }
                }
            }
            Effect::Switched(report) => {
                if let Some(parts) = self.lanes.get_mut(report.target.index()) {
                    parts.first_after_switch = true;
                    let victims: Vec<&str> =
                        report.victims.iter().map(|id| self.topology.name(*id)).collect();
                    tracing::info!(
                        lane = &*parts.name,
                        instead_of = victims.join(", "),
                        overdue = report.overdue,
                        "loaded: {} ms of draining, {} ms of stopping, {} ms of loading",
                        report.drain.as_millis(),
                        report.stop.as_millis(),
                        report.load.as_millis()
                    );
                }
                self.metrics.switched(&report);
            }
        }
    }

    fn order(&self, lane: LaneId, order: Order) {
        if let Some(parts) = self.lanes.get(lane.index()) {
            tracing::debug!(lane = &*parts.name, ?order, "order");
            // A supervisor ends only when the host does.
            let _gone = parts.orders.send(order);
        }
    }

    fn lease(&self, lane: LaneId, generation: Generation, priority: i32) -> Option<Lease> {
        let parts = self.lanes.get(lane.index())?;
        Some(Lease {
            lane,
            generation,
            lane_name: Arc::clone(&parts.name),
            engine_model: parts.engine_model.clone(),
            target: parts.target.clone()?,
            upstream: Arc::clone(&parts.upstream),
            mailbox: self.mailbox.clone(),
            cut: parts.cut.clone(),
            priority,
            granted: Instant::now(),
            report: Report::default(),
        })
    }

    fn publish(&self, now: Duration) {
        let mut stats = self.dispatcher.stats(now);
        for (stat, parts) in stats.iter_mut().zip(&self.lanes) {
            if let Some(told) = &parts.told {
                tell(stat, told);
            }
            let engine = self.dispatcher.engine_state(stat.id).unwrap_or_default();
            let problem = self.dispatcher.problem(stat.id);
            parts.status.send_if_modified(|status| {
                let changed = status.state != stat.state || status.engine != engine;
                (status.state, status.engine) = (stat.state, engine);
                status.problem = problem.map(|problem| problem.to_string());
                changed
            });
        }
        let memory = |stat: &LaneStat| self.dispatcher.group_memory(stat.id);
        self.metrics.lanes(&stats, &|lane| self.dispatcher.queued_by_priority(lane), &memory);
        self.view.send_replace(Arc::new(FleetView { topology: Arc::clone(&self.topology), stats }));
    }
}

/// Put what an engine said of itself into the figures of its lane.
fn tell(stat: &mut LaneStat, (figures, rates, at): &(EngineMetrics, Rates, Instant)) {
    stat.waiting = figures.waiting.unwrap_or(0);
    stat.kv_used = figures.kv_used.unwrap_or(0);
    stat.decode_tps = rates.decode_tps.unwrap_or(0);
    stat.stale_ms = u32::try_from(at.elapsed().as_millis()).unwrap_or(u32::MAX);
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
