//! What single policies say of the candidates, so that a decision can be attributed to them.

use serde::{Deserialize, Serialize};

use super::{Merged, PolicyRef};
use crate::fleet_view::LaneId;

/// The lane advice of one policy, if it distinguishes the candidates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaneOpinion {
    /// The policy.
    pub policy: PolicyRef,
    /// What became of the advice.
    pub kind: OpinionKind,
    /// The candidates that a filter keeps, or that have the highest of the policy's scores.
    pub lanes: Vec<LaneId>,
}

/// The effect of the lane advice of one policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpinionKind {
    /// A filter that excludes candidates.
    Filter,
    /// A filter that was ignored, because the filters of all policies together left no lane.
    IgnoredFilter,
    /// Scores that differ.
    Scores,
}

impl Merged {
    /// Returns the policies whose filters exclude candidates, in chain order.
    pub fn filtering(&self) -> impl Iterator<Item = &PolicyRef> {
        let filters = self.opinions.iter().filter(|opinion| opinion.kind == OpinionKind::Filter);
        filters.map(|opinion| &opinion.policy)
    }

    /// Returns the policy that prevailed: the one that rejected the request, or the last one whose
    /// advice distinguishes the candidates and speaks for `lane`, the first lane of the plan.
    /// Without a lane, the last one whose filter excludes candidates. `None` if the host decided
    /// between lanes that are equal to the policies.
    pub fn prevailing(&self, lane: Option<LaneId>) -> Option<&PolicyRef> {
        if let Some((policy, _)) = &self.reject {
            return Some(policy);
        }
        let Some(lane) = lane else { return self.filtering().last() };
        let agrees = |opinion: &&LaneOpinion| {
            opinion.kind != OpinionKind::IgnoredFilter && opinion.lanes.contains(&lane)
        };
        self.opinions.iter().rev().find(agrees).map(|opinion| &opinion.policy)
    }

    /// Returns the reason of the decision for `lane`, see [`Merged::prevailing`]: the last note
    /// named `why` of the policy that prevailed. If it gave none, the last one of a policy that has
    /// no opinion on the lanes, because the reason of any other might contradict the decision.
    pub fn reason(&self, lane: Option<LaneId>) -> Option<String> {
        let prevailing = self.prevailing(lane);
        let why = |is_of: &dyn Fn(&PolicyRef) -> bool| {
            let mut notes = self.notes.iter().rev();
            let note = notes.find(|(policy, note)| note.key == "why" && is_of(policy));
            note.map(|(_, note)| note.value.to_string())
        };
        let has_opinion =
            |policy: &PolicyRef| self.opinions.iter().any(|opinion| opinion.policy == *policy);
        why(&|policy| Some(policy) == prevailing).or_else(|| {
            let is_rejected = self.reject.is_some();
            why(&|policy| !is_rejected && !has_opinion(policy))
        })
    }
}
