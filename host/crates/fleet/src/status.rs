//! The status of a lane.

use std::sync::Arc;
use std::time::SystemTime;

use pointsman_domain::dispatch::{LaneMode, Problem};
use pointsman_domain::{EngineState, LaneId, LaneState};

use crate::launch_memory::DeviceMemory;
use crate::memory_estimate::{MemoryComparison, MemoryEstimate};
use crate::model_card::ModelCard;

/// The status of a lane, as shown to operators.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LaneStatus {
    /// The id of the lane.
    pub lane: LaneId,
    /// The name of the lane.
    pub name: String,
    /// The state of the lane.
    pub state: LaneState,
    /// The state of the lane's engine.
    pub engine: EngineState,
    /// What an operator has commanded, while it is not done.
    pub manual: Option<ManualStatus>,
    /// Process id of the engine, if the host started it.
    pub pid: Option<u32>,
    /// Port of the engine, if the host started it.
    pub port: Option<u16>,
    /// Number of times the engine was started.
    pub starts: u64,
    /// Progress of the current load.
    pub progress: Option<String>,
    /// The last failure, until the lane serves again.
    pub problem: Option<Problem>,
    /// Bytes of the model's weights, as reported by the engine while it loaded.
    pub weights_bytes: Option<u64>,
    /// Bytes of the key-value cache.
    pub kv_bytes: Option<u64>,
    /// Capacity of the key-value cache in tokens.
    pub kv_tokens: Option<u64>,
    /// Bytes of the buffers for activations.
    pub compute_bytes: Option<u64>,
    /// What was computed from the model's files; kept while the lane is unloaded.
    pub estimate: Option<MemoryEstimate>,
    /// The memory of the device as the engine has reported it; kept while the lane is unloaded.
    pub device: Option<DeviceMemory>,
    /// What is known of the model; kept while the lane is unloaded.
    pub card: ModelCard,
}

/// What an operator has commanded of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManualStatus {
    /// What remains of the command.
    pub mode: LaneMode,
    /// The operator.
    pub by: Arc<str>,
    /// The time of the command.
    pub since: SystemTime,
}

impl LaneStatus {
    /// Returns true unless the engine is still being loaded or unloaded for an operator.
    pub fn is_command_done(&self) -> bool {
        match self.manual.as_ref().map(|manual| manual.mode) {
            None | Some(LaneMode::Draining) => true,
            Some(LaneMode::Held) => !self.engine.holds_memory(),
            Some(LaneMode::Loading | LaneMode::Unloading | LaneMode::Restarting) => false,
        }
    }

    /// Returns the status of a lane among those of all.
    pub fn find(statuses: &[Self], lane: LaneId) -> Option<&Self> {
        statuses.iter().find(|status| status.lane == lane)
    }

    /// Compares the memory that was estimated with what the engine reported when it was loaded.
    pub fn memory_comparison(&self) -> Option<MemoryComparison> {
        let reported = [self.weights_bytes, self.kv_bytes, self.compute_bytes];
        self.estimate.and_then(|estimate| estimate.compare(reported))
    }
}
