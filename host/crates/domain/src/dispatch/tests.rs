use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const LIMITS: QueueLimits = QueueLimits { per_lane: 3, total: 4 };

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A dispatcher with its clock, so that tests read as a story.
struct Story {
    dispatcher: Dispatcher,
    now: Duration,
    tickets: u64,
}

impl Story {
    fn with_slots(slots: &[u32]) -> Self {
        let mut story = Self {
            dispatcher: Dispatcher::new(slots.iter().copied(), LIMITS),
            now: Duration::ZERO,
            tickets: 0,
        };
        for lane in 0..u32::try_from(slots.len()).unwrap() {
            story.change(lane, LaneState::Ready);
        }
        story
    }

    fn on(&mut self, event: Event) -> Vec<String> {
        let mut effects = Vec::new();
        self.dispatcher.on(event, self.now, &mut effects);
        let tell = |effect: Effect| match effect {
            Effect::Grant { ticket, lane, .. } => format!("{} gets {lane}", ticket.0),
            Effect::Refuse { ticket, refusal } => format!("{}: {refusal}", ticket.0),
        };
        effects.into_iter().map(tell).collect()
    }

    fn arrive(&mut self, lane: u32, priority: i32) -> Vec<String> {
        self.tickets += 1;
        let arrival = Arrival {
            ticket: Ticket(self.tickets),
            lane: LaneId(lane),
            priority,
            deadline: self.now + ms(1000),
        };
        self.on(Event::Arrived(arrival))
    }

    fn release(&mut self, lane: u32) -> Vec<String> {
        let generation = self.dispatcher.lanes[lane as usize].generation;
        let report = Report { held: ms(100), first_byte: Some(ms(10)), failed: false };
        self.on(Event::Released { lane: LaneId(lane), generation, report })
    }

    fn change(&mut self, lane: u32, state: LaneState) -> Vec<String> {
        self.on(Event::LaneChanged { lane: LaneId(lane), state, ready_in: Duration::ZERO })
    }
}

#[test]
fn slots_are_granted_in_order_of_priority_and_arrival() {
    let mut story = Story::with_slots(&[1]);
    assert_eq!(story.arrive(0, 0), ["1 gets #0"]);
    assert!(story.arrive(0, 0).is_empty() && story.arrive(0, 0).is_empty() && story.arrive(0, 5).is_empty());
    assert_eq!(story.release(0), ["4 gets #0"]);
    assert_eq!(story.release(0), ["2 gets #0"]);
    assert_eq!(story.release(0), ["3 gets #0"]);
    assert!(story.release(0).is_empty());
    assert_eq!(story.dispatcher.running(LaneId(0)), 0);
}

#[test]
fn full_queues_refuse_with_the_number_waiting() {
    let mut story = Story::with_slots(&[1, 1]);
    story.arrive(0, 0);
    story.arrive(1, 0);
    (0..3).for_each(|_| assert!(story.arrive(0, 0).is_empty()));
    assert_eq!(story.arrive(0, 9), ["6: 3 requests wait already, which is the limit"]);
    assert!(story.arrive(1, 0).is_empty());
    assert_eq!(story.arrive(1, 0), ["8: 1 requests wait already, which is the limit"]);
}

#[test]
fn waits_end_at_their_deadline() {
    let mut story = Story::with_slots(&[1]);
    story.arrive(0, 0);
    story.arrive(0, 0);
    assert_eq!(story.dispatcher.next_deadline(), Some(ms(1000)));
    story.now = ms(999);
    assert!(story.on(Event::Tick).is_empty());
    story.now = ms(1000);
    assert_eq!(story.on(Event::Tick), ["2: waited 1000 ms without getting a slot"]);
    assert_eq!(story.dispatcher.next_deadline(), None);
}

#[test]
fn a_slot_that_frees_late_goes_to_nobody_whose_time_is_up() {
    let mut story = Story::with_slots(&[1]);
    story.arrive(0, 0);
    story.arrive(0, 0);
    story.now = ms(1500);
    assert_eq!(story.release(0), ["2: waited 1500 ms without getting a slot"]);
}

#[test]
fn a_lane_that_goes_down_refuses_its_waiters_and_forgets_its_old_leases() {
    let mut story = Story::with_slots(&[1]);
    story.arrive(0, 0);
    story.arrive(0, 0);
    assert_eq!(story.change(0, LaneState::Down), ["2: the lane is down"]);
    assert_eq!(story.arrive(0, 0), ["3: the lane is down"]);
    story.change(0, LaneState::Starting);
    assert!(story.arrive(0, 0).is_empty());
    assert_eq!(story.change(0, LaneState::Ready), ["4 gets #0"]);
    let generation = Generation(1);
    let stale = Event::Released { lane: LaneId(0), generation, report: Report::default() };
    assert!(story.on(stale).is_empty());
    assert_eq!(
        story.dispatcher.running(LaneId(0)),
        1,
        "the lease of the first life does not free the second's slot"
    );
}

#[test]
fn a_cancelled_ticket_leaves_the_queue() {
    let mut story = Story::with_slots(&[1]);
    story.arrive(0, 0);
    story.arrive(0, 0);
    story.arrive(0, 0);
    assert!(story.on(Event::Cancelled(Ticket(2))).is_empty());
    assert_eq!(story.release(0), ["3 gets #0"]);
}

#[test]
fn closing_refuses_everybody() {
    let mut story = Story::with_slots(&[1]);
    story.arrive(0, 0);
    story.arrive(0, 0);
    assert_eq!(story.on(Event::Closed), ["2: the host is stopping"]);
    assert_eq!(story.arrive(0, 0), ["3: the host is stopping"]);
    assert!(story.release(0).is_empty());
}

#[test]
fn unknown_lanes_and_spent_deadlines_are_refused() {
    let mut story = Story::with_slots(&[0]);
    assert_eq!(story.arrive(7, 0), ["1: there is no such lane"]);
    let arrival = Arrival { ticket: Ticket(9), lane: LaneId(0), priority: 0, deadline: story.now };
    assert_eq!(story.on(Event::Arrived(arrival)), ["9: waited 0 ms without getting a slot"]);
}

#[test]
fn figures_tell_the_expected_wait() {
    let mut story = Story::with_slots(&[2]);
    story.arrive(0, 0);
    story.release(0);
    (0..4).for_each(|_| drop(story.arrive(0, 0)));
    let stat = story.dispatcher.stats()[0];
    assert_eq!((stat.running, stat.queued, stat.slots_free, stat.est_wait_ms), (2, 2, 0, 200));
}

#[derive(Debug, Clone)]
enum Step {
    Arrive { lane: u32, priority: i32, wait: u64 },
    Release(usize),
    Cancel(u64),
    Change(u32, LaneState),
    Wait(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    use LaneState::{Down, Draining, Ready, Starting, Unloaded};
    let state = prop_oneof![4 => Just(Ready), 1 => Just(Down), 1 => Just(Starting), 1 => Just(Draining), 1 => Just(Unloaded)];
    prop_oneof![
        6 => (0u32..4, -2i32..3, 0u64..50).prop_map(|(lane, priority, wait)| Step::Arrive { lane, priority, wait }),
        4 => any::<usize>().prop_map(Step::Release),
        1 => (0u64..60).prop_map(Step::Cancel),
        1 => (0u32..3, state).prop_map(|(lane, state)| Step::Change(lane, state)),
        2 => (0u64..30).prop_map(Step::Wait),
    ]
}

/// What the promises say must hold, kept beside the dispatcher by the simplest possible means.
#[derive(Default)]
struct Model {
    waiting: HashMap<u64, Duration>,
    leases: Vec<(LaneId, Generation)>,
}

impl Model {
    fn take_in(&mut self, effects: Vec<Effect>, now: Duration) -> Result<(), TestCaseError> {
        for effect in effects {
            let ticket = match effect {
                Effect::Grant { ticket, lane, generation, .. } => {
                    self.leases.push((lane, generation));
                    let deadline = self.waiting.get(&ticket.0);
                    prop_assert!(
                        deadline.is_none_or(|deadline| *deadline > now || *deadline == Duration::MAX)
                    );
                    ticket
                }
                Effect::Refuse { ticket, .. } => ticket,
            };
            prop_assert!(self.waiting.remove(&ticket.0).is_some(), "ticket {} ended twice", ticket.0);
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Every ticket ends exactly once, no lane runs more than its slots, no queue outgrows its limit, no wait outlives its
    /// deadline, and closing leaves nobody waiting.
    #[test]
    fn promises_hold_for_any_sequence_of_events(steps in prop::collection::vec(any_step(), 1..120)) {
        let slots = [1u32, 2, 0];
        let mut dispatcher = Dispatcher::new(slots, LIMITS);
        let mut model = Model::default();
        let mut now = Duration::ZERO;
        for (number, step) in steps.into_iter().enumerate() {
            let number = number as u64;
            let mut effects = Vec::new();
            match step {
                Step::Arrive { lane, priority, wait } => {
                    // A free slot is granted whatever the deadline, so such a ticket has none in the model.
                    let free = dispatcher.lanes.get(lane as usize).is_some_and(|lane| lane.free() > 0);
                    model.waiting.insert(number, if free { Duration::MAX } else { now + ms(wait) });
                    let arrival = Arrival { ticket: Ticket(number), lane: LaneId(lane), priority, deadline: now + ms(wait) };
                    dispatcher.on(Event::Arrived(arrival), now, &mut effects);
                }
                Step::Release(index) if !model.leases.is_empty() => {
                    let (lane, generation) = model.leases.swap_remove(index % model.leases.len());
                    dispatcher.on(Event::Released { lane, generation, report: Report::default() }, now, &mut effects);
                }
                Step::Release(_) => {}
                Step::Cancel(ticket) => {
                    model.waiting.remove(&ticket);
                    dispatcher.on(Event::Cancelled(Ticket(ticket)), now, &mut effects);
                }
                Step::Change(lane, state) => {
                    let event = Event::LaneChanged { lane: LaneId(lane), state, ready_in: ms(5) };
                    dispatcher.on(event, now, &mut effects);
                }
                Step::Wait(time) => {
                    now += ms(time);
                    dispatcher.on(Event::Tick, now, &mut effects);
                    prop_assert!(dispatcher.next_deadline().is_none_or(|deadline| deadline > now));
                }
            }
            model.take_in(effects, now)?;
            prop_assert_eq!(dispatcher.queued(), model.waiting.len());
            prop_assert!(dispatcher.queued() <= LIMITS.total);
            for (stat, slots) in dispatcher.stats().iter().zip(slots) {
                prop_assert!(stat.running <= slots && stat.queued as usize <= LIMITS.per_lane);
                prop_assert!(stat.queued == 0 || stat.state.able_to_serve());
                let current = dispatcher.lanes[stat.id.index()].generation;
                let held = model.leases.iter().filter(|lease| **lease == (stat.id, current)).count();
                prop_assert_eq!(stat.running as usize, held);
            }
        }
        let mut effects = Vec::new();
        dispatcher.on(Event::Closed, now, &mut effects);
        model.take_in(effects, now)?;
        prop_assert!(model.waiting.is_empty(), "still waiting: {:?}", model.waiting);
    }
}
