//! The memory that was computed from a model's files, against what its engine reports.

/// Difference above which an estimate is reported as off, in thousandths of the reported memory.
const TOLERANCE: u64 = 100;

/// The memory of an engine on one device, computed from its model's files. Sizes are in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The weights.
    pub weights: u64,
    /// The KV cache, and the states of recurrent layers; `None` if the engine gives the cache
    /// whatever is left.
    pub kv: Option<u64>,
    /// Buffers for activations, of an engine that reports them.
    pub compute: Option<u64>,
    /// All that the lane counts for its engine, with what engines do not report.
    pub total: u64,
}

/// The parts that are known both by estimate and by report, added up. Sizes are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryComparison {
    /// The estimate of these parts.
    pub estimated: u64,
    /// What the engine reported of them.
    pub reported: u64,
}

impl MemoryEstimate {
    /// Compares with the weights, KV cache and buffers that an engine reported. Returns `None` if
    /// it reported none of them.
    pub fn compare(&self, reported: [Option<u64>; 3]) -> Option<MemoryComparison> {
        let estimated = [Some(self.weights), self.kv, self.compute];
        let pairs = estimated.into_iter().zip(reported).filter_map(|(own, its)| own.zip(its));
        let sum = |sum: (u64, u64), (own, its): (u64, u64)| {
            (sum.0.saturating_add(own), sum.1.saturating_add(its))
        };
        let (estimated, reported) = pairs.reduce(sum)?;
        Some(MemoryComparison { estimated, reported })
    }
}

impl MemoryComparison {
    /// Returns how much more than reported was estimated, in percent.
    pub fn percent(&self) -> f64 {
        let (estimated, reported) = (self.estimated as f64, self.reported.max(1) as f64);
        ((estimated / reported - 1.0) * 1000.0).round() / 10.0
    }

    /// Returns true if the estimate is off by more than 10 %.
    pub fn is_off(&self) -> bool {
        let difference = self.estimated.abs_diff(self.reported);
        u128::from(difference) * 1000 > u128::from(self.reported) * u128::from(TOLERANCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_both_know_are_compared() {
        let estimate =
            MemoryEstimate { weights: 100, kv: Some(50), compute: Some(10), total: 1000 };
        for (reported, sums, off) in [
            ([Some(100), Some(50), Some(10)], Some((160, 160)), false),
            ([Some(110), Some(50), Some(16)], Some((160, 176)), false),
            ([Some(110), Some(50), Some(18)], Some((160, 178)), true),
            ([Some(90), Some(50), Some(5)], Some((160, 145)), true),
            ([None, Some(50), None], Some((50, 50)), false),
            ([None, Some(0), None], Some((50, 0)), true),
            ([None, None, None], None, false),
        ] {
            let found = estimate.compare(reported);
            assert_eq!(found.map(|found| (found.estimated, found.reported)), sums, "{reported:?}");
            assert_eq!(found.is_some_and(|found| found.is_off()), off, "{reported:?}");
        }
        let unknown = MemoryEstimate { kv: None, compute: None, ..estimate };
        let found = unknown.compare([Some(200), Some(888), Some(999)]).unwrap();
        assert_eq!((found.reported, found.percent()), (200, -50.0));
    }
}
