//! The rows of the table.

use super::median;

/// What is wanted of the ratio of a row, or of its figure if it is not compared.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    AtMost(f64),
    AtLeast(f64),
    Reported,
}

impl Target {
    fn text(self) -> String {
        match self {
            Self::AtMost(limit) => format!("<= {limit}"),
            Self::AtLeast(limit) => format!(">= {limit}"),
            Self::Reported => "reported".to_owned(),
        }
    }

    fn verdict(self, value: f64) -> &'static str {
        let is_met = match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
            Self::Reported => return "–",
        };
        if is_met { "ok" } else { "misses" }
    }
}

/// A figure, what it is compared with, and whether it is as wanted.
#[derive(Debug)]
pub(super) struct Row([String; 6]);

const HEAD: [&str; 6] = ["figure", "measured", "against", "ratio", "target", ""];

impl Row {
    /// Returns a row with the medians of the rounds of two servers. The ratio is the median of the
    /// ratios of rounds, because a round affects both servers in the same way.
    pub(super) fn compared(
        figure: &str,
        (measured, unit): (&[f64], &str),
        (name, against): (&str, &[f64]),
        target: Target,
    ) -> Self {
        let ratios = measured.iter().zip(against).map(|(one, other)| one / other);
        let ratio = median(ratios.collect());
        let against = format!("{name}: {}", amount(median(against.to_vec()), unit));
        Self([
            figure.to_owned(),
            amount(median(measured.to_vec()), unit),
            against,
            format!("{ratio:.2}"),
            target.text(),
            target.verdict(ratio).to_owned(),
        ])
    }

    /// Returns a row of a figure that is not compared with anything.
    pub(super) fn absolute(figure: &str, value: f64, unit: &str, target: Target) -> Self {
        let (measured, verdict) = (amount(value, unit), target.verdict(value).to_owned());
        let none = || "–".to_owned();
        Self([figure.to_owned(), measured, none(), none(), target.text(), verdict])
    }

    /// Returns a row of a figure that was not measured.
    pub(super) fn missing(figure: &str, why: &str) -> Self {
        let none = || "–".to_owned();
        Self([figure.to_owned(), why.to_owned(), none(), none(), none(), none()])
    }
}

/// Formats a value with three digits or more.
fn amount(value: f64, unit: &str) -> String {
    let text = match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    };
    format!("{text} {unit}").trim_end().to_owned()
}

/// Prints the rows as a table of Markdown with columns of equal width.
pub(super) fn print(rows: &[Row]) {
    let head = HEAD.map(str::to_owned);
    let all = || std::iter::once(&head).chain(rows.iter().map(|row| &row.0));
    let width = |column: usize| all().map(|cells| cells[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |cells: &[String; 6]| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        println!("|{}", cells.collect::<String>());
    };
    println!();
    line(&head);
    let rules: String = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2))).collect();
    println!("|{rules}");
    rows.iter().for_each(|row| line(&row.0));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratio_is_the_median_of_the_rounds_ratios() {
        // The second round is twice as slow for both, and the third one has an outlier.
        let row = Row::compared(
            "CPU",
            (&[30.0, 60.0, 90.0], "µs"),
            ("floor", &[20.0, 40.0, 10.0]),
            Target::AtMost(1.5),
        );
        assert_eq!(row.0[1..], ["60.0 µs", "floor: 20.0 µs", "1.50", "<= 1.5", "ok"]);
    }

    #[test]
    fn verdict_depends_on_the_direction_of_the_target() {
        let verdict = |target| Row::absolute("f", 60.0, "", target).0[5].clone();
        assert_eq!(verdict(Target::AtMost(59.0)), "misses");
        assert_eq!(verdict(Target::AtLeast(59.0)), "ok");
        assert_eq!(verdict(Target::Reported), "–");
    }
}
