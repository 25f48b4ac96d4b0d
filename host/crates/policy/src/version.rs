//! One version of one policy: proven before it takes part, then called under limits.

mod load_error;
mod making;
mod tally;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman_domain::{
    Advice, Allow, Facts, FailureReport, FleetView, Outcome, PolicyRef, Recovery,
};

use crate::abi::{Asked, Hooks, LaneWish, MOST_RESULT, PolicyError};
use crate::background::Comparison;
use crate::breaker::Breaker;
use crate::bundle::Bundle;
use crate::call::{CallLimits, Current, Fault, guarded};
use crate::component::Loaded;
use crate::host_calls::{HostEnv, Shared};
use crate::interview::HostCallMode;
use crate::manifest::Manifest;
use crate::metrics::{PolicyFigures, PolicyMetrics};
use crate::pool::{Pool, Warm};
use crate::runtime::{MOST_MEMORY, Metering, Runtime};
use crate::spec::Settings;

pub use self::load_error::LoadError;
pub(crate) use self::tally::Counts;
use self::tally::Tally;

/// Deadline of a call where neither operator nor manifest says.
const DEADLINE: Duration = Duration::from_millis(5);
/// No deadline is longer: a call holds up a worker of the runtime.
const LONGEST_DEADLINE: Duration = Duration::from_millis(100);
/// What a call should take at most where neither operator nor manifest says: this part of its deadline, ...
const BUDGET_SHARE: u32 = 10;
/// ... and not less than this, which leaves a compiled policy ample room.
const LEAST_BUDGET: Duration = Duration::from_micros(250);
/// Deadline for making an instance, start code and `configure` included, and for hooks that no request waits for.
const UNHURRIED_DEADLINE: Duration = Duration::from_millis(50);
/// Memory of an instance where neither operator nor manifest says.
const MEMORY: u64 = 64 << 20;
/// Calls after which an instance is replaced, so that what leaks in a guest does so for a while only.
const CALLS: u32 = 100_000;

/// Why there is no advice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAdvice {
    #[error(transparent)]
    Fault(#[from] Fault),
    #[error(transparent)]
    Error(#[from] PolicyError),
    #[error("it is out of service after too many faults")]
    OutOfService,
}

/// The hooks of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Request,
    Failure,
    Complete,
    Tick,
}

impl NoAdvice {
    fn is_timeout(&self) -> bool {
        matches!(self, Self::Fault(Fault::Timeout(_)))
    }
}

/// How often whoever proves something of a policy asks before it is too slow.
const PATIENCE: u32 = 5;

/// Ask again while the time runs out. Deadlines are wall clock, and whoever proves shares the machine with others: what is
/// too slow is so each time.
pub(crate) fn retry_on_timeout<T>(
    mut ask: impl FnMut() -> Result<T, NoAdvice>,
) -> Result<T, NoAdvice> {
    let mut answer = ask();
    for _ in 1..PATIENCE {
        match &answer {
            Err(error) if error.is_timeout() => answer = ask(),
            _ => break,
        }
    }
    answer
}

impl Hook {
    /// Its name in the contract, and the value of a metric's label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Request => "on-request",
            Self::Failure => "on-failure",
            Self::Complete => "on-complete",
            Self::Tick => "on-tick",
        }
    }
}

/// One version of one policy with its instances.
pub(crate) struct Version {
    runtime: Arc<Runtime>,
    loaded: Arc<Loaded>,
    shared: Arc<Shared>,
    /// Name, and version with the beginning of the fingerprint.
    pub(crate) reference: PolicyRef,
    /// Digest of all that makes it this version.
    pub(crate) fingerprint: String,
    pub(crate) allow: Allow,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) settings: Settings,
    metrics: Arc<PolicyMetrics>,
    config: String,
    limits: CallLimits,
    budget: Duration,
    most_calls: u32,
    pool: Pool,
    // One for each hook: a policy whose `on-tick` fails still decides about requests.
    breakers: [Mutex<Breaker>; 4],
    tally: Tally,
    // How its opinions compare while it is a shadow.
    comparison: Mutex<Comparison>,
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Version")
            .field("reference", &self.reference)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Version {
    /// A version of what is in `bundle`, not yet proven.
    pub(crate) fn new(
        runtime: &Arc<Runtime>,
        bundle: &Bundle,
        settings: &Settings,
        loaded: &Arc<Loaded>,
        metrics: &Arc<PolicyMetrics>,
        around: impl Into<HostEnv>,
    ) -> Self {
        let manifest = Arc::new(bundle.manifest.clone());
        let fingerprint = bundle.fingerprint(settings);
        Self::assemble(runtime, &manifest, fingerprint, settings, loaded, metrics, around.into())
    }

    /// The same version elsewhere: what a shadow becomes when it is promoted, and what is rehearsed. It begins anew.
    pub(crate) fn anew(&self, around: impl Into<HostEnv>) -> Self {
        let (manifest, settings, around) = (&self.manifest, &self.settings, around.into());
        let fingerprint = self.fingerprint.clone();
        Self::assemble(
            &self.runtime,
            manifest,
            fingerprint,
            settings,
            &self.loaded,
            &self.metrics,
            around,
        )
    }

    fn assemble(
        runtime: &Arc<Runtime>,
        manifest: &Arc<Manifest>,
        fingerprint: String,
        settings: &Settings,
        loaded: &Arc<Loaded>,
        metrics: &Arc<PolicyMetrics>,
        around: HostEnv,
    ) -> Self {
        let version = format!("{}+{}", manifest.version, fingerprint.get(..8).unwrap_or_default());
        let reference = PolicyRef::new(&manifest.name, &version);
        let figures = PolicyFigures::new(metrics, &reference, manifest.metrics());
        let asked = &manifest.limits;
        let deadline =
            settings.deadline.or(asked.deadline).unwrap_or(DEADLINE).min(LONGEST_DEADLINE);
        let memory = settings.memory.or(asked.memory).unwrap_or(MEMORY).min(MOST_MEMORY);
        Self {
            runtime: Arc::clone(runtime),
            loaded: Arc::clone(loaded),
            shared: Arc::new(Shared::new(manifest.name.clone(), around, figures)),
            reference,
            fingerprint,
            allow: manifest.allow(),
            config: settings.config.to_string(),
            limits: CallLimits {
                metering: runtime.metering,
                deadline,
                memory,
                result: MOST_RESULT,
            },
            budget: settings
                .budget
                .or(asked.budget)
                .unwrap_or_else(|| (deadline / BUDGET_SHARE).max(LEAST_BUDGET)),
            most_calls: asked.calls.unwrap_or(CALLS).max(1),
            manifest: Arc::clone(manifest),
            settings: settings.clone(),
            metrics: Arc::clone(metrics),
            pool: Pool::default(),
            breakers: Default::default(),
            tally: Tally::default(),
            comparison: Mutex::default(),
        }
    }

    /// SHA-256 of the component, in hexadecimal.
    pub(crate) fn component_sha256(&self) -> &str {
        &self.loaded.digest
    }

    /// The version as answers and people name it, without the policy's name.
    pub(crate) fn id(&self) -> &str {
        &self.reference.version
    }

    /// Which optional hooks it has.
    pub(crate) fn hooks(&self) -> Hooks {
        self.loaded.linked.hooks()
    }

    /// Time between two calls of `on-tick`; `None` if it has none, or does not say.
    pub(crate) fn tick_interval(&self) -> Option<Duration> {
        self.manifest.hooks.tick.filter(|interval| self.hooks().on_tick && !interval.is_zero())
    }

    /// Is it asked about requests?
    pub(crate) fn in_service(&self) -> bool {
        self.breaker(Hook::Request).is_closed()
    }

    pub(crate) fn figures(&self) -> &PolicyFigures {
        &self.shared.figures
    }

    pub(crate) fn idle_instances(&self) -> usize {
        self.pool.len()
    }

    /// Most memory, in bytes, that one of the instances took that wait for a call.
    pub(crate) fn memory(&self) -> u64 {
        self.pool.most_memory()
    }

    /// Let go of all instances that wait: nobody asks this version any more.
    pub(crate) fn rest(&self) {
        self.pool.clear();
        self.figures().rests();
    }

    /// Its opinion as a shadow was compared.
    pub(crate) fn compared(&self, change: impl FnOnce(&mut Comparison)) {
        change(&mut self.comparison.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How its opinions as a shadow compare.
    pub(crate) fn comparison(&self) -> Comparison {
        self.comparison.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Fuel that its calls burnt; 0 where it is not metered.
    pub(crate) fn fuel(&self) -> u64 {
        self.tally.fuel()
    }

    /// What went wrong in it first.
    pub(crate) fn first_fault(&self) -> Option<&str> {
        self.tally.first_fault()
    }

    /// Ask for advice, and count what came of it. What it asks the host goes the way of `interview`.
    pub(crate) fn advise(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        interview: &mut HostCallMode,
    ) -> Result<Advice, NoAdvice> {
        self.about_request(Hook::Request, facts, fleet, interview, |warm, asked| {
            warm.instance.advise(&mut warm.store, asked)
        })
    }

    /// Ask what to do after a failed try.
    pub(crate) fn recover(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: &FailureReport,
        interview: &mut HostCallMode,
    ) -> Result<Recovery, NoAdvice> {
        self.about_request(Hook::Failure, facts, fleet, interview, |warm, asked| {
            warm.instance.recover(&mut warm.store, asked, failed)
        })
    }

    /// Show how requests ended.
    pub(crate) fn observe(
        &self,
        fleet: &Arc<FleetView>,
        now_ms: u64,
        done: &[Outcome],
    ) -> Result<(), NoAdvice> {
        let current = Current { request: None, fleet: Arc::clone(fleet) };
        self.call(Hook::Complete, current, &mut HostCallMode::default(), |warm| {
            warm.instance.observe(&mut warm.store, now_ms, done).map(Ok)
        })
    }

    /// Ask for wishes about lanes.
    pub(crate) fn tick(
        &self,
        fleet: &Arc<FleetView>,
        now_ms: u64,
        seed: u64,
    ) -> Result<Vec<LaneWish>, NoAdvice> {
        let current = Current { request: None, fleet: Arc::clone(fleet) };
        self.call(Hook::Tick, current, &mut HostCallMode::default(), |warm| {
            warm.instance.tick(&mut warm.store, now_ms, seed).map(Ok)
        })
    }

    fn about_request<T>(
        &self,
        hook: Hook,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        interview: &mut HostCallMode,
        call: impl FnOnce(&mut Warm, Asked<'_>) -> wasmtime::Result<Result<T, PolicyError>>,
    ) -> Result<T, NoAdvice> {
        let current =
            Current { request: Some(Arc::clone(&facts.request)), fleet: Arc::clone(fleet) };
        let topology = fleet.topology.generation();
        let budget_us = u32::try_from(self.limits.deadline.as_micros()).unwrap_or(u32::MAX);
        self.call(hook, current, interview, |warm| call(warm, Asked { facts, topology, budget_us }))
    }

    /// One call of a hook, behind its breaker, and counted.
    fn call<T>(
        &self,
        hook: Hook,
        current: Current,
        interview: &mut HostCallMode,
        call: impl FnOnce(&mut Warm) -> wasmtime::Result<Result<T, PolicyError>>,
    ) -> Result<T, NoAdvice> {
        let begun = self.shared.clock.now();
        if !self.breaker(hook).admits(begun) {
            self.figures().failed(hook, "out-of-service", false);
            return Err(NoAdvice::OutOfService);
        }
        let mut fuel = 0;
        let result = self.unguarded(hook, current, interview, &mut fuel, call);
        interview.took = match self.limits.metering {
            Metering::Wall => self.shared.clock.now().saturating_sub(begun),
            Metering::Fuel => {
                self.tally.burnt(fuel);
                Metering::time(fuel)
            }
        };
        self.count(hook, interview.took, result.as_ref().err());
        result
    }

    fn unguarded<T>(
        &self,
        hook: Hook,
        current: Current,
        interview: &mut HostCallMode,
        fuel: &mut u64,
        call: impl FnOnce(&mut Warm) -> wasmtime::Result<Result<T, PolicyError>>,
    ) -> Result<T, NoAdvice> {
        let mut warm = match self.pool.take() {
            Some(warm) => warm,
            None => self.instantiate()?,
        };
        let hurried = matches!(hook, Hook::Request | Hook::Failure);
        let deadline = if hurried {
            self.limits.deadline
        } else {
            self.limits.deadline.max(UNHURRIED_DEADLINE)
        };
        let result = warm.instance.most_result(current.request.as_deref());
        let limits = CallLimits { deadline, result, ..self.limits };
        warm.store.data_mut().begin(current, std::mem::take(&mut interview.asking));
        // On a fault the instance goes: its memory may be in any state, and wasmtime would not enter it again.
        let called = guarded(&mut *warm, limits, call);
        (interview.asking, *fuel) = warm.store.data_mut().end();
        let said = called?;
        if !warm.instance.needs_recycling(&warm.store) {
            self.pool.put(warm, self.most_calls);
        }
        Ok(said?)
    }

    fn count(&self, hook: Hook, took: Duration, failed: Option<&NoAdvice>) {
        self.tally.call();
        if took > self.budget && matches!(hook, Hook::Request | Hook::Failure) {
            self.tally.slow();
            self.figures().slow();
        }
        let mut breaker = self.breaker(hook);
        if let Some(NoAdvice::Fault(fault)) = failed {
            self.tally.fault(fault);
            if breaker.fault(self.shared.clock.now()) {
                tracing::error!(policy = %self.reference, hook = hook.name(), "taken out of service after too many faults: {fault}");
                self.figures().in_service(hook, false);
            }
            self.figures().failed(hook, fault.kind(), true);
            return;
        }
        if !breaker.is_closed() {
            breaker.good();
            tracing::info!(policy = %self.reference, hook = hook.name(), "back in service");
            self.figures().in_service(hook, true);
        }
        match failed {
            None => self.figures().went_well(hook, took),
            Some(_) => self.figures().failed(hook, "error", false),
        }
    }

    fn breaker(&self, hook: Hook) -> std::sync::MutexGuard<'_, Breaker> {
        self.breakers[hook as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
