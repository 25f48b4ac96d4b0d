//! The plan: what the host makes of the advice. The host's last word on where a request goes.
//!
//! **To change how a lane is chosen, change this file**: [`Plan::from_advice`] is the decision, `rank` the order of
//! the candidates. Everything before it is advice, everything after it is carrying the plan out.

use std::cmp::Reverse;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::advice::{Edit, OnTimeout, Rejection, Switching, Trigger, Triggers};
use crate::fleet_view::{FleetView, LaneId};
use crate::merge::{Merged, PolicyRef};

/// How one request will be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// Lanes to try in order; at least one.
    pub steps: Vec<Step>,
    /// What moves the request on to the next step.
    pub on: Triggers,
    /// Higher goes first in the queue.
    pub priority: i32,
    /// Flow for fair sharing; the tenant where `None`.
    pub flow: Option<String>,
    /// Longest wait in the queue of one step.
    #[serde(rename = "max-wait-us", with = "crate::units::micros")]
    pub max_wait: Duration,
    /// What happens after it.
    pub on_timeout: OnTimeout,
    /// Time to the first byte that counts as too long; the lane's own limit where `None`.
    #[serde(rename = "first-token-us", with = "crate::units::maybe_micros")]
    pub first_token: Option<Duration>,
    /// May lanes be loaded for this request.
    pub switching: Switching,
}

/// One lane to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Step {
    /// The lane.
    pub lane: LaneId,
    /// Edits for this step, beyond those of the whole request.
    pub edits: Vec<Edit>,
}

/// Limits that the host puts on every plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlanLimits {
    /// Longest wait in a queue, whatever the policies say.
    #[serde(rename = "max-wait-us", with = "crate::units::micros")]
    pub max_wait: Duration,
    /// Most steps of a plan.
    pub max_steps: usize,
}

/// The outcome of a decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Serve it so.
    Route(Plan),
    /// A policy refuses it.
    Reject(PolicyRef, Rejection),
    /// Nothing can serve it now.
    NoLane(NoLane),
}

/// Why no lane can serve a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoLane {
    /// No lane answers to the model name.
    #[error("no lane answers to this model")]
    UnknownModel,
    /// The filters of the policies leave no lane.
    #[error("the policies leave no lane for this request")]
    FilteredOut,
    /// All lanes that would do are down.
    #[error("no lane for this model is able to serve at the moment")]
    AllDown,
}

impl Plan {
    /// Decide about one request.
    ///
    /// 1. A rejection ends it.
    /// 2. The candidates that the filters left are ranked: best score first; on a tie the shortest time to start, then
    ///    the most free slots, then the lowest id. Lanes that are down are no choice; a draining one may be waited for.
    /// 3. The first step is the best of them.
    /// 4. The further steps are the policies' fallback. Where they planned none, they are the other candidates in
    ///    order of rank, so that a request is answered whenever some lane it may use can do it.
    pub fn from_advice(merged: &Merged, fleet: &FleetView, limits: &PlanLimits) -> Decision {
        if let Some((policy, rejection)) = &merged.reject {
            return Decision::Reject(policy.clone(), rejection.clone());
        }
        if merged.candidates.is_empty() {
            return Decision::NoLane(NoLane::UnknownModel);
        }
        if merged.lanes.is_empty() {
            return Decision::NoLane(NoLane::FilteredOut);
        }
        let ranked = rank(merged, fleet);
        let mut steps: Vec<Step> = Vec::new();
        let mut add = |lane: LaneId, edits: &[Edit]| {
            let known = fleet.stat(lane).is_some_and(|stat| stat.state.able_to_serve());
            if known && steps.len() < limits.max_steps && steps.iter().all(|step| step.lane != lane)
            {
                steps.push(Step { lane, edits: edits.to_vec() });
            }
        };
        if let Some(best) = ranked.first() {
            add(*best, &[]);
        }
        let on = match &merged.fallback {
            None => {
                ranked.iter().skip(1).for_each(|lane| add(*lane, &[]));
                Triggers::ALL
            }
            // With the first choice down, the request is where an engine restart would have put it.
            Some(fallback)
                if !ranked.is_empty() || fallback.on.contains(Trigger::EngineRestart) =>
            {
                fallback.steps.iter().for_each(|step| add(step.lane, &step.edits));
                fallback.on
            }
            Some(fallback) => fallback.on,
        };
        if steps.is_empty() {
            return Decision::NoLane(NoLane::AllDown);
        }
        let queue = merged.queue.as_ref();
        Decision::Route(Self {
            steps,
            on,
            priority: queue.map_or(0, |queue| queue.priority),
            flow: queue.and_then(|queue| queue.flow.clone()),
            max_wait: queue
                .and_then(|queue| queue.max_wait)
                .map_or(limits.max_wait, |wait| wait.min(limits.max_wait)),
            on_timeout: match queue {
                Some(queue) => queue.on_timeout,
                None => OnTimeout::FallBack,
            },
            first_token: merged.fallback.as_ref().and_then(|fallback| fallback.first_token),
            switching: merged.switching,
        })
    }

    /// Does `trigger` move the request on to its next step?
    pub fn moves_on(&self, trigger: Trigger) -> bool {
        self.on.contains(trigger)
            && (trigger != Trigger::QueueTimeout || self.on_timeout == OnTimeout::FallBack)
    }
}

/// The lanes that are left and able to serve, best first.
fn rank(merged: &Merged, fleet: &FleetView) -> Vec<LaneId> {
    let mut able: Vec<_> = merged
        .lanes
        .iter()
        .filter_map(|(lane, score)| fleet.stat(*lane).map(|stat| (stat, *score)))
        .filter(|(stat, _)| stat.state.able_to_serve())
        .map(|(stat, score)| {
            ((Reverse(score), stat.start_in_ms(), Reverse(stat.slots_free), stat.id), stat.id)
        })
        .collect();
    able.sort_unstable_by_key(|(key, _)| *key);
    able.into_iter().map(|(_, lane)| lane).collect()
}

#[cfg(test)]
mod tests;
