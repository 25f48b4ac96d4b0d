//! `pointsman simulate`: runs scenarios and reports how policies perform.

use std::fs;
use std::io::BufWriter;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pointsman_policy::Compiler;
use pointsman_report::Report;
use pointsman_simulate::{
    Document, Experiment, ExperimentError, Progress, Scenario, SimulationEnv,
};

use crate::chains;
use crate::cli::simulate::Simulate;
use crate::output::print;

/// Resolution of the progress bar.
const STEPS: u64 = 1000;

/// The name of the scenario's own chain in a comparison with a single other one.
const SCENARIO_CHAIN: &str = "the scenario's chain";

/// Runs the command.
pub(crate) fn simulate(options: &Simulate) -> Result<ExitCode> {
    let document = document(options)?;
    let env = stage()?;
    let mut experiment = experiment(options, &document, &env)?;
    if let Some(file) = &options.trace {
        let out = fs::File::create(file)
            .with_context(|| format!("failed to create {}", file.display()))?;
        experiment.trace(BufWriter::new(out));
    }
    let jobs = options.jobs.and_then(|jobs| NonZeroUsize::new(jobs.into()));
    let jobs = jobs.or(std::thread::available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN);
    let bar = progress_bar(options.quiet);
    let report = experiment.run_with(jobs, &|progress| show(&bar, progress))?;
    bar.finish_and_clear();
    write(options, &report)?;
    // A variant exists for comparison and may fail an objective; a chain of `--compare` and a value
    // of `--sweep` may not.
    let met = match report.variants.first() {
        Some(first) if report.sweep.is_none() && options.compare.is_empty() => first.met(),
        _ => report.met(),
    };
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the environment of simulations, with the host's compiler and compilation cache.
pub(crate) fn stage() -> Result<SimulationEnv> {
    Ok(SimulationEnv::with_compiler(Compiler::this_program(), pointsman_config::default_cache())?)
}

fn document(options: &Simulate) -> Result<Document> {
    let mut document = Document::load(&options.scenario).map_err(ExperimentError::from)?;
    for set in &options.set {
        let (key, value) = key_and_value(set).with_context(|| format!("--set {set}"))?;
        set_key(&mut document, key, value).with_context(|| format!("--set {set}"))?;
    }
    if let Some(seeds) = options.seeds {
        set_key(&mut document, "seeds", &seeds.to_string())?;
    }
    Ok(document)
}

fn experiment(options: &Simulate, document: &Document, env: &SimulationEnv) -> Result<Experiment> {
    let scenario = scenario(document)?;
    if let Some(sweep) = &options.sweep {
        let (key, values) = key_and_value(sweep).with_context(|| format!("--sweep {sweep}"))?;
        let mut experiment = Experiment::new(&scenario);
        experiment.set_sweep_key(key);
        for value in values.split(',').map(str::trim) {
            let mut document = document.clone();
            set_key(&mut document, key, value).with_context(|| format!("--sweep {sweep}"))?;
            experiment.add(value, &self::scenario(&document)?, None, env)?;
        }
        return Ok(experiment);
    }
    if !options.compare.is_empty() {
        let chain = Experiment::policy_chain(&scenario).map_err(ExperimentError::from)?;
        let mut experiment = Experiment::new(&scenario);
        // One chain alone would be compared with nothing.
        if options.compare.len() == 1 {
            experiment.add(SCENARIO_CHAIN, &scenario, None, env)?;
        }
        for (name, chain) in chains::named(&options.compare, &chain)?.list() {
            experiment.add(name, &scenario, Some(chain.clone()), env)?;
        }
        return Ok(experiment);
    }
    if options.no_variants {
        let mut experiment = Experiment::new(&scenario);
        experiment.add(&scenario.title, &scenario, None, env)?;
        return Ok(experiment);
    }
    Ok(Experiment::from_scenario(&scenario, env)?)
}

fn scenario(document: &Document) -> Result<Scenario> {
    Ok(document.scenario().map_err(ExperimentError::from)?)
}

fn key_and_value(text: &str) -> Result<(&str, &str)> {
    let Some((key, value)) = text.split_once('=') else {
        bail!(
            "missing `=`; expected a key of the scenario and its value, for example `duration=2h`"
        );
    };
    Ok((key.trim(), value.trim()))
}

fn set_key(document: &mut Document, key: &str, value: &str) -> Result<()> {
    document.set(key, value).map_err(anyhow::Error::msg)
}

fn progress_bar(quiet: bool) -> ProgressBar {
    let target =
        if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(5) };
    let bar = ProgressBar::with_draw_target(Some(STEPS), target);
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} %, {msg}, {eta} left");
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, progress: Progress) {
    bar.set_position((progress.fraction * STEPS as f64) as u64);
    bar.set_message(format!("{} of {} runs", progress.completed, progress.runs));
}

fn write(options: &Simulate, report: &Report) -> Result<()> {
    if let Some(file) = &options.html {
        write_file(file, &report.html())?;
    }
    if let Some(dir) = &options.svg {
        fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
        for plot in report.plots() {
            write_file(&dir.join(format!("{}.svg", plot.name)), &plot.svg())?;
        }
    }
    let json = || format!("{:#}\n", report.json());
    match &options.json {
        Some(file) if file.as_os_str() == "-" => return print(&json()),
        Some(file) => write_file(file, &json())?,
        None => {}
    }
    print(&report.text())
}

pub(crate) fn write_file(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("failed to write {}", file.display()))
}
