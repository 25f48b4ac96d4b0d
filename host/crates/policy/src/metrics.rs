//! All figures of policies, with their names and labels.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::PolicyRef;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

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
    out_of_service: Family<PolicyLabel, Gauge>,
    memory: Family<PolicyLabel, Gauge>,
    own_counters: Family<OwnLabels, Counter>,
    own_values: Histograms<OwnLabels>,
}

impl PolicyMetrics {
    /// Register the figures of policies.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        // 1 µs to 16 ms.
        let seconds: Histograms<Version> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.000_001, 2.0, 15)));
        let own_values: Histograms<OwnLabels> =
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(1.0, 4.0, 16)));
        let metrics = Self {
            calls: Family::default(),
            seconds,
            faults: Family::default(),
            dropped: Family::default(),
            load_failures: Family::default(),
            active: Family::default(),
            out_of_service: Family::default(),
            memory: Family::default(),
            own_counters: Family::default(),
            own_values,
        };
        let m = &metrics;
        registry.register("pointsman_policy_calls", "Calls of policies, by result", m.calls.clone());
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
        registry.register("pointsman_policy_active", "1 for each version in service", m.active.clone());
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
        registry.register(
            "pointsman_policy_counter",
            "Counters of the policies' own",
            m.own_counters.clone(),
        );
        registry.register("pointsman_policy_value", "Values of the policies' own", m.own_values.clone());
        Arc::new(metrics)
    }

    pub(crate) fn load_failed(&self, policy: &str) {
        self.load_failures.get_or_create(&PolicyLabel { policy: policy.to_owned() }).inc();
        self.fault_of(policy, "none", "load");
    }

    fn fault_of(&self, policy: &str, version: &str, kind: &'static str) {
        let labels = FaultLabels { policy: policy.to_owned(), version: version.to_owned(), kind };
        self.faults.get_or_create(&labels).inc();
    }
}

/// The figures of one policy version; what every call touches is looked up once.
#[derive(Debug)]
pub(crate) struct PolicyFigures {
    metrics: Arc<PolicyMetrics>,
    policy: PolicyRef,
    ok: Counter,
    seconds: Histogram,
    memory: Gauge,
    own: Vec<String>,
}

impl PolicyFigures {
    pub(crate) fn new(metrics: &Arc<PolicyMetrics>, policy: &PolicyRef, own: &[String]) -> Self {
        let version = Version { policy: policy.name.to_string(), version: policy.version.to_string() };
        let ok = CallLabels {
            policy: version.policy.clone(),
            version: version.version.clone(),
            hook: "on-request",
            result: "ok",
        };
        let label = PolicyLabel { policy: version.policy.clone() };
        Self {
            ok: metrics.calls.get_or_create_owned(&ok),
            seconds: metrics.seconds.get_or_create_owned(&version),
            memory: metrics.memory.get_or_create_owned(&label),
            own: own.to_vec(),
            policy: policy.clone(),
            metrics: Arc::clone(metrics),
        }
    }

    pub(crate) fn advised(&self, took: Duration) {
        self.ok.inc();
        self.seconds.observe(took.as_secs_f64());
    }

    /// A call without advice: a policy's own error, or a fault of that kind.
    pub(crate) fn failed(&self, result: &'static str, fault: bool) {
        let policy = self.policy.name.to_string();
        let version = self.policy.version.to_string();
        if fault {
            self.metrics.fault_of(&policy, &version, result);
        }
        self.metrics.calls.get_or_create(&CallLabels { policy, version, hook: "on-request", result }).inc();
    }

    pub(crate) fn dropped(&self, what: &'static str) {
        self.metrics
            .dropped
            .get_or_create(&DroppedLabels { policy: self.policy.name.to_string(), what })
            .inc();
    }

    pub(crate) fn used_memory(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        if bytes > self.memory.get() {
            self.memory.set(bytes);
        }
    }

    pub(crate) fn in_service(&self, in_service: bool) {
        let labels = PolicyLabel { policy: self.policy.name.to_string() };
        self.metrics.out_of_service.get_or_create(&labels).set(i64::from(!in_service));
    }

    pub(crate) fn active(&self, active: bool) {
        let labels =
            Version { policy: self.policy.name.to_string(), version: self.policy.version.to_string() };
        self.metrics.active.get_or_create(&labels).set(i64::from(active));
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
            return Some(OwnLabels { policy: self.policy.name.to_string(), name: name.to_owned() });
        }
        self.dropped("metric");
        None
    }
}
