//! The quantities of a scenario: distributions of times and lengths, rates, and timestamps.

use std::time::Duration;

use pointsman_domain::units;
use pointsman_settings::{Code, Problem, Section, missing};
use toml::Spanned;
use toml::de::DeValue;

use crate::random::Distribution;

/// The unit of a distribution's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    /// Seconds as numbers, or strings with a unit.
    Time,
    /// Numbers, of tokens for example.
    Count,
}

impl Unit {
    fn example(self) -> &'static str {
        match self {
            Self::Time => "\"5s\" or { median = \"2s\", p99 = \"20s\" }",
            Self::Count => "500 or { median = 500, p99 = 4000 }",
        }
    }

    /// Returns the maximum value: thousands of years, or more tokens than any context has.
    fn max(self) -> f64 {
        match self {
            Self::Time => 1e11,
            Self::Count => 1e9,
        }
    }
}

/// The sets of keys that define a distribution.
const FORMS: [&[&str]; 4] =
    [&["median", "p99"], &["mean"], &["min", "max"], &["min", "shape", "max"]];

/// Reads a distribution in any of its forms. Returns `None` if the key is missing or an error was
/// reported.
pub(super) fn distribution(section: &Section<'_>, key: &str, unit: Unit) -> Option<Distribution> {
    let value = section.value(key)?;
    match value.get_ref() {
        DeValue::Array(items) if !items.is_empty() => {
            let values: Option<_> =
                items.iter().map(|item| quantity(section, key, item, unit)).collect();
            values.map(Distribution::OneOf)
        }
        DeValue::Table(_) => read_table(&section.section(key), unit),
        _ => quantity(section, key, value, unit).map(Distribution::Fixed),
    }
}

/// Reads a distribution of times, or measured times that are used in sequence:
/// `{ sequence = [...] }`.
pub(super) fn distribution_or_sequence(section: &Section<'_>, key: &str) -> Option<Distribution> {
    let is_table =
        section.value(key).is_some_and(|value| matches!(value.get_ref(), DeValue::Table(_)));
    if !is_table || !section.section(key).has("sequence") {
        return distribution(section, key, Unit::Time);
    }
    let table = section.section(key);
    let values = distribution(&table, "sequence", Unit::Time);
    table.report_unknown();
    match values? {
        Distribution::OneOf(values) => Some(Distribution::Sequence(values)),
        _ => {
            let message = "expected a list of times, for example [\"41s\", \"44.5s\"]";
            table.error_at("sequence", Code::WrongType.with(message));
            None
        }
    }
}

/// Reads a distribution, and reports an error if the key is missing.
pub(super) fn required_distribution(
    section: &Section<'_>,
    key: &str,
    unit: Unit,
) -> Option<Distribution> {
    if !section.has(key) {
        section.error_at(key, missing(format!("`{key} = {}`", unit.example())));
    }
    distribution(section, key, unit)
}

/// Reads the distribution of the time between two events. It must not be always zero, because
/// virtual time would stop.
pub(super) fn required_interval(section: &Section<'_>, key: &str) -> Option<Distribution> {
    let distribution = required_distribution(section, key, Unit::Time)?;
    let typical = match &distribution {
        Distribution::Fixed(value)
        | Distribution::Uniform(_, value)
        | Distribution::Exponential { mean: value } => *value,
        Distribution::LogNormal { median, .. } => *median,
        Distribution::Pareto { max, .. } => *max,
        Distribution::OneOf(values) | Distribution::Sequence(values) => {
            values.iter().copied().fold(0.0, f64::max)
        }
    };
    if typical < 1e-6 {
        section.error_at(key, must_be_positive());
        return None;
    }
    Some(distribution)
}

fn read_table(table: &Section<'_>, unit: Unit) -> Option<Distribution> {
    let keys = table.keys();
    let is_form =
        |form: &&&[&str]| form.len() == keys.len() && form.iter().all(|key| keys.contains(key));
    if FORMS.iter().find(is_form).is_none() {
        let found = keys.join("`, `");
        table.error(format!(
            "no distribution has the keys `{found}`: expected {{ median, p99 }}, {{ mean }}, \
             {{ min, max }}, {{ min, shape, max }}, a value or a list of values"
        ));
        return None;
    }
    let value = |key: &str| quantity(table, key, table.value(key)?, unit);
    if keys.contains(&"mean") {
        return Some(Distribution::Exponential { mean: value("mean")? });
    }
    if keys.contains(&"median") {
        let (median, p99) = (value("median")?, value("p99")?);
        check_order(table, ("median", median), ("p99", p99))?;
        return Some(Distribution::from_percentiles(median, p99));
    }
    let (min, max) = (value("min")?, value("max")?);
    check_order(table, ("min", min), ("max", max))?;
    if !keys.contains(&"shape") {
        return Some(Distribution::Uniform(min, max));
    }
    let shape = number(table, "shape", 0.01, 1000.0)?;
    if min <= 0.0 {
        let message = "must be greater than zero in a distribution with a `shape`";
        table.error_at("min", Code::OutOfRange.with(message));
        return None;
    }
    Some(Distribution::Pareto { min, shape, max })
}

fn check_order(table: &Section<'_>, low: (&str, f64), high: (&str, f64)) -> Option<()> {
    if low.1 > high.1 {
        let message = format!("must not be less than `{}`", low.0);
        table.error_at(high.0, Code::Conflict.with(message));
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
    let number = match value.get_ref() {
        DeValue::Integer(integer) => {
            i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix())
                .ok()
                .map(|integer| integer as f64)
        }
        DeValue::Float(float) => float.as_str().replace('_', "").parse().ok(),
        DeValue::String(text) if unit == Unit::Time => match units::duration(text) {
            Ok(time) => Some(time.as_secs_f64()),
            Err(error) => {
                section.error_at(key, error);
                return None;
            }
        },
        _ => {
            let expected = format!("a distribution, for example {}", unit.example());
            section.wrong_type(key, value, &expected);
            return None;
        }
    };
    let in_range = number.filter(|number: &f64| (0.0..=unit.max()).contains(number));
    if in_range.is_none() {
        let message = format!("out of range: expected 0 to {}", unit.max());
        section.error_at(key, Code::OutOfRange.with(message));
    }
    in_range
}

/// Reads a number within a range. Returns `None` if the key is missing or an error was reported.
pub(super) fn number(section: &Section<'_>, key: &str, low: f64, high: f64) -> Option<f64> {
    let text = section.decimal(key)?;
    let number = text.parse().ok().filter(|number: &f64| (low..=high).contains(number));
    if number.is_none() {
        let message = format!("{text} is out of range: expected {low} to {high}");
        section.error_at(key, Code::OutOfRange.with(message));
    }
    number
}

/// Reports that `key` and `other` exclude each other.
pub(super) fn conflict(section: &Section<'_>, key: &str, other: &str) {
    let message = format!("conflicts with `{other}`; remove one of them");
    section.error_at(key, Code::Conflict.with(message));
}

/// Returns the problem of a value that is zero, or always zero.
pub(super) fn must_be_positive() -> Problem {
    Code::OutOfRange.with("must be greater than zero")
}

/// Parses a rate such as `"30/h"`, and returns it per second.
pub(super) fn rate(text: &str) -> Result<f64, Problem> {
    const UNITS: [(&str, f64); 4] = [("s", 1.0), ("min", 60.0), ("h", 3600.0), ("d", 86_400.0)];
    let parsed = text.split_once('/').and_then(|(number, unit)| {
        let number: f64 = number.trim().parse().ok()?;
        let seconds = UNITS.iter().find(|(name, _)| *name == unit.trim())?.1;
        Some(number / seconds).filter(|rate| (0.0..=100_000.0).contains(rate))
    });
    parsed.ok_or_else(|| {
        Problem::from(format!(
            "invalid rate \"{text}\": expected a number per s, min, h or d, for example \"30/h\""
        ))
    })
}

/// Parses a time of day such as `"14:30"`.
pub(super) fn time_of_day(text: &str) -> Result<Duration, Problem> {
    let parsed = text.split_once(':').and_then(|(hours, minutes)| {
        let two_digits =
            |text: &str| text.parse().ok().filter(|_| text.len() == 2 && !text.starts_with('+'));
        let (hours, minutes): (u64, u64) = (two_digits(hours)?, two_digits(minutes)?);
        (hours < 24 && minutes < 60).then(|| Duration::from_secs(hours * 3600 + minutes * 60))
    });
    parsed.ok_or_else(|| {
        Problem::from(format!("invalid time of day \"{text}\": expected for example \"14:00\""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_rates_and_times_of_day_are_rejected() {
        for (text, per_second) in
            [("2/s", Some(2.0)), ("30/min", Some(0.5)), ("36 / h", Some(0.01)), ("0/d", Some(0.0))]
        {
            assert_eq!(rate(text).ok(), per_second, "{text}");
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
