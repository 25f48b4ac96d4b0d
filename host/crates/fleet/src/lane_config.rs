//! What a supervisor knows of the configuration of its lane.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::driver::Driver;
use crate::memory_admission::MemoryReservation;
use crate::spec::{LaneSpec, Liveness};
use crate::upstream::Upstream;

/// What a supervisor knows of the configuration of its lane.
pub(crate) struct LaneConfig {
    pub(crate) slots: u32,
    /// Names of the lane's own model in the engine's list of models.
    pub(crate) models: Vec<String>,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) upstream: Arc<Upstream>,
    /// `None` if the memory of the lane is not measured.
    pub(crate) reservation: Option<MemoryReservation>,
    pub(crate) liveness: Liveness,
    pub(crate) probe_interval: Duration,
    /// Names of environment variables that hold secrets of the host.
    pub(crate) secret_variables: Arc<[String]>,
}

impl LaneConfig {
    /// Collects the configuration of a lane.
    pub(crate) fn new(
        lane: &LaneSpec,
        upstream: &Arc<Upstream>,
        reservation: Option<MemoryReservation>,
        secret_variables: &Arc<[String]>,
    ) -> Self {
        Self {
            slots: lane.slots,
            models: lane.engine_model.iter().chain(&lane.models).cloned().collect(),
            driver: Arc::clone(&lane.engine.0),
            upstream: Arc::clone(upstream),
            reservation,
            liveness: lane.liveness,
            probe_interval: lane.engine.probe_interval(),
            secret_variables: Arc::clone(secret_variables),
        }
    }
}

/// Shows no settings: the environment of an engine may contain secrets.
impl fmt::Debug for LaneConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LaneConfig")
            .field("driver", &self.driver.info().key)
            .finish_non_exhaustive()
    }
}
