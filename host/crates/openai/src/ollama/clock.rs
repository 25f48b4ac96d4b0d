//! Times in Ollama's responses.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

/// Measures a request from its arrival at the host.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    arrived: Instant,
    /// When the request was sent to the engine.
    sent: Instant,
    first: Option<Instant>,
}

impl Clock {
    /// Starts the clock of a request that is sent to an engine now.
    pub(super) fn new(arrived: Option<Instant>) -> Self {
        let sent = Instant::now();
        Self { arrived: arrived.unwrap_or(sent), sent, first: None }
    }

    /// Notes that the first text of the response has arrived.
    pub(super) fn first(&mut self) {
        self.first.get_or_insert_with(Instant::now);
    }

    /// Adds the total time, and the time until the request was sent: in the queue, and for the load
    /// of the lane.
    pub(super) fn add_total(&self, fields: &mut Map<String, Value>) {
        let mut set = |name: &str, time| fields.insert(name.to_owned(), nanoseconds(time));
        set("total_duration", self.arrived.elapsed());
        set("load_duration", self.sent.duration_since(self.arrived));
    }

    /// Returns the times that the engine took for the prompt and for the response. A response that
    /// arrives as a whole does not tell them apart.
    pub(super) fn evaluation(&self) -> (Duration, Duration) {
        let total = self.sent.elapsed();
        match self.first.map(|first| first.duration_since(self.sent)) {
            Some(prompt) => (prompt, total.saturating_sub(prompt)),
            None => (Duration::ZERO, total),
        }
    }
}

/// Saturates: no request takes 500 years.
pub(super) fn nanoseconds(time: Duration) -> Value {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).into()
}

/// Returns a time as Ollama writes it (RFC 3339, UTC). Times before 1970 are 1970.
pub fn timestamp(time: SystemTime) -> String {
    let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (time.as_secs() / 86_400, time.as_secs() % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let micros = time.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// Returns year, month and day, this many days after 1970-01-01 (Hinnant, "chrono-compatible
/// low-level date algorithms").
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000000Z"),
            (1_795_768_496, "2026-11-27T08:34:56.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
        let before = UNIX_EPOCH.checked_sub(Duration::from_secs(1)).unwrap();
        assert_eq!(timestamp(before), "1970-01-01T00:00:00.000000Z");
    }
}
