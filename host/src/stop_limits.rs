//! How long a stop may take.

use std::time::Duration;

use pointsman_fleet::FleetSpec;

/// Time for clients to read the error event that ends an aborted stream.
pub(crate) const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time for connections to close at the end.
pub(crate) const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Time to write the decision records that are still queued.
pub(crate) const RECORDS_TIMEOUT: Duration = Duration::from_secs(2);

/// Time to write what is still queued for the store.
pub(crate) const STORE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a stop may take, by the configuration in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StopLimits {
    /// Maximum time that requests in flight may take after the host was told to stop.
    pub(crate) drain_timeout: Duration,
    /// Maximum duration of the whole shutdown.
    pub(crate) limit: Duration,
}

impl StopLimits {
    /// Returns the limits of a configuration.
    pub(crate) fn new(drain_timeout: Duration, fleet: &FleetSpec) -> Self {
        /// Time for the system to end killed processes, and for what else is not counted.
        const MARGIN: Duration = Duration::from_secs(5);
        let engines = fleet.lanes.iter().filter_map(|lane| lane.engine.run());
        let longest_grace = engines.map(|engine| engine.stop_grace).max().unwrap_or_default();
        let limit = [drain_timeout, ABORT_TIMEOUT, longest_grace, CLOSE_TIMEOUT, RECORDS_TIMEOUT]
            .into_iter()
            .chain([STORE_TIMEOUT, MARGIN])
            .fold(Duration::ZERO, Duration::saturating_add);
        Self { drain_timeout, limit }
    }
}
