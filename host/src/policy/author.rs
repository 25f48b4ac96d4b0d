//! Commands for policy authors. None of them needs a running host.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use pointsman_build::{Language, Tools};
use pointsman_files::read_regular_text;
use pointsman_policy::{
    Allocator, BenchPlan, CaseFleet, Compiler, LoadError, Runtime, RuntimeSettings, Workbench,
    signature,
};
use pointsman_simulate::{Document, Experiment, ExperimentError};
use serde::de::DeserializeOwned;

use super::report::{self, Paint};
use crate::cli::policy::{Bench, Test};
use crate::output::{print, print_error};
use crate::{facts, simulate};

/// Maximum size of the file of a private key in bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;
/// Maximum size of a request or a description of lanes in bytes; that of a request to a host.
const MAX_JSON_BYTES: u64 = 32 << 20;

/// A policy that a host could not load. The error is not a `source`, because the message includes
/// it.
#[derive(Debug, thiserror::Error)]
pub(crate) struct PolicyLoadError {
    dir: PathBuf,
    error: LoadError,
}

impl fmt::Display for PolicyLoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dir, error) = (self.dir.display().to_string(), self.error.to_string());
        // Most errors begin with a file in the folder.
        let prefix = if error.starts_with(&dir) { String::new() } else { format!("{dir}: ") };
        write!(f, "{prefix}{error} [{}]", self.error.code())
    }
}

/// Creates the folder of a new policy.
pub(super) fn new(parent: &Path, name: &str, language: Language) -> Result<()> {
    let folder = pointsman_build::new_policy(parent, name, language)?;
    let folder = folder.display();
    let program = invocation();
    print(&format!(
        "{folder}: created a policy in {language}; see its README.md. Next steps:\n\n  \
         {program} policy build {folder}\n  {program} policy test {folder}\n"
    ))
}

/// Returns how this program can be called: by its name if that is on the PATH, else by its path.
fn invocation() -> String {
    let name = env!("CARGO_PKG_NAME");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_on_path = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    match std::env::current_exe() {
        Ok(program) if !is_on_path => program.display().to_string(),
        Ok(_) | Err(_) => name.to_owned(),
    }
}

/// Builds a policy's component.
pub(super) fn build(dir: &Path, verbose: bool) -> Result<()> {
    let mut log = |line: &str| {
        if verbose {
            // Progress; the result goes to standard output.
            print_error(line.to_owned());
        }
    };
    let built = pointsman_build::build(dir, &Tools::from_environment(), &mut log)?;
    print(&format!(
        "{}: {}, built in {}\n",
        built.component.display(),
        report::bytes(built.bytes),
        report::time(built.took)
    ))
}

/// Runs golden cases and scenarios. Returns failure if a case differs or an objective is not met.
pub(super) fn test(options: &Test) -> Result<ExitCode> {
    let bench = load(&options.dir, pointsman_config::default_cache())?;
    let is_selected =
        |name: &str| options.case.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let results = bench.test(&facts::from_case, is_selected).map_err(cannot_load(&options.dir))?;
    if let (Some(part), true) = (&options.case, results.is_empty()) {
        anyhow::bail!("--case: no golden case of `{}` has \"{part}\" in its name", bench.name());
    }
    let paint = Paint::for_stdout();
    print(&report::test_report(&bench, &options.dir, &results, options.times, paint))?;
    let cases_failed = results.iter().any(|case| !case.differences.is_empty());
    // Scenarios take seconds, and `--case` is for quick repetitions of one case.
    let scenarios_failed = options.case.is_none() && scenarios(&options.dir, paint)?;
    Ok(if cases_failed || scenarios_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Runs the scenarios in a policy's folder. Returns true if an objective is not met.
fn scenarios(dir: &Path, paint: Paint) -> Result<bool> {
    let folder = dir.join("scenarios");
    // The folder is optional.
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(false) };
    let is_scenario =
        |file: &PathBuf| file.extension().is_some_and(|extension| extension == "toml");
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_scenario).collect();
    files.sort_unstable();
    if files.is_empty() {
        return Ok(false);
    }
    let env = simulate::stage()?;
    let mut has_failed = false;
    for file in files {
        let mut scenario = Document::load(&file)
            .and_then(|document| document.scenario())
            .map_err(ExperimentError::from)?;
        // Variants are for comparisons by `pointsman simulate`; only the scenario has to pass.
        scenario.variants.clear();
        let report = Experiment::from_scenario(&scenario, &env)?.run()?;
        print(&report::scenario_report(&file, &report, paint))?;
        has_failed |= !report.met();
    }
    Ok(has_failed)
}

/// Measures call times.
pub(super) fn bench(options: &Bench) -> Result<()> {
    let plan = BenchPlan {
        calls: options.calls,
        lanes: options.lanes.clone(),
        body: options.body.as_deref().map(read_json).transpose()?,
        fleet: options.fleet.as_deref().map(read_json::<CaseFleet>).transpose()?,
        fresh: options.fresh,
    };
    // Without a cache, because the compile time is one of the results.
    let bench = load(&options.dir, None)?;
    let measured = bench.bench(&facts::from_case, &plan).map_err(cannot_load(&options.dir))?;
    let text = if options.json {
        format!("{:#}\n", report::bench_json(&bench, &measured))
    } else {
        report::bench_report(&bench, &options.dir, &measured)
    };
    print(&text)
}

/// Signs a policy.
pub(super) fn sign(dir: &Path, key: &Path) -> Result<()> {
    let text = read_regular_text(key, MAX_KEY_BYTES).context("failed to read the private key")?;
    let file = match signature::sign(dir, &text) {
        Ok(file) => file,
        Err(error @ signature::SignError::Key(_)) => {
            return Err(error).with_context(|| key.display().to_string());
        }
        Err(error) => return Err(error.into()),
    };
    print(&format!(
        "{}: signed the component and the manifest; sign again after changing either of them\n",
        file.display()
    ))
}

fn load(dir: &Path, cache_dir: Option<std::path::PathBuf>) -> Result<Workbench> {
    let settings = RuntimeSettings {
        cache_dir,
        compiler: Compiler::this_program(),
        // As in a host, where creating an instance has to be fast.
        allocator: Allocator::Auto,
        warm_instances: 1,
        ..RuntimeSettings::default()
    };
    let runtime: Arc<Runtime> = Runtime::new(settings)?;
    Ok(Workbench::load(&runtime, dir).map_err(cannot_load(dir))?)
}

fn cannot_load(dir: &Path) -> impl FnOnce(LoadError) -> PolicyLoadError {
    let dir = dir.to_owned();
    move |error| PolicyLoadError { dir, error }
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = read_regular_text(file, MAX_JSON_BYTES)?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}
