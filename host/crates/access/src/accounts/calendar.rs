//! Periods of the calendar, in UTC.

use crate::limits::Period;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Days of 400 years, after which the calendar repeats.
const DAYS_OF_ERA: u64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: u64 = 719_468;

/// Returns when the period of a point in time begins and when it ends, in milliseconds since 1970.
pub(super) fn bounds(period: Period, unix_ms: u64) -> (u64, u64) {
    let day = unix_ms / DAY_MS;
    let (first, end) = match period {
        Period::Day => (day, day + 1),
        Period::Week => {
            // 1970 began on a Thursday. The first week has only the days of that year.
            let weekday = (day + 3) % 7;
            (day.saturating_sub(weekday), day + 7 - weekday)
        }
        Period::Month => {
            let (day_of_month, days) = month(day);
            (day.saturating_sub(day_of_month), day - day_of_month + days)
        }
    };
    (first.saturating_mul(DAY_MS), end.saturating_mul(DAY_MS))
}

/// Returns the position of a day in its month, from 0, and the length of the month.
fn month(day: u64) -> (u64, u64) {
    // Years that begin in March have the leap day at their end: Howard Hinnant's
    // `civil_from_days`.
    let day_of_era = (day + DAYS_TO_1970) % DAYS_OF_ERA;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let first_day = |month: u64| (153 * month + 2) / 5;
    let month = (5 * day_of_year + 2) / 153;
    let next = year_of_era + 1;
    let is_leap = next.is_multiple_of(4) && (!next.is_multiple_of(100) || next.is_multiple_of(400));
    let days = match month {
        11 => 28 + u64::from(is_leap),
        month => first_day(month + 1) - first_day(month),
    };
    (day_of_year - first_day(month), days)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The periods of every day from 1970 to 2120 follow each other without gaps, and have the
    /// lengths of the calendar.
    #[test]
    fn periods_follow_each_other() {
        let mut expected = [(0, 0); 3];
        let lengths = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let (mut year, mut month, mut month_end) = (1970, 0, 31);
        for day in 0..55_000u64 {
            if day == month_end {
                month = (month + 1) % 12;
                year += u64::from(month == 0);
                let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
                month_end += lengths[month] + u64::from(month == 1 && is_leap);
                expected[2].0 = day;
            }
            expected[2].1 = month_end;
            expected[0] = (day, day + 1);
            // 1970-01-05 was a Monday.
            if day >= 4 && (day - 4) % 7 == 0 {
                expected[1] = (day, day + 7);
            } else if day < 4 {
                expected[1] = (0, 4);
            }
            for (period, (first, end)) in
                [Period::Day, Period::Week, Period::Month].into_iter().zip(expected)
            {
                for within in [0, DAY_MS - 1] {
                    let found = bounds(period, day * DAY_MS + within);
                    assert_eq!(found, (first * DAY_MS, end * DAY_MS), "{period:?} of day {day}");
                }
            }
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // 2026-11-27 12:00, a Friday: the week began on the 23rd.
        let now = 1_795_780_800_000;
        let days = |(start, end): (u64, u64)| (start / DAY_MS, end / DAY_MS);
        assert_eq!(days(bounds(Period::Day, now)), (20_784, 20_785));
        assert_eq!(days(bounds(Period::Week, now)), (20_780, 20_787));
        assert_eq!(days(bounds(Period::Month, now)), (20_758, 20_788));
    }
}
