//! Hours of the week.

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// Days of the week, Monday first, by their names.
pub(crate) const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// A time of day on some days of the week. One that ends before it begins runs over midnight, and belongs to the day on
/// which it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hours {
    /// Bit `n` for day `n` of [`DAYS`].
    pub(crate) days: u8,
    /// Minutes from midnight, up to 24:00.
    pub(crate) from: u16,
    pub(crate) to: u16,
}

/// A minute of the week, where the operator lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalTime {
    day: u8,
    minute: u16,
}

impl LocalTime {
    pub(crate) fn of(now_ms: u64, utc_offset_min: i16) -> Self {
        let minutes =
            i64::try_from(now_ms / 60_000).unwrap_or(i64::MAX / 2) + i64::from(utc_offset_min);
        // The epoch began on a Thursday.
        let day = (minutes.div_euclid(i64::from(DAY)) + 3).rem_euclid(7);
        let minute = minutes.rem_euclid(i64::from(DAY));
        Self { day: u8::try_from(day).unwrap_or(0), minute: u16::try_from(minute).unwrap_or(0) }
    }
}

impl Hours {
    /// Minutes until the end, if the time lies within.
    pub(crate) fn left(self, now: LocalTime) -> Option<u16> {
        let on = |day: u8| self.days & (1 << (day % 7)) != 0;
        let minute = now.minute;
        if self.from < self.to {
            return (on(now.day) && (self.from..self.to).contains(&minute))
                .then(|| self.to - minute);
        }
        if on(now.day) && minute >= self.from {
            return Some(DAY - minute + self.to);
        }
        (on(now.day + 6) && minute < self.to).then(|| self.to - minute)
    }
}

/// Minutes from midnight of a time such as `08:30`.
pub(crate) fn time_of_day(text: &str) -> Option<u16> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |digits: &str| match digits.len() == 2
        && digits.bytes().all(|byte| byte.is_ascii_digit())
    {
        true => digits.parse::<u16>().ok(),
        false => None,
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (minutes < 60).then_some(hours * 60 + minutes).filter(|time| *time <= DAY)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 2026-11-21 was a Saturday.
    const SATURDAY_NOON_MS: u64 = 1_795_262_400_000;

    fn at(day: u8, time: &str) -> LocalTime {
        LocalTime { day, minute: time_of_day(time).unwrap() }
    }

    #[test]
    fn local_time_follows_the_offset_over_midnight() {
        let of = |offset| LocalTime::of(SATURDAY_NOON_MS, offset);
        assert_eq!(of(0), at(5, "12:00"));
        assert_eq!(of(60), at(5, "13:00"));
        assert_eq!(of(-12 * 60 - 1), at(4, "23:59"));
        assert_eq!(of(12 * 60), at(6, "00:00"));
        assert_eq!(LocalTime::of(0, 0), at(3, "00:00"), "the epoch was a Thursday");
        assert_eq!(LocalTime::of(0, -1), at(2, "23:59"));
    }

    #[test]
    fn hours_begin_and_end_to_the_minute() {
        let office = Hours { days: 0b1_1111, from: 8 * 60, to: 18 * 60 };
        assert_eq!([office.left(at(0, "07:59")), office.left(at(0, "18:00"))], [None, None]);
        assert_eq!(
            [office.left(at(0, "08:00")), office.left(at(4, "17:59"))],
            [Some(600), Some(1)]
        );
        assert_eq!(office.left(at(5, "12:00")), None, "Saturday");
        let night = Hours { days: 0b1_0000, from: 22 * 60, to: 6 * 60 };
        assert_eq!([night.left(at(4, "22:00")), night.left(at(5, "05:59"))], [Some(480), Some(1)]);
        assert_eq!(
            [night.left(at(4, "05:00")), night.left(at(5, "22:00"))],
            [None, None],
            "only Friday's"
        );
        let all_day = Hours { days: 0b111_1111, from: 0, to: DAY };
        assert_eq!(all_day.left(at(6, "00:00")), Some(DAY));
    }

    #[test]
    fn times_are_read_strictly() {
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
            assert_eq!(time_of_day(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_left_ends_exactly_at_the_end(days in 0u8..128, from in 0u16..1440, to in 0u16..=1440, now in 0u64..2_000_000_000_000, offset in -840i16..=840) {
            prop_assume!(from != to);
            let hours = Hours { days, from, to };
            let left = |ms: u64| hours.left(LocalTime::of(ms, offset));
            if let Some(minutes) = left(now) {
                prop_assert!(minutes > 0 && minutes <= DAY);
                let last = now + u64::from(minutes - 1) * 60_000;
                prop_assert_eq!(left(last), Some(1));
            }
        }
    }
}
