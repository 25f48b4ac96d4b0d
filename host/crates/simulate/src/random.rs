//! Reproducible random numbers: the same seed yields the same numbers on every machine.
//!
//! The generator's output is specified, and distributions use the logarithms of `libm`. Those of
//! the standard library come from the platform's C library, whose last bits differ.

use std::time::Duration;

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng as _, SeedableRng as _};

/// A stream of random numbers.
///
/// Streams of the same seed with different names are independent, so that a change of one part of
/// a scenario leaves the random numbers of all others as they are.
#[derive(Debug, Clone)]
pub struct Random(Pcg64Mcg);

impl Random {
    /// Creates the stream with this name. The name is part of the seed: renaming a stream changes
    /// every number that it yields.
    pub fn new(seed: u64, name: &str) -> Self {
        let hash = pointsman_domain::fnv1a_chain([name.as_bytes()], name.len().max(1), 1);
        Self(Pcg64Mcg::seed_from_u64(
            seed.rotate_left(32) ^ hash.first().copied().unwrap_or_default(),
        ))
    }

    /// Returns a uniformly distributed integer.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Returns a number in `0.0..1.0`, one of 2^53 equally likely ones.
    pub fn fraction(&mut self) -> f64 {
        // 53 bits, the precision of the mantissa: the conversion is exact.
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Returns a number greater than 0.0 and at most 1.0, which always has a logarithm.
    fn positive_fraction(&mut self) -> f64 {
        1.0 - self.fraction()
    }

    /// Returns a number from the standard normal distribution, by the Box-Muller transform.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(self.positive_fraction())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.fraction())
    }

    /// Returns an integer in `0..end`, or 0 if the range is empty.
    pub fn below(&mut self, end: u64) -> u64 {
        // Multiply and shift, without rejection: for the small ranges used here the bias is far
        // below what a simulation can show.
        ((u128::from(self.next_u64()) * u128::from(end)) >> 64) as u64
    }
}

/// The distribution of a quantity: a time in seconds or a length in tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Distribution {
    /// Always the same value.
    Fixed(f64),
    /// Uniform between a minimum and a maximum.
    Uniform(f64, f64),
    /// Exponential, as the times between independent events.
    Exponential {
        /// The mean.
        mean: f64,
    },
    /// Log-normal, as prompt lengths and load times are.
    LogNormal {
        /// The median.
        median: f64,
        /// The standard deviation of the logarithm.
        sigma: f64,
    },
    /// Pareto with an upper bound: many small values and a few very large ones.
    Pareto {
        /// The smallest value.
        min: f64,
        /// The shape parameter; the smaller it is, the heavier is the tail.
        shape: f64,
        /// The upper bound; larger samples are replaced by it.
        max: f64,
    },
    /// One of these values, all equally likely.
    OneOf(Vec<f64>),
    /// These measured values in sequence, and the last one from then on.
    Sequence(Vec<f64>),
}

/// The 99th percentile of the standard normal distribution.
const NORMAL_P99: f64 = 2.326_347_874_040_841;

impl Distribution {
    /// Creates a log-normal distribution from its median and its 99th percentile.
    pub fn from_percentiles(median: f64, p99: f64) -> Self {
        let sigma =
            if p99 > median && median > 0.0 { libm::log(p99 / median) / NORMAL_P99 } else { 0.0 };
        Self::LogNormal { median, sigma }
    }

    /// Draws a value. The value is finite and not negative, whatever the parameters are.
    pub fn sample(&self, random: &mut Random) -> f64 {
        self.nth_sample(0, random)
    }

    /// Draws the value with this index, which only matters to [`Distribution::Sequence`].
    pub fn nth_sample(&self, index: usize, random: &mut Random) -> f64 {
        let value = match self {
            Self::Fixed(value) => *value,
            Self::Uniform(min, max) => min + (max - min) * random.fraction(),
            Self::Exponential { mean } => -mean * libm::log(random.positive_fraction()),
            Self::LogNormal { median, sigma } => median * libm::exp(sigma * random.normal()),
            Self::Pareto { min, shape, max } => {
                (min * libm::pow(random.positive_fraction(), -1.0 / shape)).min(*max)
            }
            Self::OneOf(values) => {
                let index = usize::try_from(random.below(values.len() as u64)).unwrap_or_default();
                values.get(index).copied().unwrap_or_default()
            }
            Self::Sequence(values) => {
                values.get(index).or(values.last()).copied().unwrap_or_default()
            }
        };
        // Extreme parameters overflow to infinity or NaN, which would stop virtual time.
        if value.is_finite() { value.max(0.0) } else { 0.0 }
    }

    /// Draws a time, in whole microseconds as in decision records.
    pub fn sample_time(&self, random: &mut Random) -> Duration {
        seconds(self.sample(random))
    }

    /// Draws the time with this index, in whole microseconds.
    pub fn nth_sample_time(&self, index: usize, random: &mut Random) -> Duration {
        seconds(self.nth_sample(index, random))
    }
}

/// Converts seconds to a duration of whole microseconds, at most about a thousand years.
pub fn seconds(seconds: f64) -> Duration {
    const MAX_SECONDS: f64 = 3.2e10;
    Duration::from_micros((seconds.clamp(0.0, MAX_SECONDS) * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_identical_on_every_machine() {
        let mut random = Random::new(7, "arrivals");
        let integers: Vec<u64> = (0..3).map(|_| random.below(1_000_000)).collect();
        let mut other = Random::new(7, "failures");
        assert_ne!(integers, (0..3).map(|_| other.below(1_000_000)).collect::<Vec<_>>());
        let distributions = [
            Distribution::Uniform(1.0, 2.0),
            Distribution::Exponential { mean: 3.0 },
            Distribution::from_percentiles(40.0, 90.0),
            Distribution::Pareto { min: 10.0, shape: 1.2, max: 1e5 },
            Distribution::OneOf(vec![1.0, 2.0, 3.0]),
        ];
        let bits: Vec<u64> = distributions
            .iter()
            .map(|distribution| distribution.sample(&mut random).to_bits())
            .collect();
        assert_eq!((integers, bits), (EXPECTED_INTEGERS.to_vec(), EXPECTED_BITS.to_vec()));
    }

    #[test]
    fn sequence_repeats_its_last_value() {
        let distribution = Distribution::Sequence(vec![3.0, 1.0]);
        let mut random = Random::new(1, "test");
        let values: Vec<f64> =
            (0..4).map(|index| distribution.nth_sample(index, &mut random)).collect();
        assert_eq!(values, [3.0, 1.0, 1.0, 1.0]);
    }

    const EXPECTED_INTEGERS: [u64; 3] = [875_390, 878_136, 619_840];
    const EXPECTED_BITS: [u64; 5] = [
        4_608_623_563_005_523_020,
        4_607_475_624_479_632_106,
        4_631_700_263_053_677_451,
        4_631_670_084_200_690_596,
        4_613_937_818_241_073_152,
    ];

    #[test]
    fn distributions_match_their_parameters() {
        let mut random = Random::new(1, "test");
        let distribution = Distribution::from_percentiles(40.0, 90.0);
        let mut values: Vec<f64> = (0..100_001).map(|_| distribution.sample(&mut random)).collect();
        values.sort_unstable_by(f64::total_cmp);
        assert!((values[50_000] - 40.0).abs() < 0.5 && (values[99_000] - 90.0).abs() < 3.0);
        let mean = |distribution: Distribution, random: &mut Random| {
            (0..100_000).map(|_| distribution.sample(random)).sum::<f64>() / 100_000.0
        };
        assert!((mean(Distribution::Exponential { mean: 3.0 }, &mut random) - 3.0).abs() < 0.05);
        assert!((mean(Distribution::Uniform(1.0, 3.0), &mut random) - 2.0).abs() < 0.02);
        for degenerate in [
            Distribution::Exponential { mean: 0.0 },
            Distribution::Exponential { mean: f64::NAN },
            Distribution::LogNormal { median: 0.0, sigma: 1.0 },
            Distribution::LogNormal { median: 1.0, sigma: f64::INFINITY },
            Distribution::Pareto { min: 0.0, shape: -1.0, max: 1.0 },
            Distribution::OneOf(Vec::new()),
            Distribution::Fixed(-1.0),
            Distribution::Sequence(Vec::new()),
        ] {
            let value = degenerate.sample(&mut random);
            assert!(value.is_finite() && value >= 0.0, "{degenerate:?}: {value}");
        }
    }
}
