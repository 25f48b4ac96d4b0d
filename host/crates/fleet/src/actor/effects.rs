//! Carries out what the dispatcher decides.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pointsman_domain::dispatch::{
    AcquireError, Effect, FlowId, Generation, LaneMode, SwitchReport, Ticket,
};
use pointsman_domain::{LaneId, LaneState};

use super::{Actor, Waiting};
use crate::message::{Grant, Slot, SupervisorCommand};
use crate::spec::Residency;
use crate::switches::{FinishedSwitch, LoadCause};

impl Actor {
    pub(super) fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Grant { ticket, lane, generation, flow, waited } => {
                let Some(Waiting { reply, request }) = self.waiting.remove(&ticket) else {
                    // Cancelled in the same batch: dropping the grant frees the slot again.
                    drop(self.grant(ticket, lane, (generation, flow), 0));
                    return;
                };
                let priority = request.priority;
                self.metrics.granted(lane, priority, waited);
                let lost = || AcquireError::NotServing {
                    state: LaneState::Down,
                    reason: None,
                    retry_in: Duration::from_secs(1),
                };
                // The engine may have gone down in the same batch, so that there is no target.
                let result = self.grant(ticket, lane, (generation, flow), priority);
                if result.is_some() {
                    self.held.insert(ticket, request);
                }
                let result = result.ok_or_else(lost);
                // If the request has been dropped, so is the grant, which frees the slot.
                drop(reply.send(result));
            }
            Effect::Reject { ticket, refusal } => {
                self.metrics.rejected(&refusal);
                if let Some(Waiting { reply, .. }) = self.waiting.remove(&ticket) {
                    // Fails only if the request has been dropped.
                    drop(reply.send(Err(refusal)));
                }
            }
            Effect::Load(lane) => {
                let cause = self.load_cause(lane);
                if let Some(handle) = self.lanes.get_mut(lane.index()) {
                    handle.load_cause = cause;
                }
                self.command(lane, SupervisorCommand::Load);
            }
            Effect::Unload { lane, fully } => {
                self.command(lane, SupervisorCommand::Unload { fully });
            }
            Effect::Abort { lane, .. } => {
                if let Some(handle) = self.lanes.get(lane.index()) {
                    tracing::warn!(
                        lane = &*handle.name,
                        "aborting in-flight responses: the lane is being evicted and the drain \
                         timeout expired"
                    );
                    if let Some(abort) = &handle.abort {
                        abort.cancel();
                    }
                }
            }
            Effect::Switched(report) => {
                self.switched(&report);
                self.metrics.switched(&report);
            }
        }
    }

    /// Tells of a lane that has been loaded.
    fn switched(&mut self, report: &SwitchReport) {
        let Some(handle) = self.lanes.get_mut(report.target.index()) else { return };
        let names = report.victims.iter().map(|id| self.topology.name(*id).to_owned());
        let evicted: Vec<String> = names.collect();
        let (observer, number) = &mut self.switches;
        *number += 1;
        handle.first_after_switch = true;
        handle.last_switch = Some(*number);
        tracing::info!(
            event = "lane_loaded",
            lane = &*handle.name,
            evicted = evicted.join(", "),
            cause = handle.load_cause.label(),
            overdue = report.overdue,
            drain_ms = millis(report.drain),
            stop_ms = millis(report.stop),
            load_ms = millis(report.load),
            "lane loaded"
        );
        observer.ended(FinishedSwitch {
            number: *number,
            lane: Arc::clone(&handle.name),
            evicted,
            cause: handle.load_cause,
            is_overdue: report.overdue,
            ended: SystemTime::now(),
            drain: report.drain,
            stop: report.stop,
            load: report.load,
        });
    }

    /// Returns why a lane is loaded, when the load is commanded.
    fn load_cause(&self, lane: LaneId) -> LoadCause {
        let is_manual = matches!(
            self.dispatcher.lane_mode(lane),
            Some(LaneMode::Loading | LaneMode::Restarting)
        );
        let name = self.lanes.get(lane.index()).map(|handle| &*handle.name);
        let setup = self.spec.lanes.iter().find(|spec| Some(spec.name.as_str()) == name);
        let is_first = self.lanes.get(lane.index()).is_some_and(|one| one.last_switch.is_none());
        if is_manual {
            LoadCause::Operator
        } else if !self.dispatcher.queued_by_priority(lane).is_empty() {
            LoadCause::Request
        } else {
            match setup.map(|setup| setup.residency) {
                Some(Residency::Always) => LoadCause::Configuration,
                Some(Residency::OnDemand { preload: true, .. }) if is_first => {
                    LoadCause::Configuration
                }
                Some(Residency::OnDemand { .. } | Residency::External) | None => LoadCause::Hint,
            }
        }
    }

    pub(super) fn command(&self, lane: LaneId, command: SupervisorCommand) {
        if let Some(handle) = self.lanes.get(lane.index()) {
            tracing::debug!(lane = &*handle.name, ?command, "commanding supervisor");
            // Fails only if the supervisor has ended, which happens only when the host stops.
            handle.commands.send(command).ok();
        }
    }

    fn grant(
        &mut self,
        ticket: Ticket,
        lane: LaneId,
        lease: (Generation, FlowId),
        priority: i32,
    ) -> Option<Grant> {
        let grant = self.slot_of(ticket, lane, lease, priority);
        if grant.is_none() {
            self.dispatcher.forget_lease(lane);
        }
        grant
    }

    /// Returns a granted slot; `None` if the engine has no address.
    pub(super) fn slot_of(
        &self,
        ticket: Ticket,
        lane: LaneId,
        lease: (Generation, FlowId),
        priority: i32,
    ) -> Option<Grant> {
        let handle = self.lanes.get(lane.index())?;
        Some(Grant {
            target: handle.target.clone()?,
            slot: Slot::new(ticket, lane, lease, self.mailbox.clone()),
            lane_name: Arc::clone(&handle.name),
            engine_model: handle.engine_model.clone(),
            topology: Arc::clone(handle.last_topology.as_ref().unwrap_or(&self.topology)),
            fallback_statuses: Arc::clone(&handle.fallback_statuses),
            stream_usage: handle.stream_usage,
            upstream: Arc::clone(&handle.upstream),
            prefixes: Arc::clone(&self.prefixes),
            abort: handle.abort.clone(),
            priority,
            switch: handle.last_switch,
        })
    }
}

/// Returns whole milliseconds for a log field, which cannot hold a `u128`.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
