//! Times, counted in buckets whose width grows with them: as small as the run is long, exact to a part of each value.

use std::time::Duration;

/// Times to the microsecond. Two to the power of `BITS` buckets for each doubling, so the middle of a bucket is never further
/// from a value in it than `1 / 2^(BITS + 1)` of the value: 0.4 % for the default. Smallest, largest and sum are exact.
///
/// Memory is bounded by the largest time, not by how many there are: 60 kB for the longest that a `u64` can hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<const BITS: u32 = 7> {
    /// How many are in each bucket; no longer than the last one that has any.
    counts: Vec<u64>,
    count: u64,
    sum_us: u128,
    least_us: u64,
    most_us: u64,
}

impl<const BITS: u32> Default for Histogram<BITS> {
    fn default() -> Self {
        Self { counts: Vec::new(), count: 0, sum_us: 0, least_us: u64::MAX, most_us: 0 }
    }
}

impl<const BITS: u32> Histogram<BITS> {
    /// Counts one.
    pub fn record(&mut self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = Self::bucket(us);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.count += 1;
        self.sum_us += u128::from(us);
        self.least_us = self.least_us.min(us);
        self.most_us = self.most_us.max(us);
    }

    /// Counts all of another one. The order in which histograms are merged makes no difference.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.sum_us += other.sum_us;
        self.least_us = self.least_us.min(other.least_us);
        self.most_us = self.most_us.max(other.most_us);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The mean, exact to the microsecond.
    pub fn mean(&self) -> Option<Duration> {
        let mean = self.sum_us.checked_div(u128::from(self.count))?;
        Some(micros(u64::try_from(mean).unwrap_or(u64::MAX)))
    }

    /// The largest one, exact.
    pub fn max(&self) -> Option<Duration> {
        (self.count > 0).then(|| micros(self.most_us))
    }

    /// The smallest time that at least this part of them does not exceed: 0.99 is the 99th percentile.
    pub fn quantile(&self, part: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = (part.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        if rank >= self.count {
            return self.max();
        }
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        Some(micros(Self::middle(bucket).clamp(self.least_us, self.most_us)))
    }

    /// The upper ends of the buckets that have any, with how many are no longer than that: the points of a curve.
    pub fn curve(&self) -> impl Iterator<Item = (Duration, u64)> {
        let mut below = 0;
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(
            move |(bucket, count)| {
                below += count;
                (micros(Self::begin(bucket + 1).saturating_sub(1).min(self.most_us)), below)
            },
        )
    }

    /// Below `2^(BITS + 1)` each has its own bucket; above it, the highest bits of a value are the bucket.
    fn bucket(us: u64) -> usize {
        let shift = (u64::BITS - us.leading_zeros()).saturating_sub(BITS + 1);
        let bucket = (u64::from(shift) << BITS) + (us >> shift);
        usize::try_from(bucket).unwrap_or(usize::MAX)
    }

    /// The smallest value of a bucket.
    fn begin(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        let shift = (bucket >> BITS).saturating_sub(1);
        let digits = u128::from(bucket - (shift << BITS));
        u64::try_from(digits << shift).unwrap_or(u64::MAX)
    }

    fn middle(bucket: usize) -> u64 {
        let begin = Self::begin(bucket);
        begin + (Self::begin(bucket + 1) - 1 - begin) / 2
    }
}

fn micros(us: u64) -> Duration {
    Duration::from_micros(us)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|us| histogram.record(micros(*us)));
        histogram
    }

    #[test]
    fn nothing_has_no_figures() {
        let none = of(&[]);
        assert_eq!(
            (none.count(), none.mean(), none.max(), none.quantile(0.5)),
            (0, None, None, None)
        );
        assert_eq!(none.curve().count(), 0);
    }

    #[test]
    fn small_ones_are_exact() {
        let hundred: Vec<u64> = (1..=100).collect();
        let histogram = of(&hundred);
        for (part, us) in
            [(0.0, 1), (0.01, 1), (0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100), (7.0, 100)]
        {
            assert_eq!(histogram.quantile(part), Some(micros(us)), "{part}");
        }
        assert_eq!((histogram.mean(), histogram.max()), (Some(micros(50)), Some(micros(100))));
        assert_eq!(histogram.curve().nth(49), Some((micros(50), 50)));
    }

    #[test]
    fn buckets_follow_each_other_without_gaps_up_to_the_longest_time() {
        for bucket in 0..Histogram::<7>::bucket(u64::MAX) {
            let begin = Histogram::<7>::begin(bucket);
            assert_eq!(Histogram::<7>::bucket(begin), bucket);
            assert_eq!(Histogram::<7>::bucket(Histogram::<7>::begin(bucket + 1) - 1), bucket);
        }
        assert_eq!(of(&[u64::MAX, 0]).quantile(1.0), Some(micros(u64::MAX)));
        assert!(Histogram::<7>::bucket(u64::MAX) * 8 < 60_000);
    }

    proptest! {
        #[test]
        fn quantiles_are_right_within_one_percent(
            mut values in prop::collection::vec(prop_oneof![0..10_000u64, 0..100_000_000_000u64], 1..300),
            part in 0.0..=1.0f64,
        ) {
            let histogram = of(&values);
            values.sort_unstable();
            let rank = ((part * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let (exact, got) = (values[rank - 1] as f64, histogram.quantile(part).unwrap().as_micros() as f64);
            prop_assert!((exact - got).abs() <= exact * 0.01, "{exact} {got}");
        }

        #[test]
        fn merging_in_any_order_is_recording_all(
            a in prop::collection::vec(any::<u64>(), 0..50),
            b in prop::collection::vec(0..1000u64, 0..50),
            c in prop::collection::vec(0..1_000_000u64, 0..50),
        ) {
            let all = of(&[a.clone(), b.clone(), c.clone()].concat());
            for order in [[&a, &b, &c], [&c, &b, &a], [&b, &a, &c]] {
                let mut merged = Histogram::default();
                order.iter().for_each(|values| merged.merge(&of(values)));
                prop_assert_eq!(&merged, &all);
            }
        }
    }
}
