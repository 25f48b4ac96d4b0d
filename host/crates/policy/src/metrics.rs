//! The metrics of policies, with their names and labels.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_domain::PolicyRef;
use pointsman_spec::Hook;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::fault::Fault;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
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
    fn new(version: &VersionLabels, hook: Hook, result: &'static str) -> Self {
        let VersionLabels { policy, version } = version.clone();
        Self { policy, version, hook: hook.name(), result }
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
    part: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyLabel {
    policy: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CustomLabels {
    policy: String,
    name: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EffectLabels {
    policy: String,
    version: String,
    effect: &'static str,
}

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// The metrics of all policies.
#[derive(Debug)]
pub struct PolicyMetrics {
    calls: Family<CallLabels, Counter>,
    seconds: Histograms<VersionLabels>,
    faults: Family<FaultLabels, Counter>,
    dropped: Family<DroppedLabels, Counter>,
    effects: Family<EffectLabels, Counter>,
    load_failures: Family<PolicyLabel, Counter>,
    active: Family<VersionLabels, Gauge>,
    slow: Family<VersionLabels, Counter>,
    breaker_open: Family<HookLabels, Gauge>,
    changes: Family<ChangeLabels, Counter>,
    shadow: Family<ShadowLabels, Counter>,
    memory: Family<PolicyLabel, Gauge>,
    custom_counters: Family<CustomLabels, Counter>,
    custom_values: Histograms<CustomLabels>,
    // Versions that exist with the same labels.
    references: Mutex<HashMap<VersionLabels, usize>>,
}

impl PolicyMetrics {
    /// Registers the metrics of policies.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        // 1 µs to 16 ms.
        let seconds: Histograms<VersionLabels> = Family::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_001, 2.0, 15))
        });
        let custom_values: Histograms<CustomLabels> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(1.0, 4.0, 16)));
        let metrics = Self {
            calls: Family::default(),
            seconds,
            faults: Family::default(),
            dropped: Family::default(),
            effects: Family::default(),
            load_failures: Family::default(),
            active: Family::default(),
            slow: Family::default(),
            breaker_open: Family::default(),
            changes: Family::default(),
            shadow: Family::default(),
            references: Mutex::default(),
            memory: Family::default(),
            custom_counters: Family::default(),
            custom_values,
        };
        metrics.register_calls(registry);
        metrics.register_changes(registry);
        metrics.register_custom(registry);
        Arc::new(metrics)
    }

    fn register_calls(&self, registry: &mut Registry) {
        registry.register(
            "pointsman_policy_calls",
            "Policy calls, by hook and result",
            self.calls.clone(),
        );
        registry.register(
            "pointsman_policy_call_seconds",
            "Duration of successful on-request calls in seconds",
            self.seconds.clone(),
        );
        registry.register(
            "pointsman_policy_faults",
            "Policy calls that ended in a fault, by kind",
            self.faults.clone(),
        );
        registry.register(
            "pointsman_policy_advice_dropped",
            "Parts of policy advice that were dropped",
            self.dropped.clone(),
        );
        registry.register(
            "pointsman_policy_effects",
            "Requests that a policy rejected, edited or kept from lanes",
            self.effects.clone(),
        );
        registry.register(
            "pointsman_policy_over_budget",
            "Policy calls about requests that exceeded the budget",
            self.slow.clone(),
        );
        registry.register(
            "pointsman_policy_breaker_open",
            "1 while the circuit breaker of the hook is open",
            self.breaker_open.clone(),
        );
        registry.register(
            "pointsman_policy_memory_bytes",
            "Peak memory of an instance in bytes",
            self.memory.clone(),
        );
    }

    fn register_changes(&self, registry: &mut Registry) {
        registry.register(
            "pointsman_policy_load_failures",
            "Failed attempts to load a policy",
            self.load_failures.clone(),
        );
        registry.register(
            "pointsman_policy_changes",
            "Policy changes, by result",
            self.changes.clone(),
        );
        registry.register(
            "pointsman_policy_shadow",
            "Shadow evaluations, by result",
            self.shadow.clone(),
        );
        registry.register(
            "pointsman_policy_active",
            "1 if the version is active",
            self.active.clone(),
        );
    }

    fn register_custom(&self, registry: &mut Registry) {
        let (counters, values) = (self.custom_counters.clone(), self.custom_values.clone());
        registry.register("pointsman_policy_custom", "Custom counters of policies", counters);
        registry.register("pointsman_policy_custom_value", "Custom values of policies", values);
    }

    /// Counts a change of a policy.
    pub(crate) fn record_change(&self, policy: &str, result: &'static str) {
        self.changes.get_or_create(&ChangeLabels { policy: policy.to_owned(), result }).inc();
    }

    /// Counts a failed attempt to load a policy.
    pub(crate) fn record_load_failure(&self, policy: &str) {
        self.load_failures.get_or_create(&PolicyLabel { policy: policy.to_owned() }).inc();
        let version = "none".to_owned();
        self.record_fault(&VersionLabels { policy: policy.to_owned(), version }, "load");
    }

    fn record_fault(&self, labels: &VersionLabels, kind: &'static str) {
        let VersionLabels { policy, version } = labels.clone();
        self.faults.get_or_create(&FaultLabels { policy, version, kind }).inc();
    }

    /// Removes the breaker gauges of a version that is not called any more, so that they raise no
    /// alert.
    fn remove_breaker_gauges(&self, labels: &VersionLabels) {
        for hook in HOOKS {
            let VersionLabels { policy, version } = labels.clone();
            self.breaker_open.remove(&HookLabels { policy, version, hook: hook.name() });
        }
    }

    fn add_reference(&self, version: &VersionLabels) {
        let mut references = self.references.lock();
        *references.entry(version.clone()).or_default() += 1;
    }

    /// Removes the metrics of a version when its last user is dropped: a host that reloads for
    /// months must not accumulate those of every version it has ever loaded.
    fn remove_reference(&self, version: &VersionLabels) {
        let mut references = self.references.lock();
        let Some(count) = references.get_mut(version) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        references.remove(version);
        self.remove_breaker_gauges(version);
        self.seconds.remove(version);
        self.slow.remove(version);
        self.active.remove(version);
        for hook in HOOKS {
            for result in ["ok", "error", "breaker-open"].into_iter().chain(Fault::KINDS) {
                self.calls.remove(&CallLabels::new(version, hook, result));
            }
        }
        let VersionLabels { policy, version } = version;
        for kind in Fault::KINDS {
            let (policy, version) = (policy.clone(), version.clone());
            self.faults.remove(&FaultLabels { policy, version, kind });
        }
        for effect in EFFECTS {
            let (policy, version) = (policy.clone(), version.clone());
            self.effects.remove(&EffectLabels { policy, version, effect });
        }
        for result in SHADOW_RESULTS {
            let (policy, version) = (policy.clone(), version.clone());
            self.shadow.remove(&ShadowLabels { policy, version, result });
        }
    }
}

/// All hooks of the contract.
const HOOKS: [Hook; 4] = [Hook::Request, Hook::Failure, Hook::Complete, Hook::Tick];
/// The results of a shadow evaluation.
const SHADOW_RESULTS: [&str; 4] = ["agreed", "differed", "failed", "dropped"];
/// The effects of a version on requests.
const EFFECTS: [&str; 6] =
    ["rejected", "refused-on-error", "edited", "filtered", "filter-ignored", "no-lane"];

impl Drop for VersionMetrics {
    fn drop(&mut self) {
        self.metrics.remove_reference(&self.labels);
    }
}

/// The metrics of one policy version. Those that every call touches are looked up once.
#[derive(Debug)]
pub(crate) struct VersionMetrics {
    metrics: Arc<PolicyMetrics>,
    labels: VersionLabels,
    ok: Counter,
    slow: Counter,
    seconds: Histogram,
    memory: Gauge,
    custom: Vec<String>,
}

impl VersionMetrics {
    pub(crate) fn new(metrics: &Arc<PolicyMetrics>, policy: &PolicyRef, custom: &[String]) -> Self {
        let labels =
            VersionLabels { policy: policy.name.to_string(), version: policy.version.to_string() };
        metrics.add_reference(&labels);
        let label = PolicyLabel { policy: labels.policy.clone() };
        Self {
            ok: metrics.calls.get_or_create_owned(&CallLabels::new(&labels, Hook::Request, "ok")),
            slow: metrics.slow.get_or_create_owned(&labels),
            seconds: metrics.seconds.get_or_create_owned(&labels),
            memory: metrics.memory.get_or_create_owned(&label),
            custom: custom.to_vec(),
            labels,
            metrics: Arc::clone(metrics),
        }
    }

    /// Counts a successful call.
    pub(crate) fn record_success(&self, hook: Hook, duration: Duration) {
        if hook == Hook::Request {
            self.ok.inc();
            self.seconds.observe(duration.as_secs_f64());
        } else {
            self.metrics.calls.get_or_create(&CallLabels::new(&self.labels, hook, "ok")).inc();
        }
    }

    /// Counts a call without a result; `result` is the kind of its error.
    pub(crate) fn record_failure(&self, hook: Hook, result: &'static str, is_fault: bool) {
        if is_fault {
            self.metrics.record_fault(&self.labels, result);
        }
        self.metrics.calls.get_or_create(&CallLabels::new(&self.labels, hook, result)).inc();
    }

    /// Counts a call that exceeded the budget.
    pub(crate) fn record_slow(&self) {
        self.slow.inc();
    }

    /// Counts a shadow evaluation.
    pub(crate) fn record_shadow(&self, result: &'static str) {
        let VersionLabels { policy, version } = self.labels.clone();
        self.metrics.shadow.get_or_create(&ShadowLabels { policy, version, result }).inc();
    }

    /// Counts an effect on a request, one of [`EFFECTS`].
    pub(crate) fn record_effect(&self, effect: &'static str) {
        let VersionLabels { policy, version } = self.labels.clone();
        self.metrics.effects.get_or_create(&EffectLabels { policy, version, effect }).inc();
    }

    /// Counts a part of advice, a log line or a custom metric that was dropped.
    pub(crate) fn record_dropped(&self, part: &'static str) {
        self.metrics.dropped.get_or_create(&DroppedLabels { policy: self.policy(), part }).inc();
    }

    /// Raises the peak memory of an instance to `bytes`.
    pub(crate) fn record_memory(&self, bytes: u64) {
        // Gauges are signed; no instance comes near the maximum.
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if bytes > self.memory.get() {
            self.memory.set(bytes);
        }
    }

    pub(crate) fn set_breaker_open(&self, hook: Hook, is_open: bool) {
        let VersionLabels { policy, version } = self.labels.clone();
        let labels = HookLabels { policy, version, hook: hook.name() };
        self.metrics.breaker_open.get_or_create(&labels).set(i64::from(is_open));
    }

    /// Removes the breaker gauges, because this version is not called any more.
    pub(crate) fn remove_breaker_gauges(&self) {
        self.metrics.remove_breaker_gauges(&self.labels);
    }

    pub(crate) fn set_active(&self, is_active: bool) {
        self.metrics.active.get_or_create(&self.labels).set(i64::from(is_active));
    }

    fn policy(&self) -> String {
        self.labels.policy.clone()
    }

    /// Adds to a custom counter of the policy.
    pub(crate) fn add(&self, name: &str, value: u64) {
        if let Some(labels) = self.custom_labels(name) {
            self.metrics.custom_counters.get_or_create(&labels).inc_by(value);
        }
    }

    /// Records a custom value of the policy.
    pub(crate) fn record_value(&self, name: &str, value: u64) {
        if let Some(labels) = self.custom_labels(name) {
            // Exact up to 2^53, far beyond the resolution of a histogram.
            #[expect(clippy::cast_precision_loss, reason = "a histogram's buckets are coarser")]
            self.metrics.custom_values.get_or_create(&labels).observe(value as f64);
        }
    }

    /// Returns the labels of a custom metric, if the manifest lists it in `allow.metrics`.
    fn custom_labels(&self, name: &str) -> Option<CustomLabels> {
        if self.custom.iter().any(|custom| custom == name) {
            return Some(CustomLabels { policy: self.policy(), name: name.to_owned() });
        }
        self.record_dropped("metric");
        None
    }
}
