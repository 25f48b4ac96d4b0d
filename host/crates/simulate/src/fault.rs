//! Faults that a scenario injects into engines.

use std::time::Duration;

use pointsman_domain::LaneId;

use crate::random::Distribution;

/// A fault that is injected into the engines of one or more lanes at the same times.
#[derive(Debug, Clone, PartialEq)]
pub struct InjectedFault {
    /// The affected lanes.
    pub lanes: Vec<LaneId>,
    /// The kind of fault.
    pub kind: FaultKind,
    /// When the fault is injected.
    pub schedule: Schedule,
}

/// A kind of engine fault. Durations are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub enum FaultKind {
    /// The engine exits while loading or serving, and all its responses are lost.
    Crash,
    /// The engine makes no progress for this time. The host kills the engine if the hang lasts
    /// longer than the hang detection time.
    Hang(Distribution),
    /// Loads that start within this time fail, after as long as they would have taken.
    LoadFailure(Distribution),
    /// Loads that start within this time take longer.
    SlowLoad {
        /// The factor by which load times are multiplied.
        load_time_factor: f64,
        /// How long the fault lasts.
        duration: Distribution,
    },
    /// Prefill and decode are slower for this time.
    Slowdown {
        /// The factor by which the engine's speed is multiplied.
        speed_factor: f64,
        /// How long the fault lasts.
        duration: Distribution,
    },
}

/// When a fault is injected.
#[derive(Debug, Clone, PartialEq)]
pub enum Schedule {
    /// At these times since the start of the simulation.
    At(Vec<Duration>),
    /// Repeatedly, with intervals drawn from this distribution, in seconds.
    Every(Distribution),
}
