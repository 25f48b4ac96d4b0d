//! Times of day on days of the week.

/// Minutes per day.
const MINUTES_PER_DAY: u16 = 24 * 60;

/// Names of the days of the week, Monday first.
pub(crate) const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A time range on some days of the week. A range that ends before it starts spans midnight and
/// belongs to the day on which it starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hours {
    /// Bit `n` for day `n` of [`DAYS`].
    pub(crate) days: u8,
    /// Start, in minutes from midnight.
    pub(crate) from: u16,
    /// End, in minutes from midnight; up to 24:00.
    pub(crate) to: u16,
}

/// A minute of the week in local time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalTime {
    day: u8,
    minute: u16,
}

impl LocalTime {
    /// Converts Unix time in milliseconds to local time.
    pub(crate) fn from_unix_ms(now_ms: u64, utc_offset_min: i16) -> Self {
        let minutes =
            i64::try_from(now_ms / 60_000).unwrap_or(i64::MAX / 2) + i64::from(utc_offset_min);
        // The Unix epoch is a Thursday.
        let day = (minutes.div_euclid(i64::from(MINUTES_PER_DAY)) + 3).rem_euclid(7);
        let minute = minutes.rem_euclid(i64::from(MINUTES_PER_DAY));
        Self { day: u8::try_from(day).unwrap_or(0), minute: u16::try_from(minute).unwrap_or(0) }
    }
}

impl Hours {
    /// Returns the minutes until the end of the range, or `None` if `now` is outside of it.
    pub(crate) fn minutes_left(self, now: LocalTime) -> Option<u16> {
        let has_day = |day: u8| self.days & (1 << (day % 7)) != 0;
        let minute = now.minute;
        if self.from < self.to {
            return (has_day(now.day) && (self.from..self.to).contains(&minute))
                .then(|| self.to - minute);
        }
        if has_day(now.day) && minute >= self.from {
            return Some(MINUTES_PER_DAY - minute + self.to);
        }
        (has_day(now.day + 6) && minute < self.to).then(|| self.to - minute)
    }
}

/// Parses a time such as `08:30` and returns the minutes from midnight.
pub(crate) fn parse_time_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |digits: &str| match digits.len() == 2
        && digits.bytes().all(|byte| byte.is_ascii_digit())
    {
        true => digits.parse::<u16>().ok(),
        false => None,
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60).then_some(hours * 60 + minutes).filter(|time| *time <= MINUTES_PER_DAY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-21 was a Saturday.
    const SATURDAY_NOON_MS: u64 = 1_795_262_400_000;

    fn at(day: u8, time: &str) -> LocalTime {
        LocalTime { day, minute: parse_time_of_day(time).unwrap() }
    }

    #[test]
    fn local_time_applies_the_offset_across_midnight() {
        let local = |offset| LocalTime::from_unix_ms(SATURDAY_NOON_MS, offset);
        assert_eq!(local(0), at(5, "12:00"));
        assert_eq!(local(60), at(5, "13:00"));
        assert_eq!(local(-12 * 60 - 1), at(4, "23:59"));
        assert_eq!(local(12 * 60), at(6, "00:00"));
        assert_eq!(LocalTime::from_unix_ms(0, 0), at(3, "00:00"), "the epoch was a Thursday");
        assert_eq!(LocalTime::from_unix_ms(0, -1), at(2, "23:59"));
    }

    #[test]
    fn hours_start_and_end_to_the_minute() {
        let office = Hours { days: 0b1_1111, from: 8 * 60, to: 18 * 60 };
        assert_eq!(
            [office.minutes_left(at(0, "07:59")), office.minutes_left(at(0, "18:00"))],
            [None, None]
        );
        assert_eq!(
            [office.minutes_left(at(0, "08:00")), office.minutes_left(at(4, "17:59"))],
            [Some(600), Some(1)]
        );
        assert_eq!(office.minutes_left(at(5, "12:00")), None, "Saturday");
        let night = Hours { days: 0b1_0000, from: 22 * 60, to: 6 * 60 };
        assert_eq!(
            [night.minutes_left(at(4, "22:00")), night.minutes_left(at(5, "05:59"))],
            [Some(480), Some(1)]
        );
        assert_eq!(
            [night.minutes_left(at(4, "05:00")), night.minutes_left(at(5, "22:00"))],
            [None, None],
            "Friday night only"
        );
        let all_day = Hours { days: 0b111_1111, from: 0, to: MINUTES_PER_DAY };
        assert_eq!(all_day.minutes_left(at(6, "00:00")), Some(MINUTES_PER_DAY));
    }

    #[test]
    fn time_of_day_is_parsed_strictly() {
        for (text, expected) in [
            ("00:00", Some(0)),
            ("08:30", Some(510)),
            ("24:00", Some(1440)),
            ("24:01", None),
            ("8:30", None),
            ("08:60", None),
            ("+8:30", None),
            ("0830", None),
            ("08:3ä", None),
        ] {
            assert_eq!(parse_time_of_day(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn minutes_left_count_down_to_the_end(
            days in 0u8..128,
            from in 0u16..1440,
            to in 0u16..=1440,
            now in 0u64..2_000_000_000_000,
            offset in -840i16..=840,
        ) {
            prop_assume!(from != to);
            let hours = Hours { days, from, to };
            let left = |ms: u64| hours.minutes_left(LocalTime::from_unix_ms(ms, offset));
            if let Some(minutes) = left(now) {
                prop_assert!(minutes > 0 && minutes <= MINUTES_PER_DAY);
                let last = now + u64::from(minutes - 1) * 60_000;
                prop_assert_eq!(left(last), Some(1));
            }
        }
    }
}
