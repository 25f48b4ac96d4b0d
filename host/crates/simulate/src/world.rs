//! The simulation: requests that come, engines that work, and between them the host's own pipeline.
//!
//! One step goes to the next time at which anything happens, and does all of it, always in the same order: what goes wrong,
//! what engines have done, whose time is up, who comes, what is learned, and what the dispatcher does by itself. After each
//! of these everything that follows from it has been done before the next one begins.

mod attempts;
mod faults;
mod in_flight;
mod outcomes;
mod serve;
mod supervisor;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{Dispatcher, Effect, Event};
use pointsman_domain::{EngineState, FleetView, LaneId, Topology};

use self::faults::Troubles;
use self::in_flight::Crowd;
use self::outcomes::Lessons;
use self::supervisor::{Said, Supervisor};
use crate::advisor::Deciders;
use crate::engine::Key;
use crate::fault::Failure;
use crate::fleet::Fleet;
use crate::observe::Observer;
use crate::request::Writer;
use crate::traffic::{Ask, Traffic};

/// What a run is about, beside who asks and who decides.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The lanes, and the rules of the host.
    pub fleet: &'a Fleet,
    /// What goes wrong.
    pub failures: &'a [Failure],
    /// The wall clock that policies see at time 0, in milliseconds since the Unix epoch.
    pub begins_ms: u64,
    /// Another seed is another day of the same kind.
    pub seed: u64,
}

/// Requests, counted. After a run, each that was accepted has ended in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Books {
    /// Requests that came.
    pub accepted: u64,
    /// Those that the lane answered which was tried first.
    pub answered: u64,
    /// Those that another one answered.
    pub fell_back: u64,
    /// Those that a policy refused.
    pub rejected: u64,
    /// Those that got an explicit error.
    pub errors: u64,
    /// Those whose clients left.
    pub client_gone: u64,
    /// When the last one ended.
    pub ended_at: Duration,
    /// Most requests that were live at a time.
    pub most_live: usize,
    /// Moments at which something happened.
    pub moments: u64,
}

impl Books {
    /// Those that have ended.
    pub fn ended(&self) -> u64 {
        self.answered + self.fell_back + self.rejected + self.errors + self.client_gone
    }

    /// Those that have not.
    pub fn live(&self) -> u64 {
        self.accepted - self.ended()
    }
}

/// Let all requests come that there are, and see each of them to its end.
pub fn run(
    setting: &Setting<'_>,
    deciders: &mut dyn Deciders,
    traffic: &mut dyn Traffic,
    observer: &mut dyn Observer,
) -> Books {
    let mut world = World::new(setting, deciders, traffic, observer);
    world.begin();
    while let Some(next) = world.next() {
        world.go_to(next);
    }
    world.learn();
    world.books
}

/// A request that is asked because another one has ended; earlier ones first, and those of one time in the order in which
/// they became known.
struct Later(Duration, u64, Ask);

impl Later {
    fn key(&self) -> (Duration, u64) {
        (self.0, self.1)
    }
}

impl PartialEq for Later {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Later {}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Later {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

/// What was last told of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Noted {
    engine: EngineState,
    load: (usize, u32),
}

struct World<'a> {
    setting: &'a Setting<'a>,
    deciders: &'a mut dyn Deciders,
    traffic: &'a mut dyn Traffic,
    observer: &'a mut dyn Observer,
    topology: Arc<Topology>,
    now: Duration,
    dispatcher: Dispatcher,
    fresh: Vec<Effect>,
    effects: VecDeque<Effect>,
    supervisors: Vec<Supervisor>,
    troubles: Troubles<'a>,
    crowd: Crowd,
    /// When something becomes of requests by itself: a time is up, or a client leaves.
    limits: BTreeSet<(Duration, Key)>,
    /// The request that comes next, whatever becomes of others.
    coming: Option<Ask>,
    later: BinaryHeap<Reverse<Later>>,
    laters: u64,
    lessons: Lessons,
    writer: Writer,
    /// When the dispatcher heard of something last, and the view that was made after that.
    changed: Duration,
    view: Option<(Duration, Arc<FleetView>)>,
    /// Who waits for each lane.
    waiting: Vec<usize>,
    noted: Vec<Noted>,
    books: Books,
}

impl<'a> World<'a> {
    fn new(
        setting: &'a Setting<'a>,
        deciders: &'a mut dyn Deciders,
        traffic: &'a mut dyn Traffic,
        observer: &'a mut dyn Observer,
    ) -> Self {
        let Setting { fleet, failures, seed, .. } = *setting;
        let setups = fleet.lanes.iter().map(|lane| lane.setup.clone()).collect();
        let coming = traffic.next();
        Self {
            setting,
            deciders,
            traffic,
            observer,
            topology: fleet.topology(),
            now: Duration::ZERO,
            dispatcher: Dispatcher::new(setups, &fleet.groups, fleet.rules),
            fresh: Vec::new(),
            effects: VecDeque::new(),
            supervisors: fleet.lanes.iter().map(|lane| Supervisor::new(lane, seed)).collect(),
            troubles: Troubles::new(failures, seed),
            crowd: Crowd::default(),
            limits: BTreeSet::new(),
            coming,
            later: BinaryHeap::new(),
            laters: 0,
            lessons: Lessons::default(),
            writer: Writer::new(),
            changed: Duration::ZERO,
            view: None,
            waiting: vec![0; fleet.lanes.len()],
            noted: vec![Noted::default(); fleet.lanes.len()],
            books: Books::default(),
        }
    }

    /// The host starts.
    fn begin(&mut self) {
        self.deciders.now(self.now);
        self.tell(Event::Tick);
        for lane in self.lanes() {
            let mut said = Vec::new();
            self.supervisors[lane.index()].begin(&mut said);
            self.hear(lane, said);
        }
        self.settle();
    }

    fn lanes(&self) -> impl Iterator<Item = LaneId> + use<> {
        (0u32..).map(LaneId).take(self.supervisors.len())
    }

    /// When anything happens next; `None` when all requests have ended and none will come.
    fn next(&self) -> Option<Duration> {
        let comes = self.next_arrival();
        if comes.is_none() && self.crowd.is_empty() {
            return None;
        }
        let engines = self.supervisors.iter().filter_map(Supervisor::next).min();
        let limit = self.limits.first().map(|(at, _)| *at);
        let learns = self.lessons.next(self.deciders.next_tick());
        // The dispatcher may want to be woken at any nanosecond; everything here is in microseconds.
        let wake =
            self.dispatcher.next_wake().map(|wake| whole_micros(wake).max(self.now + MICROSECOND));
        [comes, engines, limit, learns, wake, self.troubles.next()].into_iter().flatten().min()
    }

    fn next_arrival(&self) -> Option<Duration> {
        let coming = self.coming.as_ref().map(|ask| ask.at);
        let later = self.later.peek().map(|Reverse(later)| later.0);
        coming.into_iter().chain(later).min()
    }

    /// Everything that happens at this time.
    fn go_to(&mut self, time: Duration) {
        self.now = time.max(self.now);
        self.books.moments += 1;
        self.deciders.now(self.now);
        while let Some(failure) = self.troubles.due(self.now) {
            for lane in &failure.lanes {
                let mut said = Vec::new();
                if let Some(supervisor) = self.supervisors.get_mut(lane.index()) {
                    supervisor.suffer(&failure.what, self.now, &mut said);
                }
                self.hear(*lane, said);
            }
            self.settle();
        }
        for lane in self.lanes() {
            if self.supervisors[lane.index()].next().is_some_and(|next| next <= self.now) {
                let mut said = Vec::new();
                self.supervisors[lane.index()].go_on(self.now, &mut said);
                self.hear(lane, said);
                self.settle();
            }
        }
        while let Some((at, key)) = self.limits.first().copied()
            && at <= self.now
        {
            self.limits.remove(&(at, key));
            self.time_is_up(key);
            self.settle();
        }
        while let Some(ask) = self.arrival() {
            self.comes(ask);
            self.settle();
        }
        if self.lessons.next(self.deciders.next_tick()).is_some_and(|due| due <= self.now) {
            self.learn();
            self.hint();
            self.settle();
        }
        // As the host does it after all that has come at once.
        self.tell(Event::Tick);
        self.settle();
    }

    /// Somebody who comes now.
    fn arrival(&mut self) -> Option<Ask> {
        let later = self.later.peek().map(|Reverse(later)| later.0);
        let coming = self.coming.as_ref().map(|ask| ask.at);
        if self.next_arrival().is_none_or(|at| at > self.now) {
            return None;
        }
        if coming.is_some_and(|coming| later.is_none_or(|later| coming <= later)) {
            let next = self.traffic.next();
            std::mem::replace(&mut self.coming, next)
        } else {
            self.later.pop().map(|Reverse(Later(_, _, ask))| ask)
        }
    }

    /// Somebody will come at this time.
    fn later(&mut self, ask: Ask) {
        self.laters += 1;
        self.later.push(Reverse(Later(ask.at.max(self.now), self.laters, ask)));
    }

    /// What an engine said.
    fn hear(&mut self, lane: LaneId, said: Vec<Said>) {
        for said in said {
            match said {
                Said::Progress(progress) => self.progress(progress),
                Said::Broken(broken) => {
                    broken.into_iter().for_each(|(key, used)| self.breaks(key, used));
                }
                Said::News(news) => self.tell(Event::Engine { lane, news }),
            }
        }
    }

    fn tell(&mut self, event: Event) {
        self.changed = self.now;
        self.view = None;
        self.dispatcher.on(event, self.now, &mut self.fresh);
        self.effects.extend(self.fresh.drain(..));
    }

    /// Do all that the dispatcher wants done, and whatever follows from that.
    fn settle(&mut self) {
        while let Some(effect) = self.effects.pop_front() {
            self.carry_out(effect);
        }
        self.note();
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Grant { ticket, lane, generation, .. } => {
                self.granted(ticket, lane, generation)
            }
            Effect::Reject { ticket, refusal } => self.refused(ticket, &refusal),
            Effect::Load(lane) => self.supervisors[lane.index()].load(self.now),
            Effect::Unload { lane, .. } => self.supervisors[lane.index()].unload(self.now),
            Effect::Abort { lane, generation } => {
                for key in self.crowd.leased(lane, generation) {
                    self.cut(key);
                }
            }
            Effect::Switched(report) => self.observer.switched(self.now, &report),
        }
    }

    /// The lanes as the host would show them: as they were when something happened last, or an engine was looked at.
    fn view(&mut self) -> Arc<FleetView> {
        let looks = self.supervisors.iter().filter_map(|supervisor| supervisor.looked_at(self.now));
        let at = looks.max().map_or(self.changed, |look| look.max(self.changed));
        if let Some((made, view)) = &self.view
            && *made == at
        {
            return Arc::clone(view);
        }
        let mut stats = self.dispatcher.stats(at);
        for (stat, supervisor) in stats.iter_mut().zip(&mut self.supervisors) {
            if let Some(told) = supervisor.told(self.now) {
                (stat.waiting, stat.kv_used, stat.decode_tps) =
                    (told.waiting, told.kv_used, told.decode_tps);
                stat.stale_ms = told.stale(at);
            }
        }
        let view = Arc::new(FleetView { topology: Arc::clone(&self.topology), stats });
        self.view = Some((at, Arc::clone(&view)));
        view
    }

    /// Tell the observer what has changed.
    fn note(&mut self) {
        for (lane, noted) in (0u32..).map(LaneId).zip(&mut self.noted) {
            let engine = self.dispatcher.engine_state(lane).unwrap_or_default();
            if engine != noted.engine {
                noted.engine = engine;
                self.observer.engine(self.now, lane, engine);
            }
            let load = (self.waiting[lane.index()], self.dispatcher.running(lane));
            if load != noted.load {
                noted.load = load;
                self.observer.load(self.now, lane, load.0, load.1);
            }
        }
    }

    fn now_ms(&self) -> u64 {
        let since = u64::try_from(self.now.as_millis()).unwrap_or(u64::MAX);
        self.setting.begins_ms.saturating_add(since)
    }

    /// Let the policies learn from what has ended.
    fn learn(&mut self) {
        let ended = self.lessons.beats(self.now);
        if !ended.is_empty() {
            let (fleet, now_ms) = (self.view(), self.now_ms());
            self.deciders.learn(&fleet, now_ms, &ended);
        }
    }

    /// Ask the policies for wishes, if it is time.
    fn hint(&mut self) {
        if self.deciders.next_tick().is_some_and(|tick| tick <= self.now) {
            let (fleet, now_ms) = (self.view(), self.now_ms());
            for wished in self.deciders.tick(&fleet, self.now, now_ms) {
                let until = self.now.saturating_add(wished.lasts);
                self.tell(Event::Hinted { lane: wished.lane, hint: wished.hint, until });
            }
        }
    }
}

const MICROSECOND: Duration = Duration::from_micros(1);

fn whole_micros(time: Duration) -> Duration {
    match time.subsec_nanos() % 1000 {
        0 => time,
        rest => time.saturating_add(Duration::from_nanos(u64::from(1000 - rest))),
    }
}

#[cfg(test)]
mod tests;
