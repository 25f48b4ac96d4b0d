//! The task that owns all lane state. Everything that changes it comes through one mailbox and is decided by
//! [`Dispatcher`]; what it looks like is published as one [`FleetView`] per batch of messages.
//!
//! ```text
//!   acquire ──Wanted──┐                               ┌──Grant/Refuse──> whoever waits
//!   Lease   ─Released─┼──> mailbox ──> Dispatcher ────┤
//!   drop    ─Cancelled┤                               └──FleetView─────> watch
//!   engines ─Changed──┘
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{
    Arrival, Dispatcher, Effect, Event, Generation, QueueLimits, Refusal, Report, Ticket,
};
use pointsman_domain::{FleetView, LaneId, LaneState, Topology};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::driver::Target;
use crate::lease::Lease;
use crate::metrics::FleetMetrics;
use crate::upstream::Upstream;

/// What the actor is told. Every message belongs to a request or to an engine, whose numbers are limited, so the mailbox
/// needs no limit of its own; and a lease must be able to say from `drop` that it is free.
#[derive(Debug)]
pub(crate) enum Message {
    Wanted { arrival: Arrival, answer: oneshot::Sender<Result<Lease, Refusal>> },
    Cancelled(Ticket),
    Released { lane: LaneId, generation: Generation, report: Report },
    Changed { lane: LaneId, state: LaneState, ready_in: Duration, target: Option<Arc<Target>> },
    Close,
}

/// What the actor knows of a lane beyond the dispatcher.
#[derive(Debug)]
pub(crate) struct LaneParts {
    pub(crate) name: Arc<str>,
    pub(crate) engine_model: Option<Arc<str>>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) target: Option<Arc<Target>>,
}

#[derive(Debug)]
pub(crate) struct Actor {
    dispatcher: Dispatcher,
    topology: Arc<Topology>,
    lanes: Vec<LaneParts>,
    waiting: HashMap<Ticket, oneshot::Sender<Result<Lease, Refusal>>>,
    started: Instant,
    mailbox: UnboundedSender<Message>,
    view: watch::Sender<Arc<FleetView>>,
    metrics: Arc<FleetMetrics>,
}

impl Actor {
    pub(crate) fn new(
        topology: Arc<Topology>,
        lanes: Vec<LaneParts>,
        limits: QueueLimits,
        started: Instant,
        mailbox: UnboundedSender<Message>,
        view: watch::Sender<Arc<FleetView>>,
        metrics: Arc<FleetMetrics>,
    ) -> Self {
        let dispatcher = Dispatcher::new(topology.lanes().iter().map(|lane| lane.slots), limits);
        Self { dispatcher, topology, lanes, waiting: HashMap::new(), started, mailbox, view, metrics }
    }

    /// Run until everybody who could send a message is gone, which our own sender prevents: so, until aborted by its owner.
    pub(crate) async fn run(mut self, mut messages: UnboundedReceiver<Message>) {
        const BATCH: usize = 256;
        let mut batch = Vec::with_capacity(BATCH);
        let mut effects = Vec::new();
        loop {
            let deadline = self.dispatcher.next_deadline().map(|deadline| self.started + deadline);
            tokio::select! {
                count = messages.recv_many(&mut batch, BATCH) => {
                    if count == 0 { return }
                }
                () = sleep_until(deadline) => {}
            }
            let now = self.started.elapsed();
            for message in batch.drain(..) {
                self.take_in(message, now, &mut effects);
            }
            self.dispatcher.on(Event::Tick, now, &mut effects);
            // Published first: whoever is answered finds a view in which the answer has happened.
            self.publish();
            for effect in effects.drain(..) {
                self.carry_out(effect);
            }
        }
    }

    fn take_in(&mut self, message: Message, now: Duration, effects: &mut Vec<Effect>) {
        let event = match message {
            Message::Wanted { arrival, answer } => {
                self.waiting.insert(arrival.ticket, answer);
                Event::Arrived(arrival)
            }
            Message::Cancelled(ticket) => {
                self.waiting.remove(&ticket);
                Event::Cancelled(ticket)
            }
            Message::Released { lane, generation, report } => Event::Released { lane, generation, report },
            Message::Changed { lane, state, ready_in, target } => {
                if let Some(parts) = self.lanes.get_mut(lane.index()) {
                    parts.target = target;
                }
                Event::LaneChanged { lane, state, ready_in }
            }
            Message::Close => Event::Closed,
        };
        self.dispatcher.on(event, now, effects);
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Grant { ticket, lane, generation, waited } => {
                self.metrics.granted(lane, waited);
                let Some(answer) = self.waiting.remove(&ticket) else {
                    // Cancelled in the same batch: its slot is free again.
                    drop(self.lease(lane, generation));
                    return;
                };
                // The engine may have gone down in the same batch. A lease that nobody takes is dropped, and so given back.
                drop(answer.send(self.lease(lane, generation).ok_or(Refusal::NotServing(LaneState::Down))));
            }
            Effect::Refuse { ticket, refusal } => {
                self.metrics.refused(&refusal);
                if let Some(answer) = self.waiting.remove(&ticket) {
                    drop(answer.send(Err(refusal)));
                }
            }
        }
    }

    fn lease(&self, lane: LaneId, generation: Generation) -> Option<Lease> {
        let parts = self.lanes.get(lane.index())?;
        Some(Lease {
            lane,
            generation,
            lane_name: Arc::clone(&parts.name),
            engine_model: parts.engine_model.clone(),
            target: parts.target.clone()?,
            upstream: Arc::clone(&parts.upstream),
            mailbox: self.mailbox.clone(),
            granted: Instant::now(),
            report: Report::default(),
        })
    }

    fn publish(&self) {
        let stats = self.dispatcher.stats();
        self.metrics.lanes(&stats);
        self.view.send_replace(Arc::new(FleetView { topology: Arc::clone(&self.topology), stats }));
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
