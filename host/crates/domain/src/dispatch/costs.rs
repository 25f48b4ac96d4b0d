//! Expected durations of loading and stopping a lane's engine, learned from past loads and stops.

use std::collections::VecDeque;
use std::time::Duration;

/// Number of recent durations that are considered.
const WINDOW: usize = 7;

/// The lower median of recent durations.
///
/// Unlike a mean, the median is not skewed by an outlier. The first load, which compiles kernels,
/// may take twenty times as long as later ones (engines.md reports 12 minutes versus 40 s); a
/// single normal load after it corrects the estimate.
#[derive(Debug, Clone)]
pub(super) struct DurationEstimate {
    expected: Duration,
    last: VecDeque<Duration>,
    estimate: Duration,
}

impl DurationEstimate {
    pub(super) fn new(expected: Duration) -> Self {
        Self { expected, last: VecDeque::new(), estimate: expected }
    }

    /// Changes the expected duration, which only counts until one has been recorded.
    pub(super) fn expect(&mut self, expected: Duration) {
        self.expected = expected;
        if self.last.is_empty() {
            self.estimate = expected;
        }
    }

    pub(super) fn record(&mut self, took: Duration) {
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

    /// Returns the estimated time left after `elapsed`. Never zero: an operation that takes longer
    /// than usual is expected to take another tenth.
    pub(super) fn remaining(&self, elapsed: Duration) -> Duration {
        self.estimate.saturating_sub(elapsed).max(self.estimate / 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_load_does_not_skew_the_estimate() {
        let seconds = |estimate: &DurationEstimate| estimate.estimate().as_secs();
        let mut estimate = DurationEstimate::new(Duration::from_secs(60));
        assert_eq!(seconds(&estimate), 60);
        estimate.record(Duration::from_secs(720));
        assert_eq!(seconds(&estimate), 720, "the only duration recorded so far");
        estimate.record(Duration::from_secs(40));
        assert_eq!(seconds(&estimate), 40);
        (0..20).for_each(|_| estimate.record(Duration::from_secs(38)));
        estimate.record(Duration::from_secs(900));
        assert_eq!((seconds(&estimate), estimate.last.len()), (38, WINDOW));
        assert_eq!(estimate.remaining(Duration::from_secs(30)).as_secs(), 8);
        assert_eq!(estimate.remaining(Duration::from_secs(99)).as_millis(), 3800);
    }
}
