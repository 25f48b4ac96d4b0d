//! What loading and stopping a lane's engine costs, learned from what it did cost.

use std::collections::VecDeque;
use std::time::Duration;

/// How many of the last times are looked at.
const WINDOW: usize = 7;

/// The lower median of the last few times. Unlike a mean it cannot be poisoned: a first load that compiles its kernels may
/// take twenty times as long as every later one (engines.md tells of 12 minutes against 40 s), and one good load after it is
/// enough to be believed.
#[derive(Debug, Clone)]
pub(super) struct Cost {
    expected: Duration,
    last: VecDeque<Duration>,
    estimate: Duration,
}

impl Cost {
    pub(super) fn new(expected: Duration) -> Self {
        Self { expected, last: VecDeque::new(), estimate: expected }
    }

    pub(super) fn add(&mut self, took: Duration) {
        if self.last.len() == WINDOW {
            self.last.pop_front();
        }
        self.last.push_back(took);
        let mut sorted: Vec<Duration> = self.last.iter().copied().collect();
        sorted.sort_unstable();
        self.estimate = sorted.get((sorted.len() - 1) / 2).copied().unwrap_or(self.expected);
    }

    pub(super) fn estimate(&self) -> Duration {
        self.estimate
    }

    /// What is left after `elapsed`. Never nothing: what takes longer than usual takes a while longer.
    pub(super) fn left(&self, elapsed: Duration) -> Duration {
        self.estimate.saturating_sub(elapsed).max(self.estimate / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cold_start_does_not_poison_the_estimate() {
        let seconds = |cost: &Cost| cost.estimate().as_secs();
        let mut cost = Cost::new(Duration::from_secs(60));
        assert_eq!(seconds(&cost), 60);
        cost.add(Duration::from_secs(720));
        assert_eq!(seconds(&cost), 720, "it is all that is known");
        cost.add(Duration::from_secs(40));
        assert_eq!(seconds(&cost), 40);
        (0..20).for_each(|_| cost.add(Duration::from_secs(38)));
        cost.add(Duration::from_secs(900));
        assert_eq!((seconds(&cost), cost.last.len()), (38, WINDOW));
        assert_eq!(cost.left(Duration::from_secs(30)).as_secs(), 8);
        assert_eq!(cost.left(Duration::from_secs(99)).as_millis(), 3800);
    }
}
