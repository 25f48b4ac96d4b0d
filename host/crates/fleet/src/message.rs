//! What the actor exchanges with requests, leases and supervisors.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{
    AcquireError, EngineEvent, Enqueue, FlowId, Generation, LaneCommand, LaneCommandError,
    LaneHint, RemoteLane, Report, Ticket,
};
use pointsman_domain::{CachedPrompts, LaneId, LaneStat, PrefixIndex, Topology, Trigger};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::driver::Target;
use crate::handover::PausedFleet;
use crate::lane_config::LaneConfig;
use crate::mailbox;
use crate::model_card::ModelCard;
use crate::reconfigure::LaneChange;
use crate::scrape::{EngineMetrics, Rates};
use crate::spec::FleetSpec;
use crate::upstream::Upstream;

/// Where messages to the actor go.
pub(crate) type Mailbox = mailbox::Mailbox<Message>;

/// A message to the actor. The mailbox is unbounded: every message belongs to a request or to an
/// engine, whose numbers are bounded elsewhere, and a lease has to release its slot from `drop`,
/// which cannot wait.
#[derive(Debug)]
pub(crate) enum Message {
    SlotRequest {
        request: Enqueue,
        reply: GrantSender,
    },
    Cancelled(Ticket),
    Released {
        ticket: Ticket,
        lane: LaneId,
        generation: Generation,
        flow: FlowId,
        report: Report,
    },
    Engine {
        source: EngineSource,
        event: EngineEvent,
        target: Option<Arc<Target>>,
    },
    EngineReport {
        source: EngineSource,
        metrics: EngineMetrics,
        rates: Rates,
    },
    Learned {
        source: EngineSource,
        card: Box<ModelCard>,
    },
    PeerReport {
        source: EngineSource,
        report: Box<PeerReport>,
    },
    Commanded(OperatorCommand),
    QueuePositions {
        reply: oneshot::Sender<HashMap<Ticket, usize>>,
    },
    Hinted {
        lane: LaneId,
        hint: Option<LaneHint>,
        duration: Duration,
    },
    Reconfigure {
        spec: Box<FleetSpec>,
        reply: oneshot::Sender<BTreeMap<String, LaneChange>>,
    },
    /// Stop to dispatch until it is decided which host goes on.
    Pause {
        reply: oneshot::Sender<PausedFleet>,
    },
    Close,
}

impl Message {
    /// Returns true if the message only says how a lane of another host is. A fleet of hundreds of
    /// lanes gets thousands of them in a second.
    pub(crate) fn is_peer_report(&self) -> bool {
        matches!(self, Self::PeerReport { .. })
    }

    /// Returns true if the message is one of a request. Nearly all messages are.
    pub(crate) fn is_of_request(&self) -> bool {
        match self {
            Self::SlotRequest { .. } | Self::Cancelled(_) | Self::Released { .. } => true,
            Self::Engine { .. }
            | Self::EngineReport { .. }
            | Self::Learned { .. }
            | Self::PeerReport { .. }
            | Self::Commanded(_)
            | Self::QueuePositions { .. }
            | Self::Hinted { .. }
            | Self::Reconfigure { .. }
            | Self::Pause { .. }
            | Self::Close => false,
        }
    }
}

/// What another host says of one of its lanes.
#[derive(Debug, Clone)]
pub(crate) struct PeerReport {
    /// What the dispatcher decides by.
    pub(crate) remote: RemoteLane,
    /// The metrics, for which `slots_there` are the slots there, and their age when they were sent.
    pub(crate) stat: LaneStat,
    pub(crate) slots_there: u32,
    /// When the other host sent something last.
    pub(crate) heard: std::time::Instant,
    /// What the engine there has probably cached.
    pub(crate) digest: Arc<dyn CachedPrompts>,
}

/// A command of an operator for a lane.
#[derive(Debug)]
pub(crate) struct OperatorCommand {
    pub(crate) lane: LaneId,
    pub(crate) command: LaneCommand,
    /// The operator.
    pub(crate) by: Arc<str>,
    pub(crate) reply: oneshot::Sender<Result<(), LaneCommandError>>,
}

/// The supervisor that a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EngineSource {
    pub(crate) lane: LaneId,
    /// Distinguishes the supervisors that a lane has had, and those of earlier lanes with the same
    /// id. What comes from an earlier one is too late.
    pub(crate) epoch: u64,
}

/// The channel on which a request gets its result.
pub(crate) type GrantSender = oneshot::Sender<Result<Grant, AcquireError>>;

/// A command of the dispatcher to the supervisor of an engine.
#[derive(Debug)]
pub(crate) enum SupervisorCommand {
    /// Start the engine, or wake it up.
    Load,
    /// Stop the engine, or put it to sleep.
    Unload {
        /// Stop the engine even if it could sleep.
        fully: bool,
    },
    /// Apply settings with which the running engine can go on.
    Configure(Box<LaneConfig>),
}

/// A granted slot, and what a request needs to use it.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) slot: Slot,
    pub(crate) lane_name: Arc<str>,
    pub(crate) engine_model: Option<Arc<str>>,
    /// The lanes and their names when the slot was granted.
    pub(crate) topology: Arc<Topology>,
    pub(crate) fallback_statuses: Arc<BTreeMap<u16, Trigger>>,
    pub(crate) stream_usage: bool,
    pub(crate) target: Arc<Target>,
    pub(crate) upstream: Arc<Upstream>,
    /// The prompts that the lanes have served.
    pub(crate) prefixes: Arc<PrefixIndex>,
    /// Cancelled to abort the in-flight responses of this generation; `None` without a drain
    /// timeout.
    pub(crate) abort: Option<CancellationToken>,
    pub(crate) priority: i32,
    /// The number of the load that the engine began with; `None` if this process has not loaded it.
    pub(crate) switch: Option<u64>,
}

/// A slot of a lane. It is released on drop, wherever the grant is at that time.
#[derive(Debug)]
pub(crate) struct Slot {
    ticket: Ticket,
    lane: LaneId,
    generation: Generation,
    flow: FlowId,
    granted: Instant,
    pub(crate) report: Report,
    mailbox: Mailbox,
}

impl Slot {
    pub(crate) fn new(
        ticket: Ticket,
        lane: LaneId,
        (generation, flow): (Generation, FlowId),
        mailbox: Mailbox,
    ) -> Self {
        let (granted, report) = (Instant::now(), Report::default());
        Self { ticket, lane, generation, flow, granted, report, mailbox }
    }

    /// Returns the lane of the slot.
    pub(crate) fn lane(&self) -> LaneId {
        self.lane
    }

    /// Returns the time since the slot was granted.
    pub(crate) fn held(&self) -> Duration {
        self.granted.elapsed()
    }

    #[cfg(test)]
    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.report.held = self.held();
        let Self { ticket, lane, generation, flow, report, .. } = *self;
        // Fails only if the actor has ended, and the slots with it.
        self.mailbox.send(Message::Released { ticket, lane, generation, flow, report }).ok();
    }
}

/// Reports what happens to the engine of one lane.
#[derive(Debug, Clone)]
pub(crate) struct EngineReporter {
    source: EngineSource,
    mailbox: Mailbox,
}

impl EngineReporter {
    pub(crate) fn new(source: EngineSource, mailbox: Mailbox) -> Self {
        Self { source, mailbox }
    }

    /// Reports that the engine is ready to serve at `target`.
    pub(crate) fn ready(&self, target: &Arc<Target>) {
        self.send(EngineEvent::Ready, Some(Arc::clone(target)));
    }

    /// Reports an event after which the engine does not serve.
    pub(crate) fn event(&self, event: EngineEvent) {
        self.send(event, None);
    }

    /// Reports what the engine says about its model.
    pub(crate) fn learned(&self, card: ModelCard) {
        let card = Box::new(card);
        // Fails only if the actor has ended; the card is not needed then.
        self.mailbox.send(Message::Learned { source: self.source, card }).ok();
    }

    /// Reports what another host says of the lane.
    pub(crate) fn peer_report(&self, report: PeerReport) {
        let report = Box::new(report);
        // Fails only if the actor has ended, which needs no reports.
        self.mailbox.send(Message::PeerReport { source: self.source, report }).ok();
    }

    /// Reports the engine's own metrics.
    pub(crate) fn metrics(&self, metrics: EngineMetrics, rates: Rates) {
        // Fails only if the actor has ended; the metrics are not needed then.
        self.mailbox.send(Message::EngineReport { source: self.source, metrics, rates }).ok();
    }

    fn send(&self, event: EngineEvent, target: Option<Arc<Target>>) {
        // Fails only if the actor has ended, which needs no events.
        self.mailbox.send(Message::Engine { source: self.source, event, target }).ok();
    }
}
