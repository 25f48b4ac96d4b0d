//! How far a limit can be exceeded that several replicas share.

use std::time::Duration;

/// Returns by how much a shared limit can be exceeded at most while the store is available, if each
/// replica adds at most `rate` per second.
///
/// What a replica adds is sent at the end of its interval, and read by another one at the end of
/// that replica's interval. Both take a round trip, which must not be longer than an interval.
pub fn overshoot(replicas: u32, rate: f64, interval: Duration) -> f64 {
    if replicas < 2 {
        return 0.0;
    }
    f64::from(replicas) * rate * delay(interval).as_secs_f64()
}

/// Returns the maximum time until all replicas know what one of them has added.
fn delay(interval: Duration) -> Duration {
    // Each replica waits for its interval, and then for a round trip.
    4 * interval
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_replica_does_not_exceed_and_more_do_in_proportion() {
        let interval = Duration::from_millis(50);
        assert!(overshoot(1, 1000.0, interval).abs() < f64::EPSILON);
        assert!((overshoot(3, 100.0, interval) - 60.0).abs() < 1e-9);
    }
}
