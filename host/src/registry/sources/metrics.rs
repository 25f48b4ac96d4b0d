//! Metrics of the sources of policies.

use std::collections::BTreeSet;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

type OfPolicy = [(&'static str, String); 1];

/// Metrics of the sources of policies.
#[derive(Debug)]
pub(super) struct SourceMetrics {
    up: Family<OfPolicy, Gauge>,
    failures: Family<OfPolicy, Counter>,
    pulls: Family<OfPolicy, Counter>,
    /// The policies that have series.
    known: Mutex<BTreeSet<String>>,
}

impl SourceMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            up: Family::default(),
            failures: Family::default(),
            pulls: Family::default(),
            known: Mutex::default(),
        };
        registry.register(
            "pointsman_policy_source_up",
            "1 if the registry of the policy answered the last look-up, 0 while the cache is used",
            metrics.up.clone(),
        );
        registry.register(
            "pointsman_policy_source_failures",
            "Look-ups and pulls of policies in registries that failed",
            metrics.failures.clone(),
        );
        registry.register(
            "pointsman_policy_source_pulls",
            "Versions of policies that were pulled from registries",
            metrics.pulls.clone(),
        );
        metrics
    }

    /// Notes the result of a look-up.
    pub(super) fn checked(&self, policy: &str, is_ok: bool) {
        self.known.lock().insert(policy.to_owned());
        let label = [("policy", policy.to_owned())];
        self.up.get_or_create(&label).set(i64::from(is_ok));
        let failures = self.failures.get_or_create(&label);
        if !is_ok {
            failures.inc();
        }
    }

    /// Counts a version.
    pub(super) fn pulled(&self, policy: &str) {
        self.pulls.get_or_create(&[("policy", policy.to_owned())]).inc();
    }

    /// Removes the series of other policies than these.
    pub(super) fn keep<'a>(&self, policies: impl Iterator<Item = &'a str>) {
        let kept: BTreeSet<&str> = policies.collect();
        self.known.lock().retain(|policy| {
            let is_kept = kept.contains(policy.as_str());
            if !is_kept {
                let label = [("policy", policy.clone())];
                self.up.remove(&label);
                self.failures.remove(&label);
                self.pulls.remove(&label);
            }
            is_kept
        });
    }
}
