//! All figures of policies, with their names and labels.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman_domain::PolicyRef;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::call::Fault;
use crate::version::Hook;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Version {
    policy: String,
    version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    policy: String,
    version: String,
    hook: &'static str,
    result: &'static str,
}

impl CallLabels {
    fn new(of: &Version, hook: Hook, result: &'static str) -> Self {
        Self { policy: of.policy.clone(), version: of.version.clone(), hook: hook.name(), result }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HookLabels {
    policy: String,
    version: String,
    hook: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeLabels {
    policy: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShadowLabels {
    policy: String,
    version: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    policy: String,
    version: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DroppedLabels {
    policy: String,
    what: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabel {
    policy: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OwnLabels {
    policy: String,
    name: String,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The figures of all policies.
#[derive(Debug)]
pub struct PolicyMetrics {
    calls: Family<CallLabels, Counter>,
    seconds: Histograms<Version>,
    faults: Family<FaultLabels, Counter>,
    dropped: Family<DroppedLabels, Counter>,
    load_failures: Family<PolicyLabel, Counter>,
    active: Family<Version, Gauge>,
    slow: Family<Version, Counter>,
    out_of_service: Family<HookLabels, Gauge>,
    changes: Family<ChangeLabels, Counter>,
    shadow: Family<ShadowLabels, Counter>,
    memory: Family<PolicyLabel, Gauge>,
    own_counters: Family<OwnLabels, Counter>,
    own_values: Histograms<OwnLabels>,
    // How many versions there are with these labels.
    held: Mutex<HashMap<Version, usize>>,
}

impl PolicyMetrics {
    /// Register the figures of policies.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        // 1 µs to 16 ms.
        let seconds: Histograms<Version> = Family::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_001, 2.0, 15))
        });
        let own_values: Histograms<OwnLabels> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(1.0, 4.0, 16)));
        let metrics = Self {
            calls: Family::default(),
            seconds,
            faults: Family::default(),
            dropped: Family::default(),
            load_failures: Family::default(),
            active: Family::default(),
            slow: Family::default(),
            out_of_service: Family::default(),
            changes: Family::default(),
            shadow: Family::default(),
            held: Mutex::default(),
            memory: Family::default(),
            own_counters: Family::default(),
            own_values,
        };
        metrics.register_own(registry);
        let m = &metrics;
        registry.register(
            "pointsman_policy_calls",
            "Calls of policies, by result",
            m.calls.clone(),
        );
        registry.register("pointsman_policy_call_seconds", "Time of one call", m.seconds.clone());
        registry.register(
            "pointsman_policy_faults",
            "Calls that ended in a fault, by kind",
            m.faults.clone(),
        );
        registry.register(
            "pointsman_policy_advice_dropped",
            "Parts of advice that were left out",
            m.dropped.clone(),
        );
        registry.register(
            "pointsman_policy_load_failures",
            "Policies that could not be loaded",
            m.load_failures.clone(),
        );
        registry.register(
            "pointsman_policy_over_budget",
            "Calls about requests that took longer than the policy's budget",
            m.slow.clone(),
        );
        registry.register(
            "pointsman_policy_changes",
            "Changes of policies, by what came of them",
            m.changes.clone(),
        );
        registry.register(
            "pointsman_policy_shadow",
            "Decisions that a shadow was asked about, by what came of it",
            m.shadow.clone(),
        );
        registry.register(
            "pointsman_policy_active",
            "1 for each version in service",
            m.active.clone(),
        );
        registry.register(
            "pointsman_policy_out_of_service",
            "1 while the breaker holds it back",
            m.out_of_service.clone(),
        );
        registry.register(
            "pointsman_policy_memory_bytes",
            "Most memory that one instance took",
            m.memory.clone(),
        );
        Arc::new(metrics)
    }

    fn register_own(&self, registry: &mut Registry) {
        let (counters, values) = (self.own_counters.clone(), self.own_values.clone());
        registry.register("pointsman_policy_counter", "Counters of the policies' own", counters);
        registry.register("pointsman_policy_value", "Values of the policies' own", values);
    }

    /// A change of a policy was tried.
    pub(crate) fn changed(&self, policy: &str, result: &'static str) {
        self.changes.get_or_create(&ChangeLabels { policy: policy.to_owned(), result }).inc();
    }

    pub(crate) fn load_failed(&self, policy: &str) {
        self.load_failures.get_or_create(&PolicyLabel { policy: policy.to_owned() }).inc();
        self.fault_of(&Version { policy: policy.to_owned(), version: "none".to_owned() }, "load");
    }

    fn fault_of(&self, labels: &Version, kind: &'static str) {
        let Version { policy, version } = labels.clone();
        self.faults.get_or_create(&FaultLabels { policy, version, kind }).inc();
    }

    /// Whoever is not asked any more is held back by nothing: nobody has to be woken for it.
    fn is_not_asked(&self, of: &Version) {
        for hook in HOOKS {
            let (policy, version) = (of.policy.clone(), of.version.clone());
            self.out_of_service.remove(&HookLabels { policy, version, hook: hook.name() });
        }
    }

    fn holds(&self, version: &Version) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held.entry(version.clone()).or_default() += 1;
    }

    /// The last one that had this version is gone, and with it the figures of it: a host that reloads for months must not
    /// keep those of every version that there was.
    fn lets_go(&self, version: &Version) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = held.get_mut(version) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        held.remove(version);
        self.is_not_asked(version);
        self.seconds.remove(version);
        self.slow.remove(version);
        self.active.remove(version);
        for hook in HOOKS {
            for result in ["ok", "error", "out-of-service"].into_iter().chain(Fault::KINDS) {
                self.calls.remove(&CallLabels::new(version, hook, result));
            }
        }
        let Version { policy, version } = version;
        for kind in Fault::KINDS {
            let (policy, version) = (policy.clone(), version.clone());
            self.faults.remove(&FaultLabels { policy, version, kind });
        }
        for result in SHADOW_RESULTS {
            let (policy, version) = (policy.clone(), version.clone());
            self.shadow.remove(&ShadowLabels { policy, version, result });
        }
    }
}

/// All hooks.
const HOOKS: [Hook; 4] = [Hook::Request, Hook::Failure, Hook::Complete, Hook::Tick];
/// What can come of asking a shadow.
const SHADOW_RESULTS: [&str; 4] = ["agreed", "differed", "failed", "dropped"];

impl Drop for PolicyFigures {
    fn drop(&mut self) {
        self.metrics.lets_go(&self.labels);
    }
}

/// The figures of one policy version; what every call touches is looked up once.
#[derive(Debug)]
pub(crate) struct PolicyFigures {
    metrics: Arc<PolicyMetrics>,
    labels: Version,
    ok: Counter,
    slow: Counter,
    seconds: Histogram,
    memory: Gauge,
    own: Vec<String>,
}

impl PolicyFigures {
    pub(crate) fn new(metrics: &Arc<PolicyMetrics>, policy: &PolicyRef, own: &[String]) -> Self {
        let labels =
            Version { policy: policy.name.to_string(), version: policy.version.to_string() };
        metrics.holds(&labels);
        let label = PolicyLabel { policy: labels.policy.clone() };
        Self {
            ok: metrics.calls.get_or_create_owned(&CallLabels::new(&labels, Hook::Request, "ok")),
            slow: metrics.slow.get_or_create_owned(&labels),
            seconds: metrics.seconds.get_or_create_owned(&labels),
            memory: metrics.memory.get_or_create_owned(&label),
            own: own.to_vec(),
            labels,
            metrics: Arc::clone(metrics),
        }
    }

    /// A call that ended as it should.
    pub(crate) fn went_well(&self, hook: Hook, took: Duration) {
        if hook == Hook::Request {
            self.ok.inc();
            self.seconds.observe(took.as_secs_f64());
        } else {
            self.metrics.calls.get_or_create(&CallLabels::new(&self.labels, hook, "ok")).inc();
        }
    }

    /// A call without a result: a policy's own error, or a fault of that kind.
    pub(crate) fn failed(&self, hook: Hook, result: &'static str, fault: bool) {
        if fault {
            self.metrics.fault_of(&self.labels, result);
        }
        self.metrics.calls.get_or_create(&CallLabels::new(&self.labels, hook, result)).inc();
    }

    /// A call took longer than the budget.
    pub(crate) fn slow(&self) {
        self.slow.inc();
    }

    /// A version was asked beside the one in service, or could not be.
    pub(crate) fn shadow(&self, result: &'static str) {
        let Version { policy, version } = self.labels.clone();
        self.metrics.shadow.get_or_create(&ShadowLabels { policy, version, result }).inc();
    }

    pub(crate) fn dropped(&self, what: &'static str) {
        self.metrics.dropped.get_or_create(&DroppedLabels { policy: self.policy(), what }).inc();
    }

    pub(crate) fn used_memory(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if bytes > self.memory.get() {
            self.memory.set(bytes);
        }
    }

    pub(crate) fn in_service(&self, hook: Hook, in_service: bool) {
        let Version { policy, version } = self.labels.clone();
        let labels = HookLabels { policy, version, hook: hook.name() };
        self.metrics.out_of_service.get_or_create(&labels).set(i64::from(!in_service));
    }

    /// Nobody asks this version any more.
    pub(crate) fn rests(&self) {
        self.metrics.is_not_asked(&self.labels);
    }

    pub(crate) fn active(&self, active: bool) {
        self.metrics.active.get_or_create(&self.labels).set(i64::from(active));
    }

    fn policy(&self) -> String {
        self.labels.policy.clone()
    }

    pub(crate) fn add(&self, name: &str, value: u64) {
        if let Some(labels) = self.own(name) {
            self.metrics.own_counters.get_or_create(&labels).inc_by(value);
        }
    }

    pub(crate) fn record_value(&self, name: &str, value: u64) {
        if let Some(labels) = self.own(name) {
            // Exact up to 2^53, far beyond what a histogram can tell apart.
            #[expect(clippy::cast_precision_loss, reason = "a histogram's buckets are coarser")]
            self.metrics.own_values.get_or_create(&labels).observe(value as f64);
        }
    }

    fn own(&self, name: &str) -> Option<OwnLabels> {
        if self.own.iter().any(|own| own == name) {
            return Some(OwnLabels { policy: self.policy(), name: name.to_owned() });
        }
        self.dropped("metric");
        None
    }
}
