//! The status of the configuration, and the metrics of reloads.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;

use super::plan::Plan;

/// Which configuration is in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ConfigStatus {
    /// The number of the configuration: 1 for the one of the start, and one more for each that was
    /// applied.
    pub(crate) generation: u64,
    /// Why the current content of the file is not in force.
    pub(crate) error: Option<String>,
    /// Keys that have changed since the start and take effect with the next process of the host.
    pub(crate) handover_for: Vec<String>,
    /// Keys that have changed since the start and take effect after a stop and a start.
    pub(crate) restart_for: Vec<String>,
    /// Why the current content of the keys file is not in force.
    pub(crate) keys_error: Option<String>,
    /// The last reload that the file or an operator caused.
    pub(crate) last_reload: Option<LastReload>,
}

/// A reload that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LastReload {
    pub(crate) result: ReloadResult,
    /// When it ended, in seconds since 1970.
    pub(crate) unix_s: u64,
    pub(crate) plan: Plan,
}

impl LastReload {
    pub(super) fn now(result: ReloadResult, plan: Plan) -> Self {
        Self { result, unix_s: unix_s(), plan }
    }
}

/// The result of a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReloadResult {
    /// The configuration is in force.
    Applied,
    /// Nothing differs.
    Unchanged,
    /// The file is invalid, and nothing has changed.
    Rejected,
    /// Nothing was applied: it is what a reload would do.
    Planned,
}

impl ReloadResult {
    /// Returns the value of the label.
    fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Rejected => "rejected",
            Self::Planned => "planned",
        }
    }
}

/// The metrics of reloads.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReloadMetrics {
    reloads: Family<[(&'static str, &'static str); 1], Counter>,
    generation: Gauge,
    last: Gauge,
}

impl ReloadMetrics {
    /// Registers the metrics.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for result in [ReloadResult::Applied, ReloadResult::Unchanged, ReloadResult::Rejected] {
            drop(metrics.reloads.get_or_create(&[("result", result.as_str())]));
        }
        metrics.generation.set(1);
        registry.register(
            "pointsman_config_reloads",
            "Reloads of the configuration by result",
            metrics.reloads.clone(),
        );
        registry.register(
            "pointsman_config_generation",
            "Number of the configuration in force; 1 since the start",
            metrics.generation.clone(),
        );
        registry.register(
            "pointsman_config_last_reload_timestamp_seconds",
            "Time of the last reload; 0 if there was none",
            metrics.last.clone(),
        );
        metrics
    }

    /// Counts a reload.
    pub(super) fn ended(&self, result: ReloadResult, generation: u64) {
        self.reloads.get_or_create(&[("result", result.as_str())]).inc();
        self.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        self.last.set(i64::try_from(unix_s()).unwrap_or(i64::MAX));
    }
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
