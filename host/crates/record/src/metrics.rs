//! The metrics of decision records, with their names and labels.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Metric, Registry};

/// The reason why a record was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// The queue was full.
    Queue,
    /// Writing the record failed.
    Disk,
    /// The writer had stopped, or its time limit was exceeded.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

/// The metrics of decision records. Registered once, before the registry is shared.
#[derive(Debug)]
pub struct RecordMetrics {
    pub(crate) written: Counter,
    pub(crate) bytes: Counter,
    pub(crate) errors: Counter,
    dropped: Family<DropLabels, Counter>,
}

impl RecordMetrics {
    /// Registers the metrics of decision records.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            written: add(registry, "pointsman_records_written", "Decision records written"),
            bytes: add(
                registry,
                "pointsman_records_written_bytes",
                "Bytes of decision records written",
            ),
            errors: add(
                registry,
                "pointsman_records_errors",
                "Failed writes, openings and rotations of decision records",
            ),
            dropped: add(
                registry,
                "pointsman_records_dropped",
                "Decision records that were not written, by reason",
            ),
        };
        for reason in [DropReason::Queue, DropReason::Disk, DropReason::Stopped] {
            // Creates the series, so that they are exported before the first drop.
            metrics.dropped(reason, 0);
        }
        Arc::new(metrics)
    }

    pub(crate) fn dropped(&self, reason: DropReason, records: u64) {
        self.dropped.get_or_create(&reason.into()).inc_by(records);
    }

    #[cfg(test)]
    pub(crate) fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped.get_or_create(&reason.into()).get()
    }
}

impl From<DropReason> for DropLabels {
    fn from(reason: DropReason) -> Self {
        let reason = match reason {
            DropReason::Queue => "queue",
            DropReason::Disk => "disk",
            DropReason::Stopped => "stopped",
        };
        Self { reason }
    }
}

/// Creates and registers a metric.
fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}
