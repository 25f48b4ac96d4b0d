//! All figures of the fleet, with their names and labels.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman_domain::dispatch::{AcquireError, SwitchReport};
use pointsman_domain::{LaneId, LaneStat, LaneState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::scrape::EngineMetrics;

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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LanePriority {
    lane: String,
    priority: i32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SwitchPart {
    lane: String,
    part: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SwitchKind {
    lane: String,
    displaced: &'static str,
    overdue: &'static str,
}

/// 0.1 ms to about 7 minutes.
#[derive(Debug, Clone)]
struct Waits;

impl MetricConstructor<Histogram> for Waits {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.0001, 4.0, 12))
    }
}

/// 5 ms to about 45 minutes.
#[derive(Debug, Clone)]
struct Loads;

impl MetricConstructor<Histogram> for Loads {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.005, 2.0, 20))
    }
}

/// The figures of one lane, looked up once.
#[derive(Debug)]
struct LaneFigures {
    name: String,
    running: Gauge,
    queued: Gauge,
    waiting_in_engine: Gauge,
    kv_used: Gauge,
    ready_in: Gauge,
    breaker: Gauge,
    /// Lengths of its queue, by priority, as far as there ever was somebody.
    by_priority: Mutex<BTreeMap<i32, Gauge>>,
    states: [(LaneState, Gauge); 6],
}

/// The fleet's figures.
#[derive(Debug)]
pub struct FleetMetrics {
    lanes: Vec<LaneFigures>,
    wait: Family<LanePriority, Histogram, Waits>,
    queued: Family<LanePriority, Gauge>,
    refused: Family<Reason, Counter>,
    starts: Family<Lane, Counter>,
    exits: Family<LaneReason, Counter>,
    switches: Family<SwitchKind, Counter>,
    parts: Family<SwitchPart, Histogram, Loads>,
    memory: Family<Lane, Gauge>,
}

/// Priorities beyond this are counted with it: a label must not have any number of values.
const MOST_PRIORITY: i32 = 20;

impl FleetMetrics {
    /// Register the figures of lanes with these names and slots, in the order of their ids.
    pub fn register(registry: &mut Registry, lanes: &[(String, u32)]) -> Arc<Self> {
        let slots: Family<Lane, Gauge> = Family::default();
        let running: Family<Lane, Gauge> = Family::default();
        let queued: Family<Lane, Gauge> = Family::default();
        let inside: Family<Lane, Gauge> = Family::default();
        let kv_used: Family<Lane, Gauge> = Family::default();
        let ready_in: Family<Lane, Gauge> = Family::default();
        let breaker: Family<Lane, Gauge> = Family::default();
        let states: Family<LaneInState, Gauge> = Family::default();
        registry.register(
            "pointsman_lane_slots",
            "Requests the lane works on at once",
            slots.clone(),
        );
        registry.register(
            "pointsman_lane_running",
            "Requests that hold a slot of the lane",
            running.clone(),
        );
        registry.register(
            "pointsman_lane_queued",
            "Requests that wait for the lane",
            queued.clone(),
        );
        registry.register(
            "pointsman_engine_waiting",
            "Requests that wait inside the engine",
            inside.clone(),
        );
        registry.register(
            "pointsman_engine_kv_used_permille",
            "Key-value cache in use",
            kv_used.clone(),
        );
        registry.register(
            "pointsman_lane_ready_in_milliseconds",
            "Estimated time until the lane serves",
            ready_in.clone(),
        );
        registry.register(
            "pointsman_lane_breaker_open",
            "1 while the lane fails too often",
            breaker.clone(),
        );
        registry.register(
            "pointsman_lane_state",
            "1 for the state that the lane is in",
            states.clone(),
        );
        let metrics = Self::new(registry);
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
                waiting_in_engine: inside.get_or_create_owned(&lane),
                kv_used: kv_used.get_or_create_owned(&lane),
                ready_in: ready_in.get_or_create_owned(&lane),
                breaker: breaker.get_or_create_owned(&lane),
                by_priority: Mutex::default(),
                states: [Unloaded, Starting, Ready, Degraded, Draining, Down].map(in_state),
            }
        };
        Arc::new(Self { lanes: lanes.iter().map(figures).collect(), ..metrics })
    }

    fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            lanes: Vec::new(),
            wait: Family::new_with_constructor(Waits),
            queued: Family::default(),
            refused: Family::default(),
            starts: Family::default(),
            exits: Family::default(),
            switches: Family::default(),
            parts: Family::new_with_constructor(Loads),
            memory: Family::default(),
        };
        registry.register(
            "pointsman_queue_wait_seconds",
            "Time from asking for a lane to getting it, by priority",
            metrics.wait.clone(),
        );
        registry.register(
            "pointsman_queue_length",
            "Requests that wait, by priority",
            metrics.queued.clone(),
        );
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
        registry.register(
            "pointsman_switches",
            "Lanes loaded, by whether others were unloaded for it and whether somebody had waited too long",
            metrics.switches.clone(),
        );
        registry.register(
            "pointsman_switch_seconds",
            "Parts of loading a lane: drain, stop, free (waiting for memory, within load), load, first-answer",
            metrics.parts.clone(),
        );
        registry.register(
            "pointsman_group_memory_bytes",
            "Memory that the lanes of this lane's group hold together",
            metrics.memory.clone(),
        );
        metrics
    }

    pub(crate) fn granted(&self, lane: LaneId, priority: i32, waited: Duration) {
        if let Some(lane) = self.lanes.get(lane.index()) {
            let labels = LanePriority { lane: lane.name.clone(), priority: label_of(priority) };
            self.wait.get_or_create(&labels).observe(waited.as_secs_f64());
        }
    }

    pub(crate) fn refused(&self, refusal: &AcquireError) {
        let reason = match refusal {
            AcquireError::UnknownLane => "unknown-lane",
            AcquireError::NotServing { .. } => "not-serving",
            AcquireError::NotLoaded => "not-loaded",
            AcquireError::LoadFailed { .. } => "load-failed",
            AcquireError::Faulty { .. } => "breaker-open",
            AcquireError::QueueFull { .. } => "queue-full",
            AcquireError::TooLate { .. } => "too-late",
            AcquireError::TimedOut { .. } => "timed-out",
            AcquireError::Closing => "closing",
        };
        self.refused.get_or_create(&Reason { reason }).inc();
    }

    /// The lanes as they are now.
    pub(crate) fn lanes(
        &self,
        stats: &[LaneStat],
        by_priority: &dyn Fn(LaneId) -> Vec<(i32, usize)>,
        memory: &dyn Fn(&LaneStat) -> Option<(u64, u64)>,
    ) {
        for (lane, stat) in self.lanes.iter().zip(stats) {
            let queue_changed = lane.queued.set(i64::from(stat.queued)) != i64::from(stat.queued)
                || stat.queued > 0;
            lane.running.set(i64::from(stat.running));
            lane.ready_in.set(i64::from(stat.ready_in_ms));
            lane.breaker.set(i64::from(stat.state == LaneState::Degraded));
            for (state, gauge) in &lane.states {
                gauge.set(i64::from(*state == stat.state));
            }
            if let Some((held, budget)) = memory(stat).filter(|(_, budget)| *budget < u64::MAX) {
                let labels = Lane { lane: lane.name.clone() };
                self.memory
                    .get_or_create(&labels)
                    .set(i64::try_from(held.min(budget)).unwrap_or(i64::MAX));
            }
            if queue_changed {
                self.queue_of(lane, &by_priority(stat.id));
            }
        }
    }

    fn queue_of(&self, lane: &LaneFigures, lengths: &[(i32, usize)]) {
        let mut by_label: Vec<(i32, i64)> = Vec::new();
        for (priority, length) in lengths {
            let (priority, length) =
                (label_of(*priority), i64::try_from(*length).unwrap_or(i64::MAX));
            match by_label.iter_mut().find(|(label, _)| *label == priority) {
                Some((_, sum)) => *sum += length,
                None => by_label.push((priority, length)),
            }
        }
        let mut gauges = lane.by_priority.lock().unwrap_or_else(PoisonError::into_inner);
        for (priority, length) in &by_label {
            let labels = LanePriority { lane: lane.name.clone(), priority: *priority };
            let gauge =
                gauges.entry(*priority).or_insert_with(|| self.queued.get_or_create_owned(&labels));
            gauge.set(*length);
        }
        let empty = gauges
            .iter()
            .filter(|(priority, _)| by_label.iter().all(|(label, _)| label != *priority));
        for (_, gauge) in empty {
            gauge.set(0);
        }
    }

    pub(crate) fn told(&self, lane: LaneId, figures: &EngineMetrics) {
        if let Some(lane) = self.lanes.get(lane.index()) {
            lane.waiting_in_engine.set(i64::from(figures.waiting.unwrap_or(0)));
            lane.kv_used.set(i64::from(figures.kv_used.unwrap_or(0)));
        }
    }

    pub(crate) fn switched(&self, report: &SwitchReport) {
        let Some(lane) = self.lanes.get(report.target.index()) else { return };
        let yes = |yes| if yes { "yes" } else { "no" };
        let kind = SwitchKind {
            lane: lane.name.clone(),
            displaced: yes(!report.victims.is_empty()),
            overdue: yes(report.overdue),
        };
        self.switches.get_or_create(&kind).inc();
        if !report.victims.is_empty() {
            self.part(report.target, "drain", report.drain);
            self.part(report.target, "stop", report.stop);
        }
        self.part(report.target, "load", report.load);
    }

    pub(crate) fn freed(&self, lane: LaneId, took: Duration) {
        self.part(lane, "free", took);
    }

    pub(crate) fn first_answer(&self, lane: LaneId, took: Duration) {
        self.part(lane, "first-answer", took);
    }

    fn part(&self, lane: LaneId, part: &'static str, took: Duration) {
        if let Some(lane) = self.lanes.get(lane.index()) {
            let labels = SwitchPart { lane: lane.name.clone(), part };
            self.parts.get_or_create(&labels).observe(took.as_secs_f64());
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

fn label_of(priority: i32) -> i32 {
    priority.clamp(-MOST_PRIORITY, MOST_PRIORITY)
}
