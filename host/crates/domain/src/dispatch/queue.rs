//! Who waits for which lane: per lane by priority and then in order of arrival, and over all lanes by deadline.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::{QueueLimits, Ticket};
use crate::fleet_view::LaneId;

/// One waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) ticket: Ticket,
    pub(super) deadline: Duration,
    pub(super) since: Duration,
}

/// Place in a lane's queue: higher priority first, then the earlier arrival.
type Place = (Reverse<i32>, u64);

#[derive(Debug)]
pub(super) struct Queue {
    lanes: Vec<BTreeMap<Place, Waiter>>,
    places: HashMap<Ticket, (LaneId, Place)>,
    deadlines: BTreeSet<(Duration, Ticket)>,
    arrivals: u64,
}

impl Queue {
    pub(super) fn new(lanes: usize) -> Self {
        Self {
            lanes: vec![BTreeMap::new(); lanes],
            places: HashMap::new(),
            deadlines: BTreeSet::new(),
            arrivals: 0,
        }
    }

    pub(super) fn push(&mut self, lane: LaneId, priority: i32, waiter: Waiter) {
        let Some(waiting) = self.lanes.get_mut(lane.index()) else { return };
        self.arrivals += 1;
        let place = (Reverse(priority), self.arrivals);
        waiting.insert(place, waiter);
        self.places.insert(waiter.ticket, (lane, place));
        self.deadlines.insert((waiter.deadline, waiter.ticket));
    }

    pub(super) fn pop(&mut self, lane: LaneId) -> Option<Waiter> {
        let (_, waiter) = self.lanes.get_mut(lane.index())?.pop_first()?;
        self.forget(&waiter);
        Some(waiter)
    }

    pub(super) fn pop_expired(&mut self, now: Duration) -> Option<Waiter> {
        let (deadline, ticket) = *self.deadlines.first()?;
        if deadline > now {
            return None;
        }
        self.remove(ticket)
    }

    pub(super) fn cancel(&mut self, ticket: Ticket) {
        self.remove(ticket);
    }

    pub(super) fn drain(&mut self, lane: LaneId) -> Vec<Waiter> {
        let waiting = self.lanes.get_mut(lane.index()).map(std::mem::take).unwrap_or_default();
        let waiters: Vec<Waiter> = waiting.into_values().collect();
        waiters.iter().for_each(|waiter| self.forget(waiter));
        waiters
    }

    pub(super) fn drain_all(&mut self) -> Vec<Waiter> {
        self.places.clear();
        self.deadlines.clear();
        self.lanes.iter_mut().flat_map(|waiting| std::mem::take(waiting).into_values()).collect()
    }

    pub(super) fn is_empty(&self, lane: LaneId) -> bool {
        self.waiting(lane) == 0
    }

    pub(super) fn is_full(&self, lane: LaneId, limits: QueueLimits) -> bool {
        self.waiting(lane) >= limits.per_lane || self.len() >= limits.total
    }

    pub(super) fn waiting(&self, lane: LaneId) -> usize {
        self.lanes.get(lane.index()).map_or(0, BTreeMap::len)
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Duration> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Waiter> {
        let (lane, place) = self.places.get(&ticket)?;
        let waiter = self.lanes.get_mut(lane.index())?.remove(place)?;
        self.forget(&waiter);
        Some(waiter)
    }

    fn forget(&mut self, waiter: &Waiter) {
        self.places.remove(&waiter.ticket);
        self.deadlines.remove(&(waiter.deadline, waiter.ticket));
    }
}
