//! What guards demand of one request, whatever policies advise.
//!
//! A [`Constraint`] is computed once for a request and travels with it. The lanes that it forbids
//! are barred in the request's view of the fleet ([`Constraint::restrict`]), so that no plan
//! contains them; a policy's advice that breaks a rule is dropped ([`Constraint::enforce`]); and
//! the sender of each attempt asks [`Constraint::objection`] once more.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::advice::{Advice, Edit, FallbackStep, LaneAdvice};
use crate::fleet_view::{EngineKind, FleetView, LaneId, LaneInfo, Topology};
use crate::outcome::Recovery;
use crate::permit::Dropped;

/// The kind of advice as a metric label, for advice that was dropped because of a guard.
const GUARD: &str = "guard";

/// What a guard demands of the requests for which it applies.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct GuardRules {
    /// Labels that a lane must have, all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only_labels: Vec<(String, String)>,
    /// Labels of which a lane must not have any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub never_labels: Vec<(String, String)>,
    /// True if lanes whose server the host has not started must not be used.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub never_external: bool,
    /// True if only lanes of the model that the client asked for may be used.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keep_model: bool,
    /// Maximum number of output tokens, of all choices together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<u32>,
    /// The lowest and the highest priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<(i32, i32)>,
}

impl GuardRules {
    /// Returns true if the rules allow a lane, whatever model it serves.
    pub fn allow(&self, lane: &LaneInfo) -> bool {
        let has = |label: &(String, String)| lane.labels.contains(label);
        self.only_labels.iter().all(has)
            && !self.never_labels.iter().any(has)
            && !(self.never_external && lane.engine == EngineKind::External)
    }
}

/// A guard that applies to a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AppliedGuard {
    /// Name of the guard.
    pub name: Arc<str>,
    /// Its rules.
    pub rules: GuardRules,
}

/// What all guards that apply to a request demand together: every rule holds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Constraint {
    /// The model that the client asked for; empty if it is not known.
    pub model: Arc<str>,
    /// The guards, in the order of the configuration; at least one.
    pub guards: Vec<Arc<AppliedGuard>>,
}

impl Constraint {
    /// Returns the names of the guards, separated by commas.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.guards.iter().map(|guard| &*guard.name).collect();
        names.join(", ")
    }

    /// Returns the name of the first guard that forbids a lane; `None` if the lane may be used.
    /// The lane is judged as it is in `topology`.
    pub fn objection(&self, topology: &Topology, lane: LaneId) -> Option<&str> {
        let info = topology.lane(lane);
        let forbids = |guard: &&Arc<AppliedGuard>| {
            let serves = |model: &str| topology.candidates(model).contains(&lane);
            // A lane that does not exist cannot be judged.
            info.is_none_or(|info| !guard.rules.allow(info))
                || (guard.rules.keep_model && !self.model.is_empty() && !serves(&self.model))
        };
        self.guards.iter().find(forbids).map(|guard| &*guard.name)
    }

    /// Returns the view in which the lanes that the guards forbid cannot serve the request.
    #[must_use]
    pub fn restrict(&self, view: &FleetView) -> FleetView {
        let topology = &view.topology;
        let restricted = topology.without(|lane| self.objection(topology, lane.id).is_some());
        let mut view = FleetView::clone(view);
        view.topology = Arc::new(restricted);
        view
    }

    /// Returns the name of the first guard that pins the model.
    pub fn keeps_model(&self) -> Option<&str> {
        let guard = self.guards.iter().find(|guard| guard.rules.keep_model)?;
        Some(&guard.name)
    }

    /// Returns the maximum number of output tokens, and the name of the guard that demands it.
    pub fn max_output_tokens(&self) -> Option<(u32, &str)> {
        let limit = |guard: &'_ Arc<AppliedGuard>| guard.rules.max_output_tokens;
        let limits = self.guards.iter().filter_map(|guard| Some((limit(guard)?, &*guard.name)));
        limits.min_by_key(|(limit, _)| *limit)
    }

    /// Returns a range of priorities, moved into that of the guards. Of guards that contradict each
    /// other, the lower maximum counts.
    pub fn clamp_priority(&self, (low, high): (i32, i32)) -> (i32, i32) {
        let ranges = || self.guards.iter().filter_map(|guard| guard.rules.priority);
        let min = ranges().map(|(min, _)| min).max().unwrap_or(i32::MIN);
        let max = ranges().map(|(_, max)| max).min().unwrap_or(i32::MAX);
        // Not `i32::clamp`, which panics if the range is empty.
        (low.max(min).min(max), high.max(min).min(max))
    }

    /// Returns a number that differs for constraints that demand something else.
    pub fn digest(&self) -> u64 {
        // DefaultHasher::new() has fixed keys; only RandomState draws new ones.
        let mut hasher = DefaultHasher::new();
        self.guards.hash(&mut hasher);
        hasher.finish()
    }

    /// Removes from a policy's advice what breaks a rule, and returns what was dropped. `fleet` is
    /// the view of the request. Scores of lanes that must not be used have no effect, and are kept.
    pub fn enforce(&self, advice: &mut Advice, fleet: &FleetView) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        self.enforce_lanes(&mut advice.lanes, &fleet.topology, &mut dropped);
        if let Some(fallback) = &mut advice.fallback {
            fallback.steps.retain(|step| self.keep_lane(step.lane, &fleet.topology, &mut dropped));
            for step in &mut fallback.steps {
                self.enforce_edits(&mut step.edits, &mut dropped);
            }
        }
        self.enforce_edits(&mut advice.edits, &mut dropped);
        if let Some(queue) = &mut advice.queue {
            let (priority, _) = self.clamp_priority((queue.priority, queue.priority));
            if priority != queue.priority {
                let advised = queue.priority;
                let reason = format!("priority {advised}: guards `{}`", self.names());
                dropped.push(Dropped { what: GUARD, reason });
                queue.priority = priority;
            }
        }
        dropped
    }

    /// Makes a policy's recovery the planned one if its lane breaks a rule, and returns what was
    /// dropped.
    pub fn enforce_recovery(&self, recovery: &mut Recovery, fleet: &FleetView) -> Vec<Dropped> {
        let mut dropped = Vec::new();
        let Recovery::Retry(FallbackStep { lane, edits }) = recovery else { return dropped };
        if self.keep_lane(*lane, &fleet.topology, &mut dropped) {
            self.enforce_edits(edits, &mut dropped);
        } else {
            *recovery = Recovery::Planned;
        }
        dropped
    }

    /// Removes lanes that must not be used from a filter. A filter that has no other lanes is
    /// dropped: otherwise it would leave none.
    fn enforce_lanes(
        &self,
        lanes: &mut LaneAdvice,
        topology: &Topology,
        dropped: &mut Vec<Dropped>,
    ) {
        let (LaneAdvice::Only(listed) | LaneAdvice::Ordered(listed)) = lanes else { return };
        let before = listed.len();
        listed.retain(|lane| self.keep_lane(*lane, topology, dropped));
        let is_known = |lane: &LaneId| topology.lane(*lane).is_some();
        if listed.len() < before && !listed.iter().any(is_known) {
            *lanes = LaneAdvice::Any;
        }
    }

    /// Returns true if a lane that a policy names may be used, or does not exist.
    fn keep_lane(&self, lane: LaneId, topology: &Topology, dropped: &mut Vec<Dropped>) -> bool {
        let guard = topology.lane(lane).and_then(|_| self.objection(topology, lane));
        if let Some(guard) = guard {
            let reason = format!("lane `{}`: guard `{guard}`", topology.name(lane));
            dropped.push(Dropped { what: GUARD, reason });
        }
        guard.is_none()
    }

    fn enforce_edits(&self, edits: &mut Vec<Edit>, dropped: &mut Vec<Dropped>) {
        let Some(guard) = self.keeps_model() else { return };
        edits.retain(|edit| {
            let is_kept = !matches!(edit, Edit::SetModel(model) if **model != *self.model);
            if !is_kept {
                let reason = format!("{}: guard `{guard}`", edit.kind());
                dropped.push(Dropped { what: GUARD, reason });
            }
            is_kept
        });
    }
}

#[cfg(test)]
pub(crate) mod tests;
