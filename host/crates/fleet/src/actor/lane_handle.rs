//! The actor's state of a lane beyond what the dispatcher knows.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_domain::{EndpointSet, Trigger};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::driver::Target;
use crate::message::SupervisorCommand;
use crate::model_card::ModelCard;
use crate::scrape::{EngineMetrics, Rates};
use crate::spec::LaneSpec;
use crate::status::LaneStatus;
use crate::upstream::Upstream;

/// The actor's state of a lane beyond what the dispatcher knows.
#[derive(Debug)]
pub(crate) struct LaneHandle {
    pub(super) name: Arc<str>,
    pub(super) engine_model: Option<Arc<str>>,
    /// The maximum sequence length, the endpoints and the card of the configuration.
    pub(super) configured: (u32, Option<EndpointSet>, ModelCard),
    pub(super) fallback_statuses: Arc<BTreeMap<u16, Trigger>>,
    pub(super) stream_usage: bool,
    pub(super) upstream: Arc<Upstream>,
    pub(super) commands: UnboundedSender<SupervisorCommand>,
    pub(super) status: watch::Sender<LaneStatus>,
    pub(super) target: Option<Arc<Target>>,
    /// Cancelled to abort the leases of the current generation; `None` without a drain timeout.
    pub(super) abort: Option<CancellationToken>,
    /// The last metrics of the engine, and when they were scraped.
    pub(super) last_report: Option<(EngineMetrics, Rates, Instant)>,
    /// The next first byte is the first one after a switch.
    pub(super) first_after_switch: bool,
}

impl LaneHandle {
    /// Creates the handle of a lane. Its leases can be aborted if `can_abort`.
    pub(crate) fn new(
        lane: &LaneSpec,
        upstream: &Arc<Upstream>,
        commands: UnboundedSender<SupervisorCommand>,
        status: &watch::Sender<LaneStatus>,
        can_abort: bool,
    ) -> Self {
        Self {
            name: lane.name.as_str().into(),
            engine_model: lane.engine_model.as_deref().map(Arc::from),
            configured: (lane.max_context, lane.endpoints, lane.engine.card()),
            fallback_statuses: Arc::new(lane.fallback_statuses.clone()),
            stream_usage: lane.stream_usage,
            upstream: Arc::clone(upstream),
            commands,
            status: status.clone(),
            target: None,
            abort: can_abort.then(CancellationToken::new),
            last_report: None,
            first_after_switch: false,
        }
    }
}
