//! Commands for those who write policies. No host is needed for any of them.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use pointsman_build::{Language, Tools};
use pointsman_policy::{
    Allocator, BenchPlan, CaseFleet, Compiler, LoadError, Runtime, RuntimeSettings, Workbench,
    signature,
};
use pointsman_simulate::{Document, Experiment, StudyError};
use serde::de::DeserializeOwned;

use super::report::{self, Paint};
use crate::cli::policy::{Bench, Test};
use crate::{config, facts, simulate};

/// A policy that no host would load.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CannotLoad(String);

/// Make the folder of a new policy.
pub(super) fn new(parent: &Path, name: &str, language: Language) -> Result<()> {
    let folder = pointsman_build::new_policy(parent, name, language)?;
    let folder = folder.display();
    print(&format!(
        "{folder}: a policy in {language}; its README.md says what is in it. Next:\n\n  \
         pointsman policy build {folder}\n  pointsman policy test {folder}\n"
    ));
    Ok(())
}

/// Build a policy's component.
pub(super) fn build(dir: &Path, verbose: bool) -> Result<()> {
    let mut log = |line: &str| {
        #[expect(
            clippy::print_stderr,
            reason = "for whoever watches; the result goes to standard output"
        )]
        if verbose {
            eprintln!("{line}");
        }
    };
    let built = pointsman_build::build(dir, &Tools::from_environment(), &mut log)?;
    print(&format!(
        "{}: {}, built in {}\n",
        built.component.display(),
        report::bytes(built.bytes),
        report::time(built.took)
    ));
    Ok(())
}

/// Run golden cases. One that differs is a failure.
pub(super) fn test(options: &Test) -> Result<ExitCode> {
    let bench = load(&options.dir, config::default_cache())?;
    let wanted = |name: &str| options.case.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let results = bench.test(&facts::from_case, wanted).map_err(cannot_load(&options.dir))?;
    if let (Some(part), true) = (&options.case, results.is_empty()) {
        anyhow::bail!("no golden case of `{}` has \"{part}\" in its name", bench.name());
    }
    let paint = Paint::for_stdout();
    print(&report::of_test(&bench, &options.dir, &results, options.times, paint));
    let differs = results.iter().any(|case| !case.differences.is_empty());
    // Whoever looks for one case wants an answer at once.
    let fails = options.case.is_none() && scenarios(&options.dir, paint)?;
    Ok(if differs || fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Carry out the scenarios in a policy's folder. True if an objective of one is not met.
fn scenarios(dir: &Path, paint: Paint) -> Result<bool> {
    let folder = dir.join("scenarios");
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(false) };
    let is_scenario =
        |file: &PathBuf| file.extension().is_some_and(|extension| extension == "toml");
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_scenario).collect();
    files.sort_unstable();
    if files.is_empty() {
        return Ok(false);
    }
    let stage = simulate::stage()?;
    let mut fails = false;
    for file in files {
        let mut scenario = Document::load(&file)
            .and_then(|document| document.scenario())
            .map_err(StudyError::from)?;
        // Its variants are there to be compared with, by `pointsman simulate`.
        scenario.variants.clear();
        let report = Experiment::of(&scenario, &stage)?.run()?;
        print(&report::of_scenario(&file, &report, paint));
        fails |= !report.met();
    }
    Ok(fails)
}

/// Time calls.
pub(super) fn bench(options: &Bench) -> Result<()> {
    let plan = BenchPlan {
        calls: options.calls,
        lanes: options.lanes.clone(),
        body: options.body.as_deref().map(read_json).transpose()?,
        fleet: options.fleet.as_deref().map(read_json::<CaseFleet>).transpose()?,
        fresh: options.fresh,
    };
    // Compiled anew, because that is one of the figures.
    let bench = load(&options.dir, None)?;
    let measured = bench.bench(&facts::from_case, &plan).map_err(cannot_load(&options.dir))?;
    let text = if options.json {
        format!("{:#}\n", report::bench_json(&bench, &measured))
    } else {
        report::of_bench(&bench, &options.dir, &measured)
    };
    print(&text);
    Ok(())
}

/// Sign a policy.
pub(super) fn sign(dir: &Path, key: &Path) -> Result<()> {
    let text = std::fs::read_to_string(key);
    let text =
        text.with_context(|| format!("{}: the private key cannot be read", key.display()))?;
    let file = match signature::sign(dir, &text) {
        Ok(file) => file,
        Err(error @ signature::SignError::Key(_)) => {
            return Err(error).with_context(|| key.display().to_string());
        }
        Err(error) => return Err(error.into()),
    };
    print(&format!(
        "{}: signed, for the component and the manifest as they are now; sign again when one of them changes\n",
        file.display()
    ));
    Ok(())
}

fn load(dir: &Path, cache_dir: Option<std::path::PathBuf>) -> Result<Workbench> {
    let settings = RuntimeSettings {
        cache_dir,
        compiler: Compiler::this_program(),
        // As in a host: making an instance is quicker than on demand.
        allocator: Allocator::Auto,
        warm_instances: 1,
        ..RuntimeSettings::default()
    };
    let runtime: Arc<Runtime> = Runtime::new(settings)?;
    Ok(Workbench::load(&runtime, dir).map_err(cannot_load(dir))?)
}

fn cannot_load(dir: &Path) -> impl FnOnce(LoadError) -> CannotLoad {
    let dir = dir.display().to_string();
    move |error| {
        let what = error.to_string();
        // Most name a file in it.
        CannotLoad(if what.starts_with(&dir) { what } else { format!("{dir}: {what}") })
    }
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = std::fs::read_to_string(file);
    let text = text.with_context(|| format!("{} cannot be read", file.display()))?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

pub(super) fn print(text: &str) {
    #[expect(clippy::print_stdout, reason = "this is what the command was asked for")]
    {
        print!("{text}");
    }
}
