//! Leaks of memory, told from memory that an allocator keeps.

/// Asserts that memory does not grow steadily: in at least one interval between two samples, which
/// all have the same amount of work, it grows by at most `tolerance` bytes.
///
/// A leak grows in every interval. How much memory the allocator keeps depends on the machine, but
/// it is filled once; so no limit of the total is needed, and a leak of a little more than
/// `tolerance` in an interval is found.
///
/// # Panics
/// If memory grows in every interval, or there are less than three.
pub fn assert_no_steady_growth(samples: &[u64], tolerance: u64) {
    assert!(samples.len() > 3, "too few samples: {samples:?}");
    let growth = samples.windows(2).map(|pair| pair[1].saturating_sub(pair[0]));
    assert!(
        growth.min().unwrap() <= tolerance,
        "memory grows by more than {tolerance} bytes in every interval: {samples:?}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filled_allocator_is_accepted() {
        assert_no_steady_growth(&[100, 90_000, 150_000, 150_010, 180_000], 10);
    }

    #[test]
    #[should_panic(expected = "in every interval")]
    fn leak_is_found() {
        assert_no_steady_growth(&[100_000, 100_011, 100_030, 100_045], 10);
    }
}
