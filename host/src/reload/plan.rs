//! What a reload changes.

use std::collections::BTreeMap;
use std::fmt;

use pointsman_config::{ChangeKind, Effect, KeyChange};
use pointsman_fleet::LaneChange;
use serde::Serialize;

/// What a reload changes, by the paths of keys such as `lanes.coder.slots`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Plan {
    /// Entries of lists that are new, for example `lanes.coder`.
    pub(crate) added: Vec<String>,
    /// Keys with another value.
    pub(crate) changed: Vec<String>,
    /// Lanes whose engines are stopped and started again.
    pub(crate) restarted: Vec<RestartedLane>,
    /// Entries of lists that are gone.
    pub(crate) removed: Vec<String>,
    /// Keys that take effect in the next process of the host.
    pub(crate) handover: Vec<String>,
    /// Keys that take effect after a stop and a start.
    pub(crate) restart: Vec<String>,
}

/// A lane that a reload restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct RestartedLane {
    pub(crate) lane: String,
    /// The keys of the lane for which it is restarted.
    pub(crate) keys: Vec<String>,
}

impl Plan {
    /// Makes a plan. `applied` is what differs from the configuration in force, `started` from the
    /// one with which the host was started, and `lanes` what the fleet does.
    pub(super) fn new(
        applied: Vec<KeyChange>,
        started: Vec<KeyChange>,
        lanes: &BTreeMap<String, LaneChange>,
    ) -> Self {
        let mut plan = Self::default();
        for KeyChange { path, kind, .. } in applied.into_iter().filter(is_now) {
            match kind {
                ChangeKind::Added => plan.added.push(path),
                ChangeKind::Changed => plan.changed.push(path),
                ChangeKind::Removed => plan.removed.push(path),
            }
        }
        for KeyChange { path, effect, .. } in started {
            match effect {
                Effect::Now | Effect::Lane => {}
                Effect::Handover => plan.handover.push(path),
                Effect::Restart => plan.restart.push(path),
            }
        }
        for (lane, change) in lanes {
            match change {
                // These are in the file, too.
                LaneChange::Added | LaneChange::Removed => {}
                LaneChange::InPlace(keys) => plan.add_keys_of_lane(lane, keys),
                LaneChange::Restarted(keys) => {
                    plan.add_keys_of_lane(lane, keys);
                    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
                    plan.restarted.push(RestartedLane { lane: lane.clone(), keys });
                }
            }
        }
        plan
    }

    /// Adds keys of a lane, or of a group, whose values changed although its table has not: they
    /// follow from other tables, other files, or the environment.
    fn add_keys_of_lane(&mut self, lane: &str, keys: &[&str]) {
        let table = match lane.strip_prefix("group ") {
            Some(group) => format!("groups.{group}"),
            None => format!("lanes.{lane}"),
        };
        for key in keys {
            let path = format!("{table}.{key}");
            if !self.changed.iter().any(|known| known.starts_with(&path)) {
                self.changed.push(path);
            }
        }
    }

    /// Returns true if nothing changes at once.
    pub(crate) fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.changed.is_empty()
            && self.restarted.is_empty()
            && self.removed.is_empty()
    }
}

/// Returns true for a key that takes effect without a new process of the host.
pub(super) fn is_now(change: &KeyChange) -> bool {
    match change.effect {
        Effect::Now | Effect::Lane => true,
        Effect::Handover | Effect::Restart => false,
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lists = [
            ("added", &self.added),
            ("changed", &self.changed),
            ("removed", &self.removed),
            ("next process", &self.handover),
            ("restart", &self.restart),
        ];
        for (what, paths) in lists.iter().filter(|(_, paths)| !paths.is_empty()) {
            write!(f, "{what}: {}; ", paths.join(", "))?;
        }
        for RestartedLane { lane, keys } in &self.restarted {
            write!(f, "lane {lane} restarts for {}; ", keys.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, kind: ChangeKind, effect: Effect) -> KeyChange {
        KeyChange { path: path.to_owned(), kind, effect }
    }

    #[test]
    fn plan_tells_what_happens_when() {
        let applied = vec![
            change("lanes.c", ChangeKind::Added, Effect::Now),
            change("lanes.a.engine.model", ChangeKind::Changed, Effect::Lane),
            change("lanes.b", ChangeKind::Removed, Effect::Now),
            change("state.dir", ChangeKind::Changed, Effect::Restart),
        ];
        let started = vec![
            change("admin.listen", ChangeKind::Changed, Effect::Handover),
            change("lanes.b", ChangeKind::Removed, Effect::Now),
            change("state.dir", ChangeKind::Changed, Effect::Restart),
        ];
        let lanes = BTreeMap::from([
            ("a".to_owned(), LaneChange::Restarted(vec!["engine"])),
            ("c".to_owned(), LaneChange::Added),
            ("d".to_owned(), LaneChange::InPlace(vec!["memory"])),
        ]);
        let plan = Plan::new(applied, started, &lanes);
        let text = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        assert_eq!(plan.added, text(&["lanes.c"]));
        assert_eq!(plan.changed, text(&["lanes.a.engine.model", "lanes.d.memory"]));
        assert_eq!(plan.removed, text(&["lanes.b"]));
        let restarted = RestartedLane { lane: "a".to_owned(), keys: text(&["engine"]) };
        assert_eq!(plan.restarted, [restarted]);
        assert_eq!(plan.handover, text(&["admin.listen"]));
        assert_eq!(plan.restart, text(&["state.dir"]));
        assert!(!plan.is_empty() && Plan::new(Vec::new(), Vec::new(), &BTreeMap::new()).is_empty());
    }
}
