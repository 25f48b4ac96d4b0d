//! Example-based tests of the dispatcher. Switching is in `tests/switching.rs`, property tests in
//! `tests/invariants.rs`.

mod fairness;
mod invariants;
mod manual;
mod reconfigure;
mod switching;

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
        backoff: Backoff {
            first: s(1),
            most: s(60),
            reset_after: s(60),
            max_failures: 3,
            retry_failed_after: s(600),
        },
    }
}

pub(super) fn rules() -> Rules {
    Rules { starvation_timeout: s(120), aging: s(5), ..Rules::default() }
}

/// A dispatcher with a log of its effects, the current leases and a virtual clock.
struct DispatcherHarness {
    dispatcher: Dispatcher,
    now: Duration,
    tickets: u64,
    log: Vec<String>,
    leases: HashMap<u64, (LaneId, Generation, FlowId)>,
}

const A: LaneId = LaneId(0);
const B: LaneId = LaneId(1);
const C: LaneId = LaneId(2);

impl DispatcherHarness {
    fn new(lanes: Vec<LaneSetup>, budget_gib: u64, rules: Rules) -> Self {
        let dispatcher = Dispatcher::new(lanes, &[GroupSetup { budget: budget_gib * GIB }], rules);
        let (log, leases) = (Vec::new(), HashMap::new());
        let mut harness = Self { dispatcher, now: Duration::ZERO, tickets: 0, log, leases };
        harness.on(Event::Tick);
        harness
    }

    /// Lanes of 20 GiB and two slots each, of which only one fits into memory.
    fn exclusive_lanes(lanes: usize) -> Self {
        Self::new(vec![setup(2, 0, 20); lanes], 30, rules())
    }

    /// Two lanes that do not fit next to each other, of which A serves a request, whose ticket is
    /// returned.
    fn serving() -> (Self, u64) {
        let mut harness = Self::exclusive_lanes(2);
        let running = harness.arrive(A);
        harness.finish_load(A);
        harness.take_log();
        (harness, running)
    }

    fn on(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.dispatcher.on(event, self.now, &mut effects);
        self.note(effects);
    }

    /// Adds effects to the log.
    fn note(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let line = match effect {
                Effect::Grant { ticket, lane, generation, flow, .. } => {
                    self.leases.insert(ticket.0, (lane, generation, flow));
                    format!("grant {} {}", ticket.0, name(lane))
                }
                Effect::Reject { ticket, refusal: error } => {
                    format!("reject {}: {}", ticket.0, describe(&error))
                }
                Effect::Load(lane) => format!("load {}", name(lane)),
                Effect::Unload { lane, fully } => {
                    format!("unload {}{}", name(lane), if fully { " fully" } else { "" })
                }
                Effect::Abort { lane, .. } => format!("abort {}", name(lane)),
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

    /// Returns the effects logged since the last call.
    fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn arrive_with(&mut self, lane: LaneId, change: impl FnOnce(&mut Enqueue)) -> u64 {
        self.tickets += 1;
        let mut enqueue = Enqueue {
            ticket: Ticket(self.tickets),
            lane,
            priority: 0,
            flow: FlowId(0),
            weight: 1,
            deadline: self.now + s(1000),
            switching: Switching::Allow,
            has_fallback: false,
            has_begun: false,
        };
        change(&mut enqueue);
        self.on(Event::Arrived(enqueue));
        self.tickets
    }

    fn arrive(&mut self, lane: LaneId) -> u64 {
        self.arrive_with(lane, |_| {})
    }

    fn release(&mut self, ticket: u64) {
        self.release_with(
            ticket,
            Report { held: s(1), first_byte: Some(s(1)), ..Report::default() },
        );
    }

    fn release_with(&mut self, ticket: u64, report: Report) {
        let (lane, generation, flow) = self.leases.remove(&ticket).unwrap();
        self.on(Event::Released { lane, generation, flow, report });
    }

    fn engine_event(&mut self, lane: LaneId, event: EngineEvent) {
        self.on(Event::Engine { lane, news: event });
    }

    /// Lets the engine of a lane become ready after 40 s.
    fn finish_load(&mut self, lane: LaneId) {
        self.advance_to(self.now + s(40));
        self.engine_event(lane, EngineEvent::Ready);
    }

    fn finish_stop(&mut self, lane: LaneId) {
        self.engine_event(lane, EngineEvent::Stopped { asleep: false });
    }

    /// Advances the clock and sends the ticks that the dispatcher asks for.
    fn advance_to(&mut self, time: Duration) {
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

/// Describes an error by its variant and values, independent of its text.
fn describe(error: &AcquireError) -> String {
    match error {
        AcquireError::UnknownLane => "unknown-lane".to_owned(),
        AcquireError::LaneRemoved => "lane-removed".to_owned(),
        AcquireError::Paused(mode) => format!("paused {}", mode.label()),
        AcquireError::NotServing { state, reason, .. } => {
            let reason = reason.as_ref().map_or("-".to_owned(), ToString::to_string);
            format!("not-serving {} {reason}", state.label())
        }
        AcquireError::NotLoaded => "not-loaded".to_owned(),
        AcquireError::LoadFailed { reason, .. } => format!("load-failed {reason}"),
        AcquireError::CircuitOpen { .. } => "circuit-open".to_owned(),
        AcquireError::QueueFull { queued, .. } => format!("queue-full {queued}"),
        AcquireError::DeadlineTooEarly { estimate } => {
            format!("too-late {}ms", estimate.as_millis())
        }
        AcquireError::TimedOut { waited, .. } => format!("timed-out {}ms", waited.as_millis()),
        AcquireError::Closing => "closing".to_owned(),
    }
}

fn name(lane: LaneId) -> char {
    char::from(b'A' + u8::try_from(lane.0).unwrap())
}

#[test]
fn request_waits_or_falls_back_by_estimated_wait() {
    let mut harness = DispatcherHarness::exclusive_lanes(2);
    let urgent = |enqueue: &mut Enqueue| {
        enqueue.deadline = enqueue.deadline.min(s(20));
        enqueue.has_fallback = true;
    };
    harness.arrive_with(A, urgent);
    assert_eq!(harness.take_log(), ["reject 1: too-late 40000ms"]);
    harness.arrive_with(A, |enqueue| enqueue.deadline = s(20));
    assert_eq!(
        harness.take_log(),
        ["load A"],
        "without a fallback the request waits until its deadline"
    );
    harness.advance_to(s(30));
    assert_eq!(harness.take_log()[0], "reject 2: timed-out 20000ms");
    harness.arrive_with(A, |enqueue| (enqueue.deadline, enqueue.has_fallback) = (s(45), true));
    assert_eq!(harness.take_log(), Vec::<String>::new(), "the lane is only 10 s away now");
}

#[test]
fn request_that_has_begun_gets_a_slot_of_a_ready_lane_even_if_all_are_in_use() {
    let mut harness = DispatcherHarness::exclusive_lanes(1);
    harness.arrive(A);
    harness.finish_load(A);
    // The lane has two slots.
    harness.arrive(A);
    harness.take_log();
    harness.arrive(A);
    assert_eq!(harness.take_log(), Vec::<String>::new());
    let begun = harness.arrive_with(A, |enqueue| enqueue.has_begun = true);
    assert_eq!(harness.take_log(), [format!("grant {begun} A")]);
    harness.release(begun);
    assert_eq!(harness.take_log(), Vec::<String>::new(), "two requests are still running");
    harness.release(1);
    assert_eq!(harness.take_log(), ["grant 3 A"]);
}

#[test]
fn failed_load_rejects_all_waiters_with_the_reason() {
    let mut harness = DispatcherHarness::exclusive_lanes(1);
    harness.arrive(A);
    harness.arrive(A);
    for _ in 0..3 {
        harness.take_log();
        harness.engine_event(A, EngineEvent::LoadFailed("out of memory".into()));
        let rejected = harness.take_log();
        assert!(
            rejected.iter().all(|line| line.ends_with(": load-failed out of memory")),
            "{rejected:?}"
        );
        assert_eq!(harness.state(A), LaneState::Down);
        harness.arrive(A);
        assert!(
            harness.take_log()[0].starts_with("reject"),
            "a request does not wait for a down lane"
        );
        harness.advance_to(harness.now + s(10));
        harness.arrive(A);
    }
    assert_eq!(harness.dispatcher.engine_state(A), Some(EngineState::Failed));
    harness.advance_to(harness.now + s(600));
    harness.take_log();
    harness.arrive(A);
    assert_eq!(harness.take_log(), ["load A"], "a failed lane is retried at long intervals");
}

#[test]
fn waiters_without_fallback_wait_for_a_lost_engine_to_recover() {
    let mut harness = DispatcherHarness::new(vec![setup(1, 0, 20)], 30, rules());
    let running = harness.arrive(A);
    harness.finish_load(A);
    let patient = harness.arrive(A);
    let other = harness.arrive_with(A, |enqueue| enqueue.has_fallback = true);
    harness.take_log();
    harness.engine_event(A, EngineEvent::Lost("killed".into()));
    assert_eq!(harness.take_log(), [format!("reject {other}: not-serving starting killed")]);
    harness.release(running);
    harness.advance_to(harness.now + s(1));
    assert_eq!(harness.take_log(), ["load A"]);
    harness.finish_load(A);
    assert_eq!(harness.take_log()[1], format!("grant {patient} A"));
}

#[test]
fn lane_with_a_broken_connection_gets_no_requests_for_a_while() {
    let mut harness = DispatcherHarness::new(vec![setup(1, 0, 20)], 30, rules());
    let running = harness.arrive(A);
    harness.finish_load(A);
    let patient = harness.arrive(A);
    harness.take_log();
    harness.release_with(running, Report { failed: true, severed: true, ..Report::default() });
    assert_eq!(harness.take_log(), Vec::<String>::new(), "the engine may be gone");
    harness.engine_event(A, EngineEvent::Dying("killed".into()));
    harness.engine_event(A, EngineEvent::Lost("killed".into()));
    harness.advance_to(harness.now + s(1));
    harness.finish_load(A);
    assert_eq!(harness.take_log()[2..], [format!("grant {patient} A")]);
    // A connection that broke for another reason only causes a short delay.
    let waiting = harness.arrive(A);
    harness.release_with(patient, Report { failed: true, severed: true, ..Report::default() });
    harness.advance_to(harness.now + s(1));
    assert_eq!(harness.take_log(), [format!("grant {waiting} A")]);
}

#[test]
fn queue_rejects_when_full_and_when_closed() {
    let mut harness = DispatcherHarness::new(
        vec![setup(1, 0, 10)],
        30,
        Rules { queue: QueueLimits { per_lane: 2, total: 9 }, ..rules() },
    );
    for _ in 0..3 {
        harness.arrive(A);
    }
    assert_eq!(harness.take_log(), ["load A", "reject 3: queue-full 2"]);
    assert_eq!(harness.dispatcher.queued_by_priority(A), [(0, 2)]);
    harness.on(Event::Closed);
    assert_eq!(harness.take_log(), ["reject 1: closing", "reject 2: closing"]);
    harness.arrive(A);
    assert_eq!(harness.take_log(), ["reject 4: closing"]);
}

#[test]
fn open_circuit_breaker_rejects_requests_with_a_fallback() {
    let mut harness = DispatcherHarness::new(vec![setup(9, 0, 10)], 30, rules());
    let tickets: Vec<u64> = (0..6).map(|_| harness.arrive(A)).collect();
    harness.finish_load(A);
    for ticket in &tickets[..5] {
        harness.release_with(*ticket, Report { failed: true, ..Report::default() });
    }
    harness.take_log();
    assert_eq!(harness.state(A), LaneState::Degraded);
    harness.arrive_with(A, |enqueue| enqueue.has_fallback = true);
    let granted = harness.arrive(A);
    assert_eq!(
        harness.take_log(),
        ["reject 7: circuit-open".to_owned(), format!("grant {granted} A")]
    );
    harness.release(granted);
    assert_eq!(harness.state(A), LaneState::Ready);
}

#[test]
fn external_engine_recovers_after_it_was_lost() {
    let mut harness = DispatcherHarness::new(
        vec![LaneSetup { residency: Residency::External, ..setup(1, 9, 0) }],
        30,
        rules(),
    );
    let ticket = harness.arrive(A);
    harness.engine_event(A, EngineEvent::Ready);
    assert_eq!(harness.take_log(), [format!("grant {ticket} A")]);
    harness.engine_event(A, EngineEvent::Lost("connection refused".into()));
    assert_eq!(harness.state(A), LaneState::Down);
    harness.arrive(A);
    assert_eq!(harness.take_log(), ["reject 2: not-serving down connection refused"]);
    harness.engine_event(A, EngineEvent::Ready);
    assert_eq!(harness.state(A), LaneState::Ready);
}

#[test]
fn stats_estimate_when_a_lane_would_be_ready() {
    let mut harness = DispatcherHarness::exclusive_lanes(2);
    let ready_in = |harness: &DispatcherHarness, lane: LaneId| {
        harness.dispatcher.stats(harness.now)[lane.index()].ready_in_ms / 1000
    };
    assert_eq!((ready_in(&harness, A), ready_in(&harness, B)), (40, 40));
    let ticket = harness.arrive(A);
    harness.advance_to(s(10));
    // B waits for A to load (30 s), for its minimum residency (45 s) and stop (5 s), and loads (40
    // s).
    assert_eq!((ready_in(&harness, A), ready_in(&harness, B)), (30, 30 + 45 + 5 + 40));
    harness.finish_load(A);
    // B waits for A's minimum residency (45 s) and stop (5 s), and loads (40 s).
    assert_eq!((ready_in(&harness, A), ready_in(&harness, B)), (0, 90));
    assert_eq!(harness.dispatcher.stats(harness.now)[B.index()].displaces, 1);
    harness.release(ticket);
    assert_eq!(ready_in(&harness, B), 2 + 5 + 40, "an idle lane lingers for 2 s");
}

#[test]
fn rejected_request_comes_back_no_sooner_than_the_running_ones_may_end() {
    let rules = Rules { queue: QueueLimits { per_lane: 0, total: 9 }, ..rules() };
    let mut harness = DispatcherHarness::new(vec![setup(1, 0, 10)], 30, rules);
    harness.on(Event::Hinted { lane: A, hint: Some(LaneHint::Load), until: Duration::MAX });
    harness.finish_load(A);
    let retry_in = |harness: &DispatcherHarness| {
        let error = harness.dispatcher.queue_full(A, harness.now);
        let AcquireError::QueueFull { retry_in, .. } = error else { panic!("{error:?}") };
        retry_in
    };
    let running = harness.arrive(A);
    for (after, seconds) in [(0, 1), (7, 7), (13, 20), (100, 30)] {
        harness.advance_to(harness.now + s(after));
        assert_eq!(retry_in(&harness), s(seconds), "{after}");
    }
    harness.release(running);
    harness.arrive(A);
    harness.advance_to(harness.now + s(9));
    assert_eq!(retry_in(&harness), s(1), "as long as the last one was served");
}

/// A lane that cannot be loaded takes memory from another one only for a request.
#[test]
fn failed_lane_evicts_no_other_lane_without_a_request() {
    let mut harness = DispatcherHarness::exclusive_lanes(2);
    let failing = harness.arrive(B);
    harness.engine_event(B, EngineEvent::LoadFailed("out of memory".into()));
    let ticket = harness.arrive(A);
    harness.finish_load(A);
    harness.release(ticket);
    harness.take_log();
    harness.advance_to(harness.now + s(2000));
    assert_eq!((harness.take_log(), harness.state(A)), (Vec::new(), LaneState::Ready), "{failing}");
    harness.arrive(B);
    harness.advance_to(harness.now + s(100));
    assert_eq!(harness.take_log(), ["unload A"]);
}
