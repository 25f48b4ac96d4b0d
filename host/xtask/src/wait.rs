//! Waiting, in tasks and in tests. Threads sleep here and nowhere else.

use std::time::{Duration, Instant};

/// Polls until `condition` returns a value. Returns `None` if it does not within `timeout`.
pub fn poll<T>(
    timeout: Duration,
    interval: Duration,
    mut condition: impl FnMut() -> Option<T>,
) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if start.elapsed() > timeout {
            return None;
        }
        pause(interval);
    }
}

/// Pauses between events that a test or a benchmark causes, such as the arrivals of a workload.
///
/// Not for waiting until something has happened: for that, use [`poll`].
#[expect(clippy::disallowed_methods, reason = "the one place where tests and tasks sleep")]
pub fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poll_ends_with_value_or_at_timeout() {
        let mut calls = 0;
        let found = poll(Duration::MAX, Duration::ZERO, || {
            calls += 1;
            (calls == 3).then_some(calls)
        });
        assert_eq!(found, Some(3));
        let never = poll(Duration::from_millis(2), Duration::ZERO, || None::<()>);
        assert_eq!(never, None);
    }
}
