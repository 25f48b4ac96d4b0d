//! The metrics of the export of traces and metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    Traces,
    Metrics,
}

impl Signal {
    fn label(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExportLabels {
    signal: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

/// The metrics of the export. Clones share the same counters.
#[derive(Debug, Clone, Default)]
pub(super) struct ExportMetrics {
    exports: Family<ExportLabels, Counter>,
    dropped: Family<DropLabels, Counter>,
}

impl ExportMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        for reason in ["queue", "export"] {
            // Creates the series, so that they are exported before the first drop.
            self.drop_traces(reason, 0);
        }
        registry.register(
            "pointsman_telemetry_exports",
            "Attempts to export traces or metrics, by signal and outcome",
            self.exports.clone(),
        );
        registry.register(
            "pointsman_traces_dropped",
            "Traces of requests that were not exported, by reason",
            self.dropped.clone(),
        );
    }

    pub(super) fn exported(&self, signal: Signal, is_ok: bool) {
        let outcome = if is_ok { "ok" } else { "error" };
        self.exports.get_or_create(&ExportLabels { signal: signal.label(), outcome }).inc();
    }

    /// Counts a trace that did not fit into the queue.
    pub(super) fn dropped_from_queue(&self) {
        self.drop_traces("queue", 1);
    }

    /// Counts traces that the collector did not accept.
    pub(super) fn dropped_by_failure(&self, traces: u64) {
        self.drop_traces("export", traces);
    }

    #[cfg(test)]
    pub(super) fn count(&self, signal: Signal, is_ok: bool) -> u64 {
        let outcome = if is_ok { "ok" } else { "error" };
        self.exports.get_or_create(&ExportLabels { signal: signal.label(), outcome }).get()
    }

    fn drop_traces(&self, reason: &'static str, traces: u64) {
        self.dropped.get_or_create(&DropLabels { reason }).inc_by(traces);
    }
}
