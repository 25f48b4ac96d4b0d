//! The simulation loop: arriving requests, simulated engines, and the host's own code in between.
//!
//! A step advances to the next time at which anything happens, and processes everything that is due
//! in a fixed order: injected faults, engine progress, timeouts, arrivals, policy hooks, and the
//! dispatcher's tick. All effects of one of these are applied before the next one begins.

mod arrivals;
mod attempts;
mod faults;
mod in_flight;
mod outcomes;
mod prefixes;
mod serve;
mod supervisor;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{Dispatcher, Effect, Event};
use pointsman_domain::{EngineState, FleetView, LaneId, PrefixIndex, Topology};

use self::arrivals::FollowUp;
use self::faults::FaultInjector;
use self::in_flight::InFlight;
use self::outcomes::OutcomeQueue;
use self::supervisor::{EngineSignal, Supervisor};
use crate::advisor::SimAdvisor;
use crate::engine::RequestKey;
use crate::fault::InjectedFault;
use crate::fleet::Fleet;
use crate::observe::Observer;
use crate::request::RequestWriter;
use crate::traffic::{SimRequest, Traffic};

/// The configuration of a run, without its traffic and its advisor.
#[derive(Debug, Clone, Copy)]
pub struct RunConfig<'a> {
    /// The lanes and the rules of the host.
    pub fleet: &'a Fleet,
    /// The faults to inject.
    pub faults: &'a [InjectedFault],
    /// The wall clock at time zero, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// The seed of all random numbers that do not belong to the traffic.
    pub seed: u64,
}

/// Request counts of a run. After a run, every accepted request has ended in exactly one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Requests that arrived.
    pub accepted: u64,
    /// Requests that the first lane of their plan served.
    pub answered: u64,
    /// Requests that a fallback lane served.
    pub fell_back: u64,
    /// Requests that a policy rejected.
    pub rejected: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// Requests whose clients disconnected.
    pub client_gone: u64,
    /// When the last request ended.
    pub ended_at: Duration,
    /// The maximum number of in-flight requests.
    pub max_in_flight: usize,
    /// The number of steps of the simulation.
    pub steps: u64,
}

impl Totals {
    /// Returns the number of requests that have ended.
    pub fn ended(&self) -> u64 {
        self.answered + self.fell_back + self.rejected + self.errors + self.client_gone
    }

    /// Returns the number of requests that have not ended.
    pub fn in_flight(&self) -> u64 {
        self.accepted - self.ended()
    }
}

/// Runs a simulation until the traffic is exhausted and every request has ended.
pub fn run(
    config: &RunConfig<'_>,
    advisor: &mut dyn SimAdvisor,
    traffic: &mut dyn Traffic,
    observer: &mut dyn Observer,
) -> Totals {
    let mut world = World::new(config, advisor, traffic, observer);
    world.start();
    while let Some(next) = world.next_step() {
        world.advance_to(next);
    }
    world.report_outcomes();
    world.totals
}

/// The state of a lane that was last reported to the observer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct ReportedLane {
    engine: EngineState,
    /// Waiting and running requests.
    load: (usize, u32),
}

struct World<'a> {
    config: &'a RunConfig<'a>,
    advisor: &'a mut dyn SimAdvisor,
    traffic: &'a mut dyn Traffic,
    observer: &'a mut dyn Observer,
    topology: Arc<Topology>,
    now: Duration,
    dispatcher: Dispatcher,
    /// A buffer for the dispatcher's output, kept for its allocation.
    new_effects: Vec<Effect>,
    effects: VecDeque<Effect>,
    supervisors: Vec<Supervisor>,
    faults: FaultInjector<'a>,
    in_flight: InFlight,
    /// The times at which clients disconnect or the first-byte timeout of an attempt expires.
    timers: BTreeSet<(Duration, RequestKey)>,
    /// The next request that does not depend on others.
    next_request: Option<SimRequest>,
    follow_ups: BinaryHeap<Reverse<FollowUp>>,
    follow_up_sequence: u64,
    outcomes: OutcomeQueue,
    writer: RequestWriter,
    /// When the dispatcher last received an event.
    changed_at: Duration,
    /// The fleet view, and the time whose state it shows. Dropped when the dispatcher changes.
    view: Option<(Duration, Arc<FleetView>)>,
    /// The prompts that the lanes have served, as the host knows them.
    prefixes: PrefixIndex,
    /// The number of requests that wait for each lane.
    waiting: Vec<usize>,
    reported: Vec<ReportedLane>,
    totals: Totals,
}

impl<'a> World<'a> {
    fn new(
        config: &'a RunConfig<'a>,
        advisor: &'a mut dyn SimAdvisor,
        traffic: &'a mut dyn Traffic,
        observer: &'a mut dyn Observer,
    ) -> Self {
        let RunConfig { fleet, faults, seed, .. } = *config;
        let setups = fleet.lanes.iter().map(|lane| lane.setup.clone()).collect();
        let next_request = traffic.next();
        Self {
            config,
            advisor,
            traffic,
            observer,
            topology: fleet.topology(),
            now: Duration::ZERO,
            dispatcher: Dispatcher::new(setups, &fleet.groups, fleet.rules),
            new_effects: Vec::new(),
            effects: VecDeque::new(),
            supervisors: fleet.lanes.iter().map(|lane| Supervisor::new(lane, seed)).collect(),
            faults: FaultInjector::new(faults, seed),
            in_flight: InFlight::default(),
            timers: BTreeSet::new(),
            next_request,
            follow_ups: BinaryHeap::new(),
            follow_up_sequence: 0,
            outcomes: OutcomeQueue::default(),
            writer: RequestWriter::new(),
            changed_at: Duration::ZERO,
            view: None,
            prefixes: PrefixIndex::new(fleet.lanes.len()),
            waiting: vec![0; fleet.lanes.len()],
            reported: vec![ReportedLane::default(); fleet.lanes.len()],
            totals: Totals::default(),
        }
    }

    /// Starts the host: the first tick may preload lanes, and external engines are ready.
    fn start(&mut self) {
        self.advisor.set_now(self.now);
        self.dispatch(Event::Tick);
        for lane in self.lanes() {
            let mut signals = Vec::new();
            self.supervisors[lane.index()].start(&mut signals);
            self.handle_signals(lane, signals);
        }
        self.apply_effects();
    }

    fn lanes(&self) -> impl Iterator<Item = LaneId> + use<> {
        (0u32..).map(LaneId).take(self.supervisors.len())
    }

    /// Returns the time of the next step, or `None` if all requests have ended and none will
    /// arrive.
    fn next_step(&self) -> Option<Duration> {
        let arrival = self.next_arrival();
        if arrival.is_none() && self.in_flight.is_empty() {
            return None;
        }
        let engines = self.supervisors.iter().filter_map(Supervisor::next_event).min();
        let timer = self.timers.first().map(|(at, _)| *at);
        let hooks = self.outcomes.next_check(self.advisor.next_tick());
        // The dispatcher may ask for any nanosecond; everything else is in microseconds. At least
        // one microsecond keeps time moving.
        let wake =
            self.dispatcher.next_wake().map(|wake| ceil_micros(wake).max(self.now + MICROSECOND));
        let fault = self.faults.next();
        [arrival, engines, timer, hooks, wake, fault].into_iter().flatten().min()
    }

    /// Processes everything that is due at this time.
    fn advance_to(&mut self, time: Duration) {
        self.now = time.max(self.now);
        self.totals.steps += 1;
        self.advisor.set_now(self.now);
        while let Some(fault) = self.faults.pop_due(self.now) {
            for lane in &fault.lanes {
                let mut signals = Vec::new();
                if let Some(supervisor) = self.supervisors.get_mut(lane.index()) {
                    supervisor.inject(&fault.kind, self.now, &mut signals);
                }
                self.handle_signals(*lane, signals);
            }
            self.apply_effects();
        }
        for lane in self.lanes() {
            let next = self.supervisors[lane.index()].next_event();
            if next.is_some_and(|next| next <= self.now) {
                let mut signals = Vec::new();
                self.supervisors[lane.index()].advance(self.now, &mut signals);
                self.handle_signals(lane, signals);
                self.apply_effects();
            }
        }
        while let Some((at, key)) = self.timers.first().copied()
            && at <= self.now
        {
            self.timers.remove(&(at, key));
            self.on_timer(key);
            self.apply_effects();
        }
        while let Some(request) = self.pop_arrival() {
            self.serve(request);
            self.apply_effects();
        }
        let check = self.outcomes.next_check(self.advisor.next_tick());
        if check.is_some_and(|due| due <= self.now) {
            self.report_outcomes();
            self.run_tick_hook();
            self.apply_effects();
        }
        // As in the host, one tick follows all events that came at the same time.
        self.dispatch(Event::Tick);
        self.apply_effects();
    }

    fn handle_signals(&mut self, lane: LaneId, signals: Vec<EngineSignal>) {
        for signal in signals {
            match signal {
                EngineSignal::Progress(progress) => self.on_progress(progress),
                EngineSignal::Disconnected(requests) => {
                    for (key, usage) in requests {
                        self.on_disconnected(key, usage);
                    }
                }
                EngineSignal::Event(event) => {
                    let capacity = self.config.fleet.lanes[lane.index()].engine.kv_tokens;
                    self.prefixes.reset(lane, capacity);
                    self.dispatch(Event::Engine { lane, news: event });
                }
            }
        }
    }

    /// Sends an event to the dispatcher, and queues the resulting effects.
    fn dispatch(&mut self, event: Event) {
        self.changed_at = self.now;
        self.view = None;
        self.dispatcher.on(event, self.now, &mut self.new_effects);
        self.effects.extend(self.new_effects.drain(..));
    }

    /// Applies all queued effects, including those that they cause, and reports the changes to the
    /// observer.
    fn apply_effects(&mut self) {
        while let Some(effect) = self.effects.pop_front() {
            self.apply(effect);
        }
        self.report_lane_changes();
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Grant { ticket, lane, generation, flow, .. } => {
                self.on_granted(ticket, lane, (generation, flow))
            }
            Effect::Reject { ticket, refusal } => self.on_acquire_failed(ticket, &refusal),
            Effect::Load(lane) => self.supervisors[lane.index()].load(self.now),
            Effect::Unload { lane, .. } => self.supervisors[lane.index()].unload(self.now),
            Effect::Abort { lane, generation } => {
                for key in self.in_flight.leased(lane, generation) {
                    self.abort(key);
                }
            }
            Effect::Switched(report) => self.observer.switched(self.now, &report),
        }
    }

    /// Returns the fleet view as the host would show it: with the state after the last event or the
    /// last scrape, whichever is later.
    fn fleet_view(&mut self) -> Arc<FleetView> {
        let scrapes =
            self.supervisors.iter().filter_map(|supervisor| supervisor.last_scrape(self.now));
        let at = scrapes.max().map_or(self.changed_at, |scrape| scrape.max(self.changed_at));
        if let Some((made_at, view)) = &self.view
            && *made_at == at
        {
            return Arc::clone(view);
        }
        let mut stats = self.dispatcher.stats(at);
        for (stat, supervisor) in stats.iter_mut().zip(&mut self.supervisors) {
            if let Some(metrics) = supervisor.metrics(self.now) {
                (stat.waiting, stat.kv_used, stat.decode_tps) =
                    (metrics.waiting, metrics.kv_used, metrics.decode_tps);
                stat.stale_ms = metrics.age_ms(at);
            }
        }
        let view = Arc::new(FleetView::new(Arc::clone(&self.topology), stats));
        self.view = Some((at, Arc::clone(&view)));
        view
    }

    /// Reports lanes whose engine state or load has changed to the observer.
    fn report_lane_changes(&mut self) {
        for (lane, reported) in (0u32..).map(LaneId).zip(&mut self.reported) {
            let engine = self.dispatcher.engine_state(lane).unwrap_or_default();
            if engine != reported.engine {
                reported.engine = engine;
                self.observer.engine(self.now, lane, engine);
            }
            let load = (self.waiting[lane.index()], self.dispatcher.running(lane));
            if load != reported.load {
                reported.load = load;
                self.observer.load(self.now, lane, load.0, load.1);
            }
        }
    }

    /// Returns the wall clock in milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64 {
        let since_start = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        self.config.start_ms.saturating_add(since_start)
    }

    /// Reports the outcomes of requests that have ended to the policies.
    fn report_outcomes(&mut self) {
        let outcomes = self.outcomes.take(self.now);
        if !outcomes.is_empty() {
            let (fleet, now_ms) = (self.fleet_view(), self.now_ms());
            self.advisor.observe(&fleet, now_ms, &outcomes);
        }
    }

    /// Runs the tick hook of the policies if it is due, and sends their hints to the dispatcher.
    fn run_tick_hook(&mut self) {
        if self.advisor.next_tick().is_some_and(|tick| tick <= self.now) {
            let (fleet, now_ms) = (self.fleet_view(), self.now_ms());
            for hint in self.advisor.tick(&fleet, self.now, now_ms) {
                let until = self.now.saturating_add(hint.duration);
                self.dispatch(Event::Hinted { lane: hint.lane, hint: hint.hint, until });
            }
        }
    }
}

const MICROSECOND: Duration = Duration::from_micros(1);

/// Rounds a time up to whole microseconds.
fn ceil_micros(time: Duration) -> Duration {
    match time.subsec_nanos() % 1000 {
        0 => time,
        rest => time.saturating_add(Duration::from_nanos(u64::from(1000 - rest))),
    }
}

#[cfg(test)]
mod tests;
