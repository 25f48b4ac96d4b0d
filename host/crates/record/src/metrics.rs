//! All figures of decision records, with their names and labels.

use std::sync::Arc;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Why a record was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The queue had no room for it.
    Queue,
    /// It could not be written.
    Disk,
    /// The writer had ended, or its time was up.
    Stopped,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// The figures of decision records. Made once, before the registry is shared.
#[derive(Debug)]
pub struct RecordMetrics {
    pub(crate) written: Counter,
    pub(crate) bytes: Counter,
    pub(crate) errors: Counter,
    dropped: Family<Reason, Counter>,
}

impl RecordMetrics {
    /// Register the figures of decision records.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            written: Counter::default(),
            bytes: Counter::default(),
            errors: Counter::default(),
            dropped: Family::default(),
        };
        for why in [Why::Queue, Why::Disk, Why::Stopped] {
            metrics.dropped(why, 0);
        }
        let m = &metrics;
        registry.register(
            "pointsman_records_written",
            "Decision records written",
            m.written.clone(),
        );
        registry.register(
            "pointsman_records_bytes",
            "Bytes of decision records written",
            m.bytes.clone(),
        );
        registry.register(
            "pointsman_records_errors",
            "Failed writes, openings and rotations of decision records",
            m.errors.clone(),
        );
        registry.register(
            "pointsman_records_dropped",
            "Decision records that were not written, by reason",
            m.dropped.clone(),
        );
        Arc::new(metrics)
    }

    pub(crate) fn dropped(&self, why: Why, records: u64) {
        self.dropped.get_or_create(&why.into()).inc_by(records);
    }

    #[cfg(test)]
    pub(crate) fn dropped_for(&self, why: Why) -> u64 {
        self.dropped.get_or_create(&why.into()).get()
    }
}

impl From<Why> for Reason {
    fn from(why: Why) -> Self {
        let reason = match why {
            Why::Queue => "queue",
            Why::Disk => "disk",
            Why::Stopped => "stopped",
        };
        Self { reason }
    }
}
