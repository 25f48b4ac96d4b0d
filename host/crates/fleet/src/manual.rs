//! What operators do with lanes and requests by hand.

use std::collections::HashMap;

use pointsman_domain::LaneId;
use pointsman_domain::dispatch::{LaneCommand, LaneCommandError, Ticket};
use tokio::sync::oneshot;

use crate::engine_log::EngineLog;
use crate::fleet::Fleet;
use crate::message::{Message, OperatorCommand};
use crate::status::LaneStatus;

impl Fleet {
    /// Carries out a command for a lane. Returns when it has begun: see [`Fleet::command_done`].
    ///
    /// # Errors
    /// If the lane cannot do that. Nothing has changed then.
    pub async fn command(
        &self,
        lane: LaneId,
        command: LaneCommand,
        by: &str,
    ) -> Result<(), LaneCommandError> {
        let (reply, response) = oneshot::channel();
        let command = OperatorCommand { lane, command, by: by.into(), reply };
        // Fails only if the actor has ended; so does the response then.
        self.mailbox.send(Message::Commanded(command)).ok();
        response.await.unwrap_or(Err(LaneCommandError::Closing))
    }

    /// Waits until the last command for a lane is done, and returns the status of the lane then;
    /// `None` if the lane has been removed.
    pub async fn command_done(&self, lane: LaneId) -> Option<LaneStatus> {
        let mut all = self.statuses.clone();
        loop {
            let found =
                all.borrow_and_update().iter().find(|one| one.borrow().lane == lane).cloned();
            let mut status = found?;
            tokio::select! {
                done = status.wait_for(LaneStatus::is_command_done) => {
                    return done.ok().map(|status| status.clone());
                }
                // The lane may have been removed.
                changed = all.changed() => changed.ok()?,
            }
        }
    }

    /// Returns the last lines of the engines of a lane.
    pub fn engine_log(&self, lane: &str) -> EngineLog {
        self.logs.get(lane)
    }

    /// Returns the places of all waiting requests in the queues of their lanes, from 1. Requests of
    /// the same priority take turns by flow, so that one in front may be served later.
    pub async fn queue_positions(&self) -> HashMap<Ticket, usize> {
        let (reply, response) = oneshot::channel();
        // Fails only if the actor has ended; nothing waits then.
        self.mailbox.send(Message::QueuePositions { reply }).ok();
        response.await.unwrap_or_default()
    }

    /// Returns true once the dispatcher has handled all messages before this one; false if it has
    /// ended or handed over. Waits for as long as the dispatcher hangs.
    pub async fn is_responding(&self) -> bool {
        let (reply, response) = oneshot::channel();
        self.mailbox.send(Message::QueuePositions { reply }).is_ok() && response.await.is_ok()
    }
}
