//! Tests of the queues.

use super::*;

const LANE: LaneId = LaneId(0);

fn second(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn waiter(ticket: u64, priority: i32, flow: u64, since: u64) -> Waiter {
    Waiter {
        ticket: Ticket(ticket),
        priority,
        flow: FlowId(flow),
        weight: 1,
        since: second(since),
        deadline: second(1000 + ticket),
        switching: Switching::Allow,
        has_fallback: false,
    }
}

fn order(queue: &mut Queue, now: u64) -> Vec<u64> {
    let holders = SlotHolders::default();
    std::iter::from_fn(|| queue.pop(LANE, (1, &holders), second(now)))
        .map(|waiter| waiter.ticket.0)
        .collect()
}

#[test]
fn higher_priority_is_served_first_and_equal_ones_in_order() {
    let mut queue = Queue::new(1, Duration::ZERO);
    for (ticket, priority) in [(1, 0), (2, 5), (3, 0), (4, 5), (5, -1)] {
        queue.push(LANE, waiter(ticket, priority, 0, ticket));
    }
    let places: Vec<u64> =
        queue.in_order(LANE, second(10)).into_iter().map(|ticket| ticket.0).collect();
    assert_eq!(places, [2, 4, 1, 3, 5]);
    assert_eq!(order(&mut queue, 10), places);
    assert_eq!(
        (queue.len(), queue.next_deadline(), queue.oldest_allowing_switch(LANE)),
        (0, None, None)
    );
}

#[test]
fn flows_of_one_priority_take_turns() {
    let mut queue = Queue::new(1, Duration::ZERO);
    for (ticket, flow) in [(1, 7), (2, 7), (3, 7), (4, 8), (5, 9), (6, 8)] {
        queue.push(LANE, waiter(ticket, 0, flow, 0));
    }
    assert_eq!(order(&mut queue, 1), [1, 4, 5, 2, 6, 3]);
}

#[test]
fn newest_request_of_the_largest_flow_is_displaced() {
    let limits = QueueLimits { per_lane: 5, total: 7 };
    let mut queue = Queue::new(2, Duration::ZERO);
    for (ticket, priority, flow) in [(1, 0, 7), (2, 9, 7), (3, 0, 8), (4, 0, 7), (5, 0, 8)] {
        queue.push(LANE, waiter(ticket, priority, flow, 0));
    }
    let displaced = |queue: &Queue, flow, lane| {
        queue.displaced_by((FlowId(flow), 1), lane, limits).map(|ticket| ticket.0)
    };
    assert_eq!(displaced(&queue, 9, LANE), Some(4));
    assert_eq!(displaced(&queue, 8, LANE), None, "one more does not suffice");
    assert_eq!(displaced(&queue, 7, LANE), None, "its own requests are not displaced");
    // Over all lanes, flow 8 has the most requests now.
    let other = LaneId(1);
    for (ticket, flow) in [(6, 8), (7, 8)] {
        queue.push(other, waiter(ticket, 0, flow, 0));
    }
    assert_eq!(displaced(&queue, 9, other), Some(7));
    assert_eq!(displaced(&queue, 9, LANE), Some(4), "only a place in the lane's queue helps");
}

#[test]
fn age_raises_priority() {
    let mut queue = Queue::new(1, second(5));
    queue.push(LANE, waiter(1, 0, 0, 0));
    queue.push(LANE, waiter(2, 10, 0, 40));
    assert_eq!(queue.urgency(LANE, second(41)), Some(10), "8 points of age are not enough");
    queue.push(LANE, waiter(3, 10, 0, 50));
    // 50 s add 10 points: the priorities are equal, and the older request is served first.
    assert_eq!(order(&mut queue, 55), [2, 1, 3]);
}

#[test]
fn removed_requests_leave_no_state_behind() {
    let mut queue = Queue::new(1, second(5));
    for ticket in 1..=4 {
        queue.push(LANE, waiter(ticket, 0, ticket % 2, 0));
    }
    assert!(queue.remove(Ticket(2)).is_some() && queue.remove(Ticket(2)).is_none());
    assert_eq!(queue.drain(LANE, |waiter| waiter.flow == FlowId(1)).len(), 2);
    assert_eq!(queue.pop_expired(second(1003)), None);
    assert_eq!(queue.pop_expired(second(1004)).map(|(_, waiter)| waiter.ticket), Some(Ticket(4)));
    let LaneQueue { levels, allowing_switch, length } = &queue.lanes[0];
    assert!(levels.is_empty() && allowing_switch.is_empty() && *length == 0);
    assert!(queue.positions.is_empty() && queue.deadlines.is_empty());
}
