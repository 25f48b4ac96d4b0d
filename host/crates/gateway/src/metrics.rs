//! The metrics of the gateway, with their names and labels.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::RequestResult;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::label_values::{LabelValues, outcome_label};
use crate::tenant_metrics::TenantMetrics;

/// Maximum number of lanes with histograms of their own: the first ones that serve requests. Their
/// number is otherwise unbounded, because lanes are added and removed without a restart.
const MAX_LANES: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    lane: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: String,
}

impl From<String> for LaneLabel {
    fn from(lane: String) -> Self {
        Self { lane }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    lane: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GuardLabels {
    guard: String,
    effect: &'static str,
}

/// A connection, as long as it is open.
#[derive(Debug)]
pub(crate) struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Buckets from 1 ms to about 17 minutes: a response from a cold engine takes minutes.
#[derive(Debug, Clone)]
struct SecondsBuckets;

impl MetricConstructor<Histogram> for SecondsBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.001, 2.0, 21))
    }
}

/// The metrics of the gateway.
#[derive(Debug)]
pub struct GatewayMetrics {
    pub(crate) accepted: Counter,
    pub(crate) in_flight: Gauge,
    pub(crate) body_bytes: Gauge,
    pub(crate) spool_bytes: Gauge,
    pub(crate) tenants: TenantMetrics,
    pub(crate) fleet_readers: Gauge,
    connections: Gauge,
    refused: Family<RefusedLabels, Counter>,
    answered: Counter,
    fell_back: Counter,
    errors: Counter,
    client_gone: Counter,
    requests: Family<RequestLabels, Counter>,
    attempts: Family<AttemptLabels, Counter>,
    guarded: Family<GuardLabels, Counter>,
    lanes: LabelValues<LaneLabel>,
    first_byte_seconds: Family<LaneLabel, Histogram, SecondsBuckets>,
    seconds: Family<LaneLabel, Histogram, SecondsBuckets>,
}

impl GatewayMetrics {
    /// Registers the metrics. Called once, before the registry is shared.
    pub fn register(registry: &mut Registry) -> Arc<Self> {
        let metrics = Self {
            accepted: Counter::default(),
            in_flight: Gauge::default(),
            body_bytes: Gauge::default(),
            spool_bytes: Gauge::default(),
            tenants: TenantMetrics::default(),
            fleet_readers: Gauge::default(),
            connections: Gauge::default(),
            refused: Family::default(),
            answered: Counter::default(),
            fell_back: Counter::default(),
            errors: Counter::default(),
            client_gone: Counter::default(),
            requests: Family::default(),
            attempts: Family::default(),
            guarded: Family::default(),
            lanes: LabelValues::new(MAX_LANES),
            first_byte_seconds: Family::new_with_constructor(SecondsBuckets),
            seconds: Family::new_with_constructor(SecondsBuckets),
        };
        metrics.register_flow(registry);
        metrics.register_ends(registry);
        metrics.tenants.register(registry);
        Arc::new(metrics)
    }

    /// Registers what is open or in flight.
    fn register_flow(&self, registry: &mut Registry) {
        registry.register("pointsman_accepted", "Requests accepted", self.accepted.clone());
        registry.register(
            "pointsman_in_flight",
            "Accepted requests that have not ended",
            self.in_flight.clone(),
        );
        registry.register(
            "pointsman_connections",
            "Open connections of clients and operators",
            self.connections.clone(),
        );
        registry.register(
            "pointsman_fleet_readers",
            "Readers of what this host tells other hosts of its lanes",
            self.fleet_readers.clone(),
        );
        registry.register(
            "pointsman_refused_connections",
            "Connections that ended before their first request, by reason",
            self.refused.clone(),
        );
        registry.register(
            "pointsman_body_bytes",
            "Size of the request bodies in flight",
            self.body_bytes.clone(),
        );
        registry.register(
            "pointsman_spool_bytes",
            "Size of the uploads in spool files",
            self.spool_bytes.clone(),
        );
    }

    /// Registers how requests end, and how long they take.
    fn register_ends(&self, registry: &mut Registry) {
        registry.register(
            "pointsman_answered",
            "Requests answered by the first lane attempted",
            self.answered.clone(),
        );
        registry.register(
            "pointsman_fell_back",
            "Requests answered by a later lane",
            self.fell_back.clone(),
        );
        registry.register(
            "pointsman_errors",
            "Requests that ended in an explicit error",
            self.errors.clone(),
        );
        registry.register(
            "pointsman_client_gone",
            "Requests whose client disconnected",
            self.client_gone.clone(),
        );
        registry.register(
            "pointsman_requests",
            "Requests by endpoint, lane and outcome",
            self.requests.clone(),
        );
        registry.register(
            "pointsman_attempts",
            "Attempts by lane and result",
            self.attempts.clone(),
        );
        registry.register(
            "pointsman_guarded_requests",
            "Requests by guard and what it did: applied, refused, violation",
            self.guarded.clone(),
        );
        registry.register(
            "pointsman_request_seconds",
            "Time from request to last byte, by the lane that answered",
            self.seconds.clone(),
        );
        let first_byte = self.first_byte_seconds.clone();
        registry.register(
            "pointsman_first_byte_seconds",
            "Time from request to first byte, by the lane that answered",
            first_byte,
        );
    }

    /// Counts a connection until the value is dropped.
    pub(crate) fn open_connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// Counts a connection that did not speak the protocol of its listener.
    pub(crate) fn refused_connection(&self, reason: &'static str) {
        self.refused.get_or_create(&RefusedLabels { reason }).inc();
    }

    /// Counts the end of a request.
    pub(crate) fn ended(
        &self,
        endpoint: &'static str,
        lane: &str,
        result: RequestResult,
        took: Duration,
    ) {
        self.in_flight.dec();
        match result {
            RequestResult::Answered => self.answered.inc(),
            RequestResult::FellBack => self.fell_back.inc(),
            RequestResult::Rejected | RequestResult::Error => self.errors.inc(),
            RequestResult::ClientGone => self.client_gone.inc(),
        };
        self.requests
            .get_or_create(&RequestLabels {
                endpoint,
                lane: lane.to_owned(),
                outcome: outcome_label(result),
            })
            .inc();
        self.seconds.get_or_create(&self.lane(lane)).observe(took.as_secs_f64());
    }

    /// Records the time to the first byte of a response.
    pub(crate) fn first_byte(&self, lane: &str, ttft: Duration) {
        self.first_byte_seconds.get_or_create(&self.lane(lane)).observe(ttft.as_secs_f64());
    }

    fn lane(&self, name: &str) -> Arc<LaneLabel> {
        self.lanes.get(name)
    }

    /// Counts a request to which a guard applies, that it has refused, or of which an attempt
    /// would have broken it.
    pub(crate) fn guarded(&self, guard: &str, effect: &'static str) {
        self.guarded.get_or_create(&GuardLabels { guard: guard.to_owned(), effect }).inc();
    }

    /// Counts the end of an attempt.
    pub(crate) fn attempted(&self, lane: &str, result: &'static str) {
        self.attempts.get_or_create(&AttemptLabels { lane: lane.to_owned(), result }).inc();
    }
}
