//! What another host says of a lane.

use std::time::Duration;

use crate::fleet_view::LaneState;

/// What another host says of one of its lanes that accepts requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteLane {
    /// The state there.
    pub state: LaneState,
    /// Maximum number of requests that are there at a time, served or waiting.
    pub slots: u32,
    /// Estimated wait in the queue there.
    pub est_wait: Duration,
    /// Estimated time until the lane serves there.
    pub ready_in: Duration,
    /// Requests of other lanes there that are delayed if the lane is loaded.
    pub displaces: u32,
    /// The host has not been heard of for some time: requests with a fallback use that. Holds the
    /// time after which the host counts as down.
    pub silent: Option<Duration>,
}
