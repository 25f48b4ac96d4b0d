//! `pointsman policy test`: runs the golden cases and the scenarios of a policy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use pointsman_build::Tools;
use pointsman_simulate::{Document, Experiment, ExperimentError};

use super::author::load;
use super::coverage::Coverage;
use super::formats;
use super::progress::with_progress;
use super::test_report::{self, Paint};
use super::test_results::{ScenarioResult, TestResults};
use crate::cli::policy::{Test, TestFormat};
use crate::output::{print, print_error};
use crate::simulate;

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
    if options.coverage || options.coverage_min.is_some() {
        let coverage = measure_coverage(options, is_selected)?;
        if is_shown {
            print(&coverage.text())?;
        }
        if let Some(problem) = coverage.problem() {
            print_error(problem);
        }
        results.coverage = Some(coverage);
    }
    if !is_shown {
        let text = match options.format {
            TestFormat::Text => {
                let paint = Paint::default();
                let scenarios = results.scenarios.iter();
                std::iter::once(test_report::cases(&results, options.times, paint))
                    .chain(scenarios.map(|scenario| test_report::scenario(scenario, paint)))
                    .chain(results.coverage.as_ref().map(Coverage::text))
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
fn scenario_files(dir: &Path) -> Vec<PathBuf> {
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
    let report = Experiment::from_scenario(&scenario, &simulate::stage()?)?.run()?;
    Ok(ScenarioResult { file: file.to_owned(), report })
}

/// Builds an instrumented copy of the policy, and runs the golden cases and the scenarios with it.
/// Whether they pass does not matter here.
fn measure_coverage(options: &Test, is_selected: impl Fn(&str) -> bool) -> Result<Coverage> {
    let tools = Tools::from_environment();
    let build = || pointsman_build::build_instrumented(&options.dir, &tools, &mut |_| {});
    let copy = with_progress("building for coverage", build)?;
    let bench = load(copy.folder(), pointsman_config::default_cache())?;
    let results = TestResults::run(&bench, copy.folder(), is_selected)?;
    let mut marks: Vec<String> = results.cases.into_iter().flat_map(|case| case.marks).collect();
    let mut warnings = Vec::new();
    let files = if options.case.is_none() { scenario_files(copy.folder()) } else { Vec::new() };
    for file in files {
        match run_scenario(&file) {
            Ok(scenario) => {
                let variants = scenario.report.variants.into_iter();
                let runs = variants.flat_map(|variant| variant.runs);
                let calls = runs.flat_map(|run| run.summary.policy_calls);
                marks.extend(calls.flat_map(|calls| calls.marks));
            }
            // It may refer to files that are not in the policy's folder.
            Err(error) => {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                warnings.push(format!("coverage without the scenario {name}: {error:#}"));
            }
        }
    }
    Ok(Coverage::new(copy.regions(), &marks, warnings, options.coverage_min))
}
