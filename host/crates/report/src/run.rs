//! The result of one run.

use crate::histogram::Histogram;
use crate::phase::Timeline;
use crate::series::TimeSeries;
use crate::summary::Summary;

/// The result of one run: its statistics, and the data of its plots.
#[derive(Debug, Clone)]
pub struct Run {
    /// Statistics.
    pub summary: Summary,
    /// Histograms of wait and time to first byte, by class.
    pub histograms: Vec<LatencyHistograms>,
    /// Statistics by interval of time.
    pub series: TimeSeries,
    /// The phases of each lane's engine over time.
    pub timelines: Vec<Timeline>,
}

/// The latency histograms of one class.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LatencyHistograms {
    /// Time spent waiting for a slot, of all requests that no policy rejected.
    pub wait: Histogram,
    /// Time to first byte, of all requests that got one.
    pub first_byte: Histogram,
}
