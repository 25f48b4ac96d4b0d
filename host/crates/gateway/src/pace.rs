//! How long a peer may keep the host waiting.

use std::time::Duration;

use tokio::time::Instant;

/// Bytes per second that a client has to take on average while it keeps the host waiting. A stream
/// of 20 tokens per second has about four times as many.
pub(crate) const MIN_WRITE_RATE: u32 = 1 << 10;

/// Measures how far a peer lags behind. Waiting adds to the lag, and bytes reduce it at the minimum
/// rate, so that neither silence nor a trickle of bytes lasts longer than the limit. Only time in
/// which the host waits for the peer counts, and a fast beginning does not buy a pause later.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: Duration,
    /// Bytes per second that reduce the lag as much as a second of waiting adds to it.
    min_rate: u32,
    lag: Duration,
    waiting_since: Option<Instant>,
}

impl Pace {
    pub(crate) fn new(limit: Duration, min_rate: u32) -> Self {
        Self { limit, min_rate: min_rate.max(1), lag: Duration::ZERO, waiting_since: None }
    }

    /// Notes that the host waits for the peer, and returns when it has waited for too long.
    pub(crate) fn wait(&mut self, now: Instant) -> Instant {
        let since = *self.waiting_since.get_or_insert(now);
        since + self.limit.saturating_sub(self.lag)
    }

    /// Notes that the peer sent or took this many bytes.
    pub(crate) fn progress(&mut self, bytes: usize, now: Instant) {
        let waited = self.waiting_since.take().map(|since| now.saturating_duration_since(since));
        let lag = self.lag.saturating_add(waited.unwrap_or_default());
        // Exact up to 2^53 bytes.
        let credit = Duration::from_secs_f64(bytes as f64 / f64::from(self.min_rate));
        self.lag = lag.saturating_sub(credit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_and_trickle_end_at_the_limit() {
        let start = Instant::now();
        let mut pace = Pace::new(10 * SECOND, 1000);
        assert_eq!(pace.wait(start), start + 10 * SECOND);
        assert_eq!(pace.wait(start + SECOND), start + 10 * SECOND, "the wait began at the start");
        // A fast beginning, then silence: the whole limit again, and no more.
        pace.progress(1 << 20, start + SECOND);
        assert_eq!(pace.wait(start + SECOND), start + 11 * SECOND);
        // Half the minimum rate: after 20 s, all of the limit is used up.
        let mut now = start + SECOND;
        for _ in 0..20 {
            pace.wait(now);
            now += SECOND;
            pace.progress(500, now);
        }
        assert_eq!(pace.wait(now), now);
    }

    #[test]
    fn time_in_which_the_host_does_not_wait_is_free() {
        let start = Instant::now();
        let mut pace = Pace::new(SECOND, 1000);
        pace.wait(start);
        pace.progress(1, start);
        assert_eq!(pace.wait(start + 100 * SECOND), start + 101 * SECOND);
    }
}
