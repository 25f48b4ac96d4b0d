//! A chain that nobody is served by: without threads, without watching, in a time that somebody moves on. For simulations, and
//! for asking again what was asked before.
//!
//! ```text
//!   ChainSpec ──load──> Rehearsal ──begin──> Performance   its own versions, state, breakers and clock
//!                           │      ──begin──> Performance   the same again, on another thread if you like
//!                           └──replay──> Replayed           one recorded call, made once more
//! ```
//!
//! On a runtime that meters [fuel](crate::Metering::Fuel), performances that are asked the same give the same answers, down to the
//! fuel that each call burns.

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

use crate::background::BATCH;
use crate::bundle::Bundle;
use crate::chain::{Chain, Link, advised, recovered};
use crate::clock::Clock;
use crate::host_calls::HostEnv;
use crate::interview::{Asking, HostCallMode};
use crate::metrics::PolicyMetrics;
use crate::proof;
use crate::replay::Replayed;
use crate::runtime::Runtime;
use crate::schedule::{Schedule, TickContext};
use crate::spec::{ChainSpec, OnError, PolicySpec};
use crate::state::State;
use crate::version::{LoadError, NoAdvice, Version};

/// A chain that is ready to be performed any number of times.
pub struct DryRunChain {
    parts: Vec<Part>,
    on_conflict: OnConflict,
}

/// One policy.
struct Part {
    name: String,
    weight: u32,
    on_error: OnError,
    /// Proven, and never asked: performances are made after it.
    version: Version,
}

/// A policy of a chain that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("the policy `{name}` in {} cannot be used: {error}", dir.display())]
pub struct RehearsalError {
    /// Its name.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Why.
    #[source]
    pub error: Box<LoadError>,
}

impl fmt::Debug for DryRunChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.references()).finish()
    }
}

impl DryRunChain {
    /// Read, scan, compile and link the policies of a chain, have them describe themselves and configure them. What the chain says
    /// about rollouts, probation, signatures and the store is for hosts; golden cases are run by [`Workbench`](crate::Workbench).
    ///
    /// # Errors
    /// With the first policy that a host would not load.
    pub fn load(runtime: &Arc<Runtime>, chain: &ChainSpec) -> Result<Self, RehearsalError> {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let part = |policy: &PolicySpec| {
            let version = prove(runtime, &metrics, policy).map_err(|error| RehearsalError {
                name: policy.name.clone(),
                dir: policy.dir.clone(),
                error: Box::new(error),
            })?;
            let (name, weight, on_error) = (policy.name.clone(), policy.weight, policy.on_error);
            Ok(Part { name, weight, on_error, version })
        };
        let parts = chain.policies.iter().map(part).collect::<Result<_, _>>()?;
        Ok(Self { parts, on_conflict: chain.on_conflict })
    }

    /// The versions, in the order of the chain.
    pub fn references(&self) -> Vec<PolicyRef> {
        self.parts.iter().map(|part| part.version.reference.clone()).collect()
    }

    /// Begin a performance, at time zero. It shares the compiled code with all others and nothing else, and makes its instances
    /// when they are needed: this is quick.
    pub fn begin(&self) -> DryRunSession {
        let clock = Clock::standing();
        let link = |part: &Part| Link {
            name: part.name.clone(),
            weight: part.weight,
            on_error: part.on_error,
            active: Ok(Arc::new(part.version.anew(HostEnv::rehearsed(&clock)))),
            trial: None,
        };
        let chain = Chain::new(self.parts.iter().map(link).collect(), self.on_conflict, None);
        DryRunSession { chain, clock, schedule: Schedule::default() }
    }

    /// Ask a policy once more for the advice that it was asked for when `record` was noted; `None` if there is no policy of that
    /// name.
    ///
    /// The answers of the record go before what `facts` and `fleet` say, see [`Replayed`]. `facts` are of the request as it came to
    /// this policy: with the edits of those before it, which is [`Replayed::request`] of theirs. Each replay has an instance and a
    /// state of its own, so that it depends on nothing that was asked before; what an instance had kept of earlier requests is
    /// no part of a record.
    pub fn replay(
        &self,
        policy: &str,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        record: &[Read],
    ) -> Option<Replayed<Advice>> {
        let version = self.once(policy)?;
        let mut interview = HostCallMode::replayed(record);
        let mut facts = facts.clone();
        let (advice, dropped) = advised(&version, &mut facts, fleet, &mut interview);
        Some(replayed(&version, advice, dropped, interview, facts.request))
    }

    /// The same for what it was asked after a failed try. A policy without that hook says [`Recovery::Planned`].
    pub fn replay_failure(
        &self,
        policy: &str,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: &FailureReport,
        record: &[Read],
    ) -> Option<Replayed<Recovery>> {
        let version = self.once(policy)?;
        let mut interview = HostCallMode::replayed(record);
        let (recovery, dropped) = recovered(&version, facts, fleet, failed, &mut interview);
        Some(replayed(&version, recovery, dropped, interview, Arc::clone(&facts.request)))
    }

    /// A version of that policy that nobody has asked anything.
    fn once(&self, policy: &str) -> Option<Version> {
        let part = self.parts.iter().find(|part| part.name == policy)?;
        Some(part.version.anew(HostEnv::rehearsed(&Clock::standing())))
    }
}

impl HostEnv {
    /// An empty state in the time of a clock.
    fn rehearsed(clock: &Clock) -> Self {
        Self { state: Arc::new(State::rehearsed(clock.clone())), clock: clock.clone() }
    }
}

fn prove(
    runtime: &Arc<Runtime>,
    metrics: &Arc<PolicyMetrics>,
    policy: &PolicySpec,
) -> Result<Version, LoadError> {
    let bundle = Bundle::read(&policy.dir)?;
    let loaded = proof::component(runtime, &bundle)?;
    let around = HostEnv::rehearsed(&Clock::standing());
    let version = Version::new(runtime, &bundle, &policy.settings, &loaded, metrics, around);
    version.check_description(&policy.name)?;
    version.warm_up()?;
    version.rest();
    Ok(version)
}

fn replayed<A>(
    version: &Version,
    answer: Result<A, NoAdvice>,
    dropped: Vec<String>,
    interview: HostCallMode,
    request: Arc<dyn RequestView>,
) -> Replayed<A> {
    let (reads, missing, differing) = match interview.asking {
        Asking::Replayed(script) => script.into_parts(),
        Asking::Plain | Asking::Noted(_) => Default::default(),
    };
    let (policy, answer) = (version.reference.clone(), answer.map_err(|error| error.to_string()));
    Replayed { policy, answer, dropped, reads, missing, differing, request }
}

/// A chain in a time of its own. Whoever moves the time also does what a host's threads do beside the requests: shows how they
/// ended, and asks for wishes when somebody's time has come.
#[derive(Debug)]
pub struct DryRunSession {
    chain: Chain,
    clock: Clock,
    schedule: Schedule,
}

/// A wish of a policy about a lane, and how long it stands; `None` takes the one before back.
pub type Hinted = (LaneId, Option<LaneHint>, Duration);

/// How the calls of one policy went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallStats {
    /// The version.
    pub policy: PolicyRef,
    /// Calls of all hooks.
    pub calls: u64,
    /// Those in which something went wrong: too long, too much, trapped.
    pub faults: u64,
    /// What went wrong first.
    pub first_fault: Option<String>,
    /// Calls that took longer than the policy's budget.
    pub slow: u64,
    /// Fuel that all of them burnt; 0 where it is not metered.
    pub fuel: u64,
}

impl DryRunSession {
    /// It is this time now, since the beginning. It never goes back.
    pub fn now(&self, now: Duration) {
        self.clock.set(now);
    }

    /// Whoever advises: the chain.
    pub fn advisor(&self) -> &dyn Advisor {
        &self.chain
    }

    /// Does any policy want to hear how requests ended?
    pub fn learns(&self) -> bool {
        self.chain.learns()
    }

    /// Show how requests ended to whoever learns from that, as many at once as a host does.
    pub fn observe(&self, fleet: &Arc<FleetView>, now_ms: u64, ended: &[Outcome]) {
        ended.chunks(BATCH).for_each(|batch| self.chain.observe(fleet, now_ms, batch));
    }

    /// When some policy wants to be asked for wishes next. Each is asked at the beginning, and then at its interval.
    pub fn next_tick(&self) -> Option<Duration> {
        self.schedule.next(&self.chain)
    }

    /// Ask whoever's time has come for wishes about lanes.
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
        self.schedule
            .tick(&self.chain, at, &view, &mut |lane, hint, lasts| hints.push((lane, hint, lasts)));
        hints
    }

    /// The versions, in the order of the chain.
    pub fn references(&self) -> Vec<PolicyRef> {
        self.chain.in_service().map(|version| version.reference.clone()).collect()
    }

    /// How the calls of each policy went so far, in the order of the chain.
    pub fn conduct(&self) -> Vec<CallStats> {
        let conduct = |version: &Arc<Version>| {
            let counts = version.counts();
            CallStats {
                policy: version.reference.clone(),
                calls: counts.calls,
                faults: counts.faults,
                first_fault: version.first_fault().map(str::to_owned),
                slow: counts.slow,
                fuel: version.fuel(),
            }
        };
        self.chain.in_service().map(conduct).collect()
    }
}
