//! One version of one policy: validated before it becomes active, then called under limits.
//!
//! ```text
//!   Bundle ──load──> PolicyArtifact ─┐   component and manifest; immutable, shared
//!      └── Settings ─> VersionConfig ┴─> Version   instances, breakers, counters
//! ```

pub(crate) mod artifact;
pub(crate) mod bundle;
pub(crate) mod call;
pub(crate) mod call_error;
pub(crate) mod call_trace;
pub(crate) mod case_error;
pub(crate) mod comparison;
pub(crate) mod config;
pub(crate) mod error;
mod hooks;
mod instantiate;
pub(crate) mod last_faults;
pub(crate) mod manifest;
pub(crate) mod pace;
pub(crate) mod pool;
pub(crate) mod runtime;
pub mod signature;
pub(crate) mod tally;
pub(crate) mod validate;
pub(crate) mod warm_instance;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::{Mutex, MutexGuard};
use pointsman_domain::{PolicyRef, TenantBreaker, TenantBreakerRules};
use pointsman_spec::Hook;
use prometheus_client::registry::Registry;
use tracing::Span;

use crate::contract::captured_log::{CapturedLog, LogCapture, LogLine};
use crate::contract::shared::{HostEnv, Shared};
use crate::contract::state::State;
use crate::contract::state_backing::StateEntry;
use crate::metrics::{PolicyMetrics, VersionMetrics};
use crate::trial::Judge;
use crate::version::artifact::PolicyArtifact;
use crate::version::comparison::Comparison;
use crate::version::config::VersionConfig;
use crate::version::last_faults::{FaultRecord, LastFaults};
use crate::version::pace::Pace;
use crate::version::pool::Pool;
use crate::version::tally::{Counts, Tally};
use crate::version::warm_instance::WarmInstance;
use crate::wasm::engine::WasmEngine;

/// The circuit breaker of a hook: it opens when more than a fifth of the calls of ten seconds
/// fault. A lower rate costs less than the policy is worth.
static BREAKER: TenantBreakerRules = TenantBreakerRules { min_faults: 3, max_percent: 20 };

/// Creates the span of a policy call. Its level is the highest one, so that warnings carry the
/// fields whatever the log filter is; without a subscriber it costs a branch.
pub(crate) fn policy_span(policy: &PolicyRef, hook: &'static str) -> Span {
    tracing::error_span!("policy", policy = &*policy.name, version = &*policy.version, hook)
}

/// One version of one policy, with its instances.
pub(crate) struct Version {
    artifact: Arc<PolicyArtifact>,
    config: Arc<VersionConfig>,
    engine: Arc<WasmEngine>,
    /// Registers the metrics of forks.
    registered: Arc<PolicyMetrics>,
    shared: Arc<Shared>,
    pool: Pool<WarmInstance>,
    /// An instance could not be created in the background.
    cannot_restock: AtomicBool,
    // One per hook: a policy whose `on-tick` fails still decides about requests.
    breakers: [Mutex<TenantBreaker>; Hook::ALL.len()],
    /// False in the version that another one is compared with.
    has_breakers: bool,
    tally: Tally,
    faults: LastFaults,
    pace: Pace,
    // Only used while the version is a shadow.
    comparison: Mutex<Comparison>,
    /// The latest trial, if the version was on probation or a canary.
    judge: Mutex<Option<Arc<Judge>>>,
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Version").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Version {
    /// Creates a version, which has not been validated yet.
    pub(crate) fn new(
        engine: &Arc<WasmEngine>,
        artifact: &Arc<PolicyArtifact>,
        config: Arc<VersionConfig>,
        metrics: &Arc<PolicyMetrics>,
        env: impl Into<HostEnv>,
    ) -> Self {
        let reference = config.reference.clone();
        let custom = artifact.manifest().metrics();
        let version_metrics = VersionMetrics::new(metrics, &reference, custom);
        Self {
            artifact: Arc::clone(artifact),
            config,
            engine: Arc::clone(engine),
            registered: Arc::clone(metrics),
            shared: Arc::new(Shared::new(reference, env, version_metrics)),
            pool: Pool::default(),
            cannot_restock: AtomicBool::new(false),
            breakers: std::array::from_fn(|_| Mutex::new(TenantBreaker::new(&BREAKER))),
            has_breakers: true,
            tally: Tally::default(),
            faults: LastFaults::default(),
            pace: Pace::default(),
            comparison: Mutex::default(),
            judge: Mutex::default(),
        }
    }

    /// Creates the same version in another environment, with new instances and counters: for a
    /// shadow that is promoted, and for dry runs.
    pub(crate) fn fork(&self, env: impl Into<HostEnv>) -> Self {
        Self::new(&self.engine, &self.artifact, Arc::clone(&self.config), &self.registered, env)
    }

    /// Creates the same version with a state and metrics of its own: its calls have no effect, and
    /// are not counted. It has no breakers, because each call is compared by itself.
    pub(crate) fn fork_uncounted(&self) -> Self {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let (artifact, config) = (&self.artifact, Arc::clone(&self.config));
        let fork = Self::new(&self.engine, artifact, config, &metrics, Arc::<State>::default());
        Self { has_breakers: false, ..fork }
    }

    /// Creates the same version with copies of its state and of its breakers: a call has the result
    /// that it would have with this version now, and no effect on it.
    pub(crate) fn preview(&self) -> Self {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let env = HostEnv {
            state: Arc::new(self.shared.state.copy()),
            clock: self.shared.clock.clone(),
            captured_log: Some(Arc::default()),
        };
        let (artifact, config) = (&self.artifact, Arc::clone(&self.config));
        let preview = Self::new(&self.engine, artifact, config, &metrics, env);
        let breakers = std::array::from_fn(|hook| Mutex::new(self.breakers[hook].lock().clone()));
        Self { breakers, has_breakers: self.has_breakers, ..preview }
    }

    /// Returns the component and its manifest.
    pub(crate) fn artifact(&self) -> &PolicyArtifact {
        &self.artifact
    }

    /// Returns the configuration.
    pub(crate) fn config(&self) -> &VersionConfig {
        &self.config
    }

    /// Returns the name of the policy, and the version with the beginning of the fingerprint.
    pub(crate) fn reference(&self) -> &PolicyRef {
        &self.config.reference
    }

    /// Returns the digest of component, manifest and settings.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.config.fingerprint
    }

    /// Returns the version as shown to operators and clients, without the name of the policy.
    pub(crate) fn id(&self) -> &str {
        &self.config.reference.version
    }

    /// Returns whether the breaker lets calls about requests through, except for single tenants.
    pub(crate) fn is_admitting(&self) -> bool {
        !self.breaker(Hook::Request).is_open()
    }

    /// Returns the number of tenants for whose requests the breaker lets no calls through.
    pub(crate) fn stopped_tenants(&self) -> usize {
        self.breaker(Hook::Request).open_tenants()
    }

    /// Returns whether a call about a request may take longer than a thread that serves other
    /// requests can be held. `in_long_chain` is true if other versions are called as well, and all
    /// their deadlines together are long.
    pub(crate) fn may_block(&self, in_long_chain: bool) -> bool {
        let now = self.shared.clock.now();
        // Without an idle instance the call would create one.
        self.pool.len() == 0
            || self.pace.may_be_slow(now, self.config.limits.deadline)
            || in_long_chain && self.pace.is_noticeable(now)
    }

    pub(crate) fn metrics(&self) -> &VersionMetrics {
        &self.shared.metrics
    }

    pub(crate) fn idle_instances(&self) -> usize {
        self.pool.len()
    }

    /// Creates the span of a call to this version, see [`policy_span`].
    pub(crate) fn span(&self, hook: &'static str) -> Span {
        policy_span(self.reference(), hook)
    }

    /// Returns the peak memory, in bytes, of an idle instance.
    pub(crate) fn memory(&self) -> u64 {
        self.pool.max_of(|warm| warm.store.data().memory.used())
    }

    /// Lets this version keep idle instances, because it is called from now on.
    pub(crate) fn keep_instances(&self) {
        self.pool.open();
    }

    /// Drops all idle instances and keeps no others, because this version is not called any more.
    pub(crate) fn release_instances(&self) {
        self.pool.close();
        self.metrics().remove_breaker_gauges();
    }

    /// Updates the comparison with the active version.
    pub(crate) fn update_comparison(&self, change: impl FnOnce(&mut Comparison)) {
        change(&mut self.comparison.lock());
    }

    /// Returns the comparison of this version, as a shadow, with the active one.
    pub(crate) fn comparison(&self) -> Comparison {
        self.comparison.lock().clone()
    }

    /// Begins a trial, in which a share of the requests stays with the version before.
    pub(crate) fn begin_trial(&self, control: u16) {
        *self.judge.lock() = Some(Arc::new(Judge::new(control)));
    }

    /// Returns the latest trial.
    pub(crate) fn judge(&self) -> Option<Arc<Judge>> {
        self.judge.lock().clone()
    }

    /// Counts a fault or a slow call against this version in its probation.
    pub(crate) fn add_defect(&self, is_fault: bool) {
        self.tally.add_own(is_fault);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.tally.counts()
    }

    /// Returns the last failed calls, the latest first.
    pub(crate) fn last_faults(&self) -> Vec<FaultRecord> {
        self.faults.list(self.shared.clock.now())
    }

    /// Returns the hooks that are not called for any request or tenant, because they failed too
    /// often.
    pub(crate) fn stopped_hooks(&self) -> Vec<&'static str> {
        let stopped = Hook::ALL.into_iter().filter(|hook| self.breaker(*hook).is_open());
        stopped.map(Hook::name).collect()
    }

    /// Returns the fuel that all calls consumed; 0 if fuel is not metered.
    pub(crate) fn fuel(&self) -> u64 {
        self.tally.fuel()
    }

    /// Returns the message of the first fault.
    pub(crate) fn first_fault(&self) -> Option<&str> {
        self.tally.first_fault()
    }

    /// Returns the message of the first error that the policy returned.
    pub(crate) fn first_error(&self) -> Option<&str> {
        self.tally.first_error()
    }

    /// Returns the first part of advice that was dropped, with the reason.
    pub(crate) fn first_dropped(&self) -> Option<&str> {
        self.tally.first_dropped()
    }

    /// Counts a part of advice that is dropped, and returns it with the reason.
    pub(crate) fn drop_part(&self, part: &'static str, reason: &str) -> String {
        self.metrics().record_dropped(part);
        self.tally.add_dropped(part, reason);
        format!("{part}: {reason}")
    }

    /// Returns the log lines so far; none if they go to the log of this process.
    pub(crate) fn captured_log(&self) -> Vec<LogLine> {
        self.shared.captured_log().map(CapturedLog::lines).unwrap_or_default()
    }

    /// Returns the log lines and the reports of instrumented code so far.
    pub(crate) fn log_capture(&self) -> LogCapture {
        self.shared.captured_log().map(CapturedLog::log_capture).unwrap_or_default()
    }

    /// Returns the log lines so far as text, for traces; none if they go to the log of this
    /// process.
    pub(crate) fn log_lines(&self) -> Vec<String> {
        let lines = self.captured_log();
        lines.into_iter().map(|line| format!("{:<5} {}", line.level, line.message)).collect()
    }

    /// Returns the entries of the state.
    pub(crate) fn state_entries(&self) -> Vec<StateEntry> {
        self.shared.state.entries()
    }

    fn breaker(&self, hook: Hook) -> MutexGuard<'_, TenantBreaker> {
        self.breakers[hook as usize].lock()
    }
}
