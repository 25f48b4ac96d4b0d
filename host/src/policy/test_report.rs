//! Formats the results of golden cases and scenarios as text.

use std::io::IsTerminal as _;

use pointsman_policy::{CaseResult, Difference};
use pointsman_report::ObjectiveResult;
use pointsman_report::table::clean;

use super::report::time;
use super::test_results::{ScenarioResult, TestResults};

/// Colours the output if it goes to a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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

    fn yellow(self, text: &str) -> String {
        self.with(33, text)
    }
}

/// Formats the results of golden cases: one line for each case, and below it the differences.
pub(super) fn cases(results: &TestResults, times: bool, paint: Paint) -> String {
    let TestResults { policy, version, dir, .. } = results;
    let mut text = format!("{policy} {version} in {}\n", dir.display());
    for warning in &results.warnings {
        text.push_str(&paint.yellow(&format!("warning: {}", clean(warning))));
        text.push('\n');
    }
    if results.cases_file.is_none() {
        text.push_str("no golden cases: add a file cases.jsonl with expected decisions\n");
        return text;
    }
    text.push_str(&case_lines(&results.cases, times, paint));
    text
}

/// Formats the result of a scenario: one line, and the whole report if an objective is not met.
pub(super) fn scenario(scenario: &ScenarioResult, paint: Paint) -> String {
    let ScenarioResult { file, report } = scenario;
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

fn case_lines(results: &[CaseResult], times: bool, paint: Paint) -> String {
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
        text.push_str(&details(case, paint));
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

/// Returns what the policy logged, and what was dropped of its advice, one line each.
pub(super) fn details(case: &CaseResult, paint: Paint) -> String {
    let mut text = String::new();
    for part in &case.dropped {
        let part = paint.yellow(&clean(part));
        text.push_str(&format!("               dropped   {part}\n"));
    }
    for line in &case.log {
        text.push_str(&format!("               log {:<5} {}\n", line.level, clean(&line.message)));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pointsman_policy::{CaseTrace, LogLine};

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
            hook: "on-request",
            differences: differences.iter().map(difference).collect(),
            took: Duration::from_nanos(12_345),
            dropped: Vec::new(),
            log: Vec::new(),
            marks: Vec::new(),
            trace: CaseTrace::default(),
        }
    }

    #[test]
    fn failed_cases_show_differences() {
        let mut results = [
            case(1, "code", &[]),
            case(
                12,
                "other\u{1b}[2J",
                &[("lane", "coder", "writer"), ("fallback", "[]", "[\"a\"]")],
            ),
        ];
        results[0].log.push(LogLine { level: "warn", message: "HELLO".to_owned() });
        results[1].dropped.push("set-field: not allowed".to_owned());
        let expected = "\
ok          1  code
               log warn  HELLO
DIFFERS    12  other [2J
               lane      expected  coder
                         got       writer
               fallback  expected  []
                         got       [\"a\"]
               dropped   set-field: not allowed
1 of 2 golden cases failed
";
        assert_eq!(case_lines(&results, false, Paint(false)), expected);
        let colored = case_lines(&results, false, Paint(true));
        assert!(
            colored.contains("\u{1b}[31mDIFFERS\u{1b}[0m")
                && colored.contains("\u{1b}[32mcoder\u{1b}[0m")
        );
        assert!(!colored.contains("[2J\u{1b}") && !colored.contains("\u{1b}[2J"), "{colored}");
        let timed = case_lines(&[case(1, "code", &[])], true, Paint(false));
        assert_eq!(timed, "ok          1  code    12.3 µs\n1 golden case passed\n");
    }
}
