//! Configuration of the dispatcher: lanes, groups and rules.

use std::time::Duration;

/// Limits on the number of waiting requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Maximum number of requests waiting for one lane.
    pub per_lane: usize,
    /// Maximum number of waiting requests over all lanes.
    pub total: usize,
}

/// When a lane's engine is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// Never: the host does not manage the engine.
    External,
    /// As long as the host runs; never evicted.
    Always,
    /// On demand.
    OnDemand {
        /// True to load the lane at startup if it fits.
        preload: bool,
        /// Idle time after which the lane is unloaded; `None` to unload it only when its memory is
        /// needed.
        unload_after: Option<Duration>,
    },
}

/// Exponential backoff between failures of an engine, doubled from `first` to `most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Initial backoff.
    pub first: Duration,
    /// Maximum backoff.
    pub most: Duration,
    /// Serving time after which a failure starts again with the initial backoff.
    pub reset_after: Duration,
    /// Number of consecutive failures after which the lane counts as failed; 0 for never.
    pub max_failures: u32,
    /// Pause before a failed lane is loaded again.
    pub retry_failed_after: Duration,
}

impl Backoff {
    /// Returns the pause after `failures` consecutive failures (at least 1).
    pub fn pause(&self, failures: u32) -> Duration {
        // More doublings would overflow the factor; 2^20 exceeds any sensible ratio of the two
        // bounds.
        let doublings = failures.saturating_sub(1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.most)
    }
}

/// The configuration of one lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSetup {
    /// Number of requests that the lane serves at a time.
    pub slots: u32,
    /// Index of the lane's group; an unknown index gives the lane a group of its own.
    pub group: usize,
    /// Memory held while the lane is loaded, in bytes.
    pub need: u64,
    /// Memory held while the engine sleeps, in bytes.
    pub asleep: u64,
    /// When the lane is loaded.
    pub residency: Residency,
    /// Expected duration of a load, until one has been observed.
    pub expected_load: Duration,
    /// Pauses between failures of the engine.
    pub backoff: Backoff,
}

/// The configuration of a group of lanes that share memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupSetup {
    /// Total bytes that the lanes of the group may hold.
    pub budget: u64,
}

impl GroupSetup {
    /// The group of a lane that does not share memory.
    pub const ALONE: Self = Self { budget: u64::MAX };
}

/// The host's rules for queueing and switching. Policies advise within these rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Limits on waiting requests.
    pub queue: QueueLimits,
    /// Waiting time after which a request's priority rises by one point; zero for never.
    pub aging: Duration,
    /// Minimum residency of a busy lane, in thousandths of the expected cost of switching away from
    /// it.
    pub min_residency: u32,
    /// Time that an idle lane stays loaded, in thousandths of the same cost; at most
    /// [`Rules::max_linger`].
    pub linger: u32,
    /// Maximum time that an idle lane stays loaded while other lanes are in demand.
    pub max_linger: Duration,
    /// A request that has waited this long overrides priorities, hints of policies, and the part of
    /// the minimum residency that exceeds the cost of one switch. Its wait ends soon, though not
    /// necessarily at once: a serving lane keeps a residency of one switch cost, and of several
    /// overdue requests the oldest is served first.
    pub starvation_timeout: Duration,
    /// Time after which the remaining leases of a draining lane are aborted; `None` for never.
    pub drain_timeout: Option<Duration>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            queue: QueueLimits { per_lane: 64, total: 256 },
            aging: Duration::from_secs(5),
            min_residency: 1000,
            linger: 50,
            max_linger: Duration::from_secs(2),
            starvation_timeout: Duration::from_secs(120),
            drain_timeout: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_the_maximum() {
        let second = Duration::from_secs(1);
        let backoff = Backoff {
            first: second,
            most: 5 * second,
            reset_after: second,
            max_failures: 0,
            retry_failed_after: second,
        };
        let pauses: Vec<u64> =
            [1, 2, 3, 4, 99].map(|failures| backoff.pause(failures).as_secs()).to_vec();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
    }
}
