//! The fleets of golden cases: lanes as a case describes them, and the view that a policy gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_domain::{EngineKind, FleetView, LaneId, LaneInfo, LaneStat, LaneState, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::version::case_error::CaseInputError;

/// The lanes of a case.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaseFleet {
    lanes: Vec<CaseLane>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CaseLane {
    name: String,
    models: Option<Vec<String>>,
    #[serde(default)]
    #[schemars(with = "String")]
    engine: EngineKind,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    max_context: u32,
    #[serde(default = "default_slots")]
    slots: u32,
    #[serde(default)]
    group: u32,
    #[serde(default)]
    cost_milli: u32,
    #[serde(default = "default_state")]
    #[schemars(with = "String")]
    state: LaneState,
    slots_free: Option<u32>,
    #[serde(default)]
    running: u32,
    #[serde(default)]
    waiting: u32,
    #[serde(default)]
    queued: u32,
    #[serde(default)]
    kv_used: u16,
    #[serde(default)]
    errors: u16,
    #[serde(default)]
    ttft_p50_ms: u32,
    #[serde(default)]
    ttft_p99_ms: u32,
    #[serde(default)]
    decode_tps: u32,
    #[serde(default)]
    est_wait_ms: u32,
    #[serde(default)]
    ready_in_ms: u32,
    #[serde(default)]
    displaces: u32,
    #[serde(default)]
    cached_tokens: u32,
    #[serde(default)]
    stale_ms: u32,
}

impl CaseFleet {
    /// Returns a fleet of `lanes` lanes: the first of these, or copies of them under other names.
    pub(super) fn resized(&self, lanes: usize) -> Self {
        let copy = |index: usize| index / self.lanes.len().max(1) + 1;
        let numbered = |(index, lane): (usize, &CaseLane)| match copy(index) {
            1 => lane.clone(),
            copy => CaseLane { name: format!("{}-{copy}", lane.name), ..lane.clone() },
        };
        Self { lanes: self.lanes.iter().cycle().take(lanes).enumerate().map(numbered).collect() }
    }
}

/// Creates the fleet of a case. Each case has its own topology generation, because instances may
/// cache data of a topology.
pub(super) fn fleet(case: &CaseFleet, generation: u64) -> FleetView {
    let info = |lane: &CaseLane| LaneInfo {
        id: LaneId(0),
        name: lane.name.clone(),
        engine: lane.engine,
        models: lane.models.clone().unwrap_or_else(|| vec![lane.name.clone()]),
        names: Default::default(),
        labels: lane.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
        max_context: lane.max_context,
        endpoints: pointsman_domain::EndpointSet::all(),
        slots: lane.slots,
        group: lane.group,
        cost_milli: lane.cost_milli,
        is_peer: false,
    };
    let topology = Topology::new(generation, case.lanes.iter().map(info).collect());
    let stat = |(info, lane): (&LaneInfo, &CaseLane)| LaneStat {
        id: info.id,
        state: lane.state,
        running: lane.running,
        waiting: lane.waiting,
        queued: lane.queued,
        slots_free: lane.slots_free.unwrap_or(if lane.state.serving() { lane.slots } else { 0 }),
        kv_used: lane.kv_used,
        errors: lane.errors,
        ttft_p50_ms: lane.ttft_p50_ms,
        ttft_p99_ms: lane.ttft_p99_ms,
        decode_tps: lane.decode_tps,
        est_wait_ms: lane.est_wait_ms,
        ready_in_ms: lane.ready_in_ms,
        displaces: lane.displaces,
        cached_tokens: lane.cached_tokens,
        stale_ms: lane.stale_ms,
    };
    let stats = topology.lanes().iter().zip(&case.lanes).map(stat).collect();
    FleetView::new(Arc::new(topology), stats)
}

/// Returns the id of the lane with this name.
pub(super) fn lane_of(name: &str, fleet: &FleetView) -> Result<LaneId, CaseInputError> {
    let lane = fleet.topology.find(name);
    lane.ok_or_else(|| CaseInputError::UnknownLane { lane: name.to_owned() })
}

fn default_slots() -> u32 {
    4
}

fn default_state() -> LaneState {
    LaneState::Ready
}
