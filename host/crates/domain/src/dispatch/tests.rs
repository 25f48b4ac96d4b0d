//! The dispatcher by example. What holds for any sequence of events is in `tests/world.rs`.

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
        back_off: BackOff { first: s(1), most: s(60), reset_after: s(60), give_up: 3, failed_retry: s(600) },
    }
}

pub(super) fn rules() -> Rules {
    Rules { longest_wait: s(120), ageing: s(5), ..Rules::default() }
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
                Effect::Refuse { ticket, refusal } => format!("refuse {}: {refusal}", ticket.0),
                Effect::Load(lane) => format!("load {}", name(lane)),
                Effect::Unload { lane, fully } => {
                    format!("unload {}{}", name(lane), if fully { " fully" } else { "" })
                }
                Effect::Cut { lane, .. } => format!("cut {}", name(lane)),
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

    fn arrive_as(&mut self, lane: LaneId, change: impl FnOnce(&mut Arrival)) -> u64 {
        self.tickets += 1;
        let mut arrival = Arrival {
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

    fn engine(&mut self, lane: LaneId, news: EngineNews) {
        self.on(Event::Engine { lane, news });
    }

    /// Let the engine of a lane come up after 40 s.
    fn up(&mut self, lane: LaneId) {
        self.at(self.now + s(40));
        self.engine(lane, EngineNews::Ready);
    }

    fn stopped(&mut self, lane: LaneId) {
        self.engine(lane, EngineNews::Stopped { asleep: false });
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
fn lanes_that_fit_together_stay_loaded_together() {
    let mut desk = Desk::new(vec![setup(1, 0, 10), setup(1, 0, 15), setup(1, 0, 20)], 30, rules());
    desk.arrive(A);
    desk.arrive(B);
    assert_eq!(desk.wants(), ["load A", "load B"]);
    desk.up(A);
    desk.up(B);
    assert_eq!(desk.wants(), ["switched to A 0+0+40", "grant 1 A", "switched to B 0+0+80", "grant 2 B"]);
    assert_eq!(desk.dispatcher.group_memory(C), Some((25 * GIB, 30 * GIB)));
}

#[test]
fn an_idle_lane_goes_at_once_and_a_busy_one_after_its_residence() {
    let mut desk = Desk::turns(2);
    let first = desk.arrive(A);
    desk.up(A);
    desk.release(first);
    desk.at(s(50));
    desk.wants();
    let second = desk.arrive(B);
    assert_eq!(desk.wants(), ["unload A"], "A was idle for longer than it lingers");
    desk.stopped(A);
    desk.up(B);
    assert_eq!(desk.wants(), ["load B", "switched to B 0+0+40", "grant 2 B"]);
    // B has work; A has to wait for the residence of B: what loading A and stopping B costs.
    let third = desk.arrive(A);
    desk.at(desk.now + s(39));
    assert_eq!(desk.wants(), Vec::<String>::new());
    desk.at(desk.now + s(7));
    let late = desk.arrive(B);
    assert_eq!(desk.wants(), Vec::<String>::new(), "B takes nothing new, and still has a lease");
    desk.release(second);
    assert_eq!(desk.wants(), ["unload B"]);
    desk.stopped(B);
    desk.up(A);
    assert_eq!(desk.wants()[..2], ["load A", "switched to A 1+0+40"]);
    assert!(desk.leases.contains_key(&third) && !desk.leases.contains_key(&late));
}

#[test]
fn requests_are_collated_by_lane() {
    let mut desk = Desk::turns(3);
    let tickets: Vec<u64> = (0..12).map(|n| desk.arrive([A, B, C][n % 3])).collect();
    let mut loads = Vec::new();
    let mut served = Vec::new();
    while served.len() < tickets.len() {
        for line in desk.wants() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["load", lane] => {
                    loads.push(lane.to_owned());
                    let lane = LaneId(u32::from(lane.as_bytes()[0] - b'A'));
                    desk.up(lane);
                }
                ["unload", lane] => desk.stopped(LaneId(u32::from(lane.as_bytes()[0] - b'A'))),
                ["grant", ticket, _] => served.push(ticket.parse::<u64>().unwrap()),
                _ => {}
            }
        }
        let running: Vec<u64> = desk.leases.keys().copied().collect();
        desk.at(desk.now + s(1));
        running.into_iter().for_each(|ticket| desk.release(ticket));
    }
    assert_eq!(loads, ["A", "B", "C"], "not one switch for each request");
}

#[test]
fn whoever_waited_too_long_overrides_residence_and_wishes() {
    let mut desk = Desk::new(vec![setup(1, 0, 20); 2], 30, Rules { residence: 100_000, ..rules() });
    desk.arrive(A);
    desk.up(A);
    desk.on(Event::Wished { lane: A, wish: Some(Wish::Keep), until: s(100_000) });
    desk.at(s(60));
    desk.arrive(B);
    let asked = desk.now;
    // A always has work that is more urgent.
    while desk.dispatcher.engine_state(A) == Some(EngineState::Ready) {
        assert!(desk.now < asked + s(130), "B starves");
        desk.arrive_as(A, |arrival| arrival.priority = 50);
        desk.at(desk.now + s(1));
        let running: Vec<u64> = desk.leases.keys().copied().collect();
        running.into_iter().for_each(|ticket| desk.release(ticket));
    }
    assert!(desk.now >= asked + s(120));
    desk.stopped(A);
    desk.up(B);
    assert!(desk.wants().iter().any(|line| line.ends_with("overdue")));
}

#[test]
fn what_a_request_allows_decides_whom_it_displaces() {
    let mut desk = Desk::turns(2);
    let busy = desk.arrive(A);
    desk.up(A);
    desk.wants();
    desk.arrive_as(B, |arrival| arrival.switching = Switching::Never);
    assert_eq!(
        desk.wants(),
        ["refuse 2: the lane is not loaded, and nothing may be loaded for this request"]
    );
    desk.arrive_as(B, |arrival| arrival.switching = Switching::WhenIdle);
    desk.at(s(600));
    assert_eq!(desk.wants(), Vec::<String>::new(), "A has work, if nothing new");
    desk.release(busy);
    desk.at(s(603));
    assert_eq!(desk.wants(), ["unload A"]);
}

#[test]
fn a_switch_that_nobody_wants_any_more_is_given_up() {
    let mut desk = Desk::turns(2);
    desk.arrive(A);
    desk.up(A);
    let gone = desk.arrive(B);
    desk.at(s(200));
    assert_eq!(desk.state(A), LaneState::Draining);
    let waits = desk.arrive(A);
    desk.wants();
    desk.on(Event::Cancelled(Ticket(gone)));
    assert_eq!(desk.wants(), [format!("grant {waits} A")], "A is kept, and serves at once");
    assert_eq!(desk.state(B), LaneState::Unloaded);
}

#[test]
fn a_lane_that_drains_for_too_long_is_cut_if_the_rules_say_so() {
    let mut desk = Desk::new(vec![setup(1, 0, 20); 2], 30, Rules { cut_after: Some(s(30)), ..rules() });
    let endless = desk.arrive(A);
    desk.up(A);
    desk.arrive(B);
    desk.at(s(86));
    desk.wants();
    desk.at(s(140));
    assert_eq!(desk.wants(), ["cut A"], "once, and unloaded only without leases");
    desk.release(endless);
    assert_eq!(desk.wants(), ["unload A"]);
}

#[test]
fn wait_or_fall_back() {
    let mut desk = Desk::turns(2);
    let hurry = |arrival: &mut Arrival| {
        arrival.deadline = arrival.deadline.min(s(20));
        arrival.has_fallback = true;
    };
    desk.arrive_as(A, hurry);
    assert_eq!(desk.wants(), ["refuse 1: the lane would be ready for it in 40000 ms, which is too late"]);
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
        desk.engine(A, EngineNews::LoadFailed("out of memory".into()));
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
    desk.engine(A, EngineNews::Lost("killed".into()));
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
    desk.engine(A, EngineNews::Dying("killed".into()));
    desk.engine(A, EngineNews::Lost("killed".into()));
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
fn sleepers_hold_memory_until_it_is_needed() {
    let asleep = |mut setup: LaneSetup| {
        setup.asleep = 12 * GIB;
        setup
    };
    let mut desk = Desk::new(vec![asleep(setup(1, 0, 20)), setup(1, 0, 18), setup(1, 0, 30)], 32, rules());
    let first = desk.arrive(A);
    desk.up(A);
    desk.release(first);
    desk.at(s(100));
    desk.arrive(B);
    desk.engine(A, EngineNews::Stopped { asleep: true });
    assert_eq!(desk.dispatcher.group_memory(A), Some((30 * GIB, 32 * GIB)));
    desk.up(B);
    desk.release(2);
    desk.at(s(200));
    desk.wants();
    desk.arrive(C);
    assert_eq!(desk.wants(), ["unload A fully", "unload B"]);
}

#[test]
fn a_lane_that_is_always_loaded_is_no_victim_and_has_its_place_kept() {
    let always = LaneSetup { residency: Residency::Always, ..setup(1, 0, 20) };
    let mut desk = Desk::new(vec![always, setup(1, 0, 20)], 30, rules());
    assert_eq!(desk.wants(), ["load A"]);
    desk.up(A);
    desk.arrive(B);
    desk.at(s(900));
    desk.engine(A, EngineNews::Lost("killed".into()));
    desk.at(s(999));
    assert_eq!(desk.wants(), ["switched to A 0+0+40", "load A"], "B does not take the room of A meanwhile");
}

#[test]
fn policies_wish_for_lanes() {
    let mut desk = Desk::new(vec![setup(1, 0, 10), setup(1, 0, 20), setup(1, 0, 20)], 30, rules());
    let wish = |lane, wish| Event::Wished { lane, wish: Some(wish), until: s(10_000) };
    desk.on(wish(B, Wish::Load));
    assert_eq!(desk.wants(), ["load B"]);
    desk.up(B);
    desk.on(wish(C, Wish::Load));
    desk.at(s(1000));
    desk.wants();
    assert_eq!(
        desk.state(C),
        LaneState::Unloaded,
        "there is no room, and nobody may be displaced for a wish"
    );
    desk.on(wish(B, Wish::Release));
    desk.on(Event::Wished { lane: A, wish: None, until: s(0) });
    assert_eq!(desk.wants(), ["unload B"]);
}

#[test]
fn an_unused_lane_is_unloaded_after_its_time() {
    let mut lane = setup(1, 0, 10);
    lane.residency = Residency::OnDemand { preload: true, unload_after: Some(s(300)) };
    let mut desk = Desk::new(vec![lane], 30, rules());
    desk.up(A);
    let ticket = desk.arrive(A);
    desk.at(s(900));
    desk.release(ticket);
    desk.wants();
    desk.at(s(1199));
    assert_eq!(desk.wants(), Vec::<String>::new());
    desk.at(s(1201));
    assert_eq!(desk.wants(), ["unload A"]);
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
        ["refuse 7: the lane fails too often at the moment".to_owned(), format!("grant {granted} A")]
    );
    desk.release(granted);
    assert_eq!(desk.state(A), LaneState::Ready);
}

#[test]
fn engines_of_others_come_and_go() {
    let mut desk =
        Desk::new(vec![LaneSetup { residency: Residency::External, ..setup(1, 9, 0) }], 30, rules());
    let ticket = desk.arrive(A);
    desk.engine(A, EngineNews::Ready);
    assert_eq!(desk.wants(), [format!("grant {ticket} A")]);
    desk.engine(A, EngineNews::Lost("connection refused".into()));
    assert_eq!(desk.state(A), LaneState::Down);
    desk.arrive(A);
    assert_eq!(desk.wants(), ["refuse 2: the lane is down: connection refused"]);
    desk.engine(A, EngineNews::Ready);
    assert_eq!(desk.state(A), LaneState::Ready);
}

#[test]
fn figures_tell_when_a_lane_would_be_ready() {
    let mut desk = Desk::turns(2);
    let at = |desk: &Desk, lane: LaneId| desk.dispatcher.stats(desk.now)[lane.index()].ready_in_ms / 1000;
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
