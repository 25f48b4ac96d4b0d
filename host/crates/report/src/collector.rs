//! Collection of statistics while a simulation runs, in memory that does not grow with its length.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::SwitchReport;
use pointsman_domain::{
    AttemptResult, EngineKind, EngineState, LaneId, LaneInfo, PolicyRef, RequestResult,
};

use crate::counters::{MeanDuration, MessageCounts, RequestCounters, Tenants};
use crate::events::EndedRequest;
use crate::fairness;
use crate::histogram::micros;
use crate::phase::{PHASES, Phase, Timeline};
use crate::run::{LatencyHistograms, Run};
use crate::series::TimeSeries;
use crate::summary::{EventCount, LaneStatistics, Named, Summary};

/// Collects the statistics of a run from its events. Times never decrease, except the arrival times
/// of requests that have ended.
#[derive(Debug)]
pub struct Collector {
    all: RequestCounters,
    classes: Vec<(String, RequestCounters)>,
    lanes: Vec<LaneCounters>,
    tenants: Tenants,
    series: TimeSeries,
    policies: BTreeMap<Arc<str>, BTreeMap<Arc<str>, u64>>,
    problems: MessageCounts,
    /// Requests in all queues together.
    waiting: Gauge,
}

/// A gauge with its maximum and its time-weighted sum.
#[derive(Debug, Clone, Default)]
struct Gauge {
    now: u64,
    since: Duration,
    max: u64,
    /// The integral of the value over time, in microseconds.
    sum_us: u128,
}

impl Gauge {
    /// Sets the value as of `at`. Times that go backwards add nothing to the sum.
    fn set(&mut self, at: Duration, now: u64) {
        self.sum_us += u128::from(self.now) * u128::from(micros(at.saturating_sub(self.since)));
        self.since = self.since.max(at);
        self.now = now;
        self.max = self.max.max(now);
    }

    /// Returns the time-weighted mean over a run of this length.
    fn mean(&self, over: Duration) -> f64 {
        if over.is_zero() { 0.0 } else { self.sum_us as f64 / over.as_micros() as f64 }
    }
}

/// The counters of one lane.
#[derive(Debug)]
struct LaneCounters {
    name: String,
    slots: u32,
    requests: RequestCounters,
    attempts: u64,
    failed_attempts: u64,
    state: EngineState,
    /// When the current phase began, or was last accounted for.
    since: Duration,
    loading_since: Option<Duration>,
    loads: u64,
    load: MeanDuration,
    switches: u64,
    switch: [MeanDuration; 3],
    waiting: Gauge,
    running: Gauge,
    phases_us: [u64; PHASES],
    timeline: Timeline,
}

impl LaneCounters {
    fn new(info: &LaneInfo) -> Self {
        let external = info.engine == EngineKind::External;
        let state = if external { EngineState::Ready } else { EngineState::Cold };
        Self {
            name: info.name.clone(),
            slots: info.slots,
            requests: RequestCounters::default(),
            attempts: 0,
            failed_attempts: 0,
            state,
            since: Duration::ZERO,
            loading_since: None,
            loads: 0,
            load: MeanDuration::default(),
            switches: 0,
            switch: [MeanDuration::default(); 3],
            waiting: Gauge::default(),
            running: Gauge::default(),
            phases_us: [0; PHASES],
            timeline: Timeline::new(Phase::from_state(state, 0)),
        }
    }

    fn phase(&self) -> Phase {
        Phase::from_state(self.state, u32::try_from(self.running.now).unwrap_or(u32::MAX))
    }

    /// Accounts for the time since the last change.
    fn pass(&mut self, index: usize, at: Duration, series: &mut TimeSeries) {
        let (phase, waiting) = (self.phase() as usize, self.waiting.now);
        self.phases_us[phase] += micros(at.saturating_sub(self.since));
        series.between(self.since, at, |interval, us| {
            let lane = &mut interval.lanes[index];
            lane.phases_us[phase] += us;
            lane.waiting_us += u128::from(waiting) * u128::from(us);
            lane.max_waiting = lane.max_waiting.max(waiting);
        });
        self.since = self.since.max(at);
    }

    fn change(&mut self, at: Duration, state: EngineState) {
        if state == EngineState::Starting && self.state != EngineState::Starting {
            self.loads += 1;
            self.loading_since = Some(at);
        }
        if let Some(since) = self.loading_since.filter(|_| state != EngineState::Starting) {
            if state == EngineState::Ready {
                self.load.add(at.saturating_sub(since));
            }
            self.loading_since = None;
        }
        self.state = state;
        self.timeline.change(at, self.phase());
    }

    fn statistics(&self, duration: Duration) -> Named<LaneStatistics> {
        let whole = micros(duration).max(1) as f64;
        let phases = self.phases_us.map(|us| us as f64 / whole);
        let share = |of: &[Phase]| {
            of.iter().map(|phase| self.phases_us[*phase as usize]).sum::<u64>() as f64 / whole
        };
        let [drain, stop, load] = self.switch.map(MeanDuration::mean);
        let value = LaneStatistics {
            requests: self.requests.statistics(),
            attempts: self.attempts,
            failed_attempts: self.failed_attempts,
            loads: self.loads,
            load_mean: self.load.mean(),
            switches: self.switches,
            drain_mean: drain,
            stop_mean: stop,
            switch_load_mean: load,
            phases,
            busy: share(&[Phase::Busy, Phase::Draining]),
            occupied: share(&[
                Phase::Starting,
                Phase::Busy,
                Phase::Idle,
                Phase::Draining,
                Phase::Stopping,
            ]),
            slots_used: self.running.mean(duration) / f64::from(self.slots.max(1)),
            queue_mean: self.waiting.mean(duration),
            queue_max: self.waiting.max,
        };
        Named { name: self.name.clone(), value }
    }
}

impl Collector {
    /// Creates a collector for lanes in the order of their ids, and classes in the order of theirs.
    pub fn new<'a>(lanes: impl IntoIterator<Item = &'a LaneInfo>, classes: &[String]) -> Self {
        let lanes: Vec<LaneCounters> = lanes.into_iter().map(LaneCounters::new).collect();
        Self {
            all: RequestCounters::default(),
            classes: classes
                .iter()
                .map(|name| (name.clone(), RequestCounters::default()))
                .collect(),
            series: TimeSeries::new(classes.len(), lanes.len()),
            lanes,
            tenants: Tenants::default(),
            policies: BTreeMap::new(),
            problems: MessageCounts::default(),
            waiting: Gauge::default(),
        }
    }

    /// Counts a request of this class that arrived at `at`, with the policies that contributed to
    /// its decision.
    pub fn arrived(&mut self, at: Duration, class: usize, policies: &[PolicyRef]) {
        if let Some(class) = self.series.at(at).classes.get_mut(class) {
            class.arrivals += 1;
        }
        for policy in policies {
            let versions = self.policies.entry(Arc::clone(&policy.name)).or_default();
            *versions.entry(Arc::clone(&policy.version)).or_default() += 1;
        }
    }

    /// Counts a request that has ended.
    pub fn ended(&mut self, ended: &EndedRequest<'_>) {
        self.all.add(ended);
        self.tenants.add(ended);
        if let Some((_, counters)) = self.classes.get_mut(ended.class) {
            counters.add(ended);
        }
        for (index, attempt) in ended.attempts.iter().enumerate() {
            let Some(lane) = self.lanes.get_mut(attempt.lane.index()) else { continue };
            lane.attempts += 1;
            lane.failed_attempts += u64::from(attempt.result != AttemptResult::Ok);
            lane.requests.wait.record(attempt.queue);
            if index + 1 == ended.attempts.len() {
                lane.requests.add_without_wait(ended);
            }
        }
        if let Some(problem) = ended.reason {
            self.problems.add(problem);
        }
        if let Some(interval) = self.series.at(ended.at).classes.get_mut(ended.class) {
            interval.count(ended.result);
        }
        let arrivals = self.series.at(ended.arrived_at).classes.get_mut(ended.class);
        if let Some(interval) = arrivals.filter(|_| ended.result != RequestResult::Rejected) {
            interval.waits.record(ended.wait);
        }
    }

    /// Notes the state that an engine has entered.
    pub fn engine(&mut self, at: Duration, lane: LaneId, state: EngineState) {
        let index = lane.index();
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.pass(index, at, &mut self.series);
        lane.change(at, state);
    }

    /// Notes the number of requests that wait for a lane, and that hold its slots.
    pub fn load(&mut self, at: Duration, lane: LaneId, waiting: usize, running: u32) {
        let index = lane.index();
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.pass(index, at, &mut self.series);
        let waiting = waiting as u64;
        self.waiting.set(at, (self.waiting.now + waiting).saturating_sub(lane.waiting.now));
        lane.waiting.set(at, waiting);
        lane.running.set(at, u64::from(running));
        lane.timeline.change(at, lane.phase());
        if let Some(interval) = self.series.at(at).lanes.get_mut(index) {
            interval.max_waiting = interval.max_waiting.max(waiting);
        }
    }

    /// Counts a switch that is complete.
    pub fn switched(&mut self, report: &SwitchReport) {
        // A load that evicts no other engine is not a switch; the host's metrics agree.
        let Some(lane) =
            self.lanes.get_mut(report.target.index()).filter(|_| !report.victims.is_empty())
        else {
            return;
        };
        lane.switches += 1;
        for (sum, part) in lane.switch.iter_mut().zip([report.drain, report.stop, report.load]) {
            sum.add(part);
        }
    }

    /// Finishes the run with this seed, to which `accepted` requests arrived and whose last request
    /// ended at `ended_at`. The calls of policies are not known here.
    pub fn finish(mut self, seed: u64, accepted: u64, ended_at: Duration) -> Run {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            lane.pass(index, ended_at, &mut self.series);
            lane.waiting.set(ended_at, lane.waiting.now);
            lane.running.set(ended_at, lane.running.now);
            lane.timeline.finish(ended_at);
        }
        self.waiting.set(ended_at, self.waiting.now);
        let all = self.all.statistics();
        let tenants = self.tenants.each();
        let promptness: Vec<f64> =
            tenants.iter().filter_map(|tenant| tenant.value.promptness).collect();
        let switches = self.lanes.iter().map(|lane| lane.switches).sum::<u64>();
        let hours = ended_at.as_secs_f64() / 3600.0;
        let summary = Summary {
            seed,
            duration: ended_at,
            accepted,
            lost: i64::try_from(accepted)
                .unwrap_or(i64::MAX)
                .saturating_sub_unsigned(all.requests()),
            all,
            classes: self
                .classes
                .iter()
                .map(|(name, counters)| Named { name: name.clone(), value: counters.statistics() })
                .collect(),
            lanes: self.lanes.iter().map(|lane| lane.statistics(ended_at)).collect(),
            fairness: fairness::jain(&promptness),
            tenants,
            other_tenants: self.tenants.others(),
            loads: self.lanes.iter().map(|lane| lane.loads).sum(),
            switches,
            switches_per_hour: if hours > 0.0 { switches as f64 / hours } else { 0.0 },
            queue_max: self.waiting.max,
            queue_mean: self.waiting.mean(ended_at),
            policies: by_count(self.policies),
            problems: self.problems.most_common(),
            policy_calls: Vec::new(),
            warnings: Vec::new(),
        };
        let histograms = |counters: RequestCounters| LatencyHistograms {
            wait: counters.wait,
            first_byte: counters.first_byte,
        };
        Run {
            summary,
            histograms: self
                .classes
                .into_iter()
                .map(|(_, counters)| histograms(counters))
                .collect(),
            series: self.series,
            timelines: self.lanes.into_iter().map(|lane| lane.timeline).collect(),
        }
    }
}

fn by_count(policies: BTreeMap<Arc<str>, BTreeMap<Arc<str>, u64>>) -> Vec<EventCount> {
    let versions = policies.into_iter().flat_map(|(name, versions)| {
        versions
            .into_iter()
            .map(move |(version, count)| EventCount { name: format!("{name}@{version}"), count })
    });
    let mut all: Vec<_> = versions.collect();
    all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
    all
}

#[cfg(test)]
mod tests;
