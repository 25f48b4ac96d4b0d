//! Times as people write them.

use std::time::{Duration, SystemTime};

/// Reads a time in UTC, as RFC 3339 has it; a date stands for its beginning.
pub fn parse_time(text: &str) -> Option<SystemTime> {
    let is_date = text.len() == "2027-01-01".len();
    let whole = if is_date { format!("{text}T00:00:00Z") } else { text.to_owned() };
    let time = humantime::parse_rfc3339(&whole).ok()?;
    // Before 1970, a time is always over, and cannot be subtracted from.
    (time >= SystemTime::UNIX_EPOCH + Duration::from_secs(1)).then_some(time)
}

/// Reads a time, or how long it is until then: `30d`.
pub fn parse_time_from(text: &str, now: SystemTime) -> Option<SystemTime> {
    let after = humantime::parse_duration(text).ok().and_then(|after| now.checked_add(after));
    after.or_else(|| parse_time(text)).filter(|time| is_formattable(*time))
}

/// Formats a time in UTC, to the second.
pub fn format_time(time: SystemTime) -> String {
    match is_formattable(time) {
        true => humantime::format_rfc3339_seconds(time).to_string(),
        // Never: times were read by this module.
        false => "-".to_owned(),
    }
}

/// Years have four digits.
fn is_formattable(time: SystemTime) -> bool {
    const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);
    time.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since < YEAR_10000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_dates_and_durations() {
        let now = parse_time("2027-01-01").unwrap();
        for (text, expected) in [
            ("2027-01-01T00:00:00Z", Some("2027-01-01T00:00:00Z")),
            ("2028-02-29", Some("2028-02-29T00:00:00Z")),
            ("30d", Some("2027-01-31T00:00:00Z")),
            ("1h 30m", Some("2027-01-01T01:30:00Z")),
            ("2027-02-30", None),
            ("1960-01-01", None),
            ("9999999999999h", None),
            ("soon", None),
            ("", None),
        ] {
            let found = parse_time_from(text, now).map(format_time);
            assert_eq!(found.as_deref(), expected, "{text}");
        }
        assert_eq!(parse_time("2027-01-01T01:00:00+01:00"), None);
    }
}
