//! All figures of the fleet, with their names and labels.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::Refusal;
use pointsman_domain::{LaneId, LaneStat, LaneState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Lane {
    lane: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneReason {
    lane: String,
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneInState {
    lane: String,
    state: &'static str,
}

/// The figures of one lane, looked up once.
#[derive(Debug)]
struct LaneFigures {
    name: String,
    running: Gauge,
    queued: Gauge,
    wait: Histogram,
    states: [(LaneState, Gauge); 6],
}

/// The fleet's figures.
#[derive(Debug)]
pub struct FleetMetrics {
    lanes: Vec<LaneFigures>,
    refused: Family<Reason, Counter>,
    starts: Family<Lane, Counter>,
    exits: Family<LaneReason, Counter>,
}

impl FleetMetrics {
    /// Register the figures of lanes with these names and slots, in the order of their ids.
    pub fn register(registry: &mut Registry, lanes: &[(String, u32)]) -> Arc<Self> {
        let running: Family<Lane, Gauge> = Family::default();
        let queued: Family<Lane, Gauge> = Family::default();
        let slots: Family<Lane, Gauge> = Family::default();
        let states: Family<LaneInState, Gauge> = Family::default();
        // 0.1 ms to about 7 minutes.
        let wait = Family::<Lane, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.0001, 4.0, 12))
        });
        registry.register("pointsman_lane_running", "Requests that hold a slot of the lane", running.clone());
        registry.register("pointsman_lane_queued", "Requests that wait for the lane", queued.clone());
        registry.register("pointsman_lane_slots", "Requests the lane works on at once", slots.clone());
        registry.register("pointsman_lane_state", "1 for the state that the lane is in", states.clone());
        registry.register(
            "pointsman_queue_wait_seconds",
            "Time from asking for a lane to getting it",
            wait.clone(),
        );
        let metrics = Self {
            lanes: Vec::new(),
            refused: Family::default(),
            starts: Family::default(),
            exits: Family::default(),
        };
        registry.register(
            "pointsman_queue_refused",
            "Requests that got no slot, by reason",
            metrics.refused.clone(),
        );
        registry.register(
            "pointsman_engine_starts",
            "Processes started for the lane",
            metrics.starts.clone(),
        );
        registry.register(
            "pointsman_engine_exits",
            "Processes of the lane that ended unasked",
            metrics.exits.clone(),
        );
        let figures = |(name, count): &(String, u32)| {
            let lane = Lane { lane: name.clone() };
            slots.get_or_create(&lane).set(i64::from(*count));
            let in_state = |state: LaneState| {
                let labels = LaneInState { lane: name.clone(), state: state.label() };
                (state, states.get_or_create_owned(&labels))
            };
            use LaneState::{Degraded, Down, Draining, Ready, Starting, Unloaded};
            LaneFigures {
                name: name.clone(),
                running: running.get_or_create_owned(&lane),
                queued: queued.get_or_create_owned(&lane),
                wait: wait.get_or_create_owned(&lane),
                states: [Unloaded, Starting, Ready, Degraded, Draining, Down].map(in_state),
            }
        };
        Arc::new(Self { lanes: lanes.iter().map(figures).collect(), ..metrics })
    }

    pub(crate) fn granted(&self, lane: LaneId, waited: Duration) {
        if let Some(lane) = self.lanes.get(lane.index()) {
            lane.wait.observe(waited.as_secs_f64());
        }
    }

    pub(crate) fn refused(&self, refusal: &Refusal) {
        let reason = match refusal {
            Refusal::UnknownLane => "unknown-lane",
            Refusal::NotServing(_) => "not-serving",
            Refusal::QueueFull { .. } => "queue-full",
            Refusal::TimedOut { .. } => "timed-out",
            Refusal::Closing => "closing",
        };
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn lanes(&self, stats: &[LaneStat]) {
        for (lane, stat) in self.lanes.iter().zip(stats) {
            lane.running.set(i64::from(stat.running));
            lane.queued.set(i64::from(stat.queued));
            for (state, gauge) in &lane.states {
                gauge.set(i64::from(*state == stat.state));
            }
        }
    }

    pub(crate) fn started(&self, lane: LaneId) {
        if let Some(lane) = self.lanes.get(lane.index()) {
            self.starts.get_or_create(&Lane { lane: lane.name.clone() }).inc();
        }
    }

    pub(crate) fn exited(&self, lane: LaneId, reason: &str) {
        if let Some(lane) = self.lanes.get(lane.index()) {
            self.exits
                .get_or_create(&LaneReason { lane: lane.name.clone(), reason: reason.to_owned() })
                .inc();
        }
    }
}
