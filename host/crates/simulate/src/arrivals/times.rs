//! When requests and sessions begin.

use std::f64::consts::TAU;
use std::time::Duration;

use crate::random::{Random, Spread, seconds};
use crate::scenario::Pace;

const DAY: f64 = 86_400.0;

/// The times of a pace, one after the other, without an end.
pub(super) struct Times {
    pace: Pace,
    random: Random,
    /// The last one.
    at: Duration,
    /// Seconds of the day at the begin of the run.
    of_day: f64,
    /// Of a burst: how many are left of it, and when it began.
    burst: (u64, Duration),
}

impl Times {
    pub(super) fn new(pace: &Pace, seed: u64, name: &str, from: Duration, begins_ms: u64) -> Self {
        let of_day = (begins_ms % 86_400_000) as f64 / 1000.0;
        let random = Random::new(seed, &format!("{name} times"));
        Self { pace: pace.clone(), random, at: from, of_day, burst: (0, from) }
    }

    pub(super) fn next(&mut self) -> Duration {
        let random = &mut self.random;
        match &self.pace {
            Pace::Poisson(rate) => self.at += Spread::Exponential { mean: 1.0 / rate }.time(random),
            // By thinning: as many as there are most come, and some of them are left out.
            Pace::Daily { most, least, at } => loop {
                self.at += Spread::Exponential { mean: 1.0 / most }.time(random);
                let of_day = self.of_day + self.at.as_secs_f64() - at.as_secs_f64();
                let height = f64::midpoint(1.0, libm::cos(TAU * of_day / DAY));
                if random.part() * most < least + (most - least) * height {
                    break;
                }
            },
            Pace::Every(spread) => self.at += spread.time(random),
            Pace::Bursts { every, size, gap } => match self.burst {
                (0, began) => {
                    let begins = self.at.max(began + every.time(random));
                    let size = size.sample(random).round().max(1.0);
                    self.burst = (size as u64 - 1, begins);
                    self.at = begins;
                }
                (left, began) => {
                    self.at += seconds(gap.sample(random));
                    self.burst = (left - 1, began);
                }
            },
        }
        self.at
    }
}
