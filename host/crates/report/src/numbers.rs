//! Formatting of numbers for people: significant digits only, in a suitable unit.

use std::time::Duration;

use crate::metric::Unit;

/// Formats a value in its unit.
pub(crate) fn number(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Time => time(value),
        Unit::Count => count(value),
        Unit::Share => share(value),
        Unit::Number => digits(value),
    }
}

/// Formats a value in its unit, or a dash if there is none.
pub(crate) fn optional(unit: Unit, value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| number(unit, value))
}

/// Formats a difference and half of its confidence interval in one unit, for example
/// `-90.0 ± 4.2 s`. Parts that round to zero are left out; `None` if both do.
pub(crate) fn plus_minus(unit: Unit, mean: f64, half: Option<f64>) -> Option<String> {
    let something = |text: &str| text.contains(|c: char| matches!(c, '1'..='9'));
    let signed = signed(unit, mean);
    let (factor, name) = match unit {
        Unit::Time => unit_of(mean.abs().max(half.unwrap_or(0.0))),
        Unit::Share => (0.01, "pp"),
        Unit::Count | Unit::Number => (1.0, ""),
    };
    let half =
        half.map(|half| if name.is_empty() { number(unit, half) } else { rounded(half / factor) });
    match half.filter(|half| something(half)) {
        None => something(&signed).then_some(signed),
        Some(half) if name.is_empty() => Some(format!("{signed} ± {half}")),
        Some(half) => {
            Some(format!("{:+.*} ± {half} {name}", decimals(mean / factor), mean / factor))
        }
    }
}

/// Formats a difference with its sign.
pub(crate) fn signed(unit: Unit, value: f64) -> String {
    let size = match unit {
        // Differences between percentages are percentage points.
        Unit::Share => format!("{} pp", rounded(value.abs() * 100.0)),
        _ => number(unit, value.abs()),
    };
    // A value that rounds to zero has no sign.
    match size.starts_with(|c: char| c.is_ascii_digit())
        && size.contains(|c: char| matches!(c, '1'..='9'))
    {
        false => size,
        true if value < 0.0 => format!("-{size}"),
        true => format!("+{size}"),
    }
}

/// Formats seconds with three significant digits.
pub fn time(seconds: f64) -> String {
    if seconds <= 0.0 {
        return "0 s".to_owned();
    }
    let (divided, unit) = unit_of(seconds);
    format!("{} {unit}", rounded(seconds / divided))
}

/// Returns the length in seconds, and the name, of the unit that suits a time in seconds.
fn unit_of(seconds: f64) -> (f64, &'static str) {
    match seconds {
        s if s < 1e-3 => (1e-6, "µs"),
        s if s < 0.9995 => (1e-3, "ms"),
        s if s < 99.95 => (1.0, "s"),
        s if s < 5_997.0 => (60.0, "min"),
        s if s < 172_800.0 => (3600.0, "h"),
        _ => (86_400.0, "days"),
    }
}

/// Formats the length of a run or an interval, which tends to be a round number.
pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (number, unit) = match seconds {
        s if s < 120.0 && s != 60.0 => (s, "s"),
        s if s < 7200.0 && s != 3600.0 => (s / 60.0, "min"),
        s if s <= 172_800.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "days"),
    };
    format!("{} {unit}", trimmed(number, 1))
}

/// Formats a count with thousands separators; a mean below 1,000 keeps one decimal.
pub fn count(value: f64) -> String {
    if value.abs() < 1000.0 {
        return trimmed(value, 1);
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = if value < 0.0 { "-".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a share in percent. A share that is not zero or one is never shown as 0 % or 100 %.
pub fn share(value: f64) -> String {
    let percent = value * 100.0;
    match percent {
        p if p > 0.0 && p < 0.05 => "<0.1 %".to_owned(),
        p if (99.95..100.0).contains(&p) => ">99.9 %".to_owned(),
        p => format!("{} %", trimmed(p, 1)),
    }
}

/// Formats any number with three significant digits.
pub(crate) fn digits(value: f64) -> String {
    if value.abs() >= 1000.0 { count(value) } else { trimmed(value, decimals(value)) }
}

fn rounded(value: f64) -> String {
    format!("{value:.0$}", decimals(value))
}

fn decimals(value: f64) -> usize {
    match value.abs() {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    }
}

/// Formats a number without trailing zeros.
pub(crate) fn trimmed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits() {
        for (seconds, text) in [
            (0.0, "0 s"),
            (0.000_012, "12.0 µs"),
            (0.0345, "34.5 ms"),
            (0.9999, "1.00 s"),
            (12.34, "12.3 s"),
            (99.97, "1.67 min"),
            (600.0, "10.0 min"),
            (7200.0, "2.00 h"),
            (1_000_000.0, "11.6 days"),
        ] {
            assert_eq!(time(seconds), text);
        }
        for (value, text) in
            [(0.0, "0"), (2.0 / 3.0, "0.7"), (12.0, "12"), (1234.5, "1,234"), (1e6, "1,000,000")]
        {
            assert_eq!(count(value), text);
        }
        for (value, text) in [
            (0.0, "0 %"),
            (0.0004, "<0.1 %"),
            (0.125, "12.5 %"),
            (0.9999, ">99.9 %"),
            (1.0, "100 %"),
        ] {
            assert_eq!(share(value), text);
        }
        for (value, text) in
            [(0.0, "0"), (0.987, "0.99"), (1.5, "1.5"), (12.34, "12.3"), (5000.0, "5,000")]
        {
            assert_eq!(digits(value), text);
        }
        for (seconds, text) in
            [(5, "5 s"), (300, "5 min"), (86_400, "24 h"), (129_600, "36 h"), (604_800, "7 days")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn differences_have_a_sign_and_an_interval() {
        for (unit, value, text) in [
            (Unit::Time, -1.5, "-1.50 s"),
            (Unit::Time, 0.0, "0 s"),
            (Unit::Share, 0.025, "+2.50 pp"),
            (Unit::Share, -0.000_000_1, "0.00 pp"),
            (Unit::Count, 3.0, "+3"),
        ] {
            assert_eq!(signed(unit, value), text);
        }
        assert_eq!(optional(Unit::Count, None), "-");
        for (unit, mean, half, text) in [
            (Unit::Time, -90.0, Some(4.21), Some("-90.0 ± 4.21 s")),
            (Unit::Time, 0.5, Some(120.0), Some("+0.01 ± 2.00 min")),
            (Unit::Time, -90.0, Some(0.0), Some("-90.0 s")),
            (Unit::Time, 0.0, Some(0.0), None),
            (Unit::Share, 0.125, Some(0.01), Some("+12.5 ± 1.00 pp")),
            (Unit::Share, 0.000_001, Some(0.000_001), None),
            (Unit::Count, -3.0, Some(1.5), Some("-3 ± 1.5")),
            (Unit::Number, 0.25, None, Some("+0.25")),
        ] {
            assert_eq!(plus_minus(unit, mean, half).as_deref(), text);
        }
    }
}
