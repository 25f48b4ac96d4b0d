//! Metrics of the shared state.

use std::fmt;

use pointsman_shared::{Replicator, Status};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// What is read when the metrics are.
#[derive(Debug)]
struct SharedMetrics(Replicator);

pub(super) fn register(registry: &mut Registry, replicator: &Replicator) {
    registry.register_collector(Box::new(SharedMetrics(replicator.clone())));
}

impl Collector for SharedMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Status {
            is_up,
            age,
            round_trip,
            rounds,
            failures,
            pending,
            dropped,
            since: _,
            replicas,
        } = self.0.status();
        let mut add =
            |name: &str, help: &str, metric: &dyn EncodeConst| metric.add(&mut encoder, name, help);
        let up = gauge(f64::from(u8::from(is_up)));
        add("pointsman_shared_state_up", "1 if the shared store has replied lately", &up)?;
        let age = gauge(age.as_secs_f64());
        add("pointsman_shared_state_age_seconds", "Time since the shared store has replied", &age)?;
        let took = gauge(round_trip.as_secs_f64());
        let help = "Duration of the last round trip to the shared store";
        add("pointsman_shared_state_round_trip_seconds", help, &took)?;
        // Exact below 2⁵³.
        let pending = gauge(pending as f64);
        let help = "Entries with changes that the shared store has not confirmed";
        add("pointsman_shared_state_pending", help, &pending)?;
        if let Some(replicas) = replicas {
            let help = "Processes that use the shared store, this one included";
            let replicas = gauge(f64::from(replicas));
            add("pointsman_shared_state_replicas", help, &replicas)?;
        }
        let help = "Changed entries that were never sent to the shared store: too many";
        add("pointsman_shared_state_dropped", help, &ConstCounter::new(dropped))?;
        let help = "Round trips to the shared store";
        add("pointsman_shared_state_round_trips", help, &ConstCounter::new(rounds))?;
        let help = "Failed round trips and connections to the shared store";
        add("pointsman_shared_state_failures", help, &ConstCounter::new(failures))
    }
}

fn gauge(value: f64) -> ConstGauge<f64> {
    ConstGauge::new(value)
}

/// A metric of any type.
trait EncodeConst {
    fn add(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> fmt::Result;
}

impl<M: EncodeMetric> EncodeConst for M {
    fn add(&self, encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str) -> fmt::Result {
        self.encode(encoder.encode_descriptor(name, help, None, self.metric_type())?)
    }
}
