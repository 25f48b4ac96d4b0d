//! Compares two configurations of a fleet: what a change means for each lane.
//!
//! A lane is restarted only if its engine could not go on: if the driver would launch another
//! command, environment or folder, if the port is another one, or if the engine would hold another
//! amount of memory. Everything else applies while the engine serves.

use std::collections::BTreeMap;

use crate::driver::{Driver, Target};
use crate::launch::Launch;
use crate::spec::{FleetSpec, GroupSpec, LaneSpec};
use pointsman_domain::dispatch::Residency;

/// What happens to a lane when a configuration takes effect. The keys are those of the file that
/// differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LaneChange {
    /// The lane is new.
    Added,
    /// The engine goes on, and the keys apply at once.
    InPlace(Vec<&'static str>),
    /// The engine is stopped once its streams have ended, and is started again with the new
    /// settings if it was loaded. Requests wait meanwhile.
    Restarted(Vec<&'static str>),
    /// The lane is removed: its streams end, and then its engine.
    Removed,
}

impl FleetSpec {
    /// Compares two configurations without effect. Returns what happens to the lanes that differ,
    /// by their names, and to the groups, by `group NAME`.
    pub fn changes_to(&self, new: &Self) -> BTreeMap<String, LaneChange> {
        let mut changes = BTreeMap::new();
        for lane in &new.lanes {
            let change = match self.lane(&lane.name) {
                None => Some(LaneChange::Added),
                Some(before) => {
                    compare_lanes((before, self.group_of(before)), (lane, new.group_of(lane)))
                }
            };
            changes.extend(change.map(|change| (lane.name.clone(), change)));
        }
        let is_removed = |lane: &&LaneSpec| new.lane(&lane.name).is_none();
        for lane in self.lanes.iter().filter(is_removed) {
            changes.insert(lane.name.clone(), LaneChange::Removed);
        }
        for (name, change) in compare_groups(&self.groups, &new.groups) {
            changes.insert(format!("group {name}"), change);
        }
        changes
    }

    /// Returns the lane with a name.
    pub(crate) fn lane(&self, name: &str) -> Option<&LaneSpec> {
        self.lanes.iter().find(|lane| lane.name == name)
    }

    /// Returns the group of a lane.
    pub(crate) fn group_of(&self, lane: &LaneSpec) -> Option<&GroupSpec> {
        self.groups.get(lane.group?)
    }
}

/// A lane with its group.
type InGroup<'a> = (&'a LaneSpec, Option<&'a GroupSpec>);

fn compare_lanes(
    (one, old_group): InGroup<'_>,
    (other, new_group): InGroup<'_>,
) -> Option<LaneChange> {
    let is_same_engine = one.engine.0.equals(&*other.engine.0);
    let group = |group: Option<&GroupSpec>| group.map(|group| group.name.clone());
    let differ = [
        ("models", one.models != other.models || one.names != other.names),
        ("labels", one.labels != other.labels),
        ("max-context", one.max_context != other.max_context),
        ("endpoints", one.endpoints != other.endpoints),
        ("slots", one.slots != other.slots),
        ("group", group(old_group) != group(new_group)),
        ("memory", one.need != other.need),
        ("sleep-memory", one.asleep != other.asleep),
        ("load", load(one.residency) != load(other.residency)),
        ("unload-after", unload_after(one.residency) != unload_after(other.residency)),
        ("expected-load-time", one.expected_load != other.expected_load),
        ("cost", one.cost_milli != other.cost_milli),
        ("engine-model", one.engine_model != other.engine_model),
        ("stream-usage", one.stream_usage != other.stream_usage),
        ("engine", !is_same_engine),
        ("fallback-statuses", one.fallback_statuses != other.fallback_statuses),
        ("timeouts", one.timeouts != other.timeouts),
        ("liveness", one.liveness != other.liveness),
    ];
    let keys: Vec<_> = differ.iter().filter(|(_, differs)| *differs).map(|(key, _)| *key).collect();
    if keys.is_empty() {
        return None;
    }
    let needs_restart = one.need != other.need
        || one.asleep != other.asleep
        || (!is_same_engine && !can_go_on(&one.name, &*one.engine.0, &*other.engine.0));
    Some(if needs_restart { LaneChange::Restarted(keys) } else { LaneChange::InPlace(keys) })
}

/// Returns true if an engine of one driver fits the settings of the other one.
fn can_go_on(lane: &str, one: &dyn Driver, other: &dyn Driver) -> bool {
    // The driver only puts it into the command.
    const PORT: u16 = 1;
    match (one.run(), other.run()) {
        (Some(run), Some(other_run)) => {
            let launch = |driver: &dyn Driver| -> Launch { driver.prepare(lane, PORT).launch };
            one.info().key == other.info().key
                && run.port == other_run.port
                && launch(one) == launch(other)
        }
        (None, None) => {
            // The other settings of a lane of another host say which one it is.
            let is_peer = one.peer().is_some() || other.peer().is_some();
            !is_peer && address(&one.target(PORT)) == address(&other.target(PORT))
        }
        (Some(_), None) | (None, Some(_)) => false,
    }
}

fn address(target: &Target) -> (bool, &str, &str, &str) {
    let Target { https, authority, base_path, api_path, .. } = target;
    (*https, authority, base_path, api_path)
}

/// Returns what `load` says, as a number.
fn load(residency: Residency) -> u8 {
    match residency {
        Residency::External => 0,
        Residency::Always => 1,
        Residency::OnDemand { preload: true, .. } => 2,
        Residency::OnDemand { preload: false, .. } => 3,
    }
}

fn unload_after(residency: Residency) -> Option<std::time::Duration> {
    match residency {
        Residency::OnDemand { unload_after, .. } => unload_after,
        Residency::External | Residency::Always => None,
    }
}

fn compare_groups(one: &[GroupSpec], other: &[GroupSpec]) -> Vec<(String, LaneChange)> {
    let named =
        |groups: &[GroupSpec], name: &str| groups.iter().find(|group| group.name == name).cloned();
    let mut changes = Vec::new();
    for group in other {
        let change = match named(one, &group.name) {
            None => Some(LaneChange::Added),
            Some(before) => {
                let differ = [
                    ("memory", before.budget != group.budget),
                    ("pool", before.pool != group.pool),
                    ("free-timeout", before.free_timeout != group.free_timeout),
                ];
                let differ = differ.iter().filter(|(_, differs)| *differs);
                let keys: Vec<_> = differ.map(|(key, _)| *key).collect();
                (!keys.is_empty()).then_some(LaneChange::InPlace(keys))
            }
        };
        changes.extend(change.map(|change| (group.name.clone(), change)));
    }
    let removed = one.iter().filter(|group| named(other, &group.name).is_none());
    changes.extend(removed.map(|group| (group.name.clone(), LaneChange::Removed)));
    changes
}

#[cfg(test)]
mod tests;
