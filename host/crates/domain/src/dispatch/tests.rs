//! The dispatcher by example. Taking turns is in `tests/turns.rs`; what holds for any sequence of events
//! in `tests/world.rs`.

mod turns;
mod world;

use std::collections::HashMap;

use super::*;
use crate::advice::Switching;
use crate::fleet_view::LaneState;

const GIB: u64 = 1 << 30;

pub(super) fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn setup(slots: u32, group: usize, need_gib: u64) -> LaneSetup {
    LaneSetup {
        slots,
        group,
        need: need_gib * GIB,
        asleep: 0,
        residency: Residency::OnDemand { preload: false, unload_after: None },
        expected_load: s(40),
        back_off: BackOff {
            first: s(1),
            most: s(60),
            reset_after: s(60),
            give_up: 3,
            failed_retry: s(600),
        },
    }
}

pub(super) fn rules() -> Rules {
    Rules { starvation_timeout: s(120), aging: s(5), ..Rules::default() }
}

/// A dispatcher, and what it wants done.
struct Desk {
    dispatcher: Dispatcher,
    now: Duration,
    tickets: u64,
    log: Vec<String>,
    leases: HashMap<u64, (LaneId, Generation)>,
}

const A: LaneId = LaneId(0);
const B: LaneId = LaneId(1);
const C: LaneId = LaneId(2);

impl Desk {
    fn new(lanes: Vec<LaneSetup>, budget_gib: u64, rules: Rules) -> Self {
        let dispatcher = Dispatcher::new(lanes, &[GroupSetup { budget: budget_gib * GIB }], rules);
        let (log, leases) = (Vec::new(), HashMap::new());
        let mut desk = Self { dispatcher, now: Duration::ZERO, tickets: 0, log, leases };
        desk.on(Event::Tick);
        desk
    }

    /// Lanes of 20 GiB that cannot be loaded together, each with two slots.
    fn turns(lanes: usize) -> Self {
        Self::new(vec![setup(2, 0, 20); lanes], 30, rules())
    }

    fn on(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.dispatcher.on(event, self.now, &mut effects);
        for effect in effects {
            let line = match effect {
                Effect::Grant { ticket, lane, generation, .. } => {
                    self.leases.insert(ticket.0, (lane, generation));
                    format!("grant {} {}", ticket.0, name(lane))
                }
                Effect::Reject { ticket, refusal } => format!("refuse {}: {refusal}", ticket.0),
                Effect::Load(lane) => format!("load {}", name(lane)),
                Effect::Unload { lane, fully } => {
                    format!("unload {}{}", name(lane), if fully { " fully" } else { "" })
                }
                Effect::Abort { lane, .. } => format!("cut {}", name(lane)),
                Effect::Switched(report) => format!(
                    "switched to {} {}+{}+{}{}",
                    name(report.target),
                    report.drain.as_secs(),
                    report.stop.as_secs(),
                    report.load.as_secs(),
                    if report.overdue { " overdue" } else { "" }
                ),
            };
            self.log.push(line);
        }
    }

    /// What was wanted since the last look.
    fn wants(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn arrive_as(&mut self, lane: LaneId, change: impl FnOnce(&mut Enqueue)) -> u64 {
        self.tickets += 1;
        let mut arrival = Enqueue {
            ticket: Ticket(self.tickets),
            lane,
            priority: 0,
            flow: FlowId(0),
            deadline: self.now + s(1000),
            switching: Switching::Allow,
            has_fallback: false,
        };
        change(&mut arrival);
        self.on(Event::Arrived(arrival));
        self.tickets
    }

    fn arrive(&mut self, lane: LaneId) -> u64 {
        self.arrive_as(lane, |_| {})
    }

    fn release(&mut self, ticket: u64) {
        self.release_as(ticket, Report { held: s(1), first_byte: Some(s(1)), ..Report::default() });
    }

    fn release_as(&mut self, ticket: u64, report: Report) {
        let (lane, generation) = self.leases.remove(&ticket).unwrap();
        self.on(Event::Released { lane, generation, report });
    }

    fn engine(&mut self, lane: LaneId, news: EngineEvent) {
        self.on(Event::Engine { lane, news });
    }

    /// Let the engine of a lane come up after 40 s.
    fn up(&mut self, lane: LaneId) {
        self.at(self.now + s(40));
        self.engine(lane, EngineEvent::Ready);
    }

    fn stopped(&mut self, lane: LaneId) {
        self.engine(lane, EngineEvent::Stopped { asleep: false });
    }

    /// Go forward in time, waking up as the dispatcher asks.
    fn at(&mut self, time: Duration) {
        while let Some(wake) = self.dispatcher.next_wake().filter(|wake| *wake <= time) {
            self.now = self.now.max(wake);
            self.on(Event::Tick);
        }
        self.now = time;
    }

    fn state(&self, lane: LaneId) -> LaneState {
        self.dispatcher.stats(self.now)[lane.index()].state
    }
}

fn name(lane: LaneId) -> char {
    char::from(b'A' + u8::try_from(lane.0).unwrap())
}

#[test]
fn wait_or_fall_back() {
    let mut desk = Desk::turns(2);
    let hurry = |arrival: &mut Enqueue| {
        arrival.deadline = arrival.deadline.min(s(20));
        arrival.has_fallback = true;
    };
    desk.arrive_as(A, hurry);
    assert_eq!(
        desk.wants(),
        ["refuse 1: the lane would be ready for it in 40000 ms, which is too late"]
    );
    desk.arrive_as(A, |arrival| arrival.deadline = s(20));
    assert_eq!(desk.wants(), ["load A"], "with nowhere else to go it waits as long as it can");
    desk.at(s(30));
    assert!(desk.wants()[0].starts_with("refuse 2: waited 20000 ms"));
    desk.arrive_as(A, |arrival| (arrival.deadline, arrival.has_fallback) = (s(45), true));
    assert_eq!(desk.wants(), Vec::<String>::new(), "by now it is only 10 s away");
}

#[test]
fn a_failed_load_fails_all_its_waiters_with_the_reason() {
    let mut desk = Desk::turns(1);
    desk.arrive(A);
    desk.arrive(A);
    for _ in 0..3 {
        desk.wants();
        desk.engine(A, EngineEvent::LoadFailed("out of memory".into()));
        let refused = desk.wants();
        assert!(
            refused.iter().all(|line| line.contains("could not be loaded: out of memory")),
            "{refused:?}"
        );
        assert_eq!(desk.state(A), LaneState::Down);
        desk.arrive(A);
        assert!(desk.wants()[0].starts_with("refuse"), "while it is down nobody waits for it");
        desk.at(desk.now + s(10));
        desk.arrive(A);
    }
    assert_eq!(desk.dispatcher.engine_state(A), Some(EngineState::Failed));
    desk.at(desk.now + s(600));
    desk.wants();
    desk.arrive(A);
    assert_eq!(desk.wants(), ["load A"], "at long intervals it is tried again");
}

#[test]
fn a_lost_engine_comes_back_for_those_who_wait() {
    let mut desk = Desk::new(vec![setup(1, 0, 20)], 30, rules());
    let running = desk.arrive(A);
    desk.up(A);
    let patient = desk.arrive(A);
    let other = desk.arrive_as(A, |arrival| arrival.has_fallback = true);
    desk.wants();
    desk.engine(A, EngineEvent::Lost("killed".into()));
    assert_eq!(desk.wants(), [format!("refuse {other}: the lane is starting: killed")]);
    desk.release(running);
    desk.at(desk.now + s(1));
    assert_eq!(desk.wants(), ["load A"]);
    desk.up(A);
    assert_eq!(desk.wants()[1], format!("grant {patient} A"));
}

#[test]
fn an_engine_that_is_gone_does_not_eat_the_queue() {
    let mut desk = Desk::new(vec![setup(1, 0, 20)], 30, rules());
    let running = desk.arrive(A);
    desk.up(A);
    let patient = desk.arrive(A);
    desk.wants();
    desk.release_as(running, Report { failed: true, severed: true, ..Report::default() });
    assert_eq!(desk.wants(), Vec::<String>::new(), "it may be gone");
    desk.engine(A, EngineEvent::Dying("killed".into()));
    desk.engine(A, EngineEvent::Lost("killed".into()));
    desk.at(desk.now + s(1));
    desk.up(A);
    assert_eq!(desk.wants()[2..], [format!("grant {patient} A")]);
    // A connection that broke for another reason costs a moment.
    let waits = desk.arrive(A);
    desk.release_as(patient, Report { failed: true, severed: true, ..Report::default() });
    desk.at(desk.now + s(1));
    assert_eq!(desk.wants(), [format!("grant {waits} A")]);
}

#[test]
fn queues_are_bounded_and_say_so() {
    let mut desk = Desk::new(
        vec![setup(1, 0, 10)],
        30,
        Rules { queue: QueueLimits { per_lane: 2, total: 9 }, ..rules() },
    );
    for _ in 0..3 {
        desk.arrive(A);
    }
    assert_eq!(desk.wants(), ["load A", "refuse 3: 2 requests wait already, which is the limit"]);
    assert_eq!(desk.dispatcher.queued_by_priority(A), [(0, 2)]);
    desk.on(Event::Closed);
    assert_eq!(desk.wants(), ["refuse 1: the host is stopping", "refuse 2: the host is stopping"]);
    desk.arrive(A);
    assert_eq!(desk.wants(), ["refuse 4: the host is stopping"]);
}

#[test]
fn a_lane_that_fails_too_often_is_left_by_those_who_can() {
    let mut desk = Desk::new(vec![setup(9, 0, 10)], 30, rules());
    let tickets: Vec<u64> = (0..6).map(|_| desk.arrive(A)).collect();
    desk.up(A);
    for ticket in &tickets[..5] {
        desk.release_as(*ticket, Report { failed: true, ..Report::default() });
    }
    desk.wants();
    assert_eq!(desk.state(A), LaneState::Degraded);
    desk.arrive_as(A, |arrival| arrival.has_fallback = true);
    let granted = desk.arrive(A);
    assert_eq!(
        desk.wants(),
        [
            "refuse 7: the lane fails too often at the moment".to_owned(),
            format!("grant {granted} A")
        ]
    );
    desk.release(granted);
    assert_eq!(desk.state(A), LaneState::Ready);
}

#[test]
fn engines_of_others_come_and_go() {
    let mut desk = Desk::new(
        vec![LaneSetup { residency: Residency::External, ..setup(1, 9, 0) }],
        30,
        rules(),
    );
    let ticket = desk.arrive(A);
    desk.engine(A, EngineEvent::Ready);
    assert_eq!(desk.wants(), [format!("grant {ticket} A")]);
    desk.engine(A, EngineEvent::Lost("connection refused".into()));
    assert_eq!(desk.state(A), LaneState::Down);
    desk.arrive(A);
    assert_eq!(desk.wants(), ["refuse 2: the lane is down: connection refused"]);
    desk.engine(A, EngineEvent::Ready);
    assert_eq!(desk.state(A), LaneState::Ready);
}

#[test]
fn figures_tell_when_a_lane_would_be_ready() {
    let mut desk = Desk::turns(2);
    let at = |desk: &Desk, lane: LaneId| {
        desk.dispatcher.stats(desk.now)[lane.index()].ready_in_ms / 1000
    };
    assert_eq!((at(&desk, A), at(&desk, B)), (40, 40));
    let ticket = desk.arrive(A);
    desk.at(s(10));
    // B waits for A to load (30 s) and for its residence (45 s), for its stop (5 s), and loads (40 s).
    assert_eq!((at(&desk, A), at(&desk, B)), (30, 30 + 45 + 5 + 40));
    desk.up(A);
    // B waits for the residence of A (45 s), for its stop (5 s), and loads (40 s).
    assert_eq!((at(&desk, A), at(&desk, B)), (0, 90));
    assert_eq!(desk.dispatcher.stats(desk.now)[B.index()].displaces, 1);
    desk.release(ticket);
    assert_eq!(at(&desk, B), 2 + 5 + 40, "an idle lane lingers for 2 s");
}
