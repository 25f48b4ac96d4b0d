//! Times in responses, as RFC 3339 has them, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The end of the year 9999, in seconds since 1970: later years have no such form.
const LAST: u64 = 253_402_300_799;

/// Returns a time with microseconds. Times before 1970 are 1970.
pub fn timestamp(time: SystemTime) -> String {
    let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    humantime::format_rfc3339_micros(UNIX_EPOCH + time.min(Duration::from_secs(LAST))).to_string()
}

/// Returns a time in seconds since 1970.
pub(crate) fn from_seconds(seconds: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_795_764_387, "2026-11-27T07:26:27"),
            (4_107_542_400, "2100-03-01T00:00:00"),
            (u64::from(u32::MAX) << 8, "9999-12-31T23:59:59"),
        ] {
            assert_eq!(from_seconds(seconds), format!("{expected}Z"));
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(timestamp(time), format!("{expected}.000000Z"));
        }
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(timestamp(before), "1970-01-01T00:00:00.000000Z");
    }
}
