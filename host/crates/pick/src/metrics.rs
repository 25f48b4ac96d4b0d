//! The metrics of the service for a proxy.

use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use tokio::time::Instant;

/// What became of a request before it was sent to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Decision {
    /// The proxy has got endpoints for it.
    Picked,
    /// The host has responded itself.
    Answered,
    /// Its client is gone.
    ClientGone,
    /// The proxy did not keep to the protocol, or the body could not be read.
    Failed,
    /// There were too many requests at a time.
    Refused,
}

impl Decision {
    const ALL: [Self; 5] =
        [Self::Picked, Self::Answered, Self::ClientGone, Self::Failed, Self::Refused];

    fn label(self) -> &'static str {
        match self {
            Self::Picked => "picked",
            Self::Answered => "answered",
            Self::ClientGone => "client-gone",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

impl EncodeLabelValue for Decision {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        EncodeLabelValue::encode(&self.label(), encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: Decision,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// The metrics of a picker. Clones share them.
#[derive(Debug, Clone)]
pub struct PickMetrics(Arc<Families>);

#[derive(Debug)]
struct Families {
    streams: Gauge,
    held: Gauge,
    decisions: Family<ResultLabel, Counter>,
    seconds: Histogram,
    immediate: Family<CodeLabel, Counter>,
}

impl PickMetrics {
    /// Registers the metrics. Called once.
    pub fn register(registry: &mut Registry) -> Self {
        let families = Families {
            streams: Gauge::default(),
            held: Gauge::default(),
            decisions: Family::default(),
            // From 0.1 ms to 7 min: a request may wait for a lane.
            seconds: Histogram::new(exponential_buckets(0.0001, 4.0, 12)),
            immediate: Family::default(),
        };
        let Families { streams, held, decisions, seconds, immediate } = &families;
        // From the start, so that the first one is an increase.
        for result in Decision::ALL {
            drop(decisions.get_or_create(&ResultLabel { result }));
        }
        registry.register(
            "pointsman_pick_streams",
            "Requests that the proxy has open",
            streams.clone(),
        );
        registry.register(
            "pointsman_pick_held",
            "Requests of the proxy for which no endpoint is chosen yet",
            held.clone(),
        );
        registry.register(
            "pointsman_pick_decisions",
            "Requests of the proxy, by what became of them",
            decisions.clone(),
        );
        registry.register(
            "pointsman_pick_decision_seconds",
            "Time from the head of a request to its endpoints or its response",
            seconds.clone(),
        );
        registry.register(
            "pointsman_pick_immediate_responses",
            "Responses of the host itself to requests of the proxy, by code",
            immediate.clone(),
        );
        Self(Arc::new(families))
    }

    /// Counts a stream until the guard is dropped.
    pub(crate) fn open_stream(&self) -> OpenStream {
        self.0.streams.inc();
        OpenStream(self.clone())
    }

    /// Counts a stream that was refused.
    pub(crate) fn refused_stream(&self) {
        self.count(Decision::Refused);
    }

    /// Begins to measure a decision.
    pub(crate) fn begin(&self) -> Undecided {
        self.0.held.inc();
        let (metrics, begun) = (self.clone(), Instant::now());
        Undecided { metrics, begun, decision: Decision::ClientGone }
    }

    /// Counts a response of the host itself. `code` is that of its error, or `none`.
    pub(crate) fn responded_immediately(&self, code: &'static str) {
        self.0.immediate.get_or_create(&CodeLabel { code }).inc();
    }

    fn count(&self, result: Decision) {
        self.0.decisions.get_or_create(&ResultLabel { result }).inc();
    }
}

/// A stream that is open.
#[derive(Debug)]
pub(crate) struct OpenStream(PickMetrics);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.0.streams.dec();
    }
}

/// A request for which no endpoint is chosen yet. Dropped without a decision, its client is gone.
#[derive(Debug)]
pub(crate) struct Undecided {
    metrics: PickMetrics,
    begun: Instant,
    decision: Decision,
}

impl Undecided {
    /// Notes the decision.
    pub(crate) fn end(mut self, decision: Decision) {
        self.decision = decision;
    }
}

impl Drop for Undecided {
    fn drop(&mut self) {
        self.metrics.0.held.dec();
        self.metrics.count(self.decision);
        match self.decision {
            Decision::Picked | Decision::Answered => {
                self.metrics.0.seconds.observe(self.begun.elapsed().as_secs_f64());
            }
            Decision::ClientGone | Decision::Failed | Decision::Refused => {}
        }
    }
}
