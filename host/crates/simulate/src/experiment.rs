//! A scenario carried out: its variants, each with every seed, judged by its objectives. What the command does, and what tests
//! do in a few lines:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use pointsman_simulate::{Document, Stage, Study};
//!
//! let scenario = Document::load("scenarios/day.toml".as_ref())?.scenario()?;
//! let report = Study::of(&scenario, &Stage::new()?)?.run()?;
//! assert!(report.met(), "{}", report.text());
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pointsman_policy::{
    Allocator, ChainSpec, Compiler, DryRunChain, Metering, RehearsalError, Runtime, RuntimeError,
    RuntimeSettings,
};

use crate::advisor::Chain;
use crate::fault::Failure;
use crate::objective::Objective;
use crate::report::{Collector, Point, Report, Run, Sweep, VariantReport};
use crate::scenario::{Host, HostConfig, Scenario, ScenarioError};
use crate::trace::{Both, TraceWriter};
use crate::traffic::{Ask, Traffic};
use crate::world::{Setting, run};

/// A policy may take 512 KiB of the stack of whoever calls, on top of what leads to the call.
const STACK: usize = 4 << 20;
/// Between two words about the progress of a run: so many requests.
const WORD_EVERY: u64 = 500;

/// Reads a host's configuration, with some keys that are other than it says.
pub type Resolve = dyn Fn(&Path, &toml::Table) -> Result<HostConfig, String> + Send + Sync;

/// What scenarios are carried out on: an engine for policies, and whoever reads the configurations of hosts.
pub struct SimulationEnv {
    pub(crate) runtime: Arc<Runtime>,
    resolve: Box<Resolve>,
}

impl fmt::Debug for SimulationEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").finish_non_exhaustive()
    }
}

impl SimulationEnv {
    /// For scenarios that bring their own lanes. Policies are compiled here, each time anew.
    ///
    /// # Errors
    /// When the WebAssembly engine cannot be set up.
    pub fn new() -> Result<Self, RuntimeError> {
        let refuse = |file: &Path, _: &toml::Table| {
            let file = file.display();
            Err(format!(
                "{file}: configurations of hosts are read by the program `pointsman` only; write the lanes here"
            ))
        };
        Self::with(Compiler::default(), None, Box::new(refuse))
    }

    /// With a compiler, a folder for what it makes, and somebody who reads the configurations of hosts.
    ///
    /// # Errors
    /// When the WebAssembly engine cannot be set up.
    pub fn with(
        compiler: Compiler,
        cache_dir: Option<PathBuf>,
        resolve: Box<Resolve>,
    ) -> Result<Self, RuntimeError> {
        let settings = RuntimeSettings {
            cache_dir,
            compiler,
            allocator: Allocator::Auto,
            warm_instances: 0,
            metering: Metering::Fuel,
        };
        Ok(Self { runtime: Runtime::new(settings)?, resolve })
    }
}

/// Why a scenario cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// The scenario is wrong, or a file that it names.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// A policy cannot be used.
    #[error(transparent)]
    Policy(#[from] RehearsalError),
    /// There is no thread to run on.
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    /// What happened in the first run cannot be written down.
    #[error("the trace cannot be written: {0}")]
    Trace(std::io::Error),
}

/// How far the runs are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Runs there are.
    pub runs: usize,
    /// Runs that are over.
    pub over: usize,
    /// All of it, from 0 to 1.
    pub part: f64,
}

/// One column of a study: a scenario with its lanes and its policies.
#[derive(Debug)]
struct Case {
    name: String,
    scenario: Scenario,
    host: Host,
    failures: Vec<Failure>,
    chain: DryRunChain,
}

/// Scenarios that are to be carried out, and compared with the first.
pub struct Experiment {
    title: String,
    scenario: String,
    objectives: Vec<Objective>,
    cases: Vec<Case>,
    parameter: Option<String>,
    trace: Mutex<Option<Sink>>,
}

/// Whatever is written to.
type Sink = Box<dyn Write + Send>;

impl fmt::Debug for Experiment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Study")
            .field("title", &self.title)
            .field("cases", &self.cases)
            .finish_non_exhaustive()
    }
}

impl Experiment {
    /// A scenario and its variants.
    ///
    /// # Errors
    /// When it, or one of its policies, cannot be used.
    pub fn of(scenario: &Scenario, stage: &SimulationEnv) -> Result<Self, StudyError> {
        let mut study = Self::new(scenario);
        let host = scenario.host(&*stage.resolve)?;
        study.push(&decided_by(&host.chain), scenario, host, stage)?;
        for variant in &scenario.variants {
            study.add(&variant.name, &variant.scenario, None, stage)?;
        }
        Ok(study)
    }

    /// Nothing yet: scenarios are added.
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

    /// Write down what happens in the first run, the one of the first column with its first seed (see [`TraceWriter`]).
    pub fn trace(&mut self, out: impl Write + Send + 'static) {
        self.trace = Mutex::new(Some(Box::new(out)));
    }

    /// The scenarios that are added differ in the values of this key, which are their names.
    pub fn sweeps(&mut self, key: &str) {
        self.parameter = Some(key.to_owned());
    }

    /// The policies of a scenario, as its own text, and the configuration it names, have them.
    ///
    /// # Errors
    /// When the scenario cannot be used.
    pub fn chain_of(
        scenario: &Scenario,
        stage: &SimulationEnv,
    ) -> Result<ChainSpec, ScenarioError> {
        Ok(scenario.host(&*stage.resolve)?.chain)
    }

    /// One more column. The objectives are those of the first; `chain` takes the place of the scenario's policies.
    ///
    /// # Errors
    /// When it, or one of its policies, cannot be used.
    pub fn add(
        &mut self,
        name: &str,
        scenario: &Scenario,
        chain: Option<ChainSpec>,
        stage: &SimulationEnv,
    ) -> Result<(), StudyError> {
        let mut host = scenario.host(&*stage.resolve)?;
        if let Some(chain) = chain {
            host.chain = chain;
        }
        self.push(name, scenario, host, stage)
    }

    fn push(
        &mut self,
        name: &str,
        scenario: &Scenario,
        host: Host,
        stage: &SimulationEnv,
    ) -> Result<(), StudyError> {
        let failures = scenario.failures(&host.fleet)?;
        if self.cases.is_empty() {
            let traffic = scenario.traffic(1)?;
            let classes: Vec<&str> = traffic.classes().iter().map(String::as_str).collect();
            let lanes: Vec<&str> =
                host.fleet.lanes.iter().map(|lane| lane.info.name.as_str()).collect();
            for text in &scenario.objectives {
                let objective = Objective::parse(text).and_then(|objective| {
                    objective
                        .check(classes.iter().copied(), lanes.iter().copied())
                        .map(|()| objective)
                });
                self.objectives.push(objective.map_err(|what| scenario.wrong_objective(what))?);
            }
        }
        let chain = DryRunChain::load(&stage.runtime, &host.chain)?;
        self.cases.push(Case {
            name: name.to_owned(),
            scenario: scenario.clone(),
            host,
            failures,
            chain,
        });
        Ok(())
    }

    /// Carry it out, on all processors.
    ///
    /// # Errors
    /// When a file of requests turns out to be unreadable.
    pub fn run(&self) -> Result<Report, StudyError> {
        let jobs = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        self.run_with(jobs, &|_| ())
    }

    /// Carry it out, so many runs at a time, and say how far it is.
    ///
    /// # Errors
    /// When a file of requests turns out to be unreadable.
    pub fn run_with(
        &self,
        jobs: NonZeroUsize,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<Report, StudyError> {
        let jobs_to_do: Vec<(&Case, u64)> = self
            .cases
            .iter()
            .flat_map(|case| case.scenario.seeds.iter().map(move |seed| (case, *seed)))
            .collect();
        let watch = Watch::new(jobs_to_do.len(), progress);
        let next = AtomicUsize::new(0);
        let done: Vec<Mutex<Option<Result<Run, StudyError>>>> =
            jobs_to_do.iter().map(|_| Mutex::new(None)).collect();
        let work = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let (Some((case, seed)), Some(place)) = (jobs_to_do.get(index), done.get(index))
                else {
                    return;
                };
                let trace = (index == 0).then(|| locked(&self.trace).take()).flatten();
                let run = case.run(*seed, trace, &|part| watch.says(index, part));
                // The others need not begin any more.
                if run.is_err() {
                    next.store(jobs_to_do.len(), Ordering::Relaxed);
                }
                *locked(place) = Some(run);
            }
        };
        std::thread::scope(|scope| -> std::io::Result<()> {
            for _ in 0..jobs.get().min(jobs_to_do.len()) {
                std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work)?;
            }
            Ok(())
        })?;
        let runs = done
            .into_iter()
            .filter_map(|run| run.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(self.report(runs.collect::<Result<Vec<Run>, _>>()?))
    }

    /// The runs of all cases, in the order of the cases.
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
            shown: Vec::new(),
            points: variants.iter().map(|variant| point(&self.title, variant)).collect(),
        });
        Report { title: self.title.clone(), scenario: self.scenario.clone(), variants, sweep }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a scenario that has no name beside others is called: its policies.
fn decided_by(chain: &ChainSpec) -> String {
    let names: Vec<&str> = chain.policies.iter().map(|policy| policy.name.as_str()).collect();
    if names.is_empty() { "no policy".to_owned() } else { names.join(" + ") }
}

fn point(line: &str, variant: &VariantReport) -> Point {
    let number =
        pointsman_domain::units::duration(&variant.name).ok().map(|time| time.as_secs_f64());
    Point {
        line: line.to_owned(),
        value: variant.name.clone(),
        number: variant.name.parse().ok().or(number),
        runs: variant.runs.iter().map(|run| run.summary.clone()).collect(),
    }
}

impl Case {
    fn run(&self, seed: u64, trace: Option<Sink>, says: &dyn Fn(f64)) -> Result<Run, StudyError> {
        let Self { scenario, host, failures, chain, .. } = self;
        let mut arrivals = scenario.traffic(seed)?;
        let lanes = || host.fleet.lanes.iter().map(|lane| &lane.info);
        let mut observer = Collector::new(lanes(), arrivals.classes());
        let setting = Setting { fleet: &host.fleet, failures, begins_ms: scenario.begins_ms, seed };
        let mut deciders = Chain::from(chain.begin());
        let mut traffic = Counted { inner: &mut arrivals, count: 0, lasts: scenario.lasts, says };
        let books = match trace {
            None => run(&setting, &mut deciders, &mut traffic, &mut observer),
            Some(out) => {
                let names = lanes().map(|lane| lane.name.clone());
                let trace = TraceWriter::new(out, names, traffic.classes());
                let mut both = Both(observer, trace);
                let books = run(&setting, &mut deciders, &mut traffic, &mut both);
                observer = both.0;
                both.1.finish().map_err(StudyError::Trace)?;
                books
            }
        };
        if let Some(problem) = arrivals.problem() {
            return Err(scenario.wrong_traffic(problem).into());
        }
        says(1.0);
        Ok(observer.finish(seed, books.accepted, books.ended_at))
    }
}

/// Traffic that says how far it is.
struct Counted<'a, T> {
    inner: &'a mut T,
    count: u64,
    lasts: Duration,
    says: &'a dyn Fn(f64),
}

impl<T: Traffic> Traffic for Counted<'_, T> {
    fn classes(&self) -> &[String] {
        self.inner.classes()
    }

    fn next(&mut self) -> Option<Ask> {
        let ask = self.inner.next()?;
        self.count += 1;
        if self.count.is_multiple_of(WORD_EVERY) {
            (self.says)(ask.at.as_secs_f64() / self.lasts.as_secs_f64().max(1e-6));
        }
        Some(ask)
    }

    fn after(&mut self, ask: &Ask, ended: Duration) -> Option<Ask> {
        self.inner.after(ask, ended)
    }
}

/// How far each run is, and somebody who wants to know of all of them.
struct Watch<'a> {
    parts: Mutex<Vec<f64>>,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> Watch<'a> {
    fn new(runs: usize, progress: &'a (dyn Fn(Progress) + Sync)) -> Self {
        Self { parts: Mutex::new(vec![0.0; runs]), progress }
    }

    fn says(&self, run: usize, part: f64) {
        let mut parts = locked(&self.parts);
        if let Some(of) = parts.get_mut(run) {
            *of = part.clamp(0.0, 1.0);
        }
        let over = parts.iter().filter(|part| **part >= 1.0).count();
        let part = parts.iter().sum::<f64>() / parts.len().max(1) as f64;
        (self.progress)(Progress { runs: parts.len(), over, part });
    }
}
