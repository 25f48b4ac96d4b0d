//! Commands of operators.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_domain::LaneId;

use super::{Actor, LaneHandle};
use crate::message::OperatorCommand;
use crate::status::ManualStatus;

impl Actor {
    /// Carries out a command for a lane.
    pub(super) fn commanded(&mut self, command: OperatorCommand, now: Duration) {
        let OperatorCommand { lane, command, by, reply } = command;
        let result = self.dispatcher.command(lane, command, now, &mut self.effects);
        if let Some(handle) = self.lanes.get_mut(lane.index())
            && result.is_ok()
        {
            tracing::info!(
                event = "lane_commanded",
                lane = &*handle.name,
                command = command.label(),
                by = &*by,
                "lane commanded by an operator"
            );
            handle.commanded = Some((by, SystemTime::now()));
        }
        // The caller finds the new state.
        self.publish(now);
        // Fails only if the caller does not want to know.
        reply.send(result).ok();
    }

    /// Returns what remains of the last command of an operator.
    pub(super) fn manual_status(&self, id: LaneId, handle: &LaneHandle) -> Option<ManualStatus> {
        let mode = self.dispatcher.lane_mode(id)?;
        let (by, since) = handle.commanded.as_ref()?;
        Some(ManualStatus { mode, by: Arc::clone(by), since: *since })
    }
}
