//! The results of checks, as a table and as JSON.

use pointsman_report::table::clean;
use serde_json::{Value, json};

use crate::policy::aligned;

/// What a fact means for the engines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// Engines may fail or be slow.
    Warning,
    /// Engines fail.
    Problem,
}

impl Verdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The stable name of the check.
    pub(super) check: &'static str,
    pub(super) verdict: Verdict,
    /// What was read.
    pub(super) fact: String,
    /// What to do; empty if nothing has to be done.
    pub(super) fix: String,
}

impl Finding {
    pub(super) fn ok(check: &'static str, fact: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, fact, "")
    }

    pub(super) fn note(
        check: &'static str,
        fact: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Note, fact, fix)
    }

    pub(super) fn warning(
        check: &'static str,
        fact: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Warning, fact, fix)
    }

    pub(super) fn problem(
        check: &'static str,
        fact: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::new(check, Verdict::Problem, fact, fix)
    }

    pub(super) fn new(
        check: &'static str,
        verdict: Verdict,
        fact: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self { check, verdict, fact: fact.into(), fix: fix.into() }
    }
}

/// Returns true if engines fail because of a finding.
pub(super) fn has_problem(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.verdict == Verdict::Problem)
}

/// Returns the findings as JSON.
pub(super) fn to_json(findings: &[Finding]) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "check": finding.check,
            "verdict": finding.verdict.name(),
            "fact": finding.fact,
            "fix": Some(&finding.fix).filter(|fix| !fix.is_empty()),
        })
    };
    json!({
        "has_problem": has_problem(findings),
        "findings": findings.iter().map(finding).collect::<Vec<Value>>(),
    })
}

/// Returns a table of the findings; what to do is below each fact.
pub(super) fn to_text(findings: &[Finding]) -> String {
    let mut rows = Vec::new();
    for Finding { check, verdict, fact, fix } in findings {
        rows.push([verdict.name().to_owned(), (*check).to_owned(), clean(fact)]);
        if !fix.is_empty() {
            rows.push([String::new(), String::new(), format!("-> {}", clean(fix))]);
        }
    }
    let count = |verdict| findings.iter().filter(|finding| finding.verdict == verdict).count();
    let summary = [
        (count(Verdict::Problem), "problem"),
        (count(Verdict::Warning), "warning"),
        (count(Verdict::Note), "note"),
    ]
    .map(|(count, name)| format!("{count} {name}{}", if count == 1 { "" } else { "s" }));
    format!("{}\n{}\n", aligned(&rows), summary.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_a_table_and_json() {
        let findings = [
            Finding::ok("kernel", "6.18.6"),
            Finding::problem("kfd", "no /dev/kfd\u{1b}", "load the driver"),
        ];
        let text = to_text(&findings);
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(lines[2], "-> load the driver");
        assert_eq!(lines.last(), Some(&"1 problem, 0 warnings, 0 notes"));
        assert!(!text.contains('\u{1b}'), "{text}");
        let value = to_json(&findings);
        assert_eq!(value["has_problem"], true);
        assert_eq!(value["findings"][0]["fix"], Value::Null);
        assert_eq!(value["findings"][1]["verdict"], "problem");
        assert!(!has_problem(&findings[..1]));
    }
}
