//! The metrics of saved conversations.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lane {
    lane: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneReason {
    lane: String,
    reason: &'static str,
}

/// Buckets from 1 ms to about 65 s.
#[derive(Debug, Clone)]
struct RestoreBuckets;

impl MetricConstructor<Histogram> for RestoreBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.001, 4.0, 9))
    }
}

/// The metrics of saved conversations. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct ConversationMetrics {
    restored_tokens: Family<Lane, Counter>,
    restore_seconds: Family<Lane, Histogram, RestoreBuckets>,
    saved_bytes: Family<Lane, Counter>,
    failures: Family<LaneReason, Counter>,
}

impl ConversationMetrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            restored_tokens: Family::default(),
            restore_seconds: Family::new_with_constructor(RestoreBuckets),
            saved_bytes: Family::default(),
            failures: Family::default(),
        };
        registry.register(
            "pointsman_conversation_restored_tokens",
            "Prompt tokens that engines did not have to process because they were restored",
            metrics.restored_tokens.clone(),
        );
        registry.register(
            "pointsman_conversation_restore_seconds",
            "Time that a request waited until its conversation was restored",
            metrics.restore_seconds.clone(),
        );
        registry.register(
            "pointsman_conversation_saved_bytes",
            "Bytes of conversations that were saved before their lane was unloaded",
            metrics.saved_bytes.clone(),
        );
        registry.register(
            "pointsman_conversation_failures",
            "Conversations that were not saved, not restored, or restored in vain, by reason",
            metrics.failures.clone(),
        );
        metrics
    }

    pub(super) fn restored(&self, lane: &str, took: Duration) {
        let lane = Lane { lane: lane.to_owned() };
        self.restore_seconds.get_or_create(&lane).observe(took.as_secs_f64());
    }

    pub(super) fn used(&self, lane: &str, tokens: u32) {
        let lane = Lane { lane: lane.to_owned() };
        self.restored_tokens.get_or_create(&lane).inc_by(u64::from(tokens));
    }

    pub(super) fn saved(&self, lane: &str, bytes: u64) {
        self.saved_bytes.get_or_create(&Lane { lane: lane.to_owned() }).inc_by(bytes);
    }

    pub(super) fn failed(&self, lane: &str, reason: &'static str) {
        self.failures.get_or_create(&LaneReason { lane: lane.to_owned(), reason }).inc();
    }
}
