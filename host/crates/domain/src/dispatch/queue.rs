//! The queues of waiting requests.
//!
//! Each lane has priority levels that rise with age, and flows that take turns by weight within a
//! level (`dispatch/fairness.rs`). Over all lanes, requests are ordered by deadline.
//!
//! ```text
//!   lane ── level 10 ── flow a: 3, 7        the level with the highest aged priority is served;
//!        │           └─ flow b: 5           its flows take turns, each with its earliest request
//!        └─ level 0 ─── flow a: 1, 2, 9
//! ```

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::events::{Enqueue, FlowId, Ticket};
use super::fairness::{SlotHolders, Turns};
use super::setup::QueueLimits;
use crate::advice::Switching;
use crate::fleet_view::LaneId;

/// A waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) ticket: Ticket,
    pub(super) priority: i32,
    pub(super) flow: FlowId,
    pub(super) weight: u32,
    pub(super) since: Duration,
    pub(super) deadline: Duration,
    pub(super) switching: Switching,
    pub(super) has_fallback: bool,
}

impl Waiter {
    pub(super) fn new(enqueue: &Enqueue, since: Duration) -> Self {
        let Enqueue { ticket, priority, flow, weight, deadline, switching, has_fallback, .. } =
            *enqueue;
        // A flow without any weight would never have a turn.
        let weight = weight.max(1);
        Self { ticket, priority, flow, weight, since, deadline, switching, has_fallback }
    }
}

/// The sequence number of an arrival; earlier arrivals have smaller numbers.
type ArrivalSeq = u64;

#[derive(Debug, Default)]
struct Level {
    waiting: BTreeMap<ArrivalSeq, Waiter>,
    flows: HashMap<FlowId, BTreeSet<ArrivalSeq>>,
    turns: Turns,
}

#[derive(Debug, Default)]
struct LaneQueue {
    levels: BTreeMap<i32, Level>,
    /// Arrival times of the requests that allow switching away from busy lanes.
    allowing_switch: BTreeMap<ArrivalSeq, Duration>,
    length: usize,
}

/// The places of a flow, and the weight of its newest request.
#[derive(Debug, Default)]
struct Places {
    count: u64,
    weight: u32,
    newest: (ArrivalSeq, Ticket),
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
        self.flows.entry(waiter.flow).or_default().insert(seq);
        self.turns.join(waiter.flow, waiter.weight);
    }

    fn remove(&mut self, seq: ArrivalSeq) -> Option<Waiter> {
        let waiter = self.waiting.remove(&seq)?;
        if let Some(flow) = self.flows.get_mut(&waiter.flow) {
            flow.remove(&seq);
            if flow.is_empty() {
                self.flows.remove(&waiter.flow);
                self.turns.leave(waiter.flow);
            }
        }
        Some(waiter)
    }

    /// Returns the next request to serve, whose flow has its turn.
    fn next_turn(&mut self, slots: u32, holders: &SlotHolders) -> Option<ArrivalSeq> {
        let flow = self.turns.next(slots, holders)?;
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

impl Places {
    fn add(&mut self, seq: ArrivalSeq, waiter: &Waiter) {
        self.count += 1;
        if seq > self.newest.0 {
            (self.newest, self.weight) = ((seq, waiter.ticket), waiter.weight);
        }
    }
}

/// Compares two numbers of places, each relative to a weight.
fn by_weight((places, weight): (u64, u32), (others, other_weight): (u64, u32)) -> Ordering {
    let relative = |places: u64, weight: u32| u128::from(places) * u128::from(weight);
    relative(places, other_weight).cmp(&relative(others, weight))
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

    /// Changes the number of lanes, which only grows, and the aging of priorities.
    pub(super) fn configure(&mut self, lanes: usize, aging: Duration) {
        self.lanes.resize_with(lanes.max(self.lanes.len()), LaneQueue::default);
        self.aging = aging;
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

    /// Removes and returns the next request to serve. `slots` are all of the lane, and who holds
    /// some of them.
    pub(super) fn pop(
        &mut self,
        lane: LaneId,
        (slots, holders): (u32, &SlotHolders),
        now: Duration,
    ) -> Option<Waiter> {
        let aging = self.aging;
        let queue = self.lanes.get_mut(lane.index())?;
        let (_, priority) = queue.best(now, aging)?;
        let seq = queue.levels.get_mut(&priority)?.next_turn(slots, holders)?;
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

    /// Returns the request that makes room in a full queue for a request of a flow with this
    /// weight: the newest one of the flow with the most places for its weight. That flow has to
    /// keep at least as many places for its weight as the other one gets, so that no request takes
    /// the place of one that could take it back.
    pub(super) fn displaced_by(
        &self,
        (flow, weight): (FlowId, u32),
        lane: LaneId,
        limits: QueueLimits,
    ) -> Option<Ticket> {
        // If the lane's own limit is reached, only a place in its queue helps.
        let is_lane_full = self.waiting(lane) >= limits.per_lane;
        let lanes = self.lanes.iter().enumerate();
        let lanes = lanes.filter(|(index, _)| !is_lane_full || *index == lane.index());
        let mut flows: BTreeMap<FlowId, Places> = BTreeMap::new();
        for level in lanes.flat_map(|(_, queue)| queue.levels.values()) {
            for (seq, waiter) in &level.waiting {
                flows.entry(waiter.flow).or_default().add(*seq, waiter);
            }
        }
        let own = flows.get(&flow).map_or(0, |places| places.count);
        let gets = (own + 1, weight.max(1));
        let gives = flows.into_values().filter(|places| {
            let keeps = (places.count - 1, places.weight);
            by_weight(keeps, gets).is_ge()
        });
        // Numbers of arrivals are unique, so the order of the flows does not matter.
        let order = |one: &Places, other: &Places| {
            let by_places = by_weight((one.count, one.weight), (other.count, other.weight));
            by_places.then(one.newest.cmp(&other.newest))
        };
        gives.max_by(order).map(|places| places.newest.1)
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

    /// Returns the requests waiting for a lane, by priority including age and then by arrival.
    pub(super) fn in_order(&self, lane: LaneId, now: Duration) -> Vec<Ticket> {
        let levels = self.lanes.get(lane.index()).map(|queue| &queue.levels);
        let aged = |(priority, level): (&i32, &'_ Level)| {
            let since = level.oldest().map_or(now, |oldest| oldest.since);
            Reverse((aged_priority(*priority, since, now, self.aging), now.saturating_sub(since)))
        };
        let mut levels: Vec<(&i32, &Level)> = levels.into_iter().flatten().collect();
        levels.sort_by_key(|level| aged(*level));
        let waiting = levels.into_iter().flat_map(|(_, level)| level.waiting.values());
        waiting.map(|waiter| waiter.ticket).collect()
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
mod tests;
