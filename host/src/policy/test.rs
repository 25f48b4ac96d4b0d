//! `pointsman policy test`: runs the golden cases and the scenarios of a policy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use pointsman_policy::{CaseResult, Workbench};
use pointsman_report::Report;
use pointsman_simulate::{Document, Experiment, ExperimentError};

use super::author::{cannot_load, load};
use super::formats;
use super::test_report::{self, Paint};
use crate::cli::policy::{Test, TestFormat};
use crate::output::print;
use crate::{facts, simulate};

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
        })
    }

    /// Returns true if all cases and all objectives passed.
    pub(super) fn passed(&self) -> bool {
        self.cases.iter().all(|case| case.differences.is_empty())
            && self.scenarios.iter().all(|scenario| scenario.report.met())
    }
}

/// Runs golden cases and scenarios. Returns failure if a case differs or an objective is not met.
pub(super) fn test(options: &Test) -> Result<ExitCode> {
    let dir = &options.dir;
    let bench = load(dir, pointsman_config::default_cache())?;
    let is_selected =
        |name: &str| options.case.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let mut results = TestResults::run(&bench, dir, is_selected)?;
    if let (Some(part), true) = (&options.case, results.cases.is_empty()) {
        anyhow::bail!("--case: no golden case of `{}` has \"{part}\" in its name", bench.name());
    }
    let paint = Paint::for_stdout();
    // People see the cases before the scenarios run, which may take seconds.
    let is_shown = options.format == TestFormat::Text && options.output.is_none();
    if is_shown {
        print(&test_report::cases(&results, options.times, paint))?;
    }
    // `--case` is for quick repetitions of one case.
    for file in if options.case.is_none() { scenario_files(dir) } else { Vec::new() } {
        let scenario = run_scenario(&file)?;
        if is_shown {
            print(&test_report::scenario(&scenario, paint))?;
        }
        results.scenarios.push(scenario);
    }
    if !is_shown {
        let text = match options.format {
            TestFormat::Text => {
                let paint = Paint::default();
                let scenarios = results.scenarios.iter();
                std::iter::once(test_report::cases(&results, options.times, paint))
                    .chain(scenarios.map(|scenario| test_report::scenario(scenario, paint)))
                    .collect()
            }
            TestFormat::Json => format!("{:#}\n", formats::json(&results)),
            TestFormat::Junit => formats::junit(&results),
            TestFormat::Github => formats::github(&results),
        };
        match &options.output {
            Some(file) => simulate::write_file(file, &text)?,
            None => print(&text)?,
        }
    }
    Ok(if results.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the scenarios in a policy's folder, sorted by name. The folder of scenarios is optional.
pub(super) fn scenario_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir.join("scenarios")) else { return Vec::new() };
    let is_scenario =
        |file: &PathBuf| file.extension().is_some_and(|extension| extension == "toml");
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_scenario).collect();
    files.sort_unstable();
    files
}

/// Runs a scenario. Variants are for comparisons by `pointsman simulate`; only the scenario itself
/// has to pass.
pub(super) fn run_scenario(file: &Path) -> Result<ScenarioResult> {
    let mut scenario = Document::load(file)
        .and_then(|document| document.scenario())
        .map_err(ExperimentError::from)?;
    scenario.variants.clear();
    let experiment = Experiment::from_scenario(&scenario, &simulate::stage()?);
    let report = experiment.with_context(|| file.display().to_string())?.run()?;
    Ok(ScenarioResult { file: file.to_owned(), report })
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
