//! Numbers that look random and are the same for the same seed on every machine: a generator whose output is fixed, and
//! distributions by the logarithms of `libm`, because those of the standard library are the C library's, which differ.

use std::time::Duration;

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::{Rng as _, SeedableRng as _};

/// A stream of random numbers. Streams of the same seed with different names have nothing to do with each other, so that one
/// kind of traffic stays as it is when another one changes.
#[derive(Debug, Clone)]
pub struct Random(Pcg64Mcg);

impl Random {
    /// The stream of this name.
    pub fn new(seed: u64, name: &str) -> Self {
        let hash = pointsman_domain::fnv1a_chain([name.as_bytes()], name.len().max(1), 1);
        Self(Pcg64Mcg::seed_from_u64(
            seed.rotate_left(32) ^ hash.first().copied().unwrap_or_default(),
        ))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// From 0 to below 1, of 2^53 equally likely ones.
    pub fn part(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Above 0, up to 1.
    fn positive_part(&mut self) -> f64 {
        1.0 - self.part()
    }

    /// Of the standard normal distribution, by the method of Box and Muller.
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * libm::log(self.positive_part())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.part())
    }

    /// From 0 to below `end`; 0 where there is nothing below it.
    pub fn below(&mut self, end: u64) -> u64 {
        // Wide multiplication: for the small numbers that are asked for, as good as even.
        ((u128::from(self.number()) * u128::from(end)) >> 64) as u64
    }
}

/// How a quantity is spread: times in seconds, lengths in tokens.
#[derive(Debug, Clone, PartialEq)]
pub enum Spread {
    /// Always the same.
    Fixed(f64),
    /// Anything between two values.
    Uniform(f64, f64),
    /// Times between events that know nothing of each other.
    Exponential {
        /// Mean.
        mean: f64,
    },
    /// What is multiplied by many small things: lengths of prompts, times of loads.
    LogNormal {
        /// Half of the values are below it.
        median: f64,
        /// Standard deviation of the logarithm.
        sigma: f64,
    },
    /// Many small ones, and a few that are very large.
    Pareto {
        /// The smallest.
        least: f64,
        /// The smaller, the heavier the tail.
        shape: f64,
        /// What is larger counts as this.
        most: f64,
    },
    /// One of these, each as likely as the others.
    OneOf(Vec<f64>),
    /// These, one after the other, and the last one from then on: what was measured.
    InTurn(Vec<f64>),
}

/// The 99th percentile of the standard normal distribution.
const NORMAL_P99: f64 = 2.326_347_874_040_841;

impl Spread {
    /// Log-normal, by its median and the value that one in a hundred exceeds.
    pub fn of_percentiles(median: f64, p99: f64) -> Self {
        let sigma =
            if p99 > median && median > 0.0 { libm::log(p99 / median) / NORMAL_P99 } else { 0.0 };
        Self::LogNormal { median, sigma }
    }

    /// One value; never negative, never infinite.
    pub fn sample(&self, random: &mut Random) -> f64 {
        self.nth(0, random)
    }

    /// The value that so many came before, which matters only to those that come in turn.
    pub fn nth(&self, number: usize, random: &mut Random) -> f64 {
        let value = match self {
            Self::Fixed(value) => *value,
            Self::Uniform(least, most) => least + (most - least) * random.part(),
            Self::Exponential { mean } => -mean * libm::log(random.positive_part()),
            Self::LogNormal { median, sigma } => median * libm::exp(sigma * random.normal()),
            Self::Pareto { least, shape, most } => {
                (least * libm::pow(random.positive_part(), -1.0 / shape)).min(*most)
            }
            Self::OneOf(values) => {
                let index = usize::try_from(random.below(values.len() as u64)).unwrap_or_default();
                values.get(index).copied().unwrap_or_default()
            }
            Self::InTurn(values) => {
                values.get(number).or(values.last()).copied().unwrap_or_default()
            }
        };
        if value.is_finite() { value.max(0.0) } else { 0.0 }
    }

    /// One value as a time, to the microsecond, which decision records have as well.
    pub fn time(&self, random: &mut Random) -> Duration {
        seconds(self.sample(random))
    }

    /// The value that so many came before as a time.
    pub fn nth_time(&self, number: usize, random: &mut Random) -> Duration {
        seconds(self.nth(number, random))
    }
}

/// A time to the microsecond; at most a thousand years.
pub fn seconds(seconds: f64) -> Duration {
    const MOST: f64 = 3.2e10;
    Duration::from_micros((seconds.clamp(0.0, MOST) * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_on_every_machine() {
        let mut random = Random::new(7, "arrivals");
        let drawn: Vec<u64> = (0..3).map(|_| random.below(1_000_000)).collect();
        let mut other = Random::new(7, "failures");
        assert_ne!(drawn, (0..3).map(|_| other.below(1_000_000)).collect::<Vec<_>>());
        let spreads = [
            Spread::Uniform(1.0, 2.0),
            Spread::Exponential { mean: 3.0 },
            Spread::of_percentiles(40.0, 90.0),
            Spread::Pareto { least: 10.0, shape: 1.2, most: 1e5 },
            Spread::OneOf(vec![1.0, 2.0, 3.0]),
        ];
        let bits: Vec<u64> =
            spreads.iter().map(|spread| spread.sample(&mut random).to_bits()).collect();
        assert_eq!((drawn, bits), (DRAWN.to_vec(), BITS.to_vec()));
    }

    #[test]
    fn what_comes_in_turn_ends_with_the_last_one_again_and_again() {
        let (spread, mut random) = (Spread::InTurn(vec![3.0, 1.0]), Random::new(1, "test"));
        let values: Vec<f64> = (0..4).map(|number| spread.nth(number, &mut random)).collect();
        assert_eq!(values, [3.0, 1.0, 1.0, 1.0]);
    }

    const DRAWN: [u64; 3] = [875_390, 878_136, 619_840];
    const BITS: [u64; 5] = [
        4_608_623_563_005_523_020,
        4_607_475_624_479_632_106,
        4_631_700_263_053_677_451,
        4_631_670_084_200_690_596,
        4_613_937_818_241_073_152,
    ];

    #[test]
    fn spreads_have_the_middle_and_the_tail_that_they_are_given() {
        let mut random = Random::new(1, "test");
        let spread = Spread::of_percentiles(40.0, 90.0);
        let mut values: Vec<f64> = (0..100_001).map(|_| spread.sample(&mut random)).collect();
        values.sort_unstable_by(f64::total_cmp);
        assert!((values[50_000] - 40.0).abs() < 0.5 && (values[99_000] - 90.0).abs() < 3.0);
        let mean = |spread: Spread, random: &mut Random| {
            (0..100_000).map(|_| spread.sample(random)).sum::<f64>() / 100_000.0
        };
        assert!((mean(Spread::Exponential { mean: 3.0 }, &mut random) - 3.0).abs() < 0.05);
        assert!((mean(Spread::Uniform(1.0, 3.0), &mut random) - 2.0).abs() < 0.02);
        for odd in [
            Spread::Exponential { mean: 0.0 },
            Spread::Exponential { mean: f64::NAN },
            Spread::LogNormal { median: 0.0, sigma: 1.0 },
            Spread::LogNormal { median: 1.0, sigma: f64::INFINITY },
            Spread::Pareto { least: 0.0, shape: -1.0, most: 1.0 },
            Spread::OneOf(Vec::new()),
            Spread::Fixed(-1.0),
            Spread::InTurn(Vec::new()),
        ] {
            let value = odd.sample(&mut random);
            assert!(value.is_finite() && value >= 0.0, "{odd:?}: {value}");
        }
    }
}
