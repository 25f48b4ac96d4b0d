//! One version of one policy: validated before it becomes active, then called under limits.

mod hooks;
mod instantiate;
mod load_error;
mod tally;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman_domain::{Allow, PolicyRef};
use tracing::Span;

use crate::abi::{Hooks, MAX_OUTPUT_BYTES, PolicyError};
use crate::background::Comparison;
use crate::breaker::Breaker;
use crate::bundle::Bundle;
use crate::call::{CallLimits, Fault};
use crate::component::Loaded;
use crate::host_calls::{HostEnv, Shared};
use crate::manifest::Manifest;
use crate::metrics::{PolicyMetrics, VersionMetrics};
use crate::pool::Pool;
use crate::runtime::{MAX_MEMORY_BYTES, Runtime};
use crate::spec::Settings;

pub(crate) use self::hooks::Hook;
pub use self::load_error::{InvalidConfig, LoadError};
pub(crate) use self::tally::Counts;
use self::tally::Tally;

/// Deadline of a call if neither the operator nor the manifest sets one.
const DEFAULT_DEADLINE: Duration = Duration::from_millis(5);
/// Maximum deadline of a call about a request: the call blocks a worker thread of the runtime.
const MAX_DEADLINE: Duration = Duration::from_millis(100);
/// Default budget of a call, as a fraction of its deadline: one tenth, but at least [`MIN_BUDGET`].
const BUDGET_DIVISOR: u32 = 10;
/// Minimum default budget, several times what a compiled policy needs.
const MIN_BUDGET: Duration = Duration::from_micros(250);
/// Deadline for creating an instance, including start code and `configure`, and for hooks that do
/// not delay a request.
const BACKGROUND_DEADLINE: Duration = Duration::from_millis(50);
/// Memory of an instance, in bytes, if neither the operator nor the manifest sets a limit.
const DEFAULT_MEMORY: u64 = 64 << 20;
/// Calls after which an instance is replaced, which bounds what a leak in a guest can accumulate.
const DEFAULT_MAX_CALLS: u32 = 100_000;
/// Maximum attempts of a validation call that times out.
const MAX_ATTEMPTS: u32 = 5;

/// An error of a policy call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The call ended in a fault.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The policy returned an error.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy was not called, because it had failed too often.
    #[error("circuit breaker open after repeated faults")]
    BreakerOpen,
}

impl CallError {
    /// Returns the kind of this error: a value of the metric label `result`, and the beginning of
    /// the [note](CallError::to_note) in records.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.kind(),
            Self::Policy(_) => "error",
            Self::BreakerOpen => "breaker-open",
        }
    }

    /// Returns the note that a record keeps of this error: `KIND: MESSAGE`.
    pub fn to_note(&self) -> String {
        format!("{}: {self}", self.kind())
    }

    fn is_timeout(&self) -> bool {
        matches!(self, Self::Fault(Fault::Timeout(_)))
    }
}

/// Repeats a validation call while it times out, up to [`MAX_ATTEMPTS`] times. Deadlines are wall
/// clock time, and validation shares the machine with other work: a policy that really is too slow
/// times out in every attempt.
pub(crate) fn retry_on_timeout<T>(
    mut call: impl FnMut() -> Result<T, CallError>,
) -> Result<T, CallError> {
    let mut result = call();
    for _ in 1..MAX_ATTEMPTS {
        match &result {
            Err(error) if error.is_timeout() => result = call(),
            _ => break,
        }
    }
    result
}

/// Creates the span of a policy call. Its level is the highest one, so that warnings carry the
/// fields whatever the log filter is; without a subscriber it costs a branch.
pub(crate) fn policy_span(policy: &PolicyRef, hook: &'static str) -> Span {
    tracing::error_span!("policy", policy = &*policy.name, version = &*policy.version, hook)
}

/// One version of one policy, with its instances.
pub(crate) struct Version {
    runtime: Arc<Runtime>,
    loaded: Arc<Loaded>,
    shared: Arc<Shared>,
    /// The name, and the version with the beginning of the fingerprint.
    pub(crate) reference: PolicyRef,
    /// Digest of component, manifest and settings.
    pub(crate) fingerprint: String,
    pub(crate) allow: Allow,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) settings: Settings,
    metrics: Arc<PolicyMetrics>,
    config: String,
    limits: CallLimits,
    budget: Duration,
    max_calls: u32,
    pool: Pool,
    // One per hook: a policy whose `on-tick` fails still decides about requests.
    breakers: [Mutex<Breaker>; 4],
    tally: Tally,
    // Only used while the version is a shadow.
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
    /// Creates a version of the policy in `bundle`, which has not been validated yet.
    pub(crate) fn new(
        runtime: &Arc<Runtime>,
        bundle: &Bundle,
        settings: &Settings,
        loaded: &Arc<Loaded>,
        metrics: &Arc<PolicyMetrics>,
        env: impl Into<HostEnv>,
    ) -> Self {
        let manifest = Arc::new(bundle.manifest.clone());
        let fingerprint = bundle.fingerprint(settings);
        Self::assemble(runtime, &manifest, fingerprint, settings, loaded, metrics, env.into())
    }

    /// Creates the same version in another environment, with new instances and counters: for a
    /// shadow that is promoted, and for dry runs.
    pub(crate) fn fork(&self, env: impl Into<HostEnv>) -> Self {
        let (manifest, settings, env) = (&self.manifest, &self.settings, env.into());
        let fingerprint = self.fingerprint.clone();
        Self::assemble(
            &self.runtime,
            manifest,
            fingerprint,
            settings,
            &self.loaded,
            &self.metrics,
            env,
        )
    }

    fn assemble(
        runtime: &Arc<Runtime>,
        manifest: &Arc<Manifest>,
        fingerprint: String,
        settings: &Settings,
        loaded: &Arc<Loaded>,
        metrics: &Arc<PolicyMetrics>,
        env: HostEnv,
    ) -> Self {
        let version = format!("{}+{}", manifest.version, fingerprint.get(..8).unwrap_or_default());
        let reference = PolicyRef::new(&manifest.name, &version);
        let version_metrics = VersionMetrics::new(metrics, &reference, manifest.metrics());
        let requested = &manifest.limits;
        let deadline =
            settings.deadline.or(requested.deadline).unwrap_or(DEFAULT_DEADLINE).min(MAX_DEADLINE);
        let memory =
            settings.memory.or(requested.memory).unwrap_or(DEFAULT_MEMORY).min(MAX_MEMORY_BYTES);
        Self {
            runtime: Arc::clone(runtime),
            loaded: Arc::clone(loaded),
            shared: Arc::new(Shared::new(reference.clone(), env, version_metrics)),
            reference,
            fingerprint,
            allow: manifest.allow(),
            config: settings.config.to_string(),
            limits: CallLimits {
                metering: runtime.metering,
                deadline,
                memory,
                output_bytes: MAX_OUTPUT_BYTES,
            },
            budget: settings
                .budget
                .or(requested.budget)
                .unwrap_or_else(|| (deadline / BUDGET_DIVISOR).max(MIN_BUDGET)),
            max_calls: requested.calls.unwrap_or(DEFAULT_MAX_CALLS).max(1),
            manifest: Arc::clone(manifest),
            settings: settings.clone(),
            metrics: Arc::clone(metrics),
            pool: Pool::default(),
            breakers: Default::default(),
            tally: Tally::default(),
            comparison: Mutex::default(),
        }
    }

    /// Returns the SHA-256 of the component, in hexadecimal.
    pub(crate) fn component_sha256(&self) -> &str {
        &self.loaded.digest
    }

    /// Returns the version as shown to operators and clients, without the name of the policy.
    pub(crate) fn id(&self) -> &str {
        &self.reference.version
    }

    /// Returns the optional hooks that the component exports.
    pub(crate) fn hooks(&self) -> Hooks {
        self.loaded.linked.hooks()
    }

    /// Returns the interval of `on-tick`; `None` without that hook, or if the manifest sets none.
    pub(crate) fn tick_interval(&self) -> Option<Duration> {
        self.manifest.hooks.tick.filter(|interval| self.hooks().on_tick && !interval.is_zero())
    }

    /// Returns whether the breaker lets calls about requests through.
    pub(crate) fn is_admitting(&self) -> bool {
        self.breaker(Hook::Request).is_closed()
    }

    pub(crate) fn metrics(&self) -> &VersionMetrics {
        &self.shared.metrics
    }

    pub(crate) fn idle_instances(&self) -> usize {
        self.pool.len()
    }

    /// Creates the span of a call to this version, see [`policy_span`].
    pub(crate) fn span(&self, hook: &'static str) -> Span {
        policy_span(&self.reference, hook)
    }

    /// Returns the peak memory, in bytes, of an idle instance.
    pub(crate) fn memory(&self) -> u64 {
        self.pool.peak_memory()
    }

    /// Drops all idle instances, because this version is not called any more.
    pub(crate) fn release_instances(&self) {
        self.pool.clear();
        self.metrics().remove_breaker_gauges();
    }

    /// Updates the comparison with the active version.
    pub(crate) fn update_comparison(&self, change: impl FnOnce(&mut Comparison)) {
        change(&mut self.comparison.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns the comparison of this version, as a shadow, with the active one.
    pub(crate) fn comparison(&self) -> Comparison {
        self.comparison.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Returns the fuel that all calls consumed; 0 if fuel is not metered.
    pub(crate) fn fuel(&self) -> u64 {
        self.tally.fuel()
    }

    /// Returns the message of the first fault.
    pub(crate) fn first_fault(&self) -> Option<&str> {
        self.tally.first_fault()
    }

    fn breaker(&self, hook: Hook) -> std::sync::MutexGuard<'_, Breaker> {
        self.breakers[hook as usize].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
