//! `pointsman policy test --coverage`: which branches and functions of the policy's source its
//! golden cases and scenarios take.

use std::collections::HashSet;

use pointsman_build::Region;
use serde_json::{Value, json};

/// The stable code of coverage below `--coverage-min`.
const BELOW_MINIMUM: &str = "coverage_below_minimum";

/// The branches and functions that were taken.
#[derive(Debug)]
pub(super) struct Coverage {
    total: usize,
    not_taken: Vec<Region>,
    /// Scenarios that could not be run with the instrumented copy.
    warnings: Vec<String>,
    /// The minimum in per cent, if there is one.
    minimum: Option<f64>,
}

impl Coverage {
    /// Returns the coverage by the reports `marks` of instrumented code that has these regions.
    pub(super) fn new(
        regions: &[Region],
        marks: &[String],
        warnings: Vec<String>,
        minimum: Option<f64>,
    ) -> Self {
        Self { warnings, minimum, ..Self::from_marks(regions, marks) }
    }

    /// Compares the regions of the source with the reports of the instrumented code.
    fn from_marks(regions: &[Region], marks: &[String]) -> Self {
        // The policy could write such a line itself; then it means nothing.
        let parsed: Vec<Vec<String>> =
            marks.iter().filter_map(|mark| serde_json::from_str(mark).ok()).collect();
        let taken: HashSet<(&str, &str)> = parsed
            .iter()
            .filter_map(|mark| mark.split_first())
            .flat_map(|(file, names)| names.iter().map(move |name| (&**file, &**name)))
            .collect();
        let is_taken = |region: &&Region| taken.contains(&(&*region.file, &*region.mark));
        let mut not_taken: Vec<Region> =
            regions.iter().filter(|region| !is_taken(region)).cloned().collect();
        not_taken.sort_by(|one, other| {
            (&one.file, one.line, one.column).cmp(&(&other.file, other.line, other.column))
        });
        Self { total: regions.len(), not_taken, warnings: Vec::new(), minimum: None }
    }

    fn taken(&self) -> usize {
        self.total - self.not_taken.len()
    }

    /// Returns the share that was taken, in per cent; 100 of nothing.
    fn percent(&self) -> f64 {
        if self.total == 0 { 100.0 } else { self.taken() as f64 * 100.0 / self.total as f64 }
    }

    /// Returns false if the coverage is below the minimum.
    pub(super) fn is_sufficient(&self) -> bool {
        self.minimum.is_none_or(|minimum| self.percent() >= minimum)
    }

    /// Returns why the coverage is not sufficient, with a stable code.
    pub(super) fn problem(&self) -> Option<String> {
        let minimum = self.minimum.filter(|_| !self.is_sufficient())?;
        let percent = self.percent();
        Some(format!("coverage of {percent:.1}% is below {minimum}% [{BELOW_MINIMUM}]"))
    }

    /// Returns the coverage as text: the share, and one line for each part that was not taken.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for warning in &self.warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
        let (taken, total, percent) = (self.taken(), self.total, self.percent());
        text.push_str(&format!(
            "coverage: {taken} of {total} branches and functions ({percent:.1}%)\n"
        ));
        for Region { file, line, column, what, .. } in &self.not_taken {
            text.push_str(&format!("  not taken  {file}:{line}:{column}  {what}\n"));
        }
        text
    }

    /// Returns the coverage as JSON.
    pub(super) fn json(&self) -> Value {
        let region = |region: &Region| {
            let Region { file, line, column, what, .. } = region;
            json!({ "file": file, "line": line, "column": column, "what": what })
        };
        json!({
            "taken": self.taken(),
            "total": self.total,
            "percent": self.percent(),
            "minimum": self.minimum,
            "code": self.problem().map(|_| BELOW_MINIMUM),
            "not_taken": self.not_taken.iter().map(region).collect::<Vec<_>>(),
            "warnings": self.warnings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(mark: &str, line: u32) -> Region {
        let (file, what) = ("src/policy.ts".to_owned(), "else".to_owned());
        Region { file, mark: mark.to_owned(), line, column: 5, what }
    }

    #[test]
    fn regions_without_a_mark_are_not_taken() {
        let regions = [region("b0.1", 9), region("f0", 3), region("b0.0", 9), region("f1", 4)];
        let marks = [
            r#"["src/policy.ts","f0"]"#,
            r#"["src/policy.ts","f0","b0.0"]"#,
            r#"["src/other.ts","f1"]"#,
            "not JSON",
        ];
        let marks = marks.map(str::to_owned);
        let mut coverage = Coverage::from_marks(&regions, &marks);
        let not_taken: Vec<_> = coverage.not_taken.iter().map(|region| &*region.mark).collect();
        assert_eq!((not_taken, coverage.total), (vec!["f1", "b0.1"], 4));
        assert!(coverage.is_sufficient() && coverage.json()["code"].is_null());
        assert!(coverage.text().contains("src/policy.ts:4:5"), "{}", coverage.text());
        for (minimum, is_sufficient) in [(50.0, true), (50.1, false)] {
            coverage.minimum = Some(minimum);
            assert_eq!(coverage.is_sufficient(), is_sufficient);
            assert_eq!(coverage.problem().is_none(), is_sufficient);
        }
        assert_eq!(coverage.json()["code"], BELOW_MINIMUM);
        assert_eq!(Coverage::from_marks(&[], &[]).percent(), 100.0);
    }
}
