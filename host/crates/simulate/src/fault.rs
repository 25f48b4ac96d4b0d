//! What goes wrong with engines, and when.

use std::time::Duration;

use pointsman_domain::LaneId;

use crate::random::Spread;

/// Something that goes wrong with all of these lanes at the same moments.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The lanes.
    pub lanes: Vec<LaneId>,
    /// What goes wrong.
    pub what: Trouble,
    /// When.
    pub when: When,
}

/// What can go wrong with an engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Trouble {
    /// It ends, loading or serving, and all its answers break off.
    Crash,
    /// It works on nothing for a time, in seconds. If that is longer than the host takes to notice, the engine is ended.
    Hang(Spread),
    /// Loads that begin within this time, in seconds, fail after as long as they would have taken.
    LoadsFail(Spread),
    /// Loads that begin within this time, in seconds, take so many times as long.
    SlowLoads {
        /// So many times.
        times: f64,
        /// For so long.
        lasts: Spread,
    },
    /// It writes and reads at this part of its speed for a time, in seconds.
    SlowDown {
        /// The part.
        part: f64,
        /// For so long.
        lasts: Spread,
    },
}

/// When something happens.
#[derive(Debug, Clone, PartialEq)]
pub enum When {
    /// At these times.
    At(Vec<Duration>),
    /// Again and again, with these times between, in seconds.
    Every(Spread),
}
