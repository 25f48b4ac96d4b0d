//! What is counted while a simulation runs, in memory that does not grow with its length.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::SwitchReport;
use pointsman_domain::{AttemptResult, EngineKind, EngineState, LaneId, LaneInfo, PolicyRef};

use super::fairness;
use super::phase::{PHASES, Phase, Timeline};
use super::series::{Series, micros};
use super::summary::{Counted, LaneFigures, Named, Summary};
use super::tally::{Sentences, Sum, Tally, Tenants};
use crate::histogram::Histogram;
use crate::observe::{FinishedRequest, Observer, RequestResult};
use crate::traffic::SimRequest;

/// Counts what a run shows of itself.
#[derive(Debug)]
pub struct Collector {
    all: Tally,
    classes: Vec<(String, Tally)>,
    lanes: Vec<LaneTally>,
    tenants: Tenants,
    series: Series,
    policies: BTreeMap<Arc<str>, BTreeMap<Arc<str>, u64>>,
    problems: Sentences,
    /// Requests in all queues, how long it has been so many, and what came of it.
    waiting: Level,
}

/// What came of one run: figures, and what plots are made of.
#[derive(Debug, Clone)]
pub struct Run {
    /// The figures.
    pub summary: Summary,
    /// How waits and times to the first byte are distributed, by class.
    pub distributions: Vec<Distribution>,
    /// What happened over time.
    pub series: Series,
    /// What each lane was at, and when.
    pub timelines: Vec<Timeline>,
}

/// How the times of one class are distributed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distribution {
    /// Waits of all that no policy refused.
    pub wait: Histogram,
    /// Times to the first byte of all that got one.
    pub first_byte: Histogram,
}

/// A number that changes from time to time.
#[derive(Debug, Clone, Default)]
struct Level {
    now: u64,
    since: Duration,
    most: u64,
    /// The number, times how long it was that, in microseconds.
    sum_us: u128,
}

impl Level {
    fn set(&mut self, at: Duration, now: u64) {
        self.sum_us += u128::from(self.now) * u128::from(micros(at.saturating_sub(self.since)));
        self.since = self.since.max(at);
        self.now = now;
        self.most = self.most.max(now);
    }

    /// On average over this time.
    fn mean(&self, over: Duration) -> f64 {
        if over.is_zero() { 0.0 } else { self.sum_us as f64 / over.as_micros() as f64 }
    }
}

/// What is counted of one lane.
#[derive(Debug)]
struct LaneTally {
    name: String,
    slots: u32,
    requests: Tally,
    tries: u64,
    failed_tries: u64,
    state: EngineState,
    /// When it got into its phase.
    since: Duration,
    loading_since: Option<Duration>,
    loads: u64,
    load: Sum,
    switches: u64,
    switch: [Sum; 3],
    waiting: Level,
    running: Level,
    phases_us: [u64; PHASES],
    timeline: Timeline,
}

impl LaneTally {
    fn new(info: &LaneInfo) -> Self {
        let external = info.engine == EngineKind::External;
        let state = if external { EngineState::Ready } else { EngineState::Cold };
        Self {
            name: info.name.clone(),
            slots: info.slots,
            requests: Tally::default(),
            tries: 0,
            failed_tries: 0,
            state,
            since: Duration::ZERO,
            loading_since: None,
            loads: 0,
            load: Sum::default(),
            switches: 0,
            switch: [Sum::default(); 3],
            waiting: Level::default(),
            running: Level::default(),
            phases_us: [0; PHASES],
            timeline: Timeline::new(Phase::of(state, 0)),
        }
    }

    fn phase(&self) -> Phase {
        Phase::of(self.state, u32::try_from(self.running.now).unwrap_or(u32::MAX))
    }

    /// Accounts for the time since the last change.
    fn pass(&mut self, index: usize, at: Duration, series: &mut Series) {
        let (phase, waiting, running) = (self.phase() as usize, self.waiting.now, self.running.now);
        self.phases_us[phase] += micros(at.saturating_sub(self.since));
        series.between(self.since, at, |piece, us| {
            let lane = &mut piece.lanes[index];
            lane.phases_us[phase] += us;
            lane.waiting_us += u128::from(waiting) * u128::from(us);
            lane.running_us += u128::from(running) * u128::from(us);
            lane.most_waiting = lane.most_waiting.max(waiting);
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

    fn figures(&self, lasted: Duration) -> Named<LaneFigures> {
        let whole = micros(lasted).max(1) as f64;
        let phases = self.phases_us.map(|us| us as f64 / whole);
        let share = |of: &[Phase]| {
            of.iter().map(|phase| self.phases_us[*phase as usize]).sum::<u64>() as f64 / whole
        };
        let [drain, stop, load] = self.switch.map(Sum::mean);
        let of = LaneFigures {
            requests: self.requests.figures(),
            tries: self.tries,
            failed_tries: self.failed_tries,
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
            slots_used: self.running.mean(lasted) / f64::from(self.slots.max(1)),
            queue_mean: self.waiting.mean(lasted),
            queue_max: self.waiting.most,
        };
        Named { name: self.name.clone(), of }
    }
}

impl Collector {
    /// For these lanes, in the order of their ids, and these classes, in the order of theirs.
    pub fn new<'a>(lanes: impl IntoIterator<Item = &'a LaneInfo>, classes: &[String]) -> Self {
        let lanes: Vec<LaneTally> = lanes.into_iter().map(LaneTally::new).collect();
        Self {
            all: Tally::default(),
            classes: classes.iter().map(|name| (name.clone(), Tally::default())).collect(),
            series: Series::new(classes.len(), lanes.len()),
            lanes,
            tenants: Tenants::default(),
            policies: BTreeMap::new(),
            problems: Sentences::default(),
            waiting: Level::default(),
        }
    }

    /// The run with this seed is over: so many requests came in, and the last one ended at this time.
    pub fn finish(mut self, seed: u64, accepted: u64, ended_at: Duration) -> Run {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            lane.pass(index, ended_at, &mut self.series);
            lane.waiting.set(ended_at, lane.waiting.now);
            lane.running.set(ended_at, lane.running.now);
            lane.timeline.finish(ended_at);
        }
        self.waiting.set(ended_at, self.waiting.now);
        let all = self.all.figures();
        let tenants = self.tenants.each();
        let promptness: Vec<f64> =
            tenants.iter().filter_map(|tenant| tenant.of.promptness).collect();
        let switches = self.lanes.iter().map(|lane| lane.switches).sum::<u64>();
        let hours = ended_at.as_secs_f64() / 3600.0;
        let summary = Summary {
            seed,
            lasted: ended_at,
            accepted,
            lost: i64::try_from(accepted)
                .unwrap_or(i64::MAX)
                .saturating_sub_unsigned(all.requests()),
            all,
            classes: self
                .classes
                .iter()
                .map(|(name, tally)| Named { name: name.clone(), of: tally.figures() })
                .collect(),
            lanes: self.lanes.iter().map(|lane| lane.figures(ended_at)).collect(),
            fairness: fairness::jain(&promptness),
            tenants,
            other_tenants: self.tenants.others(),
            loads: self.lanes.iter().map(|lane| lane.loads).sum(),
            switches,
            switches_per_hour: if hours > 0.0 { switches as f64 / hours } else { 0.0 },
            queue_max: self.waiting.most,
            queue_mean: self.waiting.mean(ended_at),
            policies: busiest(self.policies),
            problems: self.problems.commonest(),
        };
        let distribution =
            |tally: Tally| Distribution { wait: tally.wait, first_byte: tally.first_byte };
        Run {
            summary,
            distributions: self.classes.into_iter().map(|(_, tally)| distribution(tally)).collect(),
            series: self.series,
            timelines: self.lanes.into_iter().map(|lane| lane.timeline).collect(),
        }
    }
}

fn busiest(policies: BTreeMap<Arc<str>, BTreeMap<Arc<str>, u64>>) -> Vec<Counted> {
    let versions = policies.into_iter().flat_map(|(name, versions)| {
        versions
            .into_iter()
            .map(move |(version, count)| Counted { what: format!("{name}@{version}"), count })
    });
    let mut all: Vec<_> = versions.collect();
    all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.what.cmp(&b.what)));
    all
}

impl Observer for Collector {
    fn decided(&mut self, ask: &SimRequest, _first: Option<LaneId>, by: &[PolicyRef]) {
        if let Some(class) = self.series.at(ask.at).classes.get_mut(usize::from(ask.class.0)) {
            class.came += 1;
        }
        for policy in by {
            let versions = self.policies.entry(Arc::clone(&policy.name)).or_default();
            *versions.entry(Arc::clone(&policy.version)).or_default() += 1;
        }
    }

    fn ended(&mut self, ended: &FinishedRequest<'_>) {
        let class = usize::from(ended.request.class.0);
        self.all.add(ended);
        self.tenants.add(ended);
        if let Some((_, tally)) = self.classes.get_mut(class) {
            tally.add(ended);
        }
        for (index, tried) in ended.attempts.iter().enumerate() {
            let Some(lane) = self.lanes.get_mut(tried.lane.index()) else { continue };
            lane.tries += 1;
            lane.failed_tries += u64::from(tried.result != AttemptResult::Ok);
            lane.requests.wait.record(tried.queue);
            if index + 1 == ended.attempts.len() {
                lane.requests.add_all_but_wait(ended);
            }
        }
        if let Some(problem) = ended.reason {
            self.problems.add(problem);
        }
        if let Some(piece) = self.series.at(ended.at).classes.get_mut(class) {
            piece.count(ended.result);
        }
        let came = self.series.at(ended.request.at).classes.get_mut(class);
        if let Some(piece) = came.filter(|_| ended.result != RequestResult::Rejected) {
            piece.waits.record(ended.wait);
        }
    }

    fn engine(&mut self, at: Duration, lane: LaneId, state: EngineState) {
        let index = lane.index();
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.pass(index, at, &mut self.series);
        lane.change(at, state);
    }

    fn load(&mut self, at: Duration, lane: LaneId, waiting: usize, running: u32) {
        let index = lane.index();
        let Some(lane) = self.lanes.get_mut(index) else { return };
        lane.pass(index, at, &mut self.series);
        let waiting = waiting as u64;
        self.waiting.set(at, (self.waiting.now + waiting).saturating_sub(lane.waiting.now));
        lane.waiting.set(at, waiting);
        lane.running.set(at, u64::from(running));
        lane.timeline.change(at, lane.phase());
        if let Some(piece) = self.series.at(at).lanes.get_mut(index) {
            piece.most_waiting = piece.most_waiting.max(waiting);
        }
    }

    fn switched(&mut self, _: Duration, report: &SwitchReport) {
        // A load that nobody had to leave for is no switch, as in the host's metrics.
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
}
