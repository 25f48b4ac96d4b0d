//! One version of one policy: loaded, proven by its golden cases, and called.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pointsman_domain::{Advice, Allow, Facts, FleetView, PolicyRef, Read};

use crate::abi::PolicyError;
use crate::breaker::Breaker;
use crate::call::{CallLimits, Current, Fault, guarded, store};
use crate::cases::{self, CaseError, FactsOf};
use crate::component::{self, ComponentError, Loaded, MOST_BYTES, hex};
use crate::host_calls::{HostState, Shared};
use crate::manifest::{Manifest, ManifestError};
use crate::metrics::{PolicyFigures, PolicyMetrics};
use crate::pool::{Pool, Warm};
use crate::runtime::{MOST_MEMORY, Runtime};
use crate::state::State;

/// Deadline of a call where neither operator nor manifest says.
const DEADLINE: Duration = Duration::from_millis(5);
/// No deadline is longer: a call holds up a worker of the runtime.
const LONGEST_DEADLINE: Duration = Duration::from_millis(100);
/// Deadline for making an instance, start code and `configure` included.
const INSTANTIATE_DEADLINE: Duration = Duration::from_millis(50);
/// Memory of an instance where neither operator nor manifest says.
const MEMORY: u64 = 64 << 20;
/// The track of the contract that manifests may name.
const TRACK: &str = "0.1";

/// What happens to a request when the policy gives no advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// Go on without this policy.
    #[default]
    Skip,
    /// The built-in rule decides, as if no policy had been asked.
    Default,
    /// Refuse the request with 503.
    Refuse,
}

/// What the operator says about a policy.
#[derive(Debug, Clone)]
pub struct PolicySpec {
    /// Its folder.
    pub dir: PathBuf,
    /// Its name, which the manifest has to confirm.
    pub name: String,
    /// Weight of its scores, in thousandths.
    pub weight: u32,
    /// What happens when it gives no advice.
    pub on_error: OnError,
    /// Its configuration.
    pub config: serde_json::Value,
    /// Deadline of a call.
    pub deadline: Option<Duration>,
    /// Bytes of memory of an instance.
    pub memory: Option<u64>,
}

/// Why a policy is not put into service.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its manifest cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Its component cannot be read.
    #[error("{file}: {what}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// Its component is none that can be used.
    #[error("{file}: {error}")]
    Component {
        /// The file.
        file: String,
        /// What is wrong with it.
        error: ComponentError,
    },
    /// It failed in its first calls.
    #[error("the policy failed when it was {doing}: {what}")]
    FirstCall {
        /// What was being done.
        doing: &'static str,
        /// What happened.
        what: String,
    },
    /// It is not what its manifest says.
    #[error("the manifest says {manifest}, and the component says {component}")]
    Description {
        /// Name and version in the manifest.
        manifest: String,
        /// Name and version in the component.
        component: String,
    },
    /// It does not decide as its golden cases say.
    #[error(transparent)]
    Case(#[from] CaseError),
}

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

/// One version of one policy with its instances.
pub struct Policy {
    runtime: Arc<Runtime>,
    loaded: Arc<Loaded>,
    shared: Arc<Shared>,
    pub(crate) reference: PolicyRef,
    pub(crate) allow: Allow,
    limits: CallLimits,
    config: String,
    pool: Pool,
    breaker: Mutex<Breaker>,
    started: Instant,
    pub(crate) weight: u32,
    pub(crate) on_error: OnError,
}

impl std::fmt::Debug for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policy")
            .field("reference", &self.reference)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Policy {
    /// Load a policy and prove it: manifest, component, description, configuration, golden cases.
    ///
    /// # Errors
    /// With what is wrong, in which file, and what to do.
    pub fn load(
        runtime: &Arc<Runtime>,
        spec: &PolicySpec,
        metrics: &Arc<PolicyMetrics>,
        facts_of: &FactsOf<'_>,
    ) -> Result<Self, LoadError> {
        let manifest = Manifest::load(&spec.dir)?;
        let loaded = Arc::new(load_component(runtime, spec, &manifest)?);
        let state = runtime.state_of(&manifest.name);
        let policy = Self::assemble(runtime, &loaded, &manifest, spec, metrics, state);
        policy.check_description(&manifest, spec)?;
        policy.warm_up()?;
        let with_config = |config: &serde_json::Value| {
            let spec = PolicySpec { config: config.clone(), ..spec.clone() };
            let metrics = PolicyMetrics::register(&mut prometheus_client::registry::Registry::default());
            Self::assemble(runtime, &loaded, &manifest, &spec, &metrics, Arc::default())
        };
        cases::run(&spec.dir.join(&manifest.cases), with_config, facts_of)?;
        policy.shared.figures.active(true);
        policy.shared.figures.in_service(true);
        Ok(policy)
    }

    fn assemble(
        runtime: &Arc<Runtime>,
        loaded: &Arc<Loaded>,
        manifest: &Manifest,
        spec: &PolicySpec,
        metrics: &Arc<PolicyMetrics>,
        state: Arc<State>,
    ) -> Self {
        let version = format!("{}+{}", manifest.version, &loaded.digest[..8]);
        let reference = PolicyRef::new(&manifest.name, &version);
        let figures = PolicyFigures::new(metrics, &reference, manifest.metrics());
        let limits = CallLimits {
            deadline: spec.deadline.or(manifest.limits.deadline).unwrap_or(DEADLINE).min(LONGEST_DEADLINE),
            memory: spec.memory.or(manifest.limits.memory).unwrap_or(MEMORY).min(MOST_MEMORY),
        };
        Self {
            runtime: Arc::clone(runtime),
            loaded: Arc::clone(loaded),
            shared: Arc::new(Shared::new(manifest.name.clone(), state, figures)),
            reference,
            allow: manifest.allow(),
            limits,
            config: spec.config.to_string(),
            pool: Pool::default(),
            breaker: Mutex::default(),
            started: Instant::now(),
            weight: spec.weight,
            on_error: spec.on_error,
        }
    }

    /// Digest of the component, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.loaded.digest
    }

    pub(crate) fn in_service(&self) -> bool {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner).is_closed()
    }

    pub(crate) fn figures(&self) -> &PolicyFigures {
        &self.shared.figures
    }

    pub(crate) fn idle_instances(&self) -> usize {
        self.pool.len()
    }

    /// Ask for advice, and count what came of it. What the policy asked goes into `reads`, if somebody wants it.
    pub(crate) fn advise(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        reads: Option<&mut Vec<Read>>,
    ) -> Result<Advice, NoAdvice> {
        let begun = Instant::now();
        if !self.breaker.lock().unwrap_or_else(PoisonError::into_inner).admits(begun - self.started) {
            self.figures().failed("out-of-service", false);
            return Err(NoAdvice::OutOfService);
        }
        let result = self.call(facts, fleet, reads);
        let mut breaker = self.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        match &result {
            Err(NoAdvice::Fault(fault)) => {
                if breaker.fault(self.started.elapsed()) {
                    tracing::error!(policy = %self.reference, "taken out of service after too many faults");
                    self.figures().in_service(false);
                }
                self.figures().failed(fault.kind(), true);
            }
            Ok(_) | Err(_) => {
                if !breaker.is_closed() {
                    breaker.good();
                    tracing::info!(policy = %self.reference, "back in service");
                    self.figures().in_service(true);
                }
                match &result {
                    Ok(_) => self.figures().advised(begun.elapsed()),
                    Err(_) => self.figures().failed("error", false),
                }
            }
        }
        result
    }

    fn call(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        reads: Option<&mut Vec<Read>>,
    ) -> Result<Advice, NoAdvice> {
        let mut warm = match self.pool.take() {
            Some(warm) => warm,
            None => self.instantiate()?,
        };
        let Warm { store, instance, .. } = &mut *warm;
        let current = Current { request: Arc::clone(&facts.request), fleet: Arc::clone(fleet) };
        store.data_mut().begin(current, reads.is_some());
        let topology = fleet.topology.generation();
        let budget_us = u32::try_from(self.limits.deadline.as_micros()).unwrap_or(u32::MAX);
        let called = guarded(store, self.limits, |store| instance.advise(store, facts, topology, budget_us));
        if let Some(reads) = reads {
            *reads = store.data_mut().take_reads();
        }
        // On a fault the instance goes: its memory may be in any state, and wasmtime would not enter it again.
        let advised = called?;
        store.data_mut().end();
        self.pool.put(warm);
        Ok(advised?)
    }

    /// A new instance, configured.
    fn instantiate(&self) -> Result<Box<Warm>, NoAdvice> {
        let state = HostState::new(Arc::clone(&self.shared), self.limits.memory);
        let mut store = store(&self.runtime, state);
        let limits = CallLimits { deadline: INSTANTIATE_DEADLINE, ..self.limits };
        let instance = guarded(&mut store, limits, |store| self.loaded.linked.instantiate(store));
        let instance = instance.map_err(|fault| match fault {
            Fault::Trap(why) => Fault::Instantiate(why),
            other => other,
        })?;
        guarded(&mut store, limits, |store| instance.configure(store, &self.config))??;
        self.shared.figures.used_memory(store.data().memory.used());
        Ok(Box::new(Warm { store, instance, calls: 0 }))
    }

    /// Make the first instances, so that no request pays for them, and see that they can be made.
    fn warm_up(&self) -> Result<(), LoadError> {
        for _ in 0..self.runtime.warm_instances.max(1) {
            let doing = "configured";
            let warm = self
                .instantiate()
                .map_err(|error| LoadError::FirstCall { doing, what: error.to_string() })?;
            self.pool.put(warm);
        }
        Ok(())
    }

    fn check_description(&self, manifest: &Manifest, spec: &PolicySpec) -> Result<(), LoadError> {
        let failed = |fault: Fault| LoadError::FirstCall {
            doing: "asked to describe itself",
            what: fault.to_string(),
        };
        let state = HostState::new(Arc::clone(&self.shared), self.limits.memory);
        let mut store = store(&self.runtime, state);
        let limits = CallLimits { deadline: INSTANTIATE_DEADLINE, ..self.limits };
        let instance =
            guarded(&mut store, limits, |store| self.loaded.linked.instantiate(store)).map_err(failed)?;
        let described = guarded(&mut store, limits, |store| instance.describe(store)).map_err(failed)?;
        let says = |name: &str, version: &str| format!("`{name}` version `{version}`");
        let (manifest, component) =
            (says(&manifest.name, &manifest.version), says(&described.name, &described.version));
        if manifest != component {
            return Err(LoadError::Description { manifest, component });
        }
        if described.name != spec.name {
            let manifest = format!("{manifest}, the configuration `{}`", spec.name);
            return Err(LoadError::Description { manifest, component });
        }
        tracing::debug!(policy = %self.reference, hints = ?described.hints, "described");
        Ok(())
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        self.shared.figures.active(false);
    }
}

/// Read, check and link the component.
fn load_component(runtime: &Runtime, spec: &PolicySpec, manifest: &Manifest) -> Result<Loaded, LoadError> {
    let path = spec.dir.join(&manifest.file);
    let file = path.display().to_string();
    let fail = |what: String| LoadError::File { file: file.clone(), what };
    if manifest.api != TRACK {
        return Err(fail(format!("it is for policy API {}, and this host serves {TRACK}", manifest.api)));
    }
    let size = std::fs::metadata(&path).map_err(|error| fail(format!("cannot be read: {error}")))?.len();
    if size > MOST_BYTES {
        return Err(fail(format!("it is {size} bytes long, and {MOST_BYTES} are the limit")));
    }
    let bytes = std::fs::read(&path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    if let Some(build) = &manifest.build {
        let digest = hex(&<sha2::Sha256 as sha2::Digest>::digest(&bytes));
        if digest != build.component_sha256 {
            let wanted = &build.component_sha256;
            return Err(fail(format!(
                "its SHA-256 is {digest}, and the manifest says {wanted}; build it again with `cargo xtask guests`, or correct `build.component-sha256`"
            )));
        }
    }
    component::load(runtime, &bytes).map_err(|error| LoadError::Component { file, error })
}
