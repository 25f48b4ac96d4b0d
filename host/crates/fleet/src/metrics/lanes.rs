//! The series of single lanes: added with a lane, and removed with it.

use std::sync::Arc;

use parking_lot::Mutex;
use pointsman_domain::dispatch::LaneMode;
use pointsman_domain::{LaneId, LaneState};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{
    FleetMetrics, FloatGauge, Lane, LaneInMode, LaneInState, LaneMetrics, LanePriority, LaneReason,
    MAX_PRIORITY, SwitchKind, SwitchPart, add,
};

/// All states, in the order of the series.
const STATES: [LaneState; 6] = [
    LaneState::Unloaded,
    LaneState::Starting,
    LaneState::Ready,
    LaneState::Degraded,
    LaneState::Draining,
    LaneState::Down,
];
/// All values of the label `part` of the durations of switches.
const PARTS: [&str; 5] = ["drain", "stop", "free", "load", "first-answer"];

/// Gauges of which each lane has one.
#[derive(Debug)]
pub(super) struct LaneGauges {
    slots: Family<Lane, Gauge>,
    running: Family<Lane, Gauge>,
    queued: Family<Lane, Gauge>,
    waiting_in_engine: Family<Lane, Gauge>,
    kv_used: Family<Lane, FloatGauge>,
    ready_in: Family<Lane, FloatGauge>,
    breaker: Family<Lane, Gauge>,
    states: Family<LaneInState, Gauge>,
    modes: Family<LaneInMode, Gauge>,
}

impl LaneGauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            slots: add(registry, "pointsman_lane_slots", "Maximum number of concurrent requests"),
            running: add(registry, "pointsman_lane_running", "Requests that hold a slot"),
            queued: add(registry, "pointsman_lane_queued", "Requests queued for the lane"),
            waiting_in_engine: add(
                registry,
                "pointsman_engine_waiting",
                "Requests queued inside the engine",
            ),
            kv_used: add(
                registry,
                "pointsman_engine_kv_used_ratio",
                "Used part of the key-value cache, from 0 to 1",
            ),
            ready_in: add(
                registry,
                "pointsman_lane_ready_in_seconds",
                "Estimated time until the lane is ready",
            ),
            breaker: add(
                registry,
                "pointsman_lane_breaker_open",
                "1 while the circuit breaker of the lane is open",
            ),
            states: add(
                registry,
                "pointsman_lane_state",
                "1 for the current state of the lane, 0 for the others",
            ),
            modes: add(
                registry,
                "pointsman_lane_manual",
                "1 while an operator's command for the lane is in force",
            ),
        }
    }

    fn of_lane(&self, name: &str) -> LaneMetrics {
        let lane = Lane { lane: name.to_owned() };
        let in_state = |state: LaneState| {
            let labels = LaneInState { lane: name.to_owned(), state: state.label() };
            (state, self.states.get_or_create_owned(&labels))
        };
        let in_mode = |mode: LaneMode| {
            let labels = LaneInMode { lane: name.to_owned(), mode: mode.label() };
            (mode, self.modes.get_or_create_owned(&labels))
        };
        LaneMetrics {
            name: name.to_owned(),
            slots: self.slots.get_or_create_owned(&lane),
            running: self.running.get_or_create_owned(&lane),
            queued: self.queued.get_or_create_owned(&lane),
            waiting_in_engine: self.waiting_in_engine.get_or_create_owned(&lane),
            kv_used: self.kv_used.get_or_create_owned(&lane),
            ready_in: self.ready_in.get_or_create_owned(&lane),
            breaker: self.breaker.get_or_create_owned(&lane),
            by_priority: Mutex::default(),
            exits: Mutex::default(),
            states: STATES.map(in_state),
            modes: LaneMode::ALL.map(in_mode),
        }
    }

    fn remove(&self, name: &str) {
        let lane = Lane { lane: name.to_owned() };
        for gauges in
            [&self.slots, &self.running, &self.queued, &self.waiting_in_engine, &self.breaker]
        {
            gauges.remove(&lane);
        }
        self.kv_used.remove(&lane);
        self.ready_in.remove(&lane);
        for state in STATES {
            self.states.remove(&LaneInState { lane: name.to_owned(), state: state.label() });
        }
        for mode in LaneMode::ALL {
            self.modes.remove(&LaneInMode { lane: name.to_owned(), mode: mode.label() });
        }
    }
}

impl FleetMetrics {
    /// Adds the series of a lane.
    pub(crate) fn add_lane(&self, id: LaneId, name: &str, slots: u32) {
        let metrics = self.gauges.of_lane(name);
        metrics.slots.set(i64::from(slots));
        let mut lanes = self.lanes.write();
        if lanes.len() <= id.index() {
            lanes.resize(id.index() + 1, None);
        }
        if let Some(lane) = lanes.get_mut(id.index()) {
            *lane = Some(Arc::new(metrics));
        }
    }

    /// Removes the series of a lane. What its engine still does is not counted.
    pub(crate) fn remove_lane(&self, id: LaneId) {
        let lane = self.lanes.write().get_mut(id.index()).and_then(Option::take);
        let Some(lane) = lane else { return };
        let name = || lane.name.clone();
        self.gauges.remove(&lane.name);
        for priority in -MAX_PRIORITY..=MAX_PRIORITY {
            let labels = LanePriority { lane: name(), priority };
            self.wait.remove(&labels);
            self.queued.remove(&labels);
        }
        self.starts.remove(&Lane { lane: name() });
        for reason in &*lane.exits.lock() {
            self.exits.remove(&LaneReason { lane: name(), reason: reason.clone() });
        }
        for displaced in ["yes", "no"] {
            for overdue in ["yes", "no"] {
                self.switches.remove(&SwitchKind { lane: name(), displaced, overdue });
            }
        }
        for part in PARTS {
            self.switch_parts.remove(&SwitchPart { lane: name(), part });
        }
    }

    /// Sets what remains of an operator's command for a lane.
    pub(crate) fn set_mode(&self, id: LaneId, mode: Option<LaneMode>) {
        if let Some(lane) = self.lane(id) {
            for (other, gauge) in &lane.modes {
                gauge.set(i64::from(mode == Some(*other)));
            }
        }
    }

    /// Sets the number of slots of a lane.
    pub(crate) fn set_slots(&self, id: LaneId, slots: u32) {
        if let Some(lane) = self.lane(id) {
            lane.slots.set(i64::from(slots));
        }
    }

    /// Returns the metrics of a lane; `None` if it has been removed.
    pub(super) fn lane(&self, id: LaneId) -> Option<Arc<LaneMetrics>> {
        self.lanes.read().get(id.index())?.clone()
    }
}
