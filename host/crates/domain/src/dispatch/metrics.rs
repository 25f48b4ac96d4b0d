//! Load metrics of a lane, computed from its recent requests.

use std::time::Duration;

use crate::fleet_view::Permille;

/// Number of recent requests that the metrics cover.
const WINDOW: usize = 64;

/// The report on a released lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// How long the slot was held.
    pub held: Duration,
    /// Time from the grant to the first byte of the response; `None` if there was none.
    pub first_byte: Option<Duration>,
    /// True if the engine failed the request. A disconnected client or an invalid request is not a
    /// failure.
    pub failed: bool,
    /// True if the connection to the engine broke or could not be made: the engine may be gone.
    pub severed: bool,
}

/// Metrics over a sliding window. All are kept up to date with each report: a report must cost
/// little, and reading them nothing.
#[derive(Debug, Default)]
pub(super) struct LoadMetrics {
    /// The last reports: whether the engine failed the request, and the time to the first byte.
    reports: Vec<(bool, Option<u32>)>,
    next: usize,
    failed: usize,
    /// The times to the first byte of these reports in milliseconds, in ascending order.
    first_bytes: Vec<u32>,
    mean_held: Option<Duration>,
}

impl LoadMetrics {
    pub(super) fn record(&mut self, report: Report) {
        let first_byte =
            report.first_byte.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        let entry = (report.failed, first_byte);
        if self.reports.len() < WINDOW {
            self.reports.push(entry);
        } else {
            let (failed, first_byte) = std::mem::replace(&mut self.reports[self.next], entry);
            self.failed -= usize::from(failed);
            if let Some(Ok(at)) = first_byte.map(|time| self.first_bytes.binary_search(&time)) {
                self.first_bytes.remove(at);
            }
        }
        self.next = (self.next + 1) % WINDOW;
        self.failed += usize::from(report.failed);
        if let Some(time) = first_byte {
            let at = self.first_bytes.partition_point(|other| *other < time);
            self.first_bytes.insert(at, time);
        }
        if !report.failed {
            // A moving average over about eight requests follows a change of load quickly enough.
            self.mean_held =
                Some(self.mean_held.map_or(report.held, |mean| (mean * 7 + report.held) / 8));
        }
    }

    /// Returns the estimated wait of a request with `queued` requests ahead of it.
    pub(super) fn wait_for(&self, queued: usize, slots: u32) -> Duration {
        let rounds = u32::try_from(queued + 1).unwrap_or(u32::MAX).div_ceil(slots.max(1));
        self.mean_held.unwrap_or_default().saturating_mul(rounds)
    }

    /// Returns true if no request has been served yet, so that all estimates are zero.
    pub(super) fn is_untrained(&self) -> bool {
        self.mean_held.is_none()
    }

    /// Returns the average time that a slot is held.
    pub(super) fn mean_held(&self) -> Duration {
        self.mean_held.unwrap_or_default()
    }

    pub(super) fn errors(&self) -> Permille {
        Permille::try_from(self.failed * 1000 / self.reports.len().max(1)).unwrap_or(1000)
    }

    pub(super) fn ttft_p50_ms(&self) -> u32 {
        self.percentile(50)
    }

    pub(super) fn ttft_p99_ms(&self) -> u32 {
        self.percentile(99)
    }

    /// Returns the nearest rank: the smallest time that at least `percent` of them do not exceed.
    fn percentile(&self, percent: usize) -> u32 {
        let rank = (self.first_bytes.len() * percent).div_ceil(100).max(1);
        self.first_bytes.get(rank - 1).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ms: u64, failed: bool) -> Report {
        let first_byte = (!failed).then_some(Duration::from_millis(ms));
        Report { held: Duration::from_millis(ms * 10), first_byte, failed, severed: false }
    }

    #[test]
    fn metrics_cover_recent_requests_only() {
        let mut metrics = LoadMetrics::default();
        assert_eq!((metrics.errors(), metrics.ttft_p50_ms(), metrics.ttft_p99_ms()), (0, 0, 0));
        (0..100).for_each(|_| metrics.record(report(1000, true)));
        assert_eq!((metrics.errors(), metrics.ttft_p50_ms()), (1000, 0));
        (1..=WINDOW as u64).for_each(|ms| metrics.record(report(ms, false)));
        assert_eq!((metrics.errors(), metrics.ttft_p50_ms(), metrics.ttft_p99_ms()), (0, 32, 64));
        metrics.record(report(1, true));
        assert_eq!(metrics.errors(), 15);
    }

    #[test]
    fn wait_estimate_counts_rounds_of_all_slots() {
        let mut metrics = LoadMetrics::default();
        assert_eq!(metrics.wait_for(9, 2), Duration::ZERO, "no requests recorded yet");
        metrics.record(report(10, false));
        for (queued, slots, ms) in [(0, 2, 100), (1, 2, 100), (2, 2, 200), (9, 0, 1000)] {
            assert_eq!(
                metrics.wait_for(queued, slots),
                Duration::from_millis(ms),
                "{queued} before, {slots} slots"
            );
        }
    }
}
