//! Lanes of other hosts: another dispatcher decides there which lane is loaded, and has a queue of
//! its own.
//!
//! A request is sent there although the lane is not loaded, and waits there. So a slot of such a
//! lane stands for a request that the other host has, served or waiting; how many these are at most
//! is the other host's number of slots and what is allowed to wait there.

use std::time::Duration;

use super::Dispatcher;
use super::events::{AcquireError, Enqueue};
use super::lane::Lane;
use super::remote_lane::RemoteLane;
use super::setup::Residency;
use crate::advice::Switching;
use crate::fleet_view::{LaneId, LaneState};

impl Dispatcher {
    /// Notes what another host says of a lane. Without effect on lanes of this host, for which it
    /// returns false.
    pub(super) fn note_remote(&mut self, id: LaneId, remote: RemoteLane) -> bool {
        let lane = self.lanes.get_mut(id.index());
        let is_external =
            |lane: &&mut Lane| !lane.retired && lane.setup.residency == Residency::External;
        let Some(lane) = lane.filter(is_external) else { return false };
        lane.remote = Some(remote);
        true
    }

    /// Checks whether a request may wait in the queue of another host: the same that is checked of
    /// one that waits here. Without effect on lanes of this host.
    pub(super) fn may_wait_elsewhere(
        &self,
        lane: &Lane,
        request: &Enqueue,
        now: Duration,
    ) -> Result<(), AcquireError> {
        if lane.remote.is_none() || !lane.state().can_serve() {
            return Ok(());
        }
        if request.switching == Switching::Never && lane.is_unloaded_there() {
            return Err(AcquireError::NotLoaded);
        }
        match request.has_fallback {
            true => self.check_estimate(request.lane, request.deadline, now),
            false => Ok(()),
        }
    }
}

impl Lane {
    /// Returns the number of requests that the lane serves at a time; for a lane of another host,
    /// of those that are there.
    pub(super) fn slots(&self) -> u32 {
        self.remote.map_or(self.setup.slots, |remote| remote.slots)
    }

    /// Returns true if a request would make another host load the lane.
    fn is_unloaded_there(&self) -> bool {
        self.remote.is_some_and(|remote| match remote.state {
            LaneState::Unloaded | LaneState::Draining | LaneState::Down => true,
            LaneState::Starting | LaneState::Ready | LaneState::Degraded => false,
        })
    }

    /// Returns the time after which a silent host counts as down; `None` if it is not silent.
    pub(super) fn silence(&self) -> Option<Duration> {
        self.remote.and_then(|remote| remote.silent)
    }
}

#[cfg(test)]
mod tests;
