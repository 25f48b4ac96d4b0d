//! The results of `pointsman policy test`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use pointsman_policy::{CaseResult, Workbench};
use pointsman_report::Report;

use super::author::cannot_load;
use super::coverage::Coverage;
use crate::facts;

/// The results of a test.
#[derive(Debug)]
pub(super) struct TestResults {
    pub(super) policy: String,
    pub(super) version: String,
    pub(super) dir: PathBuf,
    /// The file of the golden cases, if there is one.
    pub(super) cases_file: Option<PathBuf>,
    pub(super) warnings: Vec<String>,
    pub(super) cases: Vec<CaseResult>,
    pub(super) scenarios: Vec<ScenarioResult>,
    /// The coverage, if it was measured.
    pub(super) coverage: Option<Coverage>,
}

/// The result of a scenario.
#[derive(Debug)]
pub(super) struct ScenarioResult {
    pub(super) file: PathBuf,
    pub(super) report: Report,
}

impl TestResults {
    /// Runs the golden cases whose names are selected.
    pub(super) fn run(
        bench: &Workbench,
        dir: &Path,
        is_selected: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let cases = bench.test(&facts::from_case, is_selected).map_err(cannot_load(dir))?;
        Ok(Self {
            policy: bench.name().to_owned(),
            version: bench.version().to_owned(),
            dir: dir.to_owned(),
            cases_file: bench.cases(),
            warnings: warnings(bench.name(), dir),
            cases,
            scenarios: Vec::new(),
            coverage: None,
        })
    }

    /// Returns true if all cases and all objectives passed, and the coverage is not below its
    /// minimum.
    pub(super) fn passed(&self) -> bool {
        self.cases.iter().all(|case| case.differences.is_empty())
            && self.scenarios.iter().all(|scenario| scenario.report.met())
            && self.coverage.as_ref().is_none_or(Coverage::is_sufficient)
    }
}

/// Returns what the author should know about the folder before reading the results.
fn warnings(name: &str, dir: &Path) -> Vec<String> {
    let mut warnings = Vec::new();
    let folder = std::fs::canonicalize(dir).ok();
    let folder = folder.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy());
    if let Some(folder) = folder.filter(|folder| *folder != name) {
        warnings.push(format!(
            "a host expects the policy `{name}` in a folder of that name; found {folder}"
        ));
    }
    let changed = pointsman_build::changed_since_build(dir);
    if let Some(first) = changed.first() {
        let more = match changed.len() {
            1 => String::new(),
            count => format!(" and {} more", count - 1),
        };
        warnings.push(format!(
            "stale component: {}{more} changed after policy.wasm was built; run `pointsman policy \
             build {}`",
            first.display(),
            dir.display()
        ));
    }
    warnings
}
