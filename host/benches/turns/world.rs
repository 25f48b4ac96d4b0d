//! The simulation loop in virtual time: clients that send requests, engines whose loads, stops and
//! responses take fixed times, and the dispatcher in between.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{
    AcquireError, Backoff, Dispatcher, Effect, EngineEvent, Enqueue, Event, FlowId, Generation,
    GroupSetup, LaneSetup, Report, Residency, Rules, Ticket,
};
use pointsman_domain::{EngineState, FleetView, LaneId, Plan, Topology, Trigger};

/// Returns a duration in seconds.
pub(crate) const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const LOAD_TIME: Duration = s(40);
const STOP_TIME: Duration = s(5);
const RESPONSE_TIME: Duration = s(4);
/// The lanes with lower ids share a GPU that fits one of them. The others are always loaded.
const SHARED_LANES: u32 = 3;

/// A client. It sends requests to its lanes in turn.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) lanes: Vec<LaneId>,
    pub(crate) priority: i32,
    /// Time of the first request.
    pub(crate) start: Duration,
    /// Time between requests; `None`: the next request follows the end of the previous one.
    pub(crate) interval: Option<Duration>,
    /// Number of requests; `None`: until all clients with a number of requests have sent theirs.
    pub(crate) requests: Option<usize>,
}

/// Makes the plan for a client's request to a lane, given the state of the fleet and the time.
pub(crate) type Planner<'a> = dyn Fn(LaneId, &Client, &Arc<FleetView>, Duration) -> Plan + 'a;

/// How requests are planned and dispatched.
pub(crate) struct Discipline<'a> {
    pub(crate) name: &'static str,
    pub(crate) rules: Rules,
    /// A request is only given to the dispatcher once all earlier ones have been granted.
    pub(crate) sequential: bool,
    pub(crate) plan: &'a Planner<'a>,
}

/// The outcome of a workload.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Loads of the shared lanes.
    pub(crate) loads: usize,
    /// Time of the last response.
    pub(crate) done_at: Duration,
    /// The wait of each served request, with the first lane of its plan.
    pub(crate) waits: Vec<(LaneId, Duration)>,
    /// Sum of the estimated waits.
    pub(crate) estimated: Duration,
    /// Requests served by a later lane of their plan.
    pub(crate) fell_back: usize,
    pub(crate) errors: usize,
    /// Time during which a shared lane was loaded but unused, while requests for another one were
    /// queued.
    pub(crate) idle: Duration,
    /// The states of the engines whenever one of them changed.
    pub(crate) timeline: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum SimEvent {
    Loaded(LaneId),
    Stopped(LaneId),
    Responded {
        request: usize,
        lane: LaneId,
        generation: Generation,
        flow: FlowId,
    },
    /// The next request of a client is due.
    RequestDue(usize),
}

struct Request {
    client: usize,
    arrived_at: Duration,
    plan: Plan,
    step: usize,
}

struct World<'a> {
    discipline: &'a Discipline<'a>,
    clients: &'a [Client],
    topology: Arc<Topology>,
    dispatcher: Dispatcher,
    now: Duration,
    /// Scheduled events. The number orders events at the same time, so that runs are reproducible.
    scheduled: BinaryHeap<Reverse<(Duration, u64, SimEvent)>>,
    last_event_number: u64,
    requests: Vec<Request>,
    /// The request of each ticket.
    tickets: Vec<usize>,
    /// The number of requests that each client has sent.
    sent: Vec<usize>,
    waiting: usize,
    /// With a sequential discipline: the requests that the dispatcher has not seen yet.
    backlog: VecDeque<usize>,
    /// With a sequential discipline: the request that waits in the dispatcher.
    dispatched: Option<usize>,
    /// The engine states in the last line of the timeline.
    shown_states: Vec<Option<EngineState>>,
    outcome: Outcome,
}

/// Runs a workload to its end.
pub(crate) fn run(
    discipline: &Discipline<'_>,
    clients: &[Client],
    topology: &Arc<Topology>,
) -> Outcome {
    let is_shared = |index: u32| index < SHARED_LANES;
    let setup = |index: u32, slots: u32| LaneSetup {
        slots,
        // An index without a group gives the lane a group of its own.
        group: if is_shared(index) { 0 } else { usize::MAX },
        need: 20,
        asleep: 0,
        residency: match is_shared(index) {
            true => Residency::OnDemand { preload: false, unload_after: None },
            false => Residency::Always,
        },
        expected_load: if is_shared(index) { LOAD_TIME } else { Duration::ZERO },
        backoff: Backoff {
            first: s(1),
            most: s(60),
            reset_after: s(60),
            max_failures: 3,
            retry_failed_after: s(600),
        },
    };
    let lanes = topology.lanes().iter().map(|lane| setup(lane.id.0, lane.slots)).collect();
    // A budget of 30 fits one lane with a need of 20, but not two.
    let groups = [GroupSetup { budget: 30 }];
    let mut world = World {
        discipline,
        clients,
        topology: Arc::clone(topology),
        dispatcher: Dispatcher::new(lanes, &groups, discipline.rules),
        now: Duration::ZERO,
        scheduled: BinaryHeap::new(),
        last_event_number: 0,
        requests: Vec::new(),
        tickets: Vec::new(),
        sent: vec![0; clients.len()],
        waiting: 0,
        backlog: VecDeque::new(),
        dispatched: None,
        shown_states: Vec::new(),
        outcome: Outcome::default(),
    };
    // Loads the lanes that are always loaded.
    world.dispatch(Event::Tick);
    for (index, client) in clients.iter().enumerate() {
        world.schedule(client.start, SimEvent::RequestDue(index));
    }
    while world.step() {}
    world.outcome
}

impl World<'_> {
    fn schedule(&mut self, at: Duration, event: SimEvent) {
        self.last_event_number += 1;
        self.scheduled.push(Reverse((at, self.last_event_number, event)));
    }

    /// Advances to the next event and handles it. Returns false if there is none.
    fn step(&mut self) -> bool {
        let scheduled = self.scheduled.peek().map(|Reverse((at, _, _))| *at);
        let wake = self.dispatcher.next_wake();
        let Some(next) = scheduled.into_iter().chain(wake).min() else {
            assert_eq!(self.waiting, 0, "requests wait, but no event is scheduled");
            return false;
        };
        // Only wake-ups of the dispatcher are left, and no request depends on them.
        if scheduled.is_none() && self.waiting == 0 {
            return false;
        }
        // A wake-up may be in the past, when it was due before the current event.
        self.count_idle(next.saturating_sub(self.now));
        self.now = next.max(self.now);
        if scheduled != Some(next) {
            self.dispatch(Event::Tick);
        } else if let Some(Reverse((_, _, event))) = self.scheduled.pop() {
            self.handle(event);
        }
        self.record_states();
        true
    }

    fn handle(&mut self, event: SimEvent) {
        match event {
            SimEvent::Loaded(lane) => {
                self.dispatch(Event::Engine { lane, news: EngineEvent::Ready })
            }
            SimEvent::Stopped(lane) => {
                self.dispatch(Event::Engine { lane, news: EngineEvent::Stopped { asleep: false } })
            }
            SimEvent::Responded { request, lane, generation, flow } => {
                self.outcome.done_at = self.now;
                let report =
                    Report { held: RESPONSE_TIME, first_byte: Some(s(1)), ..Report::default() };
                self.dispatch(Event::Released { lane, generation, flow, report });
                self.end(request);
            }
            SimEvent::RequestDue(client) => self.send_request(client),
        }
    }

    /// Sends the next request of a client, unless it has sent all of its requests.
    fn send_request(&mut self, index: usize) {
        let client = &self.clients[index];
        let others_continue = || {
            let mut others = self.clients.iter().zip(&self.sent);
            others.any(|(client, sent)| client.requests.is_some_and(|total| *sent < total))
        };
        if !client.requests.map_or_else(others_continue, |total| self.sent[index] < total) {
            return;
        }
        let lane = client.lanes[self.sent[index] % client.lanes.len()];
        self.sent[index] += 1;
        if let Some(interval) = client.interval {
            self.schedule(self.now + interval, SimEvent::RequestDue(index));
        }
        let stats = self.dispatcher.stats(self.now);
        let estimated_ms = stats.get(lane.index()).map_or(0, |stat| stat.start_in_ms());
        self.outcome.estimated += Duration::from_millis(estimated_ms);
        let view = Arc::new(FleetView::new(Arc::clone(&self.topology), stats));
        let plan = (self.discipline.plan)(lane, client, &view, self.now);
        self.requests.push(Request { client: index, arrived_at: self.now, plan, step: 0 });
        self.waiting += 1;
        match self.discipline.sequential {
            true => self.backlog.push_back(self.requests.len() - 1),
            false => self.enqueue(self.requests.len() - 1),
        }
        self.dispatch_backlog();
    }

    /// Handles the end of a request: a client without an interval sends the next one.
    fn end(&mut self, request: usize) {
        let client = self.requests[request].client;
        if self.clients[client].interval.is_none() {
            self.schedule(self.now, SimEvent::RequestDue(client));
        }
    }

    fn dispatch_backlog(&mut self) {
        if self.dispatched.is_none()
            && let Some(request) = self.backlog.pop_front()
        {
            self.dispatched = Some(request);
            self.enqueue(request);
        }
    }

    /// Gives a request to the dispatcher, for the current step of its plan.
    fn enqueue(&mut self, request: usize) {
        let Request { client, plan, step, .. } = &self.requests[request];
        let enqueue = Enqueue {
            ticket: Ticket(self.tickets.len() as u64),
            lane: plan.steps[*step].lane,
            priority: plan.priority,
            flow: FlowId(*client as u64),
            weight: 1,
            // Plans without a practical limit have a huge `max_wait`.
            deadline: self.now.saturating_add(plan.max_wait),
            switching: plan.switching,
            has_fallback: *step + 1 < plan.steps.len()
                && plan.triggers_fallback(Trigger::QueueTimeout),
            has_begun: false,
        };
        self.tickets.push(request);
        self.dispatch(Event::Arrived(enqueue));
    }

    /// Passes an event to the dispatcher, and carries out the effects.
    fn dispatch(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.dispatcher.on(event, self.now, &mut effects);
        for effect in effects {
            match effect {
                Effect::Load(lane) => {
                    let is_shared = lane.0 < SHARED_LANES;
                    self.outcome.loads += usize::from(is_shared);
                    let load_time = if is_shared { LOAD_TIME } else { Duration::ZERO };
                    self.schedule(self.now + load_time, SimEvent::Loaded(lane));
                }
                Effect::Unload { lane, .. } => {
                    self.schedule(self.now + STOP_TIME, SimEvent::Stopped(lane))
                }
                Effect::Grant { ticket, lane, generation, flow, .. } => {
                    self.grant(ticket, lane, (generation, flow))
                }
                Effect::Reject { ticket, refusal } => self.reject(ticket, &refusal),
                // No rules with a drain timeout are simulated, and switches are counted as loads.
                Effect::Abort { .. } | Effect::Switched(_) => {}
            }
        }
    }

    fn grant(&mut self, ticket: Ticket, lane: LaneId, (generation, flow): (Generation, FlowId)) {
        let request = self.tickets[ticket.0 as usize];
        let Request { plan, arrived_at, step, .. } = &self.requests[request];
        self.outcome.waits.push((plan.steps[0].lane, self.now - *arrived_at));
        self.outcome.fell_back += usize::from(*step > 0);
        self.waiting -= 1;
        let event = SimEvent::Responded { request, lane, generation, flow };
        self.schedule(self.now + RESPONSE_TIME, event);
        if self.dispatched == Some(request) {
            self.dispatched = None;
            self.dispatch_backlog();
        }
    }

    /// Moves a rejected request to the next step of its plan, or ends it with an error.
    fn reject(&mut self, ticket: Ticket, error: &AcquireError) {
        let request = self.tickets[ticket.0 as usize];
        let Request { plan, step, .. } = &mut self.requests[request];
        let trigger = match error {
            AcquireError::TimedOut { .. } | AcquireError::DeadlineTooEarly { .. } => {
                Some(Trigger::QueueTimeout)
            }
            AcquireError::QueueFull { .. }
            | AcquireError::CircuitOpen { .. }
            | AcquireError::NotLoaded => Some(Trigger::Overloaded),
            AcquireError::NotServing { .. }
            | AcquireError::LoadFailed { .. }
            | AcquireError::LaneRemoved
            | AcquireError::Paused(_)
            | AcquireError::UnknownLane => Some(Trigger::EngineRestart),
            AcquireError::Closing => None,
        };
        *step += 1;
        if *step < plan.steps.len()
            && trigger.is_some_and(|trigger| plan.triggers_fallback(trigger))
        {
            self.enqueue(request);
            return;
        }
        self.outcome.errors += 1;
        self.waiting -= 1;
        self.dispatched = self.dispatched.filter(|dispatched| *dispatched != request);
        self.end(request);
        self.dispatch_backlog();
    }

    fn shared_lanes() -> impl Iterator<Item = LaneId> {
        (0..SHARED_LANES).map(LaneId)
    }

    fn count_idle(&mut self, elapsed: Duration) {
        let is_ready = |lane| self.dispatcher.engine_state(lane) == Some(EngineState::Ready);
        let is_unused = Self::shared_lanes().all(|lane| self.dispatcher.running(lane) == 0);
        let has_queue = |lane| !self.dispatcher.queued_by_priority(lane).is_empty();
        let is_demanded = !self.backlog.is_empty() || Self::shared_lanes().any(has_queue);
        if is_demanded && is_unused && Self::shared_lanes().any(is_ready) {
            self.outcome.idle += elapsed;
        }
    }

    /// Adds a line to the timeline if the state of an engine has changed.
    fn record_states(&mut self) {
        let states: Vec<_> =
            Self::shared_lanes().map(|lane| self.dispatcher.engine_state(lane)).collect();
        if states == self.shown_states {
            return;
        }
        let mut line = format!("{:>8.1} s", self.now.as_secs_f64());
        for (lane, state) in Self::shared_lanes().zip(&states) {
            let by_priority = self.dispatcher.queued_by_priority(lane);
            let queued: usize = by_priority.iter().map(|(_, count)| count).sum();
            let state = state.map_or_else(String::new, |state| format!("{state:?}"));
            let (name, running) = (self.topology.name(lane), self.dispatcher.running(lane));
            write!(line, "  {name} {state:<9} {running} run {queued:>3} wait")
                .expect("writing to a string does not fail");
        }
        self.shown_states = states;
        self.outcome.timeline.push(line);
    }
}
