//! The arrival times of requests and sessions.

use std::f64::consts::TAU;
use std::time::Duration;

use super::spec::ArrivalProcess;
use crate::random::{Distribution, Random, seconds};

const SECONDS_PER_DAY: f64 = 86_400.0;

/// The endless sequence of arrival times of a process.
pub(super) struct ArrivalTimes {
    process: ArrivalProcess,
    random: Random,
    /// The last arrival.
    at: Duration,
    /// The time of day at the start of the run, in seconds.
    start_of_day: f64,
    /// The remaining arrivals of the current burst, and when it started.
    burst: (u64, Duration),
}

impl ArrivalTimes {
    /// Creates the sequence that starts at `from`. The wall clock at the start of the run is given
    /// in milliseconds since the Unix epoch.
    pub(super) fn new(
        process: &ArrivalProcess,
        seed: u64,
        name: &str,
        from: Duration,
        start_ms: u64,
    ) -> Self {
        let start_of_day = (start_ms % 86_400_000) as f64 / 1000.0;
        let random = Random::new(seed, &format!("{name} times"));
        Self { process: process.clone(), random, at: from, start_of_day, burst: (0, from) }
    }

    pub(super) fn next(&mut self) -> Duration {
        let random = &mut self.random;
        match &self.process {
            ArrivalProcess::Poisson(rate) => {
                self.at += Distribution::Exponential { mean: 1.0 / rate }.sample_time(random);
            }
            // By thinning: arrivals are generated at the peak rate, and some of them are dropped.
            ArrivalProcess::Daily { peak, trough, peak_at } => loop {
                self.at += Distribution::Exponential { mean: 1.0 / peak }.sample_time(random);
                let since_peak = self.start_of_day + self.at.as_secs_f64() - peak_at.as_secs_f64();
                let height = f64::midpoint(1.0, libm::cos(TAU * since_peak / SECONDS_PER_DAY));
                if random.fraction() * peak < trough + (peak - trough) * height {
                    break;
                }
            },
            ArrivalProcess::Every(interval) => self.at += interval.sample_time(random),
            ArrivalProcess::Bursts { every, size, gap } => match self.burst {
                (0, started_at) => {
                    let start = self.at.max(started_at + every.sample_time(random));
                    let size = size.sample(random).round().max(1.0);
                    self.burst = (size as u64 - 1, start);
                    self.at = start;
                }
                (left, started_at) => {
                    self.at += seconds(gap.sample(random));
                    self.burst = (left - 1, started_at);
                }
            },
        }
        self.at
    }
}
