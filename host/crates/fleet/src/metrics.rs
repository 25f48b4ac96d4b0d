//! The Prometheus metrics of the fleet. The series of single lanes are added and removed with them
//! (`metrics/lanes.rs`).

mod lanes;
mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use pointsman_domain::dispatch::{AcquireError, LaneMode, SwitchReport};
use pointsman_domain::{LaneId, LaneStat, LaneState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use self::lanes::LaneGauges;
use self::memory::MemoryMetrics;
use crate::conversations::ConversationMetrics;
use crate::measurements::Measurements;
use crate::peers::PeerMetrics;
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
struct LaneInMode {
    lane: String,
    mode: &'static str,
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

/// Buckets from 0.1 ms to about 7 minutes.
#[derive(Debug, Clone)]
struct WaitBuckets;

impl MetricConstructor<Histogram> for WaitBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.0001, 4.0, 12))
    }
}

/// Buckets from 5 ms to about 45 minutes.
#[derive(Debug, Clone)]
struct LoadBuckets;

impl MetricConstructor<Histogram> for LoadBuckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(0.005, 2.0, 20))
    }
}

/// A gauge with fractions.
type FloatGauge = Gauge<f64, AtomicU64>;

/// The metrics of one lane, looked up once.
#[derive(Debug)]
struct LaneMetrics {
    name: String,
    slots: Gauge,
    running: Gauge,
    queued: Gauge,
    waiting_in_engine: Gauge,
    kv_used: FloatGauge,
    ready_in: FloatGauge,
    breaker: Gauge,
    /// Queue lengths of the priorities that have had a request.
    by_priority: Mutex<BTreeMap<i32, Gauge>>,
    /// The reasons for which engines have ended.
    exits: Mutex<BTreeSet<String>>,
    states: [(LaneState, Gauge); 6],
    modes: [(LaneMode, Gauge); 5],
}

/// The metrics of all lanes.
#[derive(Debug)]
pub struct FleetMetrics {
    /// By id; `None` for a lane that has been removed.
    lanes: RwLock<Vec<Option<Arc<LaneMetrics>>>>,
    gauges: LaneGauges,
    /// Those of the other hosts that are read.
    pub peers: PeerMetrics,
    wait: Family<LanePriority, Histogram, WaitBuckets>,
    queued: Family<LanePriority, Gauge>,
    rejected: Family<Reason, Counter>,
    starts: Family<Lane, Counter>,
    exits: Family<LaneReason, Counter>,
    switches: Family<SwitchKind, Counter>,
    switch_parts: Family<SwitchPart, Histogram, LoadBuckets>,
    pub(crate) measurements: Measurements,
    pub(crate) conversations: ConversationMetrics,
}

/// Maximum magnitude of a priority label. Priorities beyond it are counted with it, because a label
/// must have a bounded number of values.
const MAX_PRIORITY: i32 = 20;

impl FleetMetrics {
    /// Registers the metrics of lanes with these names and numbers of slots, in the order of their
    /// ids.
    pub fn register(registry: &mut Registry, lanes: &[(String, u32)]) -> Arc<Self> {
        let metrics = Self::new(registry);
        for (id, (name, slots)) in (0..).map(LaneId).zip(lanes) {
            metrics.add_lane(id, name, *slots);
        }
        Arc::new(metrics)
    }

    fn new(registry: &mut Registry) -> Self {
        let measurements = Measurements::default();
        registry.register_collector(Box::new(MemoryMetrics(measurements.clone())));
        Self {
            lanes: RwLock::default(),
            gauges: LaneGauges::register(registry),
            wait: register(
                registry,
                "pointsman_queue_wait_seconds",
                "Time in the queue until a slot was granted, by priority",
                Family::new_with_constructor(WaitBuckets),
            ),
            queued: add(registry, "pointsman_queue_length", "Queued requests, by priority"),
            rejected: add(
                registry,
                "pointsman_queue_rejected",
                "Requests rejected without a slot, by reason",
            ),
            starts: add(registry, "pointsman_engine_starts", "Engine processes started"),
            exits: add(
                registry,
                "pointsman_engine_exits",
                "Engine failures: failed loads, and engines that ended or hung, by reason",
            ),
            switches: add(
                registry,
                "pointsman_switches",
                "Lane loads, by whether other lanes were evicted and whether the starvation \
                 timeout had expired",
            ),
            switch_parts: register(
                registry,
                "pointsman_switch_seconds",
                "Duration of each part of a switch: drain, stop, free (waiting for memory, within \
             load), load, first-answer (the first byte after the load)",
                Family::new_with_constructor(LoadBuckets),
            ),
            measurements,
            conversations: ConversationMetrics::register(registry),
            peers: PeerMetrics::register(registry),
        }
    }

    /// Records a granted request and its time in the queue.
    pub(crate) fn granted(&self, lane: LaneId, priority: i32, waited: Duration) {
        if let Some(lane) = self.lane(lane) {
            let labels =
                LanePriority { lane: lane.name.clone(), priority: priority_label(priority) };
            self.wait.get_or_create(&labels).observe(waited.as_secs_f64());
        }
    }

    /// Counts a rejected request.
    pub(crate) fn rejected(&self, error: &AcquireError) {
        let reason = match error {
            AcquireError::UnknownLane => "unknown-lane",
            AcquireError::LaneRemoved => "lane-removed",
            AcquireError::Paused(_) => "paused",
            AcquireError::NotServing { .. } => "not-serving",
            AcquireError::NotLoaded => "not-loaded",
            AcquireError::LoadFailed { .. } => "load-failed",
            AcquireError::CircuitOpen { .. } => "breaker-open",
            AcquireError::QueueFull { .. } => "queue-full",
            AcquireError::DeadlineTooEarly { .. } => "too-late",
            AcquireError::TimedOut { .. } => "timed-out",
            AcquireError::Closing => "closing",
        };
        self.rejected.get_or_create(&Reason { reason }).inc();
    }

    /// Sets the gauges to the current state of the lanes.
    pub(crate) fn lanes(
        &self,
        stats: &[LaneStat],
        by_priority: &dyn Fn(LaneId) -> Vec<(i32, usize)>,
    ) {
        for stat in stats {
            let Some(lane) = self.lane(stat.id) else { continue };
            // The lengths by priority are only computed if there may be a difference: this runs for
            // every batch of messages.
            let queue_changed = lane.queued.set(i64::from(stat.queued)) != i64::from(stat.queued)
                || stat.queued > 0;
            lane.running.set(i64::from(stat.running));
            lane.ready_in.set(f64::from(stat.ready_in_ms) / 1000.0);
            lane.breaker.set(i64::from(stat.state == LaneState::Degraded));
            for (state, gauge) in &lane.states {
                gauge.set(i64::from(*state == stat.state));
            }
            if queue_changed {
                self.set_queue_lengths(&lane, &by_priority(stat.id));
            }
        }
    }

    fn set_queue_lengths(&self, lane: &LaneMetrics, lengths: &[(i32, usize)]) {
        let mut by_label: Vec<(i32, i64)> = Vec::new();
        for (priority, length) in lengths {
            let (priority, length) =
                (priority_label(*priority), i64::try_from(*length).unwrap_or(i64::MAX));
            match by_label.iter_mut().find(|(label, _)| *label == priority) {
                Some((_, sum)) => *sum += length,
                None => by_label.push((priority, length)),
            }
        }
        let mut gauges = lane.by_priority.lock();
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

    /// Sets the gauges that come from the engine's own metrics.
    pub(crate) fn engine_report(&self, lane: LaneId, metrics: &EngineMetrics) {
        if let Some(lane) = self.lane(lane) {
            lane.waiting_in_engine.set(i64::from(metrics.waiting.unwrap_or(0)));
            lane.kv_used.set(f64::from(metrics.kv_used.unwrap_or(0)) / 1000.0);
        }
    }

    /// Records a completed switch and its parts.
    pub(crate) fn switched(&self, report: &SwitchReport) {
        let Some(lane) = self.lane(report.target) else { return };
        let label = |value| if value { "yes" } else { "no" };
        let kind = SwitchKind {
            lane: lane.name.clone(),
            displaced: label(!report.victims.is_empty()),
            overdue: label(report.overdue),
        };
        self.switches.get_or_create(&kind).inc();
        if !report.victims.is_empty() {
            self.switch_part(report.target, "drain", report.drain);
            self.switch_part(report.target, "stop", report.stop);
        }
        self.switch_part(report.target, "load", report.load);
    }

    /// Records how long a load waited for free memory.
    pub(crate) fn freed(&self, lane: LaneId, duration: Duration) {
        self.switch_part(lane, "free", duration);
    }

    /// Records the time to the first byte of the first response after a switch.
    pub(crate) fn first_byte_after_switch(&self, lane: LaneId, duration: Duration) {
        self.switch_part(lane, "first-answer", duration);
    }

    fn switch_part(&self, lane: LaneId, part: &'static str, duration: Duration) {
        if let Some(lane) = self.lane(lane) {
            let labels = SwitchPart { lane: lane.name.clone(), part };
            self.switch_parts.get_or_create(&labels).observe(duration.as_secs_f64());
        }
    }

    /// Counts a start of the engine.
    pub(crate) fn started(&self, lane: LaneId) {
        if let Some(lane) = self.lane(lane) {
            self.starts.get_or_create(&Lane { lane: lane.name.clone() }).inc();
        }
    }

    /// Counts a failure of the engine.
    pub(crate) fn exited(&self, lane: LaneId, reason: &str) {
        if let Some(lane) = self.lane(lane) {
            lane.exits.lock().insert(reason.to_owned());
            self.exits
                .get_or_create(&LaneReason { lane: lane.name.clone(), reason: reason.to_owned() })
                .inc();
        }
    }
}

/// Returns the value of a priority's label.
fn priority_label(priority: i32) -> i32 {
    priority.clamp(-MAX_PRIORITY, MAX_PRIORITY)
}

/// Creates and registers a metric.
fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    register(registry, name, help, M::default())
}

/// Registers a metric, and returns it.
fn register<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}
