//! The metrics of the log.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// The reason why a line was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    /// The buffer was full, because the reader is too slow.
    Queue,
    /// Too many events of its kind.
    Rate,
    /// Writing it failed.
    Write,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    reason: &'static str,
}

/// The metrics of the log. Clones share the same counters.
#[derive(Debug, Clone, Default)]
pub(super) struct LogMetrics {
    dropped: Family<DropLabels, Counter>,
}

impl LogMetrics {
    /// Registers the counters of the log.
    pub(super) fn register(&self, registry: &mut Registry) {
        self.register_as(
            registry,
            ("pointsman_log_lines_dropped", "Log lines that were not written, by reason"),
            &[DropReason::Queue, DropReason::Rate, DropReason::Write],
        );
    }

    /// Registers the counters of an output whose lines have no rate limit.
    pub(super) fn register_output(
        &self,
        registry: &mut Registry,
        name: &'static str,
        help: &'static str,
    ) {
        self.register_as(registry, (name, help), &[DropReason::Queue, DropReason::Write]);
    }

    fn register_as(
        &self,
        registry: &mut Registry,
        (name, help): (&'static str, &'static str),
        reasons: &[DropReason],
    ) {
        for reason in reasons.iter().copied() {
            // Creates the series, so that they are exported before the first drop.
            self.dropped(reason, 0);
        }
        registry.register(name, help, self.dropped.clone());
    }

    pub(super) fn dropped(&self, reason: DropReason, lines: u64) {
        let reason = match reason {
            DropReason::Queue => "queue",
            DropReason::Rate => "rate",
            DropReason::Write => "write",
        };
        self.dropped.get_or_create(&DropLabels { reason }).inc_by(lines);
    }
}
