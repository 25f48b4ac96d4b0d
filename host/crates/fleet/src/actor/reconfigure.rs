//! Takes up a new configuration while requests wait and are served.
//!
//! ```text
//!   FleetSpec ──changes_to──> Dispatcher::reconfigure ──> handles ──> topology ──> view
//!                                                            │
//!               once its engine has been unloaded            │ at once
//!                 restarted: another supervisor    <─────────┤ added: a handle and a supervisor
//!                 removed: its supervisor ends     <─────────┘ in place: the settings of both
//! ```
//!
//! **Invariant:** the id of a lane that was removed is used again only when neither a lease nor a
//! request that was routed by an earlier topology may refer to it. What an earlier supervisor still
//! reports is recognised by its epoch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{GroupSetup, LaneUpdate, Reconfiguration};
use pointsman_domain::{LaneId, LaneInfo};

use super::{Actor, Statuses};
use crate::message::SupervisorCommand;
use crate::reconfigure::LaneChange;
use crate::spec::{FleetSpec, LaneSpec};

impl Actor {
    /// Takes up a configuration, and returns what has changed. What belongs to the host as a whole
    /// stays: the state directory, the keeper, and the root of the machine's files.
    pub(super) fn reconfigure(
        &mut self,
        new: FleetSpec,
        now: Duration,
    ) -> BTreeMap<String, LaneChange> {
        let new = FleetSpec {
            state_dir: self.spec.state_dir.clone(),
            keeper: self.spec.keeper.clone(),
            conversations: self.spec.conversations,
            machine: self.spec.machine.clone(),
            peering: self.spec.peering.clone(),
            ..new
        };
        let changes = self.spec.changes_to(&new);
        let has_same_secrets = self.spec.secret_variables == new.secret_variables;
        if changes.is_empty() && self.spec.rules == new.rules && has_same_secrets {
            return changes;
        }
        self.factory.shared.secret_variables = new.secret_variables.as_slice().into();
        let ids = self.ids_of(&new);
        let before = std::mem::replace(&mut self.spec, new);
        let reconfiguration = self.reconfiguration(&ids, &changes, &before);
        self.dispatcher.reconfigure(reconfiguration, now, &mut self.effects);
        self.metrics.measurements.configure(&self.spec);
        self.prefixes.grow(ids.iter().map(|id| id.index() + 1).max().unwrap_or(0));
        for (name, change) in &changes {
            if *change == LaneChange::Removed
                && let Some(id) = self.topology.find(name)
            {
                self.retire(id);
            }
        }
        for (index, id) in ids.iter().enumerate() {
            let lane = self.spec.lanes[index].clone();
            let group = self.spec.group_of(&lane).map(|group| format!("group {}", group.name));
            let has_same_group = group.is_none_or(|group| !changes.contains_key(&group));
            let change = changes.get(&lane.name);
            if change.is_some() || !has_same_group || !has_same_secrets {
                self.configure(*id, &lane, &before, change);
            }
            if let Some(handle) = self.lanes.get_mut(id.index()) {
                handle.set_drain_timeout(self.spec.rules.drain_timeout);
            }
        }
        self.settle();
        if !changes.is_empty() {
            self.set_topology(self.infos(&ids));
            self.publish_statuses();
        }
        tracing::info!(event = "lanes_reconfigured", changes = changes.len(), "lanes reconfigured");
        changes
    }

    /// Returns the ids of the lanes of a configuration: those that they have, or the first ones
    /// that are free.
    fn ids_of(&mut self, new: &FleetSpec) -> Vec<LaneId> {
        for (id, handle) in (0..).map(LaneId).zip(&mut self.lanes) {
            if self.dispatcher.is_vacant(id) {
                handle.last_topology = None;
            }
        }
        self.earlier.retain(|(_, usage)| usage.is_in_use());
        let oldest = self.earlier.iter().map(|(generation, _)| *generation).min();
        let is_free = |(id, last): &(LaneId, Option<u64>)| {
            self.dispatcher.is_vacant(*id)
                && last.is_some_and(|last| oldest.is_none_or(|oldest| oldest > last))
        };
        let rows = (0..).map(LaneId).zip(self.lanes.iter().map(|handle| handle.last_generation));
        let mut free = rows.filter(is_free).map(|(id, _)| id);
        let mut next = (0..).map(LaneId).skip(self.lanes.len());
        let id_of = |lane: &LaneSpec| {
            let known = self.topology.find(&lane.name);
            // There are more ids than lanes can be written into a file.
            known.or_else(|| free.next()).or_else(|| next.next()).unwrap_or_default()
        };
        new.lanes.iter().map(id_of).collect()
    }

    /// Returns what the dispatcher has to change.
    fn reconfiguration(
        &self,
        ids: &[LaneId],
        changes: &BTreeMap<String, LaneChange>,
        before: &FleetSpec,
    ) -> Reconfiguration {
        let rows = ids.iter().map(|id| id.index() + 1).max().unwrap_or(0).max(self.lanes.len());
        let mut lanes = vec![LaneUpdate::Retired; rows];
        for (id, lane) in ids.iter().zip(&self.spec.lanes) {
            let setup = lane.setup();
            lanes[id.index()] = match changes.get(&lane.name) {
                Some(LaneChange::Added) => LaneUpdate::Added(setup),
                Some(LaneChange::Restarted(_)) => LaneUpdate::Restarted(setup),
                // A lane of the new configuration is not removed.
                Some(LaneChange::InPlace(_) | LaneChange::Removed) | None => {
                    LaneUpdate::Kept(setup)
                }
            };
        }
        let index_before = |name: &str| before.groups.iter().position(|group| group.name == name);
        let groups = self.spec.groups.iter();
        let groups = groups
            .map(|group| (GroupSetup { budget: group.budget }, index_before(&group.name)))
            .collect();
        Reconfiguration { lanes, groups, rules: self.spec.rules }
    }

    /// Brings the handle and the supervisor of a lane up to date.
    fn configure(
        &mut self,
        id: LaneId,
        lane: &LaneSpec,
        before: &FleetSpec,
        change: Option<&LaneChange>,
    ) {
        let earlier = before.lane(&lane.name);
        let (Some(handle), Some(earlier)) = (self.lanes.get_mut(id.index()), earlier) else {
            return self.add(id, lane);
        };
        let old_upstream = Arc::clone(&handle.upstream);
        handle.configure(earlier, lane);
        self.factory.metrics().set_slots(id, lane.slots);
        if let Some(LaneChange::Restarted(keys)) = change {
            tracing::info!(lane = lane.name, ?keys, "lane is restarted once it has no requests");
            handle.learned = None;
            handle.restarts = true;
            self.unsettled.push(id);
            return;
        }
        let is_external = lane.engine.run().is_none();
        let has_new_engine = !Arc::ptr_eq(&old_upstream, &handle.upstream)
            || earlier.models != lane.models
            || earlier.engine_model != lane.engine_model;
        if handle.restarts {
            // The next supervisor gets the settings.
            return;
        }
        if is_external {
            // Nothing but probes depends on the supervisor, which begin anew.
            if has_new_engine {
                self.factory.supervise(id, handle, lane, &self.spec);
            }
        } else {
            let config = self.factory.config(lane, &self.spec, &handle.upstream);
            self.command(id, SupervisorCommand::Configure(Box::new(config)));
        }
    }

    /// Starts to supervise a new lane.
    fn add(&mut self, id: LaneId, lane: &LaneSpec) {
        let handle = self.factory.start(id, lane, &self.spec);
        match self.lanes.get_mut(id.index()) {
            Some(vacant) => *vacant = handle,
            None => self.lanes.push(handle),
        }
        self.prefixes.replace(id);
        self.factory.metrics().add_lane(id, &lane.name, lane.slots);
        tracing::info!(lane = lane.name, "lane added");
    }

    /// Notes that a lane has been removed.
    fn retire(&mut self, id: LaneId) {
        let Some(handle) = self.lanes.get_mut(id.index()) else { return };
        handle.last_generation = Some(self.topology.generation());
        handle.last_topology = Some(Arc::clone(&self.topology));
        handle.restarts = false;
        self.unsettled.push(id);
        self.factory.metrics().remove_lane(id);
        self.factory.shared.logs.remove(&handle.name);
        tracing::info!(lane = &*handle.name, "lane removed; its requests in flight finish");
    }

    /// Gives restarted lanes whose engines have been unloaded their new supervisors, and ends those
    /// of lanes that were removed.
    pub(super) fn settle(&mut self) {
        if self.unsettled.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.unsettled);
        waiting.sort_unstable();
        waiting.dedup();
        waiting.retain(|id| !self.settle_lane(*id));
        self.unsettled = waiting;
    }

    /// Returns true if nothing is left to do for the lane.
    fn settle_lane(&mut self, id: LaneId) -> bool {
        let Some(handle) = self.lanes.get_mut(id.index()) else { return true };
        if self.dispatcher.is_retired(id) {
            let is_gone = !self.dispatcher.has_engine(id);
            if is_gone {
                handle.stop.cancel();
            }
            return is_gone;
        }
        if !handle.restarts {
            return true;
        }
        if self.dispatcher.is_restart_pending(id) {
            return false;
        }
        handle.restarts = false;
        handle.target = None;
        handle.last_report = None;
        let lane = self.spec.lane(&handle.name).cloned();
        if let Some(lane) = lane {
            self.prefixes.reset(id, None);
            self.factory.supervise(id, handle, &lane, &self.spec);
        }
        true
    }

    /// Returns what policies see of the lanes.
    fn infos(&self, ids: &[LaneId]) -> Vec<LaneInfo> {
        let info = |(id, lane): (&LaneId, &LaneSpec)| {
            let mut info = LaneInfo { id: *id, ..lane.info() };
            if let Some(handle) = self.lanes.get(id.index()) {
                handle.complete(&mut info);
            }
            info
        };
        ids.iter().zip(&self.spec.lanes).map(info).collect()
    }

    /// Publishes the statuses of the lanes that there are now.
    pub(crate) fn publish_statuses(&self) {
        let lanes = self.topology.lanes().iter();
        let handles = lanes.filter_map(|lane| self.lanes.get(lane.id.index()));
        let statuses: Statuses = handles.map(|handle| handle.status.subscribe()).collect();
        self.statuses.send_replace(statuses);
    }
}
