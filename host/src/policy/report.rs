//! What the commands for authors found, for people to read.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use pointsman_policy::{CaseResult, Measured, Workbench};
use pointsman_simulate::{Judged, Report};
use serde_json::{Value, json};

use super::table::{aligned, clean};

/// Colours, where somebody sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Paint(bool);

impl Paint {
    /// On a terminal, unless its user wants none (<https://no-color.org>).
    pub(super) fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(std::io::stdout().is_terminal() && !unwanted)
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

/// One line for each case; below it, what is expected of it and what it got.
pub(super) fn of_test(
    bench: &Workbench,
    dir: &Path,
    results: &[CaseResult],
    times: bool,
    paint: Paint,
) -> String {
    let mut text = format!("{} {} in {}\n", bench.name(), bench.version(), dir.display());
    text.extend(note_about_folder(bench.name(), dir));
    if bench.cases().is_none() {
        text.push_str(
            "it has no golden cases: a file cases.jsonl would say how it has to decide\n",
        );
        return text;
    }
    text.push_str(&of_cases(results, times, paint));
    text
}

/// One line for a scenario whose objectives are met; all figures of one whose are not.
pub(super) fn of_scenario(file: &Path, report: &Report, paint: Paint) -> String {
    let objectives: Vec<&Judged> =
        report.variants.iter().flat_map(|variant| &variant.objectives).collect();
    let (met, all) = (objectives.iter().filter(|judged| judged.met).count(), objectives.len());
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

fn of_cases(results: &[CaseResult], times: bool, paint: Paint) -> String {
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
        let width = case.differences.iter().map(|it| it.what.len()).max().unwrap_or(0);
        for it in &case.differences {
            let (expected, got) = (paint.green(&clean(&it.expected)), paint.red(&clean(&it.got)));
            text.push_str(&format!("               {:<width$}  expected  {expected}\n", it.what));
            text.push_str(&format!("               {:<width$}  got       {got}\n", ""));
        }
    }
    let differ = results.iter().filter(|case| !case.differences.is_empty()).count();
    let all = results.len();
    let cases = if all == 1 { "golden case" } else { "golden cases" };
    let summary = match differ {
        0 => paint.green(&format!("{all} {cases}, all as they should be")),
        differ => paint.red(&format!("{all} {cases}, {differ} of them otherwise than expected")),
    };
    text.push_str(&summary);
    text.push('\n');
    text
}

/// A host looks for a policy in the folder of its name.
fn note_about_folder(name: &str, dir: &Path) -> Option<String> {
    let folder = std::fs::canonicalize(dir).ok()?;
    let folder = folder.file_name()?.to_string_lossy().into_owned();
    (folder != name).then(|| {
        format!(
            "note: a host looks for the policy `{name}` in a folder of that name, and this one is named {}\n",
            clean(&folder)
        )
    })
}

/// Figures of a policy, and a table of its times.
pub(super) fn of_bench(bench: &Workbench, dir: &Path, measured: &[Measured]) -> String {
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
            "asked about".to_owned(),
            if bench.cases().is_some() {
                "its golden cases".to_owned()
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
        let format_duration =
            |time_of: Option<Duration>| time_of.map_or_else(|| "-".to_owned(), time);
        rows.push([
            row.lanes.map_or_else(|| "as given".to_owned(), |lanes| lanes.to_string()),
            if row.fresh { "new" } else { "warm" }.to_owned(),
            (row.times.len() + row.failed).to_string(),
            format_duration(row.percentile(50)),
            format_duration(row.percentile(99)),
            format_duration(row.percentile(100)),
            if row.memory == 0 { "-".to_owned() } else { bytes(row.memory) },
            row.failed.to_string(),
        ]);
    }
    let mut text = format!("{}\n{}", aligned(&head), aligned(&rows));
    if let Some(failure) = measured.iter().find_map(|row| row.failure.as_ref()) {
        text.push_str(&format!("\nthe first call without advice: {}\n", clean(failure)));
    }
    text
}

/// The same for programs. Times are in microseconds.
pub(super) fn bench_json(bench: &Workbench, measured: &[Measured]) -> Value {
    let us = |time: Duration| (time.as_secs_f64() * 1e7).round() / 10.0;
    let row = |row: &Measured| {
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

/// A time with three digits that mean something.
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

/// A size with its unit.
pub(super) fn bytes(bytes: u64) -> String {
    // Exact far beyond any component or memory.
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
    use pointsman_policy::Difference;

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
    fn cases_that_differ_show_how() {
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
2 golden cases, 1 of them otherwise than expected
";
        assert_eq!(of_cases(&results, false, Paint(false)), expected);
        let painted = of_cases(&results, false, Paint(true));
        assert!(
            painted.contains("\u{1b}[31mDIFFERS\u{1b}[0m")
                && painted.contains("\u{1b}[32mcoder\u{1b}[0m")
        );
        assert!(!painted.contains("[2J\u{1b}") && !painted.contains("\u{1b}[2J"), "{painted}");
        let timed = of_cases(&results[..1], true, Paint(false));
        assert_eq!(timed, "ok          1  code    12.3 µs\n1 golden case, all as they should be\n");
    }

    #[test]
    fn figures_have_three_digits_and_a_unit() {
        for (nanos, format_duration) in [
            (400, "0.40 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (1_500_000, "1.50 ms"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(time(Duration::from_nanos(nanos)), format_duration);
        }
        assert_eq!([1023, 77_107, 17 << 20].map(bytes), ["1023 B", "75.3 KiB", "17.0 MiB"]);
    }
}
