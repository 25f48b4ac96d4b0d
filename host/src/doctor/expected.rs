//! What a configuration expects of the system that it is for.

use std::collections::BTreeMap;

use pointsman_config::Config;
use pointsman_fleet::{LaneContext, Pool, vllm::Vllm};

/// What a configuration expects of a system; nothing without one.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// The groups whose memory is that of a GPU, with their budgets in bytes.
    pub(super) gpu_groups: Vec<(String, Pool, u64)>,
    /// The sum of the budgets of all groups in bytes.
    pub(super) budgets: u64,
    /// The lanes with vLLM.
    pub(super) vllm: Vec<String>,
    /// The lanes whose engines have variables of their own, with all variables that they get.
    pub(super) environments: Vec<(String, BTreeMap<String, String>)>,
    /// The lanes whose engines lock their models in memory, with their need in bytes.
    pub(super) locking: Vec<(String, u64)>,
}

impl Expected {
    pub(super) fn new(config: &Config, inherited: &BTreeMap<String, String>) -> Self {
        let fleet = &config.fleet;
        let counted = fleet.groups.iter().filter_map(|group| Some((group, group.pool?)));
        let counted: Vec<_> = counted.collect();
        let is_gpu = |pool: &Pool| matches!(pool, Pool::Gpu { .. });
        let gpu_groups = counted.iter().filter(|(_, pool)| is_gpu(pool));
        let gpu_groups = gpu_groups.map(|(group, pool)| (group.name.clone(), *pool, group.budget));
        let is_vllm =
            |lane: &&pointsman_fleet::LaneSpec| lane.engine.downcast_ref::<Vllm>().is_some();
        let variables = |lane: &pointsman_fleet::LaneSpec| {
            let context =
                LaneContext { need: lane.need, pool: None, pool_total: None, environment: &[] };
            let own = lane.engine.describe(&context).command?.env;
            let mut all = inherited.clone();
            all.extend(own.iter().cloned());
            (!own.is_empty()).then(|| (lane.name.clone(), all))
        };
        let locking = |lane: &pointsman_fleet::LaneSpec| {
            let context =
                LaneContext { need: lane.need, pool: None, pool_total: None, environment: &[] };
            let words = lane.engine.describe(&context).command?.command;
            words.iter().any(|word| word == "--mlock").then(|| (lane.name.clone(), lane.need))
        };
        Self {
            gpu_groups: gpu_groups.collect(),
            budgets: counted
                .iter()
                .fold(0, |sum: u64, (group, _)| sum.saturating_add(group.budget)),
            vllm: fleet.lanes.iter().filter(is_vllm).map(|lane| lane.name.clone()).collect(),
            environments: fleet.lanes.iter().filter_map(variables).collect(),
            locking: fleet.lanes.iter().filter_map(locking).collect(),
        }
    }

    /// Returns true if lanes need a GPU.
    pub(super) fn needs_gpu(&self) -> bool {
        !self.gpu_groups.is_empty()
    }
}
