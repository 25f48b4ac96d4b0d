//! A made-up world in virtual time: clients that ask, engines that take fixed times, and the dispatcher
//! between them.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{
    AcquireError, BackOff, Dispatcher, Effect, EngineEvent, Enqueue, Event, FlowId, Generation,
    GroupSetup, LaneSetup, Report, Residency, Rules, Ticket,
};
use pointsman_domain::{EngineState, FleetView, LaneId, Plan, Topology, Trigger};

pub(crate) const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const LOAD: Duration = s(40);
const STOP: Duration = s(5);
const SERVE: Duration = s(4);
/// The lanes that share a GPU, which fits one of them at a time. Those after them are always on.
const SHARING: u32 = 3;

/// A client. It asks its lanes in turn.
#[derive(Debug, Clone)]
pub(crate) struct Asker {
    pub(crate) lanes: Vec<LaneId>,
    pub(crate) priority: i32,
    pub(crate) begins: Duration,
    /// Asks at this interval; `None`: whenever its last request was answered.
    pub(crate) every: Option<Duration>,
    /// Asks this often; `None`: as long as others go on.
    pub(crate) requests: Option<usize>,
}

/// Makes the plan for a request of a client for a lane, from what is known of the lanes at a time.
pub(crate) type Planner<'a> = dyn Fn(LaneId, &Asker, &Arc<FleetView>, Duration) -> Plan + 'a;

/// How requests get to the dispatcher.
pub(crate) struct Discipline<'a> {
    pub(crate) name: &'static str,
    pub(crate) rules: Rules,
    /// The dispatcher gets a request when all before it have been granted.
    pub(crate) one_by_one: bool,
    pub(crate) plan: &'a Planner<'a>,
}

/// What became of a workload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) loads: usize,
    pub(crate) answered_at: Duration,
    /// Each wait, with the lane that was asked for.
    pub(crate) waits: Vec<(LaneId, Duration)>,
    /// What the estimates of those waits were, in all.
    pub(crate) expected: Duration,
    pub(crate) elsewhere: usize,
    pub(crate) errors: usize,
    /// Time with a loaded lane that had nothing to do while somebody waited for another one.
    pub(crate) idle: Duration,
    pub(crate) timeline: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Loaded(LaneId),
    Stopped(LaneId),
    Answered { request: usize, lane: LaneId, generation: Generation },
    Asks(usize),
}

struct Request {
    asker: usize,
    asked: Duration,
    plan: Plan,
    step: usize,
}

struct World<'a> {
    discipline: &'a Discipline<'a>,
    askers: &'a [Asker],
    topology: Arc<Topology>,
    dispatcher: Dispatcher,
    now: Duration,
    /// Later ones at the same time have higher numbers.
    coming: BinaryHeap<Reverse<(Duration, u64, Happening)>>,
    numbers: u64,
    requests: Vec<Request>,
    /// Which request a ticket is of.
    tickets: Vec<usize>,
    asked: Vec<usize>,
    waiting: usize,
    /// Requests that the dispatcher has not been given yet, and the one that it has.
    line: VecDeque<usize>,
    given: Option<usize>,
    states: Vec<Option<EngineState>>,
    outcome: Outcome,
}

/// Run a workload to its end.
pub(crate) fn run(
    discipline: &Discipline<'_>,
    askers: &[Asker],
    topology: &Arc<Topology>,
) -> Outcome {
    let sharing = |index: u32| index < SHARING;
    let setup = |index: u32, slots: u32| LaneSetup {
        slots,
        group: if sharing(index) { 0 } else { usize::MAX },
        need: 20,
        asleep: 0,
        residency: match sharing(index) {
            true => Residency::OnDemand { preload: false, unload_after: None },
            false => Residency::Always,
        },
        expected_load: if sharing(index) { LOAD } else { Duration::ZERO },
        back_off: BackOff {
            first: s(1),
            most: s(60),
            reset_after: s(60),
            give_up: 3,
            failed_retry: s(600),
        },
    };
    let lanes = topology.lanes().iter().map(|lane| setup(lane.id.0, lane.slots)).collect();
    let mut world = World {
        discipline,
        askers,
        topology: Arc::clone(topology),
        dispatcher: Dispatcher::new(lanes, &[GroupSetup { budget: 30 }], discipline.rules),
        now: Duration::ZERO,
        coming: BinaryHeap::new(),
        numbers: 0,
        requests: Vec::new(),
        tickets: Vec::new(),
        asked: vec![0; askers.len()],
        waiting: 0,
        line: VecDeque::new(),
        given: None,
        states: Vec::new(),
        outcome: Outcome::default(),
    };
    world.tell(Event::Tick);
    for (asker, of) in askers.iter().enumerate() {
        world.at(of.begins, Happening::Asks(asker));
    }
    while world.go_on() {}
    world.outcome
}

impl World<'_> {
    fn at(&mut self, when: Duration, happening: Happening) {
        self.numbers += 1;
        self.coming.push(Reverse((when, self.numbers, happening)));
    }

    /// Go to the next time at which something happens; `false` if nothing does any more.
    fn go_on(&mut self) -> bool {
        let coming = self.coming.peek().map(|Reverse((when, _, _))| *when);
        let wake = self.dispatcher.next_wake();
        let Some(next) = coming.into_iter().chain(wake).min() else {
            assert_eq!(self.waiting, 0, "stuck");
            return false;
        };
        if coming.is_none() && self.waiting == 0 {
            return false;
        }
        self.count_idle(next.saturating_sub(self.now));
        self.now = next.max(self.now);
        if coming != Some(next) {
            self.tell(Event::Tick);
        } else if let Some(Reverse((_, _, happening))) = self.coming.pop() {
            self.happens(happening);
        }
        self.note();
        true
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Loaded(lane) => self.tell(Event::Engine { lane, news: EngineEvent::Ready }),
            Happening::Stopped(lane) => {
                self.tell(Event::Engine { lane, news: EngineEvent::Stopped { asleep: false } })
            }
            Happening::Answered { request, lane, generation } => {
                self.outcome.answered_at = self.now;
                let report = Report { held: SERVE, first_byte: Some(s(1)), ..Report::default() };
                self.tell(Event::Released { lane, generation, report });
                self.ended(request);
            }
            Happening::Asks(asker) => self.asks(asker),
        }
    }

    /// A client asks, if it has anything to ask any more.
    fn asks(&mut self, asker: usize) {
        let of = &self.askers[asker];
        let others = || {
            let mut others = self.askers.iter().zip(&self.asked);
            others.any(|(of, asked)| of.requests.is_some_and(|most| *asked < most))
        };
        if !of.requests.map_or_else(others, |most| self.asked[asker] < most) {
            return;
        }
        let lane = of.lanes[self.asked[asker] % of.lanes.len()];
        self.asked[asker] += 1;
        if let Some(every) = of.every {
            self.at(self.now + every, Happening::Asks(asker));
        }
        let stats = self.dispatcher.stats(self.now);
        let expected = stats.get(lane.index()).map_or(0, |stat| stat.start_in_ms());
        self.outcome.expected += Duration::from_millis(expected);
        let view = Arc::new(FleetView { topology: Arc::clone(&self.topology), stats });
        let plan = (self.discipline.plan)(lane, of, &view, self.now);
        self.requests.push(Request { asker, asked: self.now, plan, step: 0 });
        self.waiting += 1;
        match self.discipline.one_by_one {
            true => self.line.push_back(self.requests.len() - 1),
            false => self.tries(self.requests.len() - 1),
        }
        self.next_in_line();
    }

    /// A request was answered, or was not.
    fn ended(&mut self, request: usize) {
        let asker = self.requests[request].asker;
        if self.askers[asker].every.is_none() {
            self.at(self.now, Happening::Asks(asker));
        }
    }

    fn next_in_line(&mut self) {
        if self.given.is_none()
            && let Some(request) = self.line.pop_front()
        {
            self.given = Some(request);
            self.tries(request);
        }
    }

    /// Give a request to the dispatcher, for the step that it has got to.
    fn tries(&mut self, request: usize) {
        let Request { asker, plan, step, .. } = &self.requests[request];
        let arrival = Enqueue {
            ticket: Ticket(self.tickets.len() as u64),
            lane: plan.steps[*step].lane,
            priority: plan.priority,
            flow: FlowId(*asker as u64),
            deadline: self.now.saturating_add(plan.max_wait),
            switching: plan.switching,
            has_fallback: *step + 1 < plan.steps.len() && plan.moves_on(Trigger::QueueTimeout),
        };
        self.tickets.push(request);
        self.tell(Event::Arrived(arrival));
    }

    fn tell(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.dispatcher.on(event, self.now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Load(lane) => {
                    let sharing = lane.0 < SHARING;
                    self.outcome.loads += usize::from(sharing);
                    self.at(self.now + if sharing { LOAD } else { s(0) }, Happening::Loaded(lane));
                }
                Effect::Unload { lane, .. } => self.at(self.now + STOP, Happening::Stopped(lane)),
                Effect::Grant { ticket, lane, generation, .. } => {
                    self.granted(ticket, lane, generation)
                }
                Effect::Reject { ticket, refusal } => self.refused(ticket, &refusal),
                Effect::Abort { .. } | Effect::Switched(_) => {}
            }
        }
    }

    fn granted(&mut self, ticket: Ticket, lane: LaneId, generation: Generation) {
        let request = self.tickets[ticket.0 as usize];
        let Request { plan, asked, step, .. } = &self.requests[request];
        self.outcome.waits.push((plan.steps[0].lane, self.now - *asked));
        self.outcome.elsewhere += usize::from(*step > 0);
        self.waiting -= 1;
        self.at(self.now + SERVE, Happening::Answered { request, lane, generation });
        if self.given == Some(request) {
            self.given = None;
            self.next_in_line();
        }
    }

    fn refused(&mut self, ticket: Ticket, refusal: &AcquireError) {
        let request = self.tickets[ticket.0 as usize];
        let Request { plan, step, .. } = &mut self.requests[request];
        let trigger = match refusal {
            AcquireError::TimedOut { .. } | AcquireError::TooLate { .. } => {
                Some(Trigger::QueueTimeout)
            }
            AcquireError::QueueFull { .. }
            | AcquireError::Faulty { .. }
            | AcquireError::NotLoaded => Some(Trigger::Overloaded),
            AcquireError::NotServing { .. }
            | AcquireError::LoadFailed { .. }
            | AcquireError::UnknownLane => Some(Trigger::EngineRestart),
            AcquireError::Closing => None,
        };
        *step += 1;
        if *step < plan.steps.len() && trigger.is_some_and(|trigger| plan.moves_on(trigger)) {
            self.tries(request);
            return;
        }
        self.outcome.errors += 1;
        self.waiting -= 1;
        self.given = self.given.filter(|given| *given != request);
        self.ended(request);
        self.next_in_line();
    }

    fn sharing() -> impl Iterator<Item = LaneId> {
        (0..SHARING).map(LaneId)
    }

    fn count_idle(&mut self, time: Duration) {
        let ready = |lane| self.dispatcher.engine_state(lane) == Some(EngineState::Ready);
        let nothing_runs = Self::sharing().all(|lane| self.dispatcher.running(lane) == 0);
        let waits = |lane| !self.dispatcher.queued_by_priority(lane).is_empty();
        let somebody_waits = !self.line.is_empty() || Self::sharing().any(waits);
        if somebody_waits && nothing_runs && Self::sharing().any(ready) {
            self.outcome.idle += time;
        }
    }

    /// A line of the timeline whenever an engine has changed.
    fn note(&mut self) {
        let states: Vec<_> =
            Self::sharing().map(|lane| self.dispatcher.engine_state(lane)).collect();
        if states == self.states {
            return;
        }
        let mut line = format!("{:>8.1} s", self.now.as_secs_f64());
        for (lane, state) in Self::sharing().zip(&states) {
            let waiting: usize =
                self.dispatcher.queued_by_priority(lane).iter().map(|(_, many)| many).sum();
            let state = state.map_or_else(String::new, |state| format!("{state:?}"));
            let (name, running) = (self.topology.name(lane), self.dispatcher.running(lane));
            write!(line, "  {name} {state:<9} {running} run {waiting:>3} wait")
                .expect("to a string");
        }
        self.states = states;
        self.outcome.timeline.push(line);
    }
}
