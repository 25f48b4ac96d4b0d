//! Numbers for people: as many digits as mean something, and the unit that suits them.

use std::time::Duration;

use crate::metric::Unit;

/// A number of this kind.
pub(super) fn number(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Time => time(value),
        Unit::Count => count(value),
        Unit::Share => share(value),
        Unit::Number => digits(value),
    }
}

/// The same, or a dash for none.
pub(super) fn maybe(unit: Unit, value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| number(unit, value))
}

/// A difference, with its sign.
pub(super) fn signed(unit: Unit, value: f64) -> String {
    let size = match unit {
        // Between percentages there are points.
        Unit::Share => format!("{} pp", rounded(value.abs() * 100.0)),
        _ => number(unit, value.abs()),
    };
    // What is rounded to nothing has no sign.
    match size.starts_with(|c: char| c.is_ascii_digit()) && size.contains(|c: char| matches!(c, '1'..='9')) {
        false => size,
        true if value < 0.0 => format!("-{size}"),
        true => format!("+{size}"),
    }
}

/// Seconds, with three digits that mean something.
pub(crate) fn time(seconds: f64) -> String {
    let (number, unit) = match seconds {
        s if s <= 0.0 => return "0 s".to_owned(),
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 0.9995 => (s * 1e3, "ms"),
        s if s < 99.95 => (s, "s"),
        s if s < 5_997.0 => (s / 60.0, "min"),
        s if s < 172_800.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "days"),
    };
    format!("{} {unit}", rounded(number))
}

/// The length of a run or a piece of it, which tends to be round.
pub(super) fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (number, unit) = match seconds {
        s if s < 60.0 => (s, "s"),
        s if s < 3600.0 => (s / 60.0, "min"),
        s if s <= 172_800.0 => (s / 3600.0, "h"),
        s => (s / 86_400.0, "days"),
    };
    format!("{} {unit}", trimmed(number, 1))
}

/// How many; means have a digit after the point, as long as they are small.
pub(crate) fn count(value: f64) -> String {
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

/// A part of a whole, in percent. What is not all is not shown as 100 %, and what is not nothing not as 0 %.
pub(crate) fn share(value: f64) -> String {
    let percent = value * 100.0;
    match percent {
        p if p > 0.0 && p < 0.05 => "<0.1 %".to_owned(),
        p if (99.95..100.0).contains(&p) => ">99.9 %".to_owned(),
        p => format!("{} %", trimmed(p, 1)),
    }
}

/// Any number, with three digits that mean something.
pub(super) fn digits(value: f64) -> String {
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

/// Without zeros at the end.
pub(super) fn trimmed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if text == "-0" { "0".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
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
        for (value, text) in
            [(0.0, "0 %"), (0.0004, "<0.1 %"), (0.125, "12.5 %"), (0.9999, ">99.9 %"), (1.0, "100 %")]
        {
            assert_eq!(share(value), text);
        }
        for (value, text) in [(0.0, "0"), (0.987, "0.99"), (1.5, "1.5"), (12.34, "12.3"), (5000.0, "5,000")] {
            assert_eq!(digits(value), text);
        }
        for (seconds, text) in
            [(5, "5 s"), (300, "5 min"), (86_400, "24 h"), (129_600, "36 h"), (604_800, "7 days")]
        {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn differences_have_signs() {
        for (unit, value, text) in [
            (Unit::Time, -1.5, "-1.50 s"),
            (Unit::Time, 0.0, "0 s"),
            (Unit::Share, 0.025, "+2.50 pp"),
            (Unit::Share, -0.000_000_1, "0.00 pp"),
            (Unit::Count, 3.0, "+3"),
        ] {
            assert_eq!(signed(unit, value), text);
        }
        assert_eq!(maybe(Unit::Count, None), "-");
    }
}
