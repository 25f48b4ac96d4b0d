//! What the dispatcher tells of its lanes and queues.

use std::time::Duration;

use super::{Dispatcher, Problem, Ticket, lane_ids};
use crate::fleet_view::LaneId;
use crate::lifecycle::EngineState;

impl Dispatcher {
    /// Returns the number of requests that hold a slot of `lane` in the current generation of its
    /// engine.
    pub fn running(&self, lane: LaneId) -> u32 {
        self.lanes.get(lane.index()).map_or(0, |lane| lane.running)
    }

    /// Returns the number of waiting requests over all lanes.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Returns the number of requests waiting for a lane, by priority.
    pub fn queued_by_priority(&self, lane: LaneId) -> Vec<(i32, usize)> {
        self.queue.by_priority(lane)
    }

    /// Returns the place of each waiting request in the queue of its lane, from 1, by priority
    /// including age.
    pub fn queue_positions(&self, now: Duration) -> impl Iterator<Item = (Ticket, usize)> {
        let lanes = lane_ids().take(self.lanes.len());
        lanes.flat_map(move |lane| self.queue.in_order(lane, now).into_iter().zip(1..))
    }

    /// Returns the state of a lane's engine.
    pub fn engine_state(&self, lane: LaneId) -> Option<EngineState> {
        self.lanes.get(lane.index()).map(|lane| lane.engine)
    }

    /// Returns why a lane is paused, or else the last problem of its engine, which is cleared when
    /// the engine serves again.
    pub fn problem(&self, lane: LaneId) -> Option<Problem> {
        let lane = self.lanes.get(lane.index())?;
        lane.pause_problem().or_else(|| lane.problem.clone())
    }
}
