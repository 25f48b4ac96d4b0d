//! Quantities of a scenario: how times and lengths are spread, rates, and moments.

use std::time::Duration;

use pointsman_domain::units;
use pointsman_settings::Section;
use toml::Spanned;
use toml::de::DeValue;
use toml::value::{Datetime, Offset};

use crate::random::Spread;

/// What the numbers of a spread count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Seconds, or texts with a unit.
    Time,
    /// Tokens and the like, as numbers.
    Count,
}

impl Unit {
    fn example(self) -> &'static str {
        match self {
            Self::Time => "\"5s\" or { median = \"2s\", p99 = \"20s\" }",
            Self::Count => "500 or { median = 500, p99 = 4000 }",
        }
    }

    /// The largest that makes sense: thousands of years, and more tokens than any context holds.
    fn most(self) -> f64 {
        match self {
            Self::Time => 1e11,
            Self::Count => 1e9,
        }
    }
}

const FORMS: [&[&str]; 4] =
    [&["median", "p99"], &["mean"], &["least", "most"], &["least", "shape", "most"]];

/// A spread in any of its forms; `None` if it is missing, or with a mistake.
pub(super) fn spread(section: &Section<'_>, key: &str, unit: Unit) -> Option<Spread> {
    let value = section.value(key)?;
    match value.get_ref() {
        DeValue::Array(items) if !items.is_empty() => {
            let values: Option<_> =
                items.iter().map(|item| quantity(section, key, item, unit)).collect();
            values.map(Spread::OneOf)
        }
        DeValue::Table(_) => of_table(&section.section(key), unit),
        _ => quantity(section, key, value, unit).map(Spread::Fixed),
    }
}

/// A spread, or `{ in-turn = [...] }`: what was measured, one after the other.
pub(super) fn spread_or_turns(section: &Section<'_>, key: &str) -> Option<Spread> {
    let table =
        section.value(key).is_some_and(|value| matches!(value.get_ref(), DeValue::Table(_)));
    if !table || !section.section(key).has("in-turn") {
        return spread(section, key, Unit::Time);
    }
    let table = section.section(key);
    let values = spread(&table, "in-turn", Unit::Time);
    table.report_unknown();
    match values? {
        Spread::OneOf(values) => Some(Spread::InTurn(values)),
        _ => {
            table.error_at("in-turn", "must be a list of times, such as [\"41s\", \"44.5s\"]");
            None
        }
    }
}

/// One that has to be there.
pub(super) fn required_spread(section: &Section<'_>, key: &str, unit: Unit) -> Option<Spread> {
    if !section.has(key) {
        section
            .error_at(key, format!("is missing; write for example `{key} = {}`", unit.example()));
    }
    spread(section, key, unit)
}

/// One between events, which has to be more than nothing now and then: otherwise time would stand still.
pub(super) fn between(section: &Section<'_>, key: &str) -> Option<Spread> {
    let spread = required_spread(section, key, Unit::Time)?;
    let most = match &spread {
        Spread::Fixed(value) | Spread::Uniform(_, value) | Spread::Exponential { mean: value } => {
            *value
        }
        Spread::LogNormal { median, .. } => *median,
        Spread::Pareto { most, .. } => *most,
        Spread::OneOf(values) | Spread::InTurn(values) => {
            values.iter().copied().fold(0.0, f64::max)
        }
    };
    if most < 1e-6 {
        section.error_at(key, "must be more than nothing");
        return None;
    }
    Some(spread)
}

fn of_table(table: &Section<'_>, unit: Unit) -> Option<Spread> {
    let keys = table.keys();
    let is_form =
        |form: &&&[&str]| form.len() == keys.len() && form.iter().all(|key| keys.contains(key));
    if FORMS.iter().find(is_form).is_none() {
        table.error(format!(
            "`{}` is no spread; write {{ median, p99 }}, {{ mean }}, {{ least, most }}, {{ least, shape, most }}, one value or \
             a list of values",
            keys.join("`, `")
        ));
        return None;
    }
    let value = |key: &str| quantity(table, key, table.value(key)?, unit);
    if keys.contains(&"mean") {
        return Some(Spread::Exponential { mean: value("mean")? });
    }
    if keys.contains(&"median") {
        let (median, p99) = (value("median")?, value("p99")?);
        ordered(table, ("median", median), ("p99", p99))?;
        return Some(Spread::of_percentiles(median, p99));
    }
    let (least, most) = (value("least")?, value("most")?);
    ordered(table, ("least", least), ("most", most))?;
    if !keys.contains(&"shape") {
        return Some(Spread::Uniform(least, most));
    }
    let shape = number(table, "shape", 0.01, 1000.0)?;
    if least <= 0.0 {
        table.error_at("least", "must be more than nothing in a spread with a `shape`");
        return None;
    }
    Some(Spread::Pareto { least, shape, most })
}

fn ordered(table: &Section<'_>, low: (&str, f64), high: (&str, f64)) -> Option<()> {
    if low.1 > high.1 {
        table.error_at(high.0, format!("must not be less than `{}`", low.0));
        return None;
    }
    Some(())
}

fn quantity(
    section: &Section<'_>,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    unit: Unit,
) -> Option<f64> {
    let plain = match value.get_ref() {
        DeValue::Integer(integer) => {
            i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix())
                .ok()
                .map(|n| n as f64)
        }
        DeValue::Float(float) => float.as_str().replace('_', "").parse().ok(),
        DeValue::String(text) if unit == Unit::Time => match units::duration(text) {
            Ok(time) => Some(time.as_secs_f64()),
            Err(what) => {
                section.error_at(key, what);
                return None;
            }
        },
        _ => {
            section.wrong_type(key, value, &format!("a spread, such as {}", unit.example()));
            return None;
        }
    };
    let fits = plain.filter(|plain: &f64| (0.0..=unit.most()).contains(plain));
    if fits.is_none() {
        section.error_at(key, format!("must be from 0 to {}", unit.most()));
    }
    fits
}

/// A number from `low` to `high`; `None` if it is missing, or with a mistake.
pub(super) fn number(section: &Section<'_>, key: &str, low: f64, high: f64) -> Option<f64> {
    let text = section.decimal(key)?;
    let number = text.parse().ok().filter(|number: &f64| (low..=high).contains(number));
    if number.is_none() {
        section.error_at(key, format!("`{text}` is not from {low} to {high}"));
    }
    number
}

/// A rate such as `"30/h"`, by the second.
pub(super) fn rate(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 4] = [("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86_400.0)];
    let parsed = text.split_once('/').and_then(|(number, unit)| {
        let number: f64 = number.trim().parse().ok()?;
        let seconds = UNITS.iter().find(|(name, _)| *name == unit.trim())?.1;
        Some(number / seconds).filter(|rate| (0.0..=100_000.0).contains(rate))
    });
    parsed.ok_or_else(|| {
        format!("\"{text}\" is no rate; write a number and a unit, such as \"2/s\", \"10/min\", \"30/h\" or \"500/d\"")
    })
}

/// A time of day such as `"14:30"`.
pub(super) fn time_of_day(text: &str) -> Result<Duration, String> {
    let parsed = text.split_once(':').and_then(|(hours, minutes)| {
        let two =
            |text: &str| text.parse().ok().filter(|_| text.len() == 2 && !text.starts_with('+'));
        let (hours, minutes): (u64, u64) = (two(hours)?, two(minutes)?);
        (hours < 24 && minutes < 60).then(|| Duration::from_secs(hours * 3600 + minutes * 60))
    });
    parsed.ok_or_else(|| format!("\"{text}\" is no time of day; write for example \"14:00\""))
}

/// Microseconds from the Unix epoch to a date and a time, as in RFC 3339; without an offset, they are UTC.
pub(crate) fn moment(text: &str) -> Option<i64> {
    moment_of(&text.trim().parse().ok()?)
}

pub(super) fn moment_of(datetime: &Datetime) -> Option<i64> {
    let (date, time) = (datetime.date?, datetime.time?);
    let minutes = match datetime.offset {
        None | Some(Offset::Z) => 0,
        Some(Offset::Custom { minutes }) => i64::from(minutes),
    };
    let seconds = i64::from(time.hour) * 3600
        + i64::from(time.minute) * 60
        + i64::from(time.second.unwrap_or(0));
    let day = days(i64::from(date.year), i64::from(date.month), i64::from(date.day));
    let seconds = day * 86_400 + seconds - minutes * 60;
    Some(seconds * 1_000_000 + i64::from(time.nanosecond.unwrap_or(0) / 1000))
}

/// Days from the Unix epoch to a date of the Gregorian calendar. Years begin in March here, so that the day of the leap year
/// is their last one.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let month = (month + 9) % 12;
    let of_year = (153 * month + 2) / 5 + day - 1;
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // From the first of March of the year 0 to the epoch.
    year * 365 + leap_days + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_counted_from_the_epoch() {
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
            assert_eq!(moment(text), micros, "{text}");
        }
    }

    #[test]
    fn rates_and_times_of_day_need_their_forms() {
        for (text, by_second) in
            [("2/s", Some(2.0)), ("30/min", Some(0.5)), ("36 / h", Some(0.01)), ("0/d", Some(0.0))]
        {
            assert_eq!(rate(text).ok(), by_second, "{text}");
        }
        for text in ["", "2", "2/", "/s", "-1/s", "nan/s", "1e9/s", "2/m", "2/s/s"] {
            assert!(rate(text).is_err(), "{text}");
        }
        assert_eq!(time_of_day("14:30"), Ok(Duration::from_secs(52_200)));
        for text in ["", "14", "24:00", "1:00", "12:60", "+1:00", "12:00:00"] {
            assert!(time_of_day(text).is_err(), "{text}");
        }
    }
}
