//! What the dispatcher is told once: lanes, groups and rules.

use std::time::Duration;

/// Limits on waiting requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most that wait for one lane.
    pub per_lane: usize,
    /// Most that wait in all.
    pub total: usize,
}

/// When a lane's engine is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residency {
    /// It is not ours to load.
    External,
    /// As long as the host runs; never unloaded for another lane.
    Always,
    /// When it is wanted.
    OnDemand {
        /// Loaded at the start, if it fits.
        preload: bool,
        /// Unloaded after this time without a request; `None`: when its room is needed.
        unload_after: Option<Duration>,
    },
}

/// Pauses between failed lives of an engine: doubled from `first` to `most`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// The first pause.
    pub first: Duration,
    /// The longest pause.
    pub most: Duration,
    /// A life that served this long makes the next pause the first one again.
    pub reset_after: Duration,
    /// After this many failed loads in a row the lane counts as failed; 0: never.
    pub give_up: u32,
    /// Pause before a failed lane is tried again.
    pub failed_retry: Duration,
}

impl BackOff {
    /// The pause after this many failed lives in a row (at least 1).
    pub fn pause(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        self.first.saturating_mul(1 << doublings).min(self.most)
    }
}

/// What the dispatcher has to know of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneSetup {
    /// Requests it works on at once.
    pub slots: u32,
    /// Index of its group; a lane that shares with none has a group of its own.
    pub group: usize,
    /// Memory it holds while it is loaded, in bytes.
    pub need: u64,
    /// Memory it holds while it sleeps, in bytes.
    pub asleep: u64,
    /// When it is loaded.
    pub residency: Residency,
    /// How long a load is expected to take, until one has been seen.
    pub expected_load: Duration,
    /// Pauses between failed lives.
    pub back_off: BackOff,
}

/// Lanes that share memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupSetup {
    /// Bytes that they may hold together.
    pub budget: u64,
}

impl GroupSetup {
    /// Of a lane that shares with none.
    pub const ALONE: Self = Self { budget: u64::MAX };
}

/// The host's own rules of the queue and of switching. Policies advise within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Limits on waiting requests.
    pub queue: QueueLimits,
    /// A request gains one point of priority for each such time that it has waited; zero: never.
    pub aging: Duration,
    /// A lane with work stays loaded for this part (in thousandths) of what the switch away from it is expected to cost.
    pub min_residency: u32,
    /// An idle lane stays loaded for this part (in thousandths) of it, and at most for [`Rules::max_linger`].
    pub linger: u32,
    /// Longest time that an idle lane stays loaded against the wish of others.
    pub max_linger: Duration,
    /// Whoever has waited this long overrides priorities, the wishes of policies, and of the residence what exceeds the cost
    /// of one switch. Its wait ends soon after, if not at once: a lane that serves keeps that one cost, and of several who
    /// have waited too long the oldest goes first.
    pub starvation_timeout: Duration,
    /// After draining for this long, the leases that are left are cut; `None`: never.
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
    fn pauses_double_up_to_the_longest() {
        let second = Duration::from_secs(1);
        let back_off = BackOff {
            first: second,
            most: 5 * second,
            reset_after: second,
            give_up: 0,
            failed_retry: second,
        };
        let pauses: Vec<u64> =
            [1, 2, 3, 4, 99].map(|failures| back_off.pause(failures).as_secs()).to_vec();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
    }
}
