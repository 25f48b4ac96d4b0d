//! A workbench for the authors of policies: loads a policy as a host does, runs its golden cases,
//! and measures it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::{Endpoint, Facts, FleetView, Trace};
use serde_json::value::RawValue;

use crate::chain::cases::fleet::CaseFleet;
use crate::chain::cases::{self, Case, CaseResult, FactsOf};
use crate::chain::evaluate::evaluate;
use crate::contract::shared::HostEnv;
use crate::contract::state::State;
use crate::version::Version;
use crate::version::artifact::PolicyArtifact;
use crate::version::bundle::Bundle;
use crate::version::error::LoadError;
use crate::version::runtime::Runtime;
use crate::version::validate::ValidationInstances;
use pointsman_spec::{OnError, Settings};

/// The request to measure a policy without golden cases with.
const REQUEST: &str =
    r#"{"body": {"model": "auto", "messages": [{"role": "user", "content": "Hello."}]}}"#;
/// The lanes to measure a policy without golden cases with.
const FLEET: &str =
    r#"{"lanes": [{"name": "a", "models": ["auto"]}, {"name": "b", "models": ["auto"]}]}"#;
/// Calls to warm instances per call to a new instance, which takes a thousand times longer.
const WARM_CALLS_PER_FRESH: usize = 10;

/// A policy that passed all checks that need no host.
pub struct Workbench {
    runtime: Arc<Runtime>,
    bundle: Bundle,
    artifact: Arc<PolicyArtifact>,
    compiling: Duration,
}

impl std::fmt::Debug for Workbench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workbench").field("dir", &self.bundle.dir).finish_non_exhaustive()
    }
}

/// The parameters of a benchmark.
#[derive(Debug)]
pub struct BenchPlan {
    /// Calls per measurement.
    pub calls: usize,
    /// Numbers of lanes, each of which is measured; if empty, the lanes of the cases are used.
    pub lanes: Vec<usize>,
    /// The body of a chat request to use instead of the requests of the golden cases.
    pub body: Option<Box<RawValue>>,
    /// The lanes to use instead of those of the golden cases.
    pub fleet: Option<CaseFleet>,
    /// Whether to measure calls that create their instance as well.
    pub fresh: bool,
}

/// A measurement.
#[derive(Debug, Clone, Default)]
pub struct Measurement {
    /// The number of lanes, if fleets were resized.
    pub lanes: Option<usize>,
    /// Whether each call created its instance.
    pub fresh: bool,
    /// The durations of calls that gave advice, in ascending order.
    pub times: Vec<Duration>,
    /// Calls without advice.
    pub failed: usize,
    /// The error of the first call without advice.
    pub failure: Option<String>,
    /// Peak memory of an instance in bytes; 0 if no instance was kept.
    pub memory: u64,
}

impl Measurement {
    /// Calls the policy `calls` times.
    fn run(&mut self, version: &Version, facts: &Facts, fleet: &Arc<FleetView>, calls: usize) {
        // The first call is not representative: all caches are cold.
        let warm_up_calls = usize::from(!self.fresh && calls > 0);
        for call in 0..calls + warm_up_calls {
            // Edits of the policy change the facts.
            let mut facts = facts.clone();
            let start = Instant::now();
            let trace = &mut Trace::off();
            let advice = evaluate(version, &mut facts, fleet, OnError::Skip, trace).result;
            let took = start.elapsed();
            match advice {
                _ if call < warm_up_calls => {}
                Ok(_) => self.times.push(took),
                Err(error) => {
                    self.failed += 1;
                    self.failure.get_or_insert_with(|| error.to_string());
                }
            }
        }
    }

    /// Returns a percentile of the durations, by the nearest-rank method.
    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.times.len() * percent).div_ceil(100);
        self.times.get(rank.max(1) - 1).copied()
    }
}

impl Workbench {
    /// Reads, scans, compiles and links the policy in `dir`, and checks its description.
    ///
    /// # Errors
    /// If a host would not load the policy.
    pub fn load(runtime: &Arc<Runtime>, dir: &Path) -> Result<Self, LoadError> {
        let bundle = Bundle::read(dir)?;
        let start = Instant::now();
        let artifact = PolicyArtifact::load(runtime, &bundle)?;
        let compiling = start.elapsed();
        let bench = Self { runtime: Arc::clone(runtime), bundle, artifact, compiling };
        bench
            .instances()
            .create(&Settings::default().config, Arc::<State>::default())
            .check_description(bench.name())?;
        Ok(bench)
    }

    /// Returns the name of the policy.
    pub fn name(&self) -> &str {
        &self.bundle.manifest.name
    }

    /// Returns the version in the manifest.
    pub fn version(&self) -> &str {
        &self.bundle.manifest.version
    }

    /// Returns the size of the component in bytes.
    pub fn component_bytes(&self) -> usize {
        self.bundle.component.len()
    }

    /// Returns the time for scanning, compiling (or loading from the cache) and linking the
    /// component.
    pub fn compiling(&self) -> Duration {
        self.compiling
    }

    /// Returns the folder of the policy.
    pub fn dir(&self) -> &Path {
        &self.bundle.dir
    }

    /// Returns the files that a host loads, relative to the folder.
    pub fn files(&self) -> Vec<PathBuf> {
        self.bundle.files()
    }

    /// Returns the file of the golden cases, which may not exist.
    pub fn cases_file(&self) -> PathBuf {
        self.bundle.dir.join(&self.bundle.manifest.cases)
    }

    /// Returns the file of the golden cases, if it exists.
    pub fn cases(&self) -> Option<PathBuf> {
        self.bundle.cases.as_ref().map(|_| self.cases_file())
    }

    /// Runs the golden cases whose names are `wanted`. A policy without a file of cases is only
    /// configured with `{}`.
    ///
    /// # Errors
    /// If a case is invalid, or there are no cases and the policy cannot be configured.
    pub fn test(
        &self,
        facts_of: &FactsOf,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<CaseResult>, LoadError> {
        let Some(text) = &self.bundle.cases else {
            let instances = self.instances();
            instances.create(&Settings::default().config, Arc::<State>::default()).warm_up()?;
            return Ok(Vec::new());
        };
        self.run_cases(text, facts_of, wanted)
    }

    /// Runs a golden case that is not in the file of the cases.
    ///
    /// # Errors
    /// If the case is invalid.
    pub fn test_case(&self, case: &str, facts_of: &FactsOf) -> Result<CaseResult, LoadError> {
        let results = self.run_cases(case, facts_of, |_| true)?;
        Ok(results.into_iter().next().unwrap_or_default())
    }

    fn run_cases(
        &self,
        text: &str,
        facts_of: &FactsOf,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<CaseResult>, LoadError> {
        let instances = self.instances();
        let warm = |config: &serde_json::Value, state| {
            let captured_log = Some(Arc::default());
            let env = HostEnv { captured_log, ..HostEnv::from(state) };
            let version = instances.create(config, env);
            // An error shows up again, with its case, when the case is run.
            version.warm_up().ok();
            version
        };
        Ok(cases::run(&self.cases_file(), text, wanted, warm, facts_of)?)
    }

    /// Measures calls, distributed over the golden cases, each with its configuration and state.
    ///
    /// # Errors
    /// If a case is invalid, or the policy rejects its configuration.
    pub fn bench(
        &self,
        facts_of: &FactsOf,
        plan: &BenchPlan,
    ) -> Result<Vec<Measurement>, LoadError> {
        let cases = self.samples(plan)?;
        let sizes =
            if plan.lanes.is_empty() { vec![None] } else { plan.lanes.iter().map(Some).collect() };
        let mut measured = Vec::new();
        for lanes in sizes {
            measured.push(self.measure(&cases, facts_of, plan.calls, lanes.copied(), false)?);
            if plan.fresh {
                let calls = plan.calls.div_ceil(WARM_CALLS_PER_FRESH);
                measured.push(self.measure(&cases, facts_of, calls, lanes.copied(), true)?);
            }
        }
        Ok(measured)
    }

    /// Returns the cases to measure with.
    fn samples(&self, plan: &BenchPlan) -> Result<Vec<Case>, LoadError> {
        let mut samples = match &self.bundle.cases {
            Some(text) => cases::read(&self.cases_file(), text)?,
            None => Vec::new(),
        };
        samples.retain(Case::is_decision);
        if samples.is_empty() {
            let request = serde_json::from_str(REQUEST).map_err(LoadError::Sample)?;
            let fleet = serde_json::from_str(FLEET).map_err(LoadError::Sample)?;
            samples.push(Case::new(request, fleet));
        }
        for sample in &mut samples {
            if let (Some(body), Some(request)) = (&plan.body, &mut sample.request) {
                request.body.clone_from(body);
                request.endpoint = Endpoint::ChatCompletions;
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
    ) -> Result<Measurement, LoadError> {
        let mut bundle = self.bundle.clone();
        if fresh {
            bundle.manifest.limits.calls = Some(1);
        }
        let instances =
            ValidationInstances::new(&self.runtime, &bundle, &self.artifact, &Settings::default());
        let mut measured = Measurement { lanes, fresh, ..Measurement::default() };
        for (index, case) in cases.iter().enumerate() {
            let state = case.checked_state(&self.cases_file())?;
            let version = instances.create(&case.config, state);
            version.warm_up()?;
            // Rounded so that the shares add up to `calls`.
            let share = calls * (index + 1) / cases.len() - calls * index / cases.len();
            let fleet = case.view(lanes);
            let facts = case
                .facts(facts_of)
                .map_err(|error| case.input_error(&self.cases_file(), error))?;
            measured.run(&version, &facts, &fleet, share);
            measured.memory = measured.memory.max(version.memory());
        }
        measured.times.sort_unstable();
        Ok(measured)
    }

    fn instances(&self) -> ValidationInstances<'_> {
        ValidationInstances::new(&self.runtime, &self.bundle, &self.artifact, &Settings::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::cases::CaseRequest;

    #[test]
    fn percentile_is_a_measured_duration() {
        let percentile = |times: &[u64], percent| {
            let times = times.iter().map(|time| Duration::from_micros(*time)).collect();
            Measurement { times, ..Measurement::default() }.percentile(percent)
        };
        let us = |time| Some(Duration::from_micros(time));
        assert_eq!(percentile(&[], 50), None);
        assert_eq!([50, 99, 100].map(|percent| percentile(&[7], percent)), [us(7); 3]);
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(
            [0, 50, 99, 100].map(|percent| percentile(&hundred, percent)),
            [us(1), us(50), us(99), us(100)]
        );
        assert_eq!([50, 99].map(|percent| percentile(&[1, 2, 3], percent)), [us(2), us(3)]);
    }

    #[test]
    fn fleet_of_a_case_is_resized_by_repeating_lanes() {
        let case = || {
            let request: CaseRequest = serde_json::from_str(REQUEST).unwrap();
            Case::new(request, serde_json::from_str(FLEET).unwrap())
        };
        let names = |lanes: Option<usize>| {
            let view = case().view(lanes);
            let lanes = view.topology.lanes();
            assert!(
                lanes.iter().all(|lane| lane.models == ["auto"])
                    && view.stats().count() == lanes.len()
            );
            lanes.iter().map(|lane| lane.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(names(None), ["a", "b"]);
        assert_eq!(names(Some(1)), ["a"]);
        assert_eq!(names(Some(5)), ["a", "b", "a-2", "b-2", "a-3"]);
    }
}
