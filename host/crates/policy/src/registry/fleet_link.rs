//! The connection of policies to the fleet.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{FleetView, LaneId};

/// The connection to the fleet: the state of the lanes, and hints about them.
pub struct FleetLink {
    /// Returns the current state of the lanes.
    pub view: Box<dyn Fn() -> Arc<FleetView> + Send + Sync>,
    /// Gives a hint about a lane that is valid for a time; `None` revokes the previous one.
    pub hint: Box<dyn Fn(LaneId, Option<LaneHint>, Duration) + Send + Sync>,
}

impl std::fmt::Debug for FleetLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleetLink").finish_non_exhaustive()
    }
}
