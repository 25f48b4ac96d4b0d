//! When the key set of an issuer is fetched.

use std::time::Duration;

/// Pause between two fetches because of unknown keys: a flood of bad tokens must not become a flood
/// of requests to the issuer.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(30);
/// Pause after the first failed fetch, doubled by each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// Maximum pause after a failed fetch.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// When the key set of an issuer is fetched. Times are relative to any fixed one.
#[derive(Debug)]
pub struct Schedule {
    refresh: Duration,
    last: Option<Duration>,
    failures: u32,
    is_wanted: bool,
}

impl Schedule {
    /// Creates a schedule that begins with a fetch, and repeats it at this interval.
    pub fn new(refresh: Duration) -> Self {
        Self { refresh, last: None, failures: 0, is_wanted: false }
    }

    /// Returns the time of the next fetch.
    pub fn next(&self) -> Duration {
        let Some(last) = self.last else { return Duration::ZERO };
        let pause = match self.failures {
            0 if self.is_wanted => UNKNOWN_KEY_PAUSE.min(self.refresh),
            0 => self.refresh,
            failures => {
                let doubled = FIRST_RETRY.saturating_mul(1 << (failures - 1).min(10));
                doubled.min(MAX_RETRY)
            }
        };
        last.saturating_add(pause)
    }

    /// Notes that a token had an unknown key.
    pub fn want(&mut self) {
        self.is_wanted = true;
    }

    /// Notes the end of a fetch.
    pub fn ended(&mut self, time: Duration, succeeded: bool) {
        self.last = Some(time);
        self.failures = if succeeded { 0 } else { self.failures.saturating_add(1) };
        self.is_wanted = false;
    }
}
