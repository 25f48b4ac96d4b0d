//! Dates and times as microseconds since the Unix epoch.

use toml::value::{Datetime, Offset};

/// Parses a date and time as in RFC 3339, and returns the microseconds since the Unix epoch.
/// Without an offset, the time is UTC.
pub(crate) fn parse(text: &str) -> Option<i64> {
    micros(&text.trim().parse().ok()?)
}

/// Returns the microseconds from the Unix epoch to a date and time, which must both be present.
pub(crate) fn micros(datetime: &Datetime) -> Option<i64> {
    let (date, time) = (datetime.date?, datetime.time?);
    let offset_minutes = match datetime.offset {
        None | Some(Offset::Z) => 0,
        Some(Offset::Custom { minutes }) => i64::from(minutes),
    };
    let seconds = i64::from(time.hour) * 3600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0));
    let day = days_since_epoch(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let seconds = day * 86_400 + seconds - offset_minutes * 60;
    Some(seconds * 1_000_000 + i64::from(time.nanosecond.unwrap_or(0) / 1000))
}

/// Returns the days from the Unix epoch to a date of the Gregorian calendar.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    // Years start in March here, so that a leap day is the last day of its year.
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // The constant is the number of days from the first of March of the year 0 to the epoch.
    year * 365 + leap_days + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_relative_to_the_epoch() {
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2026-01-05T00:00:00Z", Some(1_767_571_200_000_000)),
            ("2024-02-29 12:00:00+02:00", Some(1_709_200_800_000_000)),
            ("2000-03-01T00:00:00", Some(951_868_800_000_000)),
            ("1969-12-31T23:59:59.5Z", Some(-500_000)),
            ("2023-11-16 18:15:46.6805900", Some(1_700_158_546_680_590)),
            ("2023-02-29T00:00:00Z", None),
            ("2023-11-16", None),
            ("18:15:46", None),
            ("", None),
        ] {
            assert_eq!(parse(text), micros, "{text}");
        }
    }
}
