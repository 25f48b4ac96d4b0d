//! Dry runs of a chain that serves no requests: without threads, without watching folders, and in
//! virtual time. For simulations, and for replays of recorded calls.
//!
//! ```text
//!   ChainSpec ──load──> DryRunChain ──begin──> DryRunSession  own versions, state, clock
//!                            │       ──begin──> DryRunSession  independent of the first one
//!                            └──replay──> Replayed             one recorded call, made again
//! ```
//!
//! On a runtime that meters [fuel](crate::Metering::Fuel), sessions with the same inputs return the
//! same results, down to the fuel that each call consumes.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{
    Advice, Advisor, Facts, FailureReport, FleetView, LaneId, OnConflict, Outcome, PolicyRef, Read,
    Recovery, RequestView,
};
use prometheus_client::registry::Registry;

use crate::chain::Chain;
use crate::chain::evaluate::{call_on_failure, call_on_request};
use crate::chain::link::Link;
use crate::chain::schedule::{Schedule, TickContext};
use crate::clock::Clock;
use crate::contract::captured_log::LogLine;
use crate::contract::host_call_mode::HostCallMode;
use crate::contract::shared::HostEnv;
use crate::contract::state::State;
use crate::limits::MAX_BATCH;
use crate::metrics::PolicyMetrics;
use crate::tools::replay::Replayed;
use crate::version::Version;
use crate::version::artifact::PolicyArtifact;
use crate::version::bundle::Bundle;
use crate::version::call_error::CallError;
use crate::version::call_trace::CallTrace;
use crate::version::config::VersionConfig;
use crate::version::error::LoadError;
use crate::version::runtime::Runtime;
use pointsman_spec::{ChainSpec, OnError, PolicySpec};

/// A loaded chain, from which any number of sessions can be started.
pub struct DryRunChain {
    policies: Vec<LoadedPolicy>,
    on_conflict: OnConflict,
}

/// A policy of a chain.
struct LoadedPolicy {
    name: String,
    weight: u32,
    on_error: OnError,
    on_open: OnError,
    /// Validated, and never called: sessions use forks of it.
    version: Version,
}

/// An error of loading a policy of a chain.
#[derive(Debug, thiserror::Error)]
#[error("failed to load policy `{name}` from {}: {error}", dir.display())]
pub struct DryRunError {
    /// The name of the policy.
    pub name: String,
    /// The folder of the policy.
    pub dir: PathBuf,
    /// The error.
    pub error: Box<LoadError>,
}

impl fmt::Debug for DryRunChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.references()).finish()
    }
}

impl DryRunChain {
    /// Loads the policies of a chain: reads, scans, compiles, links, describes and configures them.
    /// The settings of the chain about rollouts, probation, signatures and the store only apply to
    /// hosts; golden cases are run by [`Workbench`](crate::Workbench).
    ///
    /// # Errors
    /// If a policy cannot be loaded; the error is about the first one.
    pub fn load(runtime: &Arc<Runtime>, chain: &ChainSpec) -> Result<Self, DryRunError> {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let load = |policy: &PolicySpec| {
            let version = load_version(runtime, &metrics, policy).map_err(|error| DryRunError {
                name: policy.name.clone(),
                dir: policy.dir.clone(),
                error: Box::new(error),
            })?;
            Ok(LoadedPolicy {
                name: policy.name.clone(),
                weight: policy.weight,
                on_error: policy.on_error,
                on_open: policy.on_open.unwrap_or(policy.on_error),
                version,
            })
        };
        let policies = chain.policies.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Self { policies, on_conflict: chain.on_conflict })
    }

    /// Returns the versions, in the order of the chain.
    pub fn references(&self) -> Vec<PolicyRef> {
        self.policies.iter().map(|policy| policy.version.reference().clone()).collect()
    }

    /// Starts a session at time zero. Sessions only share the compiled code. This is fast, because
    /// instances are created on demand.
    pub fn begin(&self) -> DryRunSession {
        let clock = Clock::manual();
        let link = |policy: &LoadedPolicy| Link {
            name: policy.name.clone(),
            weight: policy.weight,
            on_error: policy.on_error,
            on_open: policy.on_open,
            active: Ok(Arc::new(policy.version.fork(HostEnv::virtual_time(&clock)))),
            candidate: None,
            baselines: Vec::new(),
        };
        let chain = Chain::new(self.policies.iter().map(link).collect(), self.on_conflict, None);
        DryRunSession { chain, clock, schedule: Schedule::default() }
    }

    /// Replays a recorded call of `on-request`; `None` if the chain has no policy of this name.
    ///
    /// Recorded results take precedence over `facts` and `fleet`, see [`Replayed`]. `facts` are
    /// those of the request as this policy got it: with the edits of the policies before it, which
    /// is [`Replayed::request`] of theirs. Each replay has its own instance and state, so that it
    /// does not depend on earlier calls; data that an instance kept from earlier requests is not
    /// part of a record.
    pub fn replay(
        &self,
        policy: &str,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        record: &[Read],
    ) -> Option<Replayed<Advice>> {
        let (version, on_error) = self.fork(policy)?;
        let mut call = CallTrace::replaying(record);
        let mut facts = facts.clone();
        let (advice, dropped) = call_on_request(&version, &mut facts, fleet, on_error, &mut call);
        Some(replayed(&version, advice, dropped, call, facts.request))
    }

    /// Replays a recorded call of `on-failure`, like [`DryRunChain::replay`]. A policy without that
    /// hook returns [`Recovery::Planned`].
    pub fn replay_failure(
        &self,
        policy: &str,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: &FailureReport,
        record: &[Read],
    ) -> Option<Replayed<Recovery>> {
        let (version, _) = self.fork(policy)?;
        let mut call = CallTrace::replaying(record);
        let (recovery, dropped) = call_on_failure(&version, facts, fleet, failed, &mut call);
        Some(replayed(&version, recovery, dropped, call, Arc::clone(&facts.request)))
    }

    /// Creates a fresh version of a policy. Also returns the effect of its errors.
    fn fork(&self, policy: &str) -> Option<(Version, OnError)> {
        let policy = self.policies.iter().find(|other| other.name == policy)?;
        let version = policy.version.fork(HostEnv::virtual_time(&Clock::manual()));
        Some((version, policy.on_error))
    }
}

impl HostEnv {
    /// Creates an environment with an empty state in the time of `clock`.
    fn virtual_time(clock: &Clock) -> Self {
        Self {
            state: Arc::new(State::deterministic(clock.clone())),
            clock: clock.clone(),
            captured_log: Some(Arc::default()),
        }
    }
}

fn load_version(
    runtime: &Arc<Runtime>,
    metrics: &Arc<PolicyMetrics>,
    policy: &PolicySpec,
) -> Result<Version, LoadError> {
    let bundle = Bundle::read(&policy.dir)?;
    let artifact = PolicyArtifact::load(runtime, &bundle)?;
    let config = VersionConfig::new(runtime, &bundle, &policy.settings);
    let env = HostEnv::virtual_time(&Clock::manual());
    let version = Version::new(&runtime.engine, &artifact, Arc::new(config), metrics, env);
    version.check_description(&policy.name)?;
    version.warm_up()?;
    // Only validated; sessions have their own instances.
    version.release_instances();
    Ok(version)
}

fn replayed<A>(
    version: &Version,
    answer: Result<A, CallError>,
    dropped: Vec<String>,
    call: CallTrace,
    request: Arc<dyn RequestView>,
) -> Replayed<A> {
    let (reads, missing, differing) = match call.host_calls {
        HostCallMode::Replay(log) => log.into_parts(),
        HostCallMode::Live | HostCallMode::Record(_) => Default::default(),
    };
    let policy = version.reference().clone();
    let log = version.captured_log();
    Replayed { policy, answer, dropped, log, reads, missing, differing, request }
}

/// A chain in virtual time. The caller advances the time, and does the work of the background
/// threads of a host: it delivers outcomes, and calls `on-tick` when it is due.
#[derive(Debug)]
pub struct DryRunSession {
    chain: Chain,
    clock: Clock,
    schedule: Schedule,
}

/// A hint about a lane, and the time for which it is valid; `None` revokes the previous one.
pub type Hinted = (LaneId, Option<LaneHint>, Duration);

/// The statistics of the calls of one policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallStats {
    /// The version.
    pub policy: PolicyRef,
    /// Calls of all hooks.
    pub calls: u64,
    /// Calls that ended in a fault.
    pub faults: u64,
    /// The message of the first fault.
    pub first_fault: Option<String>,
    /// Calls that returned an error.
    pub errors: u64,
    /// The message of the first error.
    pub first_error: Option<String>,
    /// Parts of advice that were dropped.
    pub dropped: u64,
    /// The first part that was dropped, with the reason.
    pub first_dropped: Option<String>,
    /// The first log lines.
    pub log: Vec<LogLine>,
    /// What an instrumented policy reported of the code that it executed.
    pub marks: Vec<String>,
    /// Calls that exceeded the budget.
    pub slow: u64,
    /// The fuel that all calls consumed; 0 if fuel is not metered.
    pub fuel: u64,
}

impl DryRunSession {
    /// Advances the time since the start of the session. An earlier time has no effect.
    pub fn now(&self, now: Duration) {
        self.clock.set(now);
    }

    /// Returns the chain.
    pub fn advisor(&self) -> &dyn Advisor {
        &self.chain
    }

    /// Returns whether any policy has the hook `on-complete`.
    pub fn observes_outcomes(&self) -> bool {
        self.chain.observes_outcomes()
    }

    /// Calls `on-complete` of all policies that export it, in batches of the same size as in a
    /// host.
    pub fn observe(&self, fleet: &Arc<FleetView>, now_ms: u64, ended: &[Outcome]) {
        ended.chunks(MAX_BATCH).for_each(|batch| self.chain.observe(fleet, now_ms, batch));
    }

    /// Returns the time of the next tick. Each policy is called at the start, and then at its
    /// interval.
    pub fn next_tick(&self) -> Option<Duration> {
        self.schedule.next(self.chain.active_versions())
    }

    /// Calls `on-tick` of all policies that are due, and returns their hints about lanes.
    pub fn tick(
        &mut self,
        fleet: &Arc<FleetView>,
        now: Duration,
        now_ms: u64,
        seed: u64,
    ) -> Vec<Hinted> {
        let mut hints = Vec::new();
        let view = || Arc::clone(fleet);
        let at = TickContext { now, now_ms, seed };
        let mut hint = |lane, hint, ttl| hints.push((lane, hint, ttl));
        self.schedule.tick(self.chain.active_versions(), at, &view, &mut hint);
        hints
    }

    /// Returns the versions, in the order of the chain.
    pub fn references(&self) -> Vec<PolicyRef> {
        self.chain.active_versions().map(|version| version.reference().clone()).collect()
    }

    /// Returns the statistics of the calls of each policy so far, in the order of the chain.
    pub fn conduct(&self) -> Vec<CallStats> {
        let stats = |version: &Arc<Version>| {
            let (counts, log) = (version.counts(), version.log_capture());
            CallStats {
                policy: version.reference().clone(),
                calls: counts.calls,
                faults: counts.faults,
                first_fault: version.first_fault().map(str::to_owned),
                errors: counts.errors,
                first_error: version.first_error().map(str::to_owned),
                dropped: counts.dropped,
                first_dropped: version.first_dropped().map(str::to_owned),
                log: log.lines,
                marks: log.marks,
                slow: counts.slow,
                fuel: version.fuel(),
            }
        };
        self.chain.active_versions().map(stats).collect()
    }
}
