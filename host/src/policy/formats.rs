//! Formats the results of tests for programs: JSON, JUnit XML, and annotations of GitHub Actions.

use std::path::Path;

use pointsman_policy::{CaseResult, Difference};
use pointsman_report::ObjectiveResult;
use serde_json::{Value, json};

use super::test_results::{ScenarioResult, TestResults};

/// Returns the results as JSON. Times are in microseconds.
pub(super) fn json(results: &TestResults) -> Value {
    let case = |case: &CaseResult| {
        let difference = |difference: &Difference| {
            let Difference { what, expected, got } = difference;
            json!({ "what": what, "expected": expected, "got": got })
        };
        json!({
            "name": case.name,
            "line": case.line,
            "hook": case.hook,
            "passed": case.differences.is_empty(),
            "differences": case.differences.iter().map(difference).collect::<Vec<_>>(),
            "dropped": case.dropped,
            "log": case.log,
            "decided": case.trace.decided,
            "duration_us": case.took.as_secs_f64() * 1e6,
        })
    };
    let scenario = |scenario: &ScenarioResult| {
        json!({
            "file": scenario.file,
            "title": scenario.report.title,
            "passed": scenario.report.met(),
            "objectives": objectives(scenario),
        })
    };
    let mut report = json!({
        "policy": results.policy,
        "version": results.version,
        "passed": results.passed(),
        "warnings": results.warnings,
        "cases_file": results.cases_file,
        "cases": results.cases.iter().map(case).collect::<Vec<_>>(),
        "scenarios": results.scenarios.iter().map(scenario).collect::<Vec<_>>(),
    });
    if let Some(coverage) = &results.coverage {
        report["coverage"] = coverage.json();
    }
    report
}

fn objectives(scenario: &ScenarioResult) -> Vec<&ObjectiveResult> {
    scenario.report.variants.iter().flat_map(|variant| &variant.objectives).collect()
}

/// Returns the objectives of a scenario that are not met, one per line.
fn unmet(scenario: &ScenarioResult) -> String {
    let all = objectives(scenario);
    let unmet = all.into_iter().filter(|objective| !objective.met);
    unmet.map(|objective| objective.objective.clone()).collect::<Vec<_>>().join("\n")
}

/// Returns the differences of a case, one per line.
fn differences(case: &CaseResult) -> String {
    let line = |Difference { what, expected, got }: &Difference| {
        format!("{what}: expected {expected}, got {got}")
    };
    case.differences.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Returns what a case logged, and what was dropped of its advice.
fn output(case: &CaseResult) -> String {
    let dropped = case.dropped.iter().map(|part| format!("dropped {part}\n"));
    let log = case.log.iter().map(|line| format!("{} {}\n", line.level, line.message));
    dropped.chain(log).collect()
}

/// Returns the results as JUnit XML, with one suite for the golden cases and one for the scenarios.
pub(super) fn junit(results: &TestResults) -> String {
    let policy = xml(&results.policy);
    let failed = |failed: usize, all: usize| format!("tests=\"{all}\" failures=\"{failed}\"");
    let (cases, scenarios) = (&results.cases, &results.scenarios);
    let failed_cases = cases.iter().filter(|case| !case.differences.is_empty()).count();
    let failed_scenarios = scenarios.iter().filter(|scenario| !scenario.report.met()).count();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"{policy}\" {}>\n",
        failed(failed_cases + failed_scenarios, cases.len() + scenarios.len())
    );
    let cases_file = results.cases_file.as_deref().unwrap_or(Path::new(""));
    suite(
        &mut text,
        &format!("{policy} golden cases"),
        &failed(failed_cases, cases.len()),
        |text| {
            for case in cases {
                let failure = (!case.differences.is_empty()).then(|| differences(case));
                let attributes = format!(
                    "name=\"{}\" classname=\"{policy}\" file=\"{}\" line=\"{}\" time=\"{:.6}\"",
                    xml(&case.name),
                    xml(&cases_file.display().to_string()),
                    case.line,
                    case.took.as_secs_f64()
                );
                test_case(text, &attributes, failure.as_deref(), &output(case));
            }
        },
    );
    let counts = failed(failed_scenarios, scenarios.len());
    suite(&mut text, &format!("{policy} scenarios"), &counts, |text| {
        for scenario in scenarios {
            let failure = (!scenario.report.met()).then(|| unmet(scenario));
            let attributes = format!(
                "name=\"{}\" classname=\"{policy}\" file=\"{}\"",
                xml(&scenario.report.title),
                xml(&scenario.file.display().to_string())
            );
            test_case(text, &attributes, failure.as_deref(), "");
        }
    });
    text.push_str("</testsuites>\n");
    text
}

fn suite(text: &mut String, name: &str, counts: &str, add_cases: impl FnOnce(&mut String)) {
    text.push_str(&format!("  <testsuite name=\"{name}\" {counts}>\n"));
    add_cases(text);
    text.push_str("  </testsuite>\n");
}

fn test_case(text: &mut String, attributes: &str, failure: Option<&str>, output: &str) {
    if failure.is_none() && output.is_empty() {
        text.push_str(&format!("    <testcase {attributes}/>\n"));
        return;
    }
    text.push_str(&format!("    <testcase {attributes}>\n"));
    if let Some(failure) = failure {
        let first = failure.lines().next().unwrap_or_default();
        let (first, all) = (xml(first), xml(failure));
        text.push_str(&format!("      <failure message=\"{first}\">{all}</failure>\n"));
    }
    if !output.is_empty() {
        text.push_str(&format!("      <system-out>{}</system-out>\n", xml(output)));
    }
    text.push_str("    </testcase>\n");
}

/// Escapes text for XML 1.0, which has no other control characters than white space.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' | '\t' => escaped.push(char),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            char if char.is_control() => escaped.push('\u{fffd}'),
            char => escaped.push(char),
        }
    }
    escaped
}

/// Returns annotations for GitHub Actions: an error for each failure, a warning for each warning
/// and for dropped advice, and a notice with the totals.
pub(super) fn github(results: &TestResults) -> String {
    let mut text = String::new();
    let manifest = results.dir.join("policy.toml");
    for warning in &results.warnings {
        text.push_str(&annotation("warning", &manifest, None, &results.policy, warning));
    }
    let cases_file = results.cases_file.as_deref().unwrap_or(&manifest);
    for case in &results.cases {
        let line = Some(case.line);
        if !case.differences.is_empty() {
            let differences = differences(case);
            text.push_str(&annotation("error", cases_file, line, &case.name, &differences));
        }
        for part in &case.dropped {
            let message = format!("dropped {part}");
            text.push_str(&annotation("warning", cases_file, line, &case.name, &message));
        }
    }
    for scenario in results.scenarios.iter().filter(|scenario| !scenario.report.met()) {
        let title = &scenario.report.title;
        text.push_str(&annotation("error", &scenario.file, None, title, &unmet(scenario)));
    }
    let passed = results.cases.iter().filter(|case| case.differences.is_empty()).count();
    let met = results.scenarios.iter().filter(|scenario| scenario.report.met()).count();
    let totals = format!(
        "{passed} of {} golden cases and {met} of {} scenarios passed",
        results.cases.len(),
        results.scenarios.len()
    );
    text.push_str(&annotation("notice", &manifest, None, &results.policy, &totals));
    text
}

fn annotation(level: &str, file: &Path, line: Option<usize>, title: &str, message: &str) -> String {
    let property = |text: &str| escape_command(text).replace(':', "%3A").replace(',', "%2C");
    let line = line.map(|line| format!(",line={line}")).unwrap_or_default();
    let file = property(&file.display().to_string());
    format!("::{level} file={file}{line},title={}::{}\n", property(title), escape_command(message))
}

/// Escapes the data of a workflow command, which is one line.
fn escape_command(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_a_policy_cannot_leave_its_place() {
        assert_eq!(xml("a<b>&\"\u{1b}[2J\n"), "a&lt;b&gt;&amp;&quot;\u{fffd}[2J\n");
        let annotation =
            annotation("error", Path::new("a,b"), Some(3), "x::y", "50 %\n::error::forged");
        assert_eq!(
            annotation,
            "::error file=a%2Cb,line=3,title=x%3A%3Ay::50 %25%0A::error::forged\n"
        );
    }
}
