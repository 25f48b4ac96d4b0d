//! A histogram of durations with logarithmic buckets, bounded in memory and in relative error.
//!
//! It is not the crate `hdrhistogram`, because reports promise exact means and maxima: there, both
//! are those of buckets.

use std::time::Duration;

/// A histogram of durations with microsecond resolution.
///
/// Each power of two is divided into `2^BITS` buckets, so the middle of a bucket differs from a
/// value in it by at most `1 / 2^(BITS + 1)` of the value: 0.4 % with the default of 7 bits.
/// Minimum, maximum and sum are exact.
///
/// Memory is bounded by the largest duration, not by the number of durations: 60 kB for the longest
/// one that fits into a `u64`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram<const BITS: u32 = 7> {
    /// Count of each bucket, up to the last one that is not empty.
    counts: Vec<u64>,
    count: u64,
    sum_us: u128,
    min_us: u64,
    max_us: u64,
}

impl<const BITS: u32> Default for Histogram<BITS> {
    fn default() -> Self {
        Self { counts: Vec::new(), count: 0, sum_us: 0, min_us: u64::MAX, max_us: 0 }
    }
}

impl<const BITS: u32> Histogram<BITS> {
    /// Adds a duration.
    pub fn record(&mut self, time: Duration) {
        let us = micros(time);
        let bucket = Self::bucket(us);
        if self.counts.len() <= bucket {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.count += 1;
        self.sum_us += u128::from(us);
        self.min_us = self.min_us.min(us);
        self.max_us = self.max_us.max(us);
    }

    /// Adds all durations of another histogram. The order in which histograms are merged makes no
    /// difference.
    pub fn merge(&mut self, other: &Self) {
        if self.counts.len() < other.counts.len() {
            self.counts.resize(other.counts.len(), 0);
        }
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.count += other.count;
        self.sum_us += other.sum_us;
        self.min_us = self.min_us.min(other.min_us);
        self.max_us = self.max_us.max(other.max_us);
    }

    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the mean, exact to the microsecond; `None` if the histogram is empty.
    pub fn mean(&self) -> Option<Duration> {
        let mean = self.sum_us.checked_div(u128::from(self.count))?;
        Some(Duration::from_micros(u64::try_from(mean).unwrap_or(u64::MAX)))
    }

    /// Returns the exact maximum; `None` if the histogram is empty.
    pub fn max(&self) -> Option<Duration> {
        (self.count > 0).then(|| Duration::from_micros(self.max_us))
    }

    /// Returns a quantile, for example the 99th percentile for 0.99: the shortest duration that at
    /// least this share of all durations does not exceed. Returns `None` if the histogram is empty.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        if self.count == 0 {
            return None;
        }
        let rank = (q.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        if rank >= self.count {
            return self.max();
        }
        let mut below = 0;
        let bucket = self.counts.iter().position(|count| {
            below += count;
            below >= rank
        })?;
        // The middle of the first or last bucket may lie outside the values that were recorded.
        Some(Duration::from_micros(Self::middle(bucket).clamp(self.min_us, self.max_us)))
    }

    /// Returns the bucket of a value. Values below `2^(BITS + 1)` have a bucket each; above that,
    /// the highest bits of a value are its bucket.
    fn bucket(us: u64) -> usize {
        let shift = (u64::BITS - us.leading_zeros()).saturating_sub(BITS + 1);
        let bucket = (u64::from(shift) << BITS) + (us >> shift);
        usize::try_from(bucket).unwrap_or(usize::MAX)
    }

    /// Returns the smallest value of a bucket.
    fn lower_bound(bucket: usize) -> u64 {
        let bucket = bucket as u64;
        let shift = (bucket >> BITS).saturating_sub(1);
        let digits = u128::from(bucket - (shift << BITS));
        u64::try_from(digits << shift).unwrap_or(u64::MAX)
    }

    fn middle(bucket: usize) -> u64 {
        let lower_bound = Self::lower_bound(bucket);
        lower_bound + (Self::lower_bound(bucket + 1) - 1 - lower_bound) / 2
    }
}

/// Returns a time in microseconds, saturating after more than half a million years.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a histogram of values in microseconds.
    fn histogram(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|us| histogram.record(Duration::from_micros(*us)));
        histogram
    }

    #[test]
    fn empty_histogram_has_no_statistics() {
        let empty = histogram(&[]);
        assert_eq!(
            (empty.count(), empty.mean(), empty.max(), empty.quantile(0.5)),
            (0, None, None, None)
        );
    }

    #[test]
    fn small_values_are_exact() {
        let hundred: Vec<u64> = (1..=100).collect();
        let histogram = histogram(&hundred);
        for (part, us) in
            [(0.0, 1), (0.01, 1), (0.5, 50), (0.9, 90), (0.99, 99), (1.0, 100), (7.0, 100)]
        {
            assert_eq!(histogram.quantile(part), Some(Duration::from_micros(us)), "{part}");
        }
        assert_eq!(
            (histogram.mean(), histogram.max()),
            (Some(Duration::from_micros(50)), Some(Duration::from_micros(100)))
        );
    }

    #[test]
    fn buckets_are_contiguous_up_to_the_longest_duration() {
        for bucket in 0..Histogram::<7>::bucket(u64::MAX) {
            let lower_bound = Histogram::<7>::lower_bound(bucket);
            assert_eq!(Histogram::<7>::bucket(lower_bound), bucket);
            assert_eq!(Histogram::<7>::bucket(Histogram::<7>::lower_bound(bucket + 1) - 1), bucket);
        }
        assert_eq!(histogram(&[u64::MAX, 0]).quantile(1.0), Some(Duration::from_micros(u64::MAX)));
        assert!(Histogram::<7>::bucket(u64::MAX) * 8 < 60_000);
    }

    proptest! {
        #[test]
        fn quantiles_are_within_one_percent(
            mut values in
                prop::collection::vec(prop_oneof![0..10_000u64, 0..100_000_000_000u64], 1..300),
            part in 0.0..=1.0f64,
        ) {
            let histogram = histogram(&values);
            values.sort_unstable();
            let rank = ((part * values.len() as f64).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1] as f64;
            let got = histogram.quantile(part).unwrap().as_micros() as f64;
            prop_assert!((exact - got).abs() <= exact * 0.01, "{exact} {got}");
        }

        #[test]
        fn merging_in_any_order_equals_recording_everything(
            a in prop::collection::vec(any::<u64>(), 0..50),
            b in prop::collection::vec(0..1000u64, 0..50),
            c in prop::collection::vec(0..1_000_000u64, 0..50),
        ) {
            let all = histogram(&[a.clone(), b.clone(), c.clone()].concat());
            for order in [[&a, &b, &c], [&c, &b, &a], [&b, &a, &c]] {
                let mut merged = Histogram::default();
                order.iter().for_each(|values| merged.merge(&histogram(values)));
                prop_assert_eq!(&merged, &all);
            }
        }
    }
}
