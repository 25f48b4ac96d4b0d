//! `pointsman policy test`: runs the golden cases and the scenarios of a policy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use pointsman_simulate::{Document, Experiment, ExperimentError};

use super::author::load;
use super::formats;
use super::test_report::{self, Paint};
use super::test_results::{ScenarioResult, TestResults};
use crate::cli::policy::{Test, TestFormat};
use crate::output::print;
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
    let report = Experiment::from_scenario(&scenario, &simulate::stage()?)?.run()?;
    Ok(ScenarioResult { file: file.to_owned(), report })
}
