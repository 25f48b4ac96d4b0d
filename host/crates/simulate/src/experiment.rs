//! The execution of scenarios: a scenario and its variants, each with every seed, checked against
//! the objectives.
//!
//! This is what `pointsman simulate` does, and what a test does in a few lines:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use pointsman_simulate::{Document, Experiment, SimulationEnv};
//!
//! let scenario = Document::load("scenarios/day.toml".as_ref())?.scenario()?;
//! let report = Experiment::from_scenario(&scenario, &SimulationEnv::new()?)?.run()?;
//! assert!(report.met(), "{}", report.text());
//! # Ok(())
//! # }
//! ```

mod objectives;
mod progress;

use std::fmt;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pointsman_policy::{
    Allocator, ChainSpec, Compiler, DryRunChain, DryRunError, Metering, Runtime, RuntimeError,
    RuntimeSettings,
};
use pointsman_report::{Collector, Objective, Point, Report, Run, Sweep, VariantReport};

pub use self::progress::Progress;
use self::progress::{ProgressTracker, ProgressTraffic};
use crate::advisor::ChainAdvisor;
use crate::fault::InjectedFault;
use crate::scenario::{Host, Scenario, ScenarioError, load_host_config};
use crate::trace::{Tee, TraceWriter};
use crate::traffic::Traffic;
use crate::world::{RunConfig, run};

/// The stack size of the threads that run simulations. A policy may use 512 KiB of it, on top of
/// the frames that lead to its call.
const STACK_SIZE: usize = 4 << 20;

/// The environment of simulations: a runtime for policies.
pub struct SimulationEnv {
    runtime: Arc<Runtime>,
}

impl fmt::Debug for SimulationEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulationEnv").finish_non_exhaustive()
    }
}

impl SimulationEnv {
    /// Creates an environment that compiles policies in this process, without a cache.
    ///
    /// # Errors
    /// If the WebAssembly engine cannot be created.
    pub fn new() -> Result<Self, RuntimeError> {
        Self::with_compiler(Compiler::default(), None)
    }

    /// Creates an environment with a compiler and a folder that caches compiled policies.
    ///
    /// # Errors
    /// If the WebAssembly engine cannot be created.
    pub fn with_compiler(
        compiler: Compiler,
        cache_dir: Option<PathBuf>,
    ) -> Result<Self, RuntimeError> {
        let settings = RuntimeSettings {
            cache_dir,
            compiler,
            allocator: Allocator::Auto,
            warm_instances: 0,
            // Fuel instead of time: results must not depend on the speed of the machine.
            metering: Metering::Fuel,
        };
        Ok(Self { runtime: Runtime::new(settings)? })
    }

    /// Returns the runtime, which meters fuel.
    pub fn runtime(&self) -> &Arc<Runtime> {
        &self.runtime
    }
}

/// Why an experiment cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ExperimentError {
    /// The scenario, or a file that it refers to, is invalid.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// A policy of a scenario cannot be loaded.
    #[error("{}: invalid scenario", file.display())]
    Policy {
        /// The file of the scenario.
        file: PathBuf,
        /// The cause.
        #[source]
        error: DryRunError,
    },
    /// A thread cannot be started.
    #[error("failed to start a simulation thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The trace of the first run cannot be written.
    #[error("failed to write the trace: {0}")]
    Trace(#[source] std::io::Error),
}

/// One column of an experiment: a scenario with its lanes and its policies.
#[derive(Debug)]
struct Case {
    name: String,
    scenario: Scenario,
    host: Host,
    faults: Vec<InjectedFault>,
    chain: DryRunChain,
}

/// A set of scenarios to run and to compare with the first one.
pub struct Experiment {
    title: String,
    /// The description of the scenario.
    scenario: String,
    objectives: Vec<Objective>,
    cases: Vec<Case>,
    /// The key that differs between the cases, if this is a sweep.
    parameter: Option<String>,
    trace: Mutex<Option<Sink>>,
}

/// The destination of a trace.
type Sink = Box<dyn Write + Send>;

impl fmt::Debug for Experiment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Experiment")
            .field("title", &self.title)
            .field("cases", &self.cases)
            .finish_non_exhaustive()
    }
}

impl Experiment {
    /// Creates the experiment of a scenario and its variants.
    ///
    /// # Errors
    /// If the scenario is invalid, or if a policy cannot be loaded.
    pub fn from_scenario(
        scenario: &Scenario,
        env: &SimulationEnv,
    ) -> Result<Self, ExperimentError> {
        let mut experiment = Self::new(scenario);
        let host = scenario.host(&load_host_config)?;
        experiment.push(&chain_name(&host.chain), scenario, host, env)?;
        for variant in &scenario.variants {
            experiment.add(&variant.name, &variant.scenario, None, env)?;
        }
        Ok(experiment)
    }

    /// Creates an experiment without cases, which are added with [`Experiment::add`].
    pub fn new(scenario: &Scenario) -> Self {
        Self {
            title: scenario.title.clone(),
            scenario: scenario.description.clone(),
            objectives: Vec::new(),
            cases: Vec::new(),
            parameter: None,
            trace: Mutex::new(None),
        }
    }

    /// Writes the events of the first run, of the first case with its first seed, to `out` (see
    /// [`TraceWriter`]).
    pub fn trace(&mut self, out: impl Write + Send + 'static) {
        self.trace = Mutex::new(Some(Box::new(out)));
    }

    /// Declares a sweep: the cases differ in the value of this key, which is their name.
    pub fn set_sweep_key(&mut self, key: &str) {
        self.parameter = Some(key.to_owned());
    }

    /// Returns the policies of a scenario, or those of the host configuration that it refers to.
    ///
    /// # Errors
    /// If the scenario is invalid.
    pub fn policy_chain(scenario: &Scenario) -> Result<ChainSpec, ScenarioError> {
        Ok(scenario.host(&load_host_config)?.chain)
    }

    /// Adds a case. `chain` replaces the scenario's policies. The objectives are those of the first
    /// case.
    ///
    /// # Errors
    /// If the scenario is invalid, or if a policy cannot be loaded.
    pub fn add(
        &mut self,
        name: &str,
        scenario: &Scenario,
        chain: Option<ChainSpec>,
        env: &SimulationEnv,
    ) -> Result<(), ExperimentError> {
        let mut host = scenario.host(&load_host_config)?;
        if let Some(chain) = chain {
            host.chain = chain;
        }
        self.push(name, scenario, host, env)
    }

    fn push(
        &mut self,
        name: &str,
        scenario: &Scenario,
        host: Host,
        env: &SimulationEnv,
    ) -> Result<(), ExperimentError> {
        let faults = scenario.faults(&host.fleet)?;
        if self.cases.is_empty() {
            let traffic = scenario.traffic(1)?;
            let classes: Vec<&str> = traffic.classes().iter().map(String::as_str).collect();
            let lanes: Vec<&str> =
                host.fleet.lanes.iter().map(|lane| lane.info.name.as_str()).collect();
            self.objectives = objectives::parse(scenario, &classes, &lanes)?;
        }
        let chain = DryRunChain::load(&env.runtime, &host.chain)
            .map_err(|error| ExperimentError::Policy { file: scenario.file().to_owned(), error })?;
        self.cases.push(Case {
            name: name.to_owned(),
            scenario: scenario.clone(),
            host,
            faults,
            chain,
        });
        Ok(())
    }

    /// Runs the experiment on all processors.
    ///
    /// # Errors
    /// If a trace file cannot be read, or if a thread cannot be started.
    pub fn run(&self) -> Result<Report, ExperimentError> {
        let jobs = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.run_with(jobs, &|_| ())
    }

    /// Runs the experiment with this many runs at a time, and reports its progress.
    ///
    /// # Errors
    /// If a trace file cannot be read, if the event trace cannot be written, or if a thread cannot
    /// be started.
    pub fn run_with(
        &self,
        jobs: NonZeroUsize,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Report, ExperimentError> {
        let runs: Vec<(&Case, u64)> = self
            .cases
            .iter()
            .flat_map(|case| case.scenario.seeds.iter().map(move |seed| (case, *seed)))
            .collect();
        let tracker = ProgressTracker::new(runs.len(), progress);
        let next = AtomicUsize::new(0);
        let results: Vec<Mutex<Option<Result<Run, ExperimentError>>>> =
            runs.iter().map(|_| Mutex::new(None)).collect();
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let (Some((case, seed)), Some(result)) = (runs.get(index), results.get(index))
                else {
                    return;
                };
                let trace = (index == 0).then(|| lock(&self.trace).take()).flatten();
                let run = case.run(*seed, trace, &|fraction| tracker.report(index, fraction));
                // After an error, no further run starts.
                if run.is_err() {
                    next.store(runs.len(), Ordering::Relaxed);
                }
                *lock(result) = Some(run);
            }
        };
        std::thread::scope(|scope| -> std::io::Result<()> {
            for _ in 0..jobs.get().min(runs.len()) {
                std::thread::Builder::new().stack_size(STACK_SIZE).spawn_scoped(scope, work)?;
            }
            Ok(())
        })?;
        let finished = results
            .into_iter()
            .filter_map(|run| run.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(self.report(finished.collect::<Result<Vec<Run>, _>>()?))
    }

    /// Creates the report from the runs of all cases, in the order of the cases.
    fn report(&self, runs: Vec<Run>) -> Report {
        let mut runs = runs.into_iter();
        let variants: Vec<VariantReport> = self
            .cases
            .iter()
            .map(|case| {
                let runs = runs.by_ref().take(case.scenario.seeds.len()).collect();
                VariantReport::new(case.name.as_str(), runs, &self.objectives)
            })
            .collect();
        let sweep = self.parameter.as_ref().map(|parameter| Sweep {
            parameter: parameter.clone(),
            points: variants.iter().map(|variant| point(&self.title, variant)).collect(),
        });
        Report { title: self.title.clone(), scenario: self.scenario.clone(), variants, sweep }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The values are replaced as a whole, so they are valid even after a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the name of a scenario among its variants: its policies.
fn chain_name(chain: &ChainSpec) -> String {
    let names: Vec<&str> = chain.policies.iter().map(|policy| policy.name.as_str()).collect();
    if names.is_empty() { "no policy".to_owned() } else { names.join(" + ") }
}

/// Returns the point of a sweep. Values that are numbers or durations are placed on an axis.
fn point(line: &str, variant: &VariantReport) -> Point {
    let seconds =
        pointsman_domain::units::duration(&variant.name).ok().map(|time| time.as_secs_f64());
    Point {
        line: line.to_owned(),
        value: variant.name.clone(),
        number: variant.name.parse().ok().or(seconds),
        runs: variant.runs.iter().map(|run| run.summary.clone()).collect(),
    }
}

impl Case {
    fn run(
        &self,
        seed: u64,
        trace: Option<Sink>,
        on_progress: &dyn Fn(f64),
    ) -> Result<Run, ExperimentError> {
        let Self { scenario, host, faults, chain, .. } = self;
        let mut arrivals = scenario.traffic(seed)?;
        let lanes = || host.fleet.lanes.iter().map(|lane| &lane.info);
        let mut collector = Collector::new(lanes(), arrivals.classes());
        let config = RunConfig { fleet: &host.fleet, faults, start_ms: scenario.start_ms, seed };
        let mut advisor = ChainAdvisor::from(chain.begin());
        let mut traffic = ProgressTraffic {
            inner: &mut arrivals,
            count: 0,
            duration: scenario.duration,
            on_progress,
        };
        let totals = match trace {
            None => run(&config, &mut advisor, &mut traffic, &mut collector),
            Some(out) => {
                let names = lanes().map(|lane| lane.name.clone());
                let trace = TraceWriter::new(out, names, traffic.classes());
                let mut tee = Tee(collector, trace);
                let totals = run(&config, &mut advisor, &mut traffic, &mut tee);
                collector = tee.0;
                tee.1.finish().map_err(ExperimentError::Trace)?;
                totals
            }
        };
        if let Some(error) = arrivals.error() {
            return Err(scenario.traffic_error(error).into());
        }
        on_progress(1.0);
        let mut run = collector.finish(seed, totals.accepted, totals.ended_at);
        run.summary.policy_calls = advisor.policy_calls();
        run.summary.warnings = host.warnings();
        run.summary.warnings.extend(arrivals.warnings());
        Ok(run)
    }
}
