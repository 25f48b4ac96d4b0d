//! A policy before it is in any host: loaded as a host loads it, asked about golden cases, and timed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::{Endpoint, Facts, FleetView, Trace};
use serde_json::value::RawValue;

use crate::bundle::Bundle;
use crate::cases::{self, Case, CaseFleet, CaseRequest, CaseResult, FactsOf};
use crate::chain::ask;
use crate::component::Loaded;
use crate::proof::{self, ProofInstances};
use crate::runtime::Runtime;
use crate::spec::Settings;
use crate::version::{LoadError, Version};

/// What a policy without golden cases is asked about when it is timed.
const REQUEST: &str =
    r#"{"body": {"model": "auto", "messages": [{"role": "user", "content": "Hello."}]}}"#;
/// And the lanes that it chooses from.
const FLEET: &str =
    r#"{"lanes": [{"name": "a", "models": ["auto"]}, {"name": "b", "models": ["auto"]}]}"#;
/// Of so many calls with warm instances, there is one with a new instance: those take a thousand times longer.
const WARM_FOR_A_FRESH: usize = 10;

/// A policy that is proven to be one, by all that its folder alone can prove.
pub struct Workbench {
    runtime: Arc<Runtime>,
    bundle: Bundle,
    loaded: Arc<Loaded>,
    compiling: Duration,
}

impl std::fmt::Debug for Workbench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workbench").field("dir", &self.bundle.dir).finish_non_exhaustive()
    }
}

/// What is timed.
#[derive(Debug)]
pub struct BenchPlan {
    /// Calls of each measurement.
    pub calls: usize,
    /// Numbers of lanes; each is a measurement. Without any, there is one with the lanes as they are.
    pub lanes: Vec<usize>,
    /// The body of a chat request to ask about, instead of the requests of the golden cases.
    pub body: Option<Box<RawValue>>,
    /// The lanes, instead of those of the golden cases.
    pub fleet: Option<CaseFleet>,
    /// Measure calls that have to make their instance, too.
    pub fresh: bool,
}

/// One measurement.
#[derive(Debug, Clone, Default)]
pub struct Measured {
    /// Lanes of each fleet, where they were made so many.
    pub lanes: Option<usize>,
    /// Did each call make its instance?
    pub fresh: bool,
    /// Times of the calls that gave advice, the shortest first.
    pub times: Vec<Duration>,
    /// Calls that gave none.
    pub failed: usize,
    /// Why the first of them gave none.
    pub failure: Option<String>,
    /// Most memory that an instance took, in bytes; 0 where none was kept.
    pub memory: u64,
}

impl Measured {
    /// Ask so many times.
    fn ask(&mut self, version: &Version, facts: &Facts, fleet: &Arc<FleetView>, calls: usize) {
        // The first call is another one than all others: it finds nothing in any cache.
        let unmeasured = usize::from(!self.fresh && calls > 0);
        for call in 0..calls + unmeasured {
            // The policy's edits are made on it.
            let mut facts = facts.clone();
            let begun = Instant::now();
            let asked = ask(version, &mut facts, fleet, &mut Trace::off());
            let took = begun.elapsed();
            match asked {
                _ if call < unmeasured => {}
                Ok(_) => self.times.push(took),
                Err(error) => {
                    self.failed += 1;
                    self.failure.get_or_insert_with(|| error.to_string());
                }
            }
        }
    }

    /// The time that so many hundredths of the calls did not exceed.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.times.len() * percent).div_ceil(100);
        self.times.get(rank.max(1) - 1).copied()
    }
}

impl Workbench {
    /// Read, scan, compile and link the policy in `dir`, and have it describe itself.
    ///
    /// # Errors
    /// When a host would not load it.
    pub fn load(runtime: &Arc<Runtime>, dir: &Path) -> Result<Self, LoadError> {
        let bundle = Bundle::read(dir)?;
        let begun = Instant::now();
        let loaded = proof::component(runtime, &bundle)?;
        let compiling = begun.elapsed();
        let bench = Self { runtime: Arc::clone(runtime), bundle, loaded, compiling };
        bench
            .specimens()
            .make(&Settings::default().config, Arc::default())
            .check_description(bench.name())?;
        Ok(bench)
    }

    /// The policy's name.
    pub fn name(&self) -> &str {
        &self.bundle.manifest.name
    }

    /// Its version, as its author counts.
    pub fn version(&self) -> &str {
        &self.bundle.manifest.version
    }

    /// Length of its component.
    pub fn component_bytes(&self) -> usize {
        self.bundle.component.len()
    }

    /// How long its component took to be scanned, compiled (or taken from the cache) and linked.
    pub fn compiling(&self) -> Duration {
        self.compiling
    }

    /// Where its golden cases are, if there are any.
    pub fn cases(&self) -> Option<PathBuf> {
        self.bundle.cases.as_ref().map(|_| self.cases_file())
    }

    /// Run the golden cases whose names are `wanted`. A policy without any is configured with `{}`, as that is all that there
    /// is to try.
    ///
    /// # Errors
    /// When a case cannot be read, or there is none and the policy cannot be configured.
    pub fn test(
        &self,
        facts_of: &FactsOf,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<CaseResult>, LoadError> {
        let specimens = self.specimens();
        let Some(text) = &self.bundle.cases else {
            specimens.make(&Settings::default().config, Arc::default()).warm_up()?;
            return Ok(Vec::new());
        };
        let warm = |config: &serde_json::Value, state| {
            let version = specimens.make(config, state);
            // One that cannot be configured says so again, and better, when the case is run.
            drop(version.warm_up());
            version
        };
        Ok(cases::run(&self.cases_file(), text, wanted, warm, facts_of)?)
    }

    /// Time calls. They are spread over the golden cases, each with its configuration and state.
    ///
    /// # Errors
    /// When a case cannot be read, or its policy cannot be configured.
    pub fn bench(&self, facts_of: &FactsOf, plan: &BenchPlan) -> Result<Vec<Measured>, LoadError> {
        let cases = self.samples(plan)?;
        let sizes =
            if plan.lanes.is_empty() { vec![None] } else { plan.lanes.iter().map(Some).collect() };
        let mut measured = Vec::new();
        for lanes in sizes {
            measured.push(self.measure(&cases, facts_of, plan.calls, lanes.copied(), false)?);
            if plan.fresh {
                let calls = plan.calls.div_ceil(WARM_FOR_A_FRESH);
                measured.push(self.measure(&cases, facts_of, calls, lanes.copied(), true)?);
            }
        }
        Ok(measured)
    }

    /// What is asked.
    fn samples(&self, plan: &BenchPlan) -> Result<Vec<Case>, LoadError> {
        let mut samples = match &self.bundle.cases {
            Some(text) => cases::read(&self.cases_file(), text)?,
            None => Vec::new(),
        };
        if samples.is_empty() {
            let broken =
                |error: serde_json::Error| self.fail(format!("its sample request: {error}"));
            let request: CaseRequest = serde_json::from_str(REQUEST).map_err(broken)?;
            samples.push(Case::of(request, serde_json::from_str(FLEET).map_err(broken)?));
        }
        for sample in &mut samples {
            if let Some(body) = &plan.body {
                sample.request.body.clone_from(body);
                sample.request.endpoint = Endpoint::ChatCompletions;
            }
            if let Some(fleet) = &plan.fleet {
                sample.fleet.clone_from(fleet);
            }
        }
        Ok(samples)
    }

    fn measure(
        &self,
        cases: &[Case],
        facts_of: &FactsOf,
        calls: usize,
        lanes: Option<usize>,
        fresh: bool,
    ) -> Result<Measured, LoadError> {
        let mut bundle = self.bundle.clone();
        if fresh {
            bundle.manifest.limits.calls = Some(1);
        }
        let specimens =
            ProofInstances::new(&self.runtime, &bundle, &self.loaded, &Settings::default());
        let mut measured = Measured { lanes, fresh, ..Measured::default() };
        for (index, case) in cases.iter().enumerate() {
            let state = case.state().map_err(|what| self.fail(what))?;
            let version = specimens.make(&case.config, state);
            version.warm_up()?;
            // So many that all of them together are as many as are wanted.
            let share = calls * (index + 1) / cases.len() - calls * index / cases.len();
            let fleet = case.view(lanes);
            let facts = facts_of(&case.request).map_err(|what| self.fail(what))?;
            measured.ask(&version, &facts, &fleet, share);
            measured.memory = measured.memory.max(version.memory());
        }
        measured.times.sort_unstable();
        Ok(measured)
    }

    fn specimens(&self) -> ProofInstances<'_> {
        ProofInstances::new(&self.runtime, &self.bundle, &self.loaded, &Settings::default())
    }

    fn cases_file(&self) -> PathBuf {
        self.bundle.dir.join(&self.bundle.manifest.cases)
    }

    fn fail(&self, what: String) -> LoadError {
        LoadError::File { file: self.cases_file().display().to_string(), what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_measured() {
        let of = |times: &[u64], percent| {
            let times = times.iter().map(|time| Duration::from_micros(*time)).collect();
            Measured { times, ..Measured::default() }.percentile(percent)
        };
        let us = |time| Some(Duration::from_micros(time));
        assert_eq!(of(&[], 50), None);
        assert_eq!([50, 99, 100].map(|percent| of(&[7], percent)), [us(7); 3]);
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(
            [0, 50, 99, 100].map(|percent| of(&hundred, percent)),
            [us(1), us(50), us(99), us(100)]
        );
        assert_eq!([50, 99].map(|percent| of(&[1, 2, 3], percent)), [us(2), us(3)]);
    }

    #[test]
    fn a_fleet_of_any_size_is_made_of_the_lanes_of_a_case() {
        let case = || {
            let request: CaseRequest = serde_json::from_str(REQUEST).unwrap();
            Case::of(request, serde_json::from_str(FLEET).unwrap())
        };
        let names = |lanes: Option<usize>| {
            let view = case().view(lanes);
            let lanes = view.topology.lanes();
            assert!(
                lanes.iter().all(|lane| lane.models == ["auto"]) && view.stats.len() == lanes.len()
            );
            lanes.iter().map(|lane| lane.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(None), ["a", "b"]);
        assert_eq!(names(Some(1)), ["a"]);
        assert_eq!(names(Some(5)), ["a", "b", "a-2", "b-2", "a-3"]);
    }
}
