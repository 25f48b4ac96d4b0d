//! The queues of waiting requests.
//!
//! Each lane has priority levels that rise with age, and flows that take turns within a level. Over
//! all lanes, requests are ordered by deadline.
//!
//! ```text
//!   lane ── level 10 ── flow a: 3, 7        the level with the highest aged priority is served;
//!        │           └─ flow b: 5           its flows take turns, each with its earliest request
//!        └─ level 0 ─── flow a: 1, 2, 9
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::events::{FlowId, Ticket};
use super::setup::QueueLimits;
use crate::advice::Switching;
use crate::fleet_view::LaneId;

/// A waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) ticket: Ticket,
    pub(super) priority: i32,
    pub(super) flow: FlowId,
    pub(super) since: Duration,
    pub(super) deadline: Duration,
    pub(super) switching: Switching,
    pub(super) has_fallback: bool,
}

/// The sequence number of an arrival; earlier arrivals have smaller numbers.
type ArrivalSeq = u64;

#[derive(Debug, Default)]
struct Level {
    waiting: BTreeMap<ArrivalSeq, Waiter>,
    flows: HashMap<FlowId, BTreeSet<ArrivalSeq>>,
    /// Flows with waiting requests; the first one is served next.
    turns: VecDeque<FlowId>,
}

#[derive(Debug, Default)]
struct LaneQueue {
    levels: BTreeMap<i32, Level>,
    /// Arrival times of the requests that allow switching away from busy lanes.
    allowing_switch: BTreeMap<ArrivalSeq, Duration>,
    length: usize,
}

#[derive(Debug)]
pub(super) struct Queue {
    lanes: Vec<LaneQueue>,
    positions: HashMap<Ticket, (LaneId, i32, ArrivalSeq)>,
    deadlines: BTreeSet<(Duration, Ticket)>,
    last_seq: ArrivalSeq,
    aging: Duration,
}

impl Level {
    fn push(&mut self, seq: ArrivalSeq, waiter: Waiter) {
        self.waiting.insert(seq, waiter);
        let flow = self.flows.entry(waiter.flow).or_default();
        if flow.is_empty() {
            self.turns.push_back(waiter.flow);
        }
        flow.insert(seq);
    }

    fn remove(&mut self, seq: ArrivalSeq) -> Option<Waiter> {
        let waiter = self.waiting.remove(&seq)?;
        if let Some(flow) = self.flows.get_mut(&waiter.flow) {
            flow.remove(&seq);
            if flow.is_empty() {
                self.flows.remove(&waiter.flow);
                self.turns.retain(|turn| *turn != waiter.flow);
            }
        }
        Some(waiter)
    }

    /// Returns the next request to serve and moves its flow to the end of the rotation.
    fn next_turn(&mut self) -> Option<ArrivalSeq> {
        let flow = self.turns.pop_front()?;
        self.turns.push_back(flow);
        self.flows.get(&flow)?.first().copied()
    }

    fn oldest(&self) -> Option<&Waiter> {
        self.waiting.values().next()
    }
}

impl LaneQueue {
    /// Returns the level to serve and its aged priority: the highest aged priority; on a tie the
    /// level whose oldest request has waited longer.
    fn best(&self, now: Duration, aging: Duration) -> Option<(i64, i32)> {
        let aged = |(priority, level): (&i32, &Level)| {
            let since = level.oldest()?.since;
            Some((
                aged_priority(*priority, since, now, aging),
                now.saturating_sub(since),
                *priority,
            ))
        };
        self.levels.iter().filter_map(aged).max().map(|(aged, _, priority)| (aged, priority))
    }
}

fn aged_priority(priority: i32, since: Duration, now: Duration, aging: Duration) -> i64 {
    let age = now.saturating_sub(since).as_millis();
    // Priorities do not age if the interval is zero.
    let points = age.checked_div(aging.as_millis()).unwrap_or(0);
    i64::from(priority).saturating_add(i64::try_from(points).unwrap_or(i64::MAX))
}

impl Queue {
    pub(super) fn new(lanes: usize, aging: Duration) -> Self {
        Self {
            lanes: (0..lanes).map(|_| LaneQueue::default()).collect(),
            positions: HashMap::new(),
            deadlines: BTreeSet::new(),
            last_seq: 0,
            aging,
        }
    }

    pub(super) fn push(&mut self, lane: LaneId, waiter: Waiter) {
        let Some(queue) = self.lanes.get_mut(lane.index()) else { return };
        self.last_seq += 1;
        queue.levels.entry(waiter.priority).or_default().push(self.last_seq, waiter);
        queue.length += 1;
        if waiter.switching == Switching::Allow {
            queue.allowing_switch.insert(self.last_seq, waiter.since);
        }
        self.positions.insert(waiter.ticket, (lane, waiter.priority, self.last_seq));
        self.deadlines.insert((waiter.deadline, waiter.ticket));
    }

    /// Removes and returns the next request to serve.
    pub(super) fn pop(&mut self, lane: LaneId, now: Duration) -> Option<Waiter> {
        let aging = self.aging;
        let queue = self.lanes.get_mut(lane.index())?;
        let (_, priority) = queue.best(now, aging)?;
        let seq = queue.levels.get_mut(&priority)?.next_turn()?;
        self.take(lane, priority, seq)
    }

    pub(super) fn pop_expired(&mut self, now: Duration) -> Option<(LaneId, Waiter)> {
        let (deadline, ticket) = *self.deadlines.first()?;
        if deadline > now { None } else { self.remove(ticket) }
    }

    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<(LaneId, Waiter)> {
        let (lane, priority, seq) = *self.positions.get(&ticket)?;
        self.take(lane, priority, seq).map(|waiter| (lane, waiter))
    }

    /// Removes and returns the requests of a lane for which `which` returns true, in arrival order.
    pub(super) fn drain(&mut self, lane: LaneId, which: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        let Some(queue) = self.lanes.get(lane.index()) else { return Vec::new() };
        let mut found: Vec<(ArrivalSeq, i32)> = queue
            .levels
            .iter()
            .flat_map(|(priority, level)| {
                level.waiting.iter().map(move |(seq, waiter)| (seq, priority, waiter))
            })
            .filter(|(_, _, waiter)| which(waiter))
            .map(|(seq, priority, _)| (*seq, *priority))
            .collect();
        found.sort_unstable();
        found.into_iter().filter_map(|(seq, priority)| self.take(lane, priority, seq)).collect()
    }

    pub(super) fn is_empty(&self, lane: LaneId) -> bool {
        self.waiting(lane) == 0
    }

    pub(super) fn is_full(&self, lane: LaneId, limits: QueueLimits) -> bool {
        self.waiting(lane) >= limits.per_lane || self.len() >= limits.total
    }

    /// Returns the request that makes room in a full queue for a request of `flow`: the newest one
    /// of the flow with the most, if that flow has at least two more. So a place goes to the flow
    /// that has fewer even then, and no request takes the place of one that could take it back.
    pub(super) fn displaced_by(
        &self,
        flow: FlowId,
        lane: LaneId,
        limits: QueueLimits,
    ) -> Option<Ticket> {
        // If the lane's own limit is reached, only a place in its queue helps.
        let is_lane_full = self.waiting(lane) >= limits.per_lane;
        let lanes = self.lanes.iter().enumerate();
        let lanes = lanes.filter(|(index, _)| !is_lane_full || *index == lane.index());
        let mut flows: BTreeMap<FlowId, (usize, ArrivalSeq, Ticket)> = BTreeMap::new();
        for level in lanes.flat_map(|(_, queue)| queue.levels.values()) {
            for (seq, waiter) in &level.waiting {
                let entry = flows.entry(waiter.flow).or_insert((0, *seq, waiter.ticket));
                entry.0 += 1;
                if *seq > entry.1 {
                    (entry.1, entry.2) = (*seq, waiter.ticket);
                }
            }
        }
        let own = flows.get(&flow).map_or(0, |(count, ..)| *count);
        // Numbers of arrivals are unique, so the order of the flows does not matter.
        let (most, _, ticket) = flows.into_values().max()?;
        (most >= own + 2).then_some(ticket)
    }

    pub(super) fn lane_of(&self, ticket: Ticket) -> Option<LaneId> {
        self.positions.get(&ticket).map(|(lane, ..)| *lane)
    }

    pub(super) fn waiting(&self, lane: LaneId) -> usize {
        self.lanes.get(lane.index()).map_or(0, |queue| queue.length)
    }

    pub(super) fn len(&self) -> usize {
        self.positions.len()
    }

    /// Returns the highest priority of the requests waiting for a lane, including age.
    pub(super) fn urgency(&self, lane: LaneId, now: Duration) -> Option<i64> {
        self.lanes.get(lane.index())?.best(now, self.aging).map(|(aged, _)| aged)
    }

    /// Returns the arrival time of the oldest request that allows switching away from busy lanes.
    pub(super) fn oldest_allowing_switch(&self, lane: LaneId) -> Option<Duration> {
        self.lanes.get(lane.index())?.allowing_switch.values().next().copied()
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Returns the number of requests waiting for a lane, by priority.
    pub(super) fn by_priority(&self, lane: LaneId) -> Vec<(i32, usize)> {
        let levels = self.lanes.get(lane.index()).map(|queue| &queue.levels);
        levels
            .into_iter()
            .flatten()
            .map(|(priority, level)| (*priority, level.waiting.len()))
            .collect()
    }

    fn take(&mut self, lane: LaneId, priority: i32, seq: ArrivalSeq) -> Option<Waiter> {
        let queue = self.lanes.get_mut(lane.index())?;
        let level = queue.levels.get_mut(&priority)?;
        let waiter = level.remove(seq)?;
        if level.waiting.is_empty() {
            queue.levels.remove(&priority);
        }
        queue.allowing_switch.remove(&seq);
        queue.length -= 1;
        self.positions.remove(&waiter.ticket);
        self.deadlines.remove(&(waiter.deadline, waiter.ticket));
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
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
            since: second(since),
            deadline: second(1000 + ticket),
            switching: Switching::Allow,
            has_fallback: false,
        }
    }

    fn order(queue: &mut Queue, now: u64) -> Vec<u64> {
        std::iter::from_fn(|| queue.pop(LANE, second(now))).map(|waiter| waiter.ticket.0).collect()
    }

    #[test]
    fn higher_priority_is_served_first_and_equal_ones_in_order() {
        let mut queue = Queue::new(1, Duration::ZERO);
        for (ticket, priority) in [(1, 0), (2, 5), (3, 0), (4, 5), (5, -1)] {
            queue.push(LANE, waiter(ticket, priority, 0, ticket));
        }
        assert_eq!(order(&mut queue, 10), [2, 4, 1, 3, 5]);
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
            queue.displaced_by(FlowId(flow), lane, limits).map(|ticket| ticket.0)
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
        assert_eq!(
            queue.pop_expired(second(1004)).map(|(_, waiter)| waiter.ticket),
            Some(Ticket(4))
        );
        let LaneQueue { levels, allowing_switch, length } = &queue.lanes[0];
        assert!(levels.is_empty() && allowing_switch.is_empty() && *length == 0);
        assert!(queue.positions.is_empty() && queue.deadlines.is_empty());
    }
}
