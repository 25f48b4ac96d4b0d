//! Statistics by interval of time. The number of intervals is bounded: they grow with the run.

use std::time::Duration;

use pointsman_domain::RequestResult;

use crate::histogram::{Histogram, micros};
use crate::phase::{PHASES, Phase};

/// Maximum number of intervals.
const MAX_INTERVALS: usize = 480;

/// Lengths of the intervals, in seconds. Each is a multiple of the previous one, so that whole
/// intervals can be merged.
const LENGTHS: [u64; 16] = [
    1, 5, 10, 30, 60, 300, 900, 1_800, 3_600, 7_200, 14_400, 43_200, 86_400, 604_800, 6_048_000,
    60_480_000,
];

/// Statistics that can be merged with others of their type.
pub(crate) trait Merge {
    /// Adds the counts of `other`.
    fn merge(&mut self, other: &Self);
}

/// Consecutive intervals from the start of the run.
#[derive(Debug, Clone)]
pub struct TimeSeries {
    /// Index into [`LENGTHS`].
    length: usize,
    intervals: Vec<Interval>,
    classes: usize,
    lanes: usize,
}

/// The statistics of one interval.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Interval {
    /// Statistics by class.
    pub classes: Vec<ClassInterval>,
    /// Statistics by lane.
    pub lanes: Vec<LaneInterval>,
}

/// The statistics of one class in one interval.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ClassInterval {
    /// Requests that arrived.
    pub arrivals: u64,
    /// Waits of the requests that arrived in this interval.
    pub waits: Histogram<4>,
    /// Requests that ended with a response of a fallback lane.
    pub fell_back: u64,
    /// Requests that a policy rejected.
    pub rejected: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Requests whose client disconnected.
    pub client_gone: u64,
}

/// The statistics of one lane in one interval.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LaneInterval {
    /// Maximum queue length.
    pub max_waiting: u64,
    /// Integral of the queue length over time, in microseconds.
    pub waiting_us: u128,
    /// Time in each phase, in microseconds.
    pub phases_us: [u64; PHASES],
}

impl Merge for Interval {
    fn merge(&mut self, other: &Self) {
        for (class, more) in self.classes.iter_mut().zip(&other.classes) {
            class.arrivals += more.arrivals;
            class.waits.merge(&more.waits);
            class.fell_back += more.fell_back;
            class.rejected += more.rejected;
            class.errors += more.errors;
            class.client_gone += more.client_gone;
        }
        for (lane, more) in self.lanes.iter_mut().zip(&other.lanes) {
            lane.max_waiting = lane.max_waiting.max(more.max_waiting);
            lane.waiting_us += more.waiting_us;
            for (time, more) in lane.phases_us.iter_mut().zip(more.phases_us) {
                *time += more;
            }
        }
    }
}

impl ClassInterval {
    /// Counts a request that ended with this outcome.
    pub(crate) fn count(&mut self, how: RequestResult) {
        match how {
            RequestResult::Answered => {}
            RequestResult::FellBack => self.fell_back += 1,
            RequestResult::Rejected => self.rejected += 1,
            RequestResult::Error => self.errors += 1,
            RequestResult::ClientGone => self.client_gone += 1,
        }
    }
}

impl LaneInterval {
    /// Returns the time that the interval was observed for.
    fn observed_us(&self) -> u64 {
        self.phases_us.iter().sum()
    }

    /// Returns the mean queue length.
    pub fn mean_waiting(&self) -> f64 {
        part(self.waiting_us, self.observed_us())
    }

    /// Returns the share of the time that was spent in a phase.
    pub fn share(&self, phase: Phase) -> f64 {
        part(u128::from(self.phases_us[phase as usize]), self.observed_us())
    }
}

fn part(of: u128, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { of as f64 / whole as f64 }
}

impl TimeSeries {
    /// Creates an empty series.
    pub(crate) fn new(classes: usize, lanes: usize) -> Self {
        Self { length: 0, intervals: Vec::new(), classes, lanes }
    }

    /// Returns the length of each interval.
    pub fn length(&self) -> Duration {
        Duration::from_secs(LENGTHS[self.length])
    }

    /// Returns the intervals, the first of which begins at time zero.
    pub fn intervals(&self) -> &[Interval] {
        &self.intervals
    }

    /// Merges intervals until there are at most `max_count` of them, each at least `min_length`
    /// long.
    #[must_use]
    pub fn downsampled(&self, max_count: usize, min_length: Duration) -> Self {
        let mut series = self.clone();
        while (series.intervals.len() > max_count || series.length() < min_length)
            && series.length + 1 < LENGTHS.len()
        {
            series.lengthen();
        }
        series
    }

    /// Returns the interval that contains `at`.
    pub(crate) fn at(&mut self, at: Duration) -> &mut Interval {
        let index = self.reach(at);
        &mut self.intervals[index]
    }

    /// Calls `add` for each interval that overlaps the given time, with the overlap in
    /// microseconds.
    pub(crate) fn between(
        &mut self,
        from: Duration,
        to: Duration,
        mut add: impl FnMut(&mut Interval, u64),
    ) {
        if to <= from {
            return;
        }
        // The end is exclusive: a time that ends where an interval begins does not overlap it.
        let last = self.reach(to.saturating_sub(Duration::from_micros(1)).max(from));
        let length = self.length();
        // `from` may lie beyond the last interval of a run that outgrew even the longest ones.
        let first = self.index(from).min(last);
        for (index, interval) in self.intervals[first..=last].iter_mut().enumerate() {
            let start = length * u32::try_from(first + index).unwrap_or(u32::MAX);
            let inside = to.min(start + length).saturating_sub(from.max(start));
            if !inside.is_zero() {
                add(interval, micros(inside));
            }
        }
    }

    /// Makes sure that there is an interval for `at`, and returns its index.
    fn reach(&mut self, at: Duration) -> usize {
        while self.index(at) >= MAX_INTERVALS && self.length + 1 < LENGTHS.len() {
            self.lengthen();
        }
        let index = self.index(at).min(MAX_INTERVALS - 1);
        while self.intervals.len() <= index {
            self.intervals.push(Interval {
                classes: vec![ClassInterval::default(); self.classes],
                lanes: vec![LaneInterval::default(); self.lanes],
            });
        }
        index
    }

    fn index(&self, at: Duration) -> usize {
        usize::try_from(at.as_secs() / LENGTHS[self.length]).unwrap_or(usize::MAX)
    }

    fn lengthen(&mut self) {
        let times = usize::try_from(LENGTHS[self.length + 1] / LENGTHS[self.length]).unwrap_or(1);
        self.length += 1;
        let intervals = std::mem::take(&mut self.intervals);
        for group in intervals.chunks(times) {
            let mut merged = group[0].clone();
            group[1..].iter().for_each(|interval| merged.merge(interval));
            self.intervals.push(merged);
        }
    }
}
