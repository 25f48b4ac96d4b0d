//! The actor's state of a lane beyond what the dispatcher knows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_domain::{EndpointSet, LaneInfo, LaneNames, Topology, Trigger};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::driver::Target;
use crate::message::{PeerReport, SupervisorCommand};
use crate::model_card::ModelCard;
use crate::scrape::{EngineMetrics, Rates};
use crate::spec::LaneSpec;
use crate::status::LaneStatus;
use crate::switches::LoadCause;
use crate::upstream::Upstream;

/// The actor's state of a lane beyond what the dispatcher knows.
#[derive(Debug)]
pub(crate) struct LaneHandle {
    pub(super) name: Arc<str>,
    pub(super) engine_model: Option<Arc<str>>,
    /// The maximum sequence length, the endpoints and the card of the configuration.
    pub(super) configured: (u32, Option<EndpointSet>, ModelCard),
    /// The names and the slots of the configuration.
    pub(super) configured_names: (Vec<String>, LaneNames),
    /// What the engine has said about its model.
    pub(super) learned: Option<ModelCard>,
    pub(super) fallback_statuses: Arc<BTreeMap<u16, Trigger>>,
    pub(super) stream_usage: bool,
    pub(super) upstream: Arc<Upstream>,
    pub(super) commands: UnboundedSender<SupervisorCommand>,
    /// The number of the supervisor.
    pub(super) epoch: u64,
    /// Cancelled to end the supervisor.
    pub(super) stop: CancellationToken,
    pub(super) status: watch::Sender<LaneStatus>,
    pub(super) target: Option<Arc<Target>>,
    /// Cancelled to abort the leases of the current generation; `None` without a drain timeout.
    pub(super) abort: Option<CancellationToken>,
    /// The last metrics of the engine, and when they were scraped.
    pub(super) last_report: Option<(EngineMetrics, Rates, Instant)>,
    /// What another host said last of the lane, if it is one of that host.
    pub(super) peer_report: Option<Box<PeerReport>>,
    /// Who gave the last command of an operator, and when.
    pub(super) commanded: Option<(Arc<str>, SystemTime)>,
    /// The next first byte is the first one after a switch.
    pub(super) first_after_switch: bool,
    /// Why the lane was loaded last, and the number of that load once it had ended.
    pub(super) load_cause: LoadCause,
    pub(super) last_switch: Option<u64>,
    /// Gets another supervisor once its engine has been unloaded.
    pub(super) restarts: bool,
    /// The last generation of the topology that had the lane, which was removed then.
    pub(super) last_generation: Option<u64>,
    /// That topology, for slots that were granted at the moment of the removal.
    pub(super) last_topology: Option<Arc<Topology>>,
}

impl LaneHandle {
    /// Creates the handle of a lane. Its leases can be aborted if there is a drain timeout.
    pub(super) fn new(
        lane: &LaneSpec,
        commands: UnboundedSender<SupervisorCommand>,
        status: watch::Sender<LaneStatus>,
        drain_timeout: Option<Duration>,
    ) -> Self {
        Self {
            name: lane.name.as_str().into(),
            engine_model: lane.engine_model.as_deref().map(Arc::from),
            configured: (lane.max_context, lane.endpoints, lane.engine.card()),
            configured_names: (lane.models.clone(), lane.names.clone()),
            learned: None,
            fallback_statuses: Arc::new(lane.fallback_statuses.clone()),
            stream_usage: lane.stream_usage,
            upstream: upstream(lane),
            commands,
            epoch: 0,
            stop: CancellationToken::new(),
            status,
            target: None,
            abort: drain_timeout.map(|_| CancellationToken::new()),
            last_report: None,
            peer_report: None,
            commanded: None,
            first_after_switch: false,
            load_cause: LoadCause::Configuration,
            last_switch: None,
            restarts: false,
            last_generation: None,
            last_topology: None,
        }
    }

    /// Lets the supervisor take over the engine that an earlier host has left running.
    pub(crate) fn adopt(&self) {
        self.commands.send(SupervisorCommand::Load).ok(); // Fails only while the host stops.
    }

    /// Applies what later leases get of a new configuration. Connections are only made anew if they
    /// have other settings.
    pub(super) fn configure(&mut self, before: &LaneSpec, lane: &LaneSpec) {
        self.engine_model = lane.engine_model.as_deref().map(Arc::from);
        self.configured = (lane.max_context, lane.endpoints, lane.engine.card());
        self.configured_names = (lane.models.clone(), lane.names.clone());
        if *self.fallback_statuses != lane.fallback_statuses {
            self.fallback_statuses = Arc::new(lane.fallback_statuses.clone());
        }
        self.stream_usage = lane.stream_usage;
        let has_same_connections = before.timeouts == lane.timeouts
            && before.slots == lane.slots
            && before.engine.0.equals(&*lane.engine.0);
        if !has_same_connections {
            self.upstream = upstream(lane);
        }
    }

    /// Allows to abort the leases of the current generation, or no longer. Leases that have been
    /// granted keep what they have.
    pub(super) fn set_drain_timeout(&mut self, drain_timeout: Option<Duration>) {
        if self.abort.is_some() != drain_timeout.is_some() {
            self.abort = drain_timeout.map(|_| CancellationToken::new());
        }
    }

    /// Adds what the engine has said about its model to what policies see. What the operator wrote
    /// stays.
    pub(super) fn complete(&self, info: &mut LaneInfo) {
        let (max_context, endpoints, mut card) = self.configured.clone();
        if let Some(learned) = &self.learned {
            card = card.completed(learned);
            info.names.adapters = card.adapter_names();
            info.max_context = match max_context {
                0 => card.context.unwrap_or(info.max_context),
                _ => max_context,
            };
            info.endpoints = endpoints.or(card.endpoints).unwrap_or(info.endpoints);
            if let Some(peer) = &learned.peer {
                peer.complete(info, &self.configured_names);
            }
        }
        self.status.send_modify(|status| status.card = card);
    }

    /// Notes what a ready engine says about its model. An engine that does not say its context or
    /// its endpoints once has not changed them.
    pub(super) fn learn(&mut self, mut learned: ModelCard) {
        if let Some(before) = &self.learned {
            learned.context = learned.context.or(before.context);
            learned.endpoints = learned.endpoints.or(before.endpoints);
        }
        self.learned = Some(learned);
    }
}

/// Returns new connections to the engine of a lane.
fn upstream(lane: &LaneSpec) -> Arc<Upstream> {
    Arc::new(Upstream::new(lane.timeouts, lane.slots, &*lane.engine.0))
}
