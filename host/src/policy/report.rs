//! Formats the results of the commands for policy authors.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use pointsman_policy::{CaseResult, Difference, Measurement, Workbench};
use pointsman_report::table::clean;
use pointsman_report::{ObjectiveResult, Report};
use serde_json::{Value, json};

use super::table::aligned;

/// Colours the output if it goes to a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Paint(bool);

impl Paint {
    /// Detects a terminal, unless its user disables colours (<https://no-color.org>).
    pub(super) fn for_stdout() -> Self {
        let is_disabled = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(std::io::stdout().is_terminal() && !is_disabled)
    }

    fn with(self, code: u8, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn green(self, text: &str) -> String {
        self.with(32, text)
    }

    fn red(self, text: &str) -> String {
        self.with(31, text)
    }
}

/// Formats the results of golden cases: one line for each case, and below it the differences.
pub(super) fn test_report(
    bench: &Workbench,
    dir: &Path,
    results: &[CaseResult],
    times: bool,
    paint: Paint,
) -> String {
    let mut text = format!("{} {} in {}\n", bench.name(), bench.version(), dir.display());
    text.extend(note_about_folder(bench.name(), dir));
    if bench.cases().is_none() {
        text.push_str("no golden cases: add a file cases.jsonl with expected decisions\n");
        return text;
    }
    text.push_str(&cases_report(results, times, paint));
    text
}

/// Formats the result of a scenario: one line, and the whole report if an objective is not met.
pub(super) fn scenario_report(file: &Path, report: &Report, paint: Paint) -> String {
    let objectives: Vec<&ObjectiveResult> =
        report.variants.iter().flat_map(|variant| &variant.objectives).collect();
    let met = objectives.iter().filter(|objective| objective.met).count();
    let all = objectives.len();
    let seeds = report.variants.first().map_or(0, |variant| variant.runs.len());
    let verdict = if met == all { paint.green("ok     ") } else { paint.red("NOT MET") };
    let title = clean(&report.title);
    let line = format!(
        "{verdict}  {title}: {met} of {all} objectives met, {seeds} seed{}  ({})\n",
        if seeds == 1 { "" } else { "s" },
        file.display()
    );
    if met == all { line } else { format!("{line}\n{}", report.text()) }
}

fn cases_report(results: &[CaseResult], times: bool, paint: Paint) -> String {
    let mut text = String::new();
    let longest = results.iter().map(|case| case.name.chars().count()).max().unwrap_or(0);
    for case in results {
        let verdict =
            if case.differences.is_empty() { paint.green("ok     ") } else { paint.red("DIFFERS") };
        let name = clean(&case.name);
        let line = if times {
            format!("{verdict}  {:>4}  {name:<longest$}  {:>9}", case.line, time(case.took))
        } else {
            format!("{verdict}  {:>4}  {name}", case.line)
        };
        text.push_str(&line);
        text.push('\n');
        let names = case.differences.iter().map(|difference| difference.what.len());
        let width = names.max().unwrap_or(0);
        for Difference { what, expected, got } in &case.differences {
            let (expected, got) = (paint.green(&clean(expected)), paint.red(&clean(got)));
            text.push_str(&format!("               {what:<width$}  expected  {expected}\n"));
            text.push_str(&format!("               {:<width$}  got       {got}\n", ""));
        }
    }
    let failed = results.iter().filter(|case| !case.differences.is_empty()).count();
    let all = results.len();
    let cases = if all == 1 { "golden case" } else { "golden cases" };
    let summary = match failed {
        0 => paint.green(&format!("{all} {cases} passed")),
        failed => paint.red(&format!("{failed} of {all} {cases} failed")),
    };
    text.push_str(&summary);
    text.push('\n');
    text
}

/// Returns a note if the folder's name differs from the policy's, which a host expects.
fn note_about_folder(name: &str, dir: &Path) -> Option<String> {
    let folder = std::fs::canonicalize(dir).ok()?;
    let folder = folder.file_name()?.to_string_lossy().into_owned();
    (folder != name).then(|| {
        format!(
            "note: a host expects the policy `{name}` in a folder of that name; found {}\n",
            clean(&folder)
        )
    })
}

/// Formats a benchmark: the policy's sizes, and a table of its call times.
pub(super) fn bench_report(bench: &Workbench, dir: &Path, measured: &[Measurement]) -> String {
    let head = [
        ["policy".to_owned(), format!("{} {} in {}", bench.name(), bench.version(), dir.display())],
        [
            "component".to_owned(),
            format!(
                "{}, compiled in {}",
                bytes(bench.component_bytes() as u64),
                time(bench.compiling())
            ),
        ],
        [
            "input".to_owned(),
            if bench.cases().is_some() {
                "golden cases".to_owned()
            } else {
                "a short chat".to_owned()
            },
        ],
    ];
    let mut rows = vec![
        ["LANES", "INSTANCE", "CALLS", "P50", "P99", "MAX", "MEMORY", "NO ADVICE"]
            .map(str::to_owned),
    ];
    for row in measured {
        let or_dash = |duration: Option<Duration>| duration.map_or_else(|| "-".to_owned(), time);
        rows.push([
            row.lanes.map_or_else(|| "as given".to_owned(), |lanes| lanes.to_string()),
            if row.fresh { "new" } else { "warm" }.to_owned(),
            (row.times.len() + row.failed).to_string(),
            or_dash(row.percentile(50)),
            or_dash(row.percentile(99)),
            or_dash(row.percentile(100)),
            if row.memory == 0 { "-".to_owned() } else { bytes(row.memory) },
            row.failed.to_string(),
        ]);
    }
    let mut text = format!("{}\n{}", aligned(&head), aligned(&rows));
    if let Some(failure) = measured.iter().find_map(|row| row.failure.as_ref()) {
        text.push_str(&format!("\nfirst call without advice: {}\n", clean(failure)));
    }
    text
}

/// Returns a benchmark as JSON. Times are in microseconds.
pub(super) fn bench_json(bench: &Workbench, measured: &[Measurement]) -> Value {
    let us = |time: Duration| (time.as_secs_f64() * 1e7).round() / 10.0;
    let row = |row: &Measurement| {
        json!({
            "lanes": row.lanes,
            "instance": if row.fresh { "new" } else { "warm" },
            "calls": row.times.len() + row.failed,
            "p50_us": row.percentile(50).map(us),
            "p99_us": row.percentile(99).map(us),
            "max_us": row.percentile(100).map(us),
            "memory_bytes": (row.memory > 0).then_some(row.memory),
            "no_advice": row.failed,
            "first_failure": row.failure,
        })
    };
    json!({
        "policy": bench.name(),
        "version": bench.version(),
        "component_bytes": bench.component_bytes(),
        "compiled_in_us": us(bench.compiling()),
        "measured": measured.iter().map(row).collect::<Vec<_>>(),
    })
}

/// Formats a duration with three significant digits.
pub(super) fn time(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    let (number, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if number < 9.995 { 2 } else { usize::from(number < 99.95) };
    format!("{number:.digits$} {unit}")
}

/// Formats a size with its unit.
pub(super) fn bytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit after the point")]
    let number = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{:.1} KiB", number / 1024.0),
        _ => format!("{:.1} MiB", number / f64::from(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(line: usize, name: &str, differences: &[(&'static str, &str, &str)]) -> CaseResult {
        let difference = |&(what, expected, got): &(&'static str, &str, &str)| Difference {
            what,
            expected: expected.to_owned(),
            got: got.to_owned(),
        };
        CaseResult {
            line,
            name: name.to_owned(),
            differences: differences.iter().map(difference).collect(),
            took: Duration::from_nanos(12_345),
        }
    }

    #[test]
    fn failed_cases_show_differences() {
        let results = [
            case(1, "code", &[]),
            case(
                12,
                "other\u{1b}[2J",
                &[("lane", "coder", "writer"), ("fallback", "[]", "[\"a\"]")],
            ),
        ];
        let expected = "\
ok          1  code
DIFFERS    12  other [2J
               lane      expected  coder
                         got       writer
               fallback  expected  []
                         got       [\"a\"]
1 of 2 golden cases failed
";
        assert_eq!(cases_report(&results, false, Paint(false)), expected);
        let colored = cases_report(&results, false, Paint(true));
        assert!(
            colored.contains("\u{1b}[31mDIFFERS\u{1b}[0m")
                && colored.contains("\u{1b}[32mcoder\u{1b}[0m")
        );
        assert!(!colored.contains("[2J\u{1b}") && !colored.contains("\u{1b}[2J"), "{colored}");
        let timed = cases_report(&results[..1], true, Paint(false));
        assert_eq!(timed, "ok          1  code    12.3 µs\n1 golden case passed\n");
    }

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        for (nanos, expected) in [
            (400, "0.40 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (1_500_000, "1.50 ms"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(time(Duration::from_nanos(nanos)), expected);
        }
        assert_eq!([1023, 77_107, 17 << 20].map(bytes), ["1023 B", "75.3 KiB", "17.0 MiB"]);
    }
}
