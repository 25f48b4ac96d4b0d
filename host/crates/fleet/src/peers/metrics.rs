//! The metrics of other hosts.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use pointsman_peers::Liveness;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabel {
    peer: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    peer: String,
    code: &'static str,
}

/// The metrics of the hosts that are watched. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct PeerMetrics(Arc<Families>);

#[derive(Debug, Default)]
struct Families {
    up: Family<PeerLabel, Gauge>,
    received: Family<PeerLabel, Gauge<f64, AtomicU64>>,
    connections: Family<PeerLabel, Counter>,
    events: Family<PeerLabel, Counter>,
    errors: Family<ErrorLabels, Counter>,
}

/// The metrics of one host, which end with it.
#[derive(Debug)]
pub(super) struct HostMetrics {
    families: Arc<Families>,
    label: PeerLabel,
}

impl PeerMetrics {
    /// Registers the metrics. Called once.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Families { up, received, connections, events, errors } = &*metrics.0;
        registry.register("pointsman_peer_up", "1 if another host is live", up.clone());
        registry.register(
            "pointsman_peer_received_timestamp_seconds",
            "When the last event of another host was received, in seconds since the Unix epoch",
            received.clone(),
        );
        registry.register(
            "pointsman_peer_connections",
            "Connections to another host that were made, the first one and each later one",
            connections.clone(),
        );
        registry.register("pointsman_peer_events", "Events of another host", events.clone());
        registry.register(
            "pointsman_peer_errors",
            "Connections to another host that failed or ended, by code",
            errors.clone(),
        );
        metrics
    }

    /// Returns those of the host with this name.
    pub(super) fn of_host(&self, peer: String) -> HostMetrics {
        let metrics = HostMetrics { families: Arc::clone(&self.0), label: PeerLabel { peer } };
        metrics.set_liveness(Liveness::Down);
        metrics
    }
}

impl HostMetrics {
    pub(super) fn set_liveness(&self, liveness: Liveness) {
        let is_live = i64::from(liveness == Liveness::Live);
        self.families.up.get_or_create(&self.label).set(is_live);
    }

    pub(super) fn connected(&self) {
        self.families.connections.get_or_create(&self.label).inc();
    }

    pub(super) fn received(&self, events: usize) {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        self.families.received.get_or_create(&self.label).set(now.as_secs_f64());
        self.families.events.get_or_create(&self.label).inc_by(events as u64);
    }

    pub(super) fn failed(&self, code: &'static str) {
        let labels = ErrorLabels { peer: self.label.peer.clone(), code };
        self.families.errors.get_or_create(&labels).inc();
    }
}

impl Drop for HostMetrics {
    fn drop(&mut self) {
        self.families.up.remove(&self.label);
        self.families.received.remove(&self.label);
    }
}
