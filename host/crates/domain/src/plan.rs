//! The plan that the host derives from the merged advice.
//!
//! **To change how a lane is chosen, change this file**: [`Plan::from_advice`] makes the decision
//! and `rank` orders the candidates. Everything before it is advice; everything after it executes
//! the plan.

use std::cmp::Reverse;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::advice::{Edit, OnTimeout, Rejection, Switching, Trigger, Triggers};
use crate::context_need::ContextFit;
use crate::fleet_view::{FleetView, LaneId};
use crate::merge::Merged;
use crate::policy_ref::PolicyRef;

/// How one request will be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Plan {
    /// Lanes to attempt, in order; at least one.
    pub steps: Vec<Step>,
    /// Events that move the request to the next step.
    pub on: Triggers,
    /// Priority in the queue; higher is served first.
    pub priority: i32,
    /// Flow for fair sharing; the tenant if `None`.
    pub flow: Option<String>,
    /// Maximum wait in the queue of one step.
    #[serde(rename = "max-wait-us", with = "crate::units::micros")]
    pub max_wait: Duration,
    /// What happens when the maximum wait is exceeded.
    pub on_timeout: OnTimeout,
    /// Timeout for the first byte of the response; the lane's own limit if `None`.
    #[serde(rename = "first-token-us", with = "crate::units::maybe_micros")]
    pub first_token: Option<Duration>,
    /// Whether lanes may be loaded for this request.
    pub switching: Switching,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Step {
    /// Lane to attempt.
    pub lane: LaneId,
    /// Edits for this step, in addition to those of the whole request.
    pub edits: Vec<Edit>,
    /// Maximum sequence length of a lane that serves the model of the request; 0 if it is unknown,
    /// or if the lane serves another model. A request that is too long for the engine of an
    /// earlier step continues at a step with a longer context.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub context: u32,
}

fn is_zero(context: &u32) -> bool {
    *context == 0
}

/// Limits that the host enforces on every plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PlanLimits {
    /// Maximum wait in a queue; policies can only lower it.
    #[serde(rename = "max-wait-us", with = "crate::units::micros")]
    pub max_wait: Duration,
    /// Maximum number of steps.
    pub max_steps: usize,
}

/// A routing decision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// Serve the request by this plan.
    Route(Plan),
    /// A policy rejects the request.
    Reject(PolicyRef, Rejection),
    /// No lane can serve the request now.
    NoLane(NoLaneReason),
}

/// The reason why no lane can serve a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoLaneReason {
    /// No lane serves the model.
    #[error("no lane serves this model")]
    UnknownModel,
    /// The policies' filters exclude all lanes.
    #[error("policies excluded all lanes")]
    FilteredOut,
    /// All eligible lanes are down.
    #[error("all lanes for this model are down")]
    AllDown,
    /// A guard of the operator leaves no lane, or cannot limit the request as it has to.
    #[error("a guard does not allow the request")]
    Guarded,
}

impl Plan {
    /// Derives the decision about one request from the merged advice.
    ///
    /// 1. A rejection ends it.
    /// 2. The candidates that passed the filters are ranked: highest score first; on a tie those
    ///    into whose context the request fits by its estimate, then the shortest time to start,
    ///    then the most free slots, then the lowest id. Lanes that are down are excluded; a
    ///    draining lane is eligible, because a request may wait for it. Lanes whose context is
    ///    certainly too short come last, whatever their score: they are of use only if the estimate
    ///    is wrong.
    /// 3. The first step is the best of them.
    /// 4. The remaining steps are the policies' fallback, without lanes whose context is certainly
    ///    too short, if others are left. Without a fallback, they are the other candidates in rank
    ///    order, so that a request is served whenever any lane that it may use can serve it.
    pub fn from_advice(merged: &Merged, fleet: &FleetView, limits: &PlanLimits) -> Decision {
        if let Some((policy, rejection)) = &merged.reject {
            return Decision::Reject(policy.clone(), rejection.clone());
        }
        if merged.candidates.is_empty() {
            return Decision::NoLane(NoLaneReason::UnknownModel);
        }
        if merged.lanes.is_empty() {
            return Decision::NoLane(NoLaneReason::FilteredOut);
        }
        let ranked = rank(merged, fleet);
        let mut steps: Vec<Step> = Vec::new();
        let mut add = |lane: LaneId, edits: &[Edit]| {
            let able = fleet.stat(lane).is_some_and(|stat| stat.state.can_serve())
                // Merged advice has no such lanes: this holds even if it was made for another view.
                && !fleet.topology.is_barred(lane);
            if able && steps.len() < limits.max_steps && steps.iter().all(|step| step.lane != lane)
            {
                let context = match merged.candidates.contains(&lane) {
                    true => max_context(fleet, lane),
                    false => 0,
                };
                steps.push(Step { lane, edits: edits.to_vec(), context });
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
            // If all candidates are down, the request is treated as if an engine restart had failed
            // its first step.
            Some(fallback)
                if !ranked.is_empty() || fallback.on.contains(Trigger::EngineRestart) =>
            {
                fallback.steps.iter().for_each(|step| add(step.lane, &step.edits));
                fallback.on
            }
            Some(fallback) => fallback.on,
        };
        skip_short_contexts(&mut steps, usize::from(!ranked.is_empty()), merged, fleet);
        if steps.is_empty() {
            return Decision::NoLane(NoLaneReason::AllDown);
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

    /// Returns true if `trigger` moves the request to its next step.
    pub fn triggers_fallback(&self, trigger: Trigger) -> bool {
        self.on.contains(trigger)
            && (trigger != Trigger::QueueTimeout || self.on_timeout == OnTimeout::FallBack)
    }
}

fn max_context(fleet: &FleetView, lane: LaneId) -> u32 {
    fleet.topology.lane(lane).map_or(0, |lane| lane.max_context)
}

/// Removes the policies' fallback steps whose context is certainly too short, if other steps are
/// left. The first `ranked` steps stay: if no candidate has a longer context, the engine's error is
/// the response. A step with edits stays, because they may shorten the request.
fn skip_short_contexts(steps: &mut Vec<Step>, ranked: usize, merged: &Merged, fleet: &FleetView) {
    let is_short = |step: &Step| {
        let fit = merged.need.fit(max_context(fleet, step.lane));
        step.edits.is_empty() && fit == ContextFit::TooLong
    };
    if merged.fallback.is_some() && !steps.iter().all(is_short) {
        let mut index = 0;
        steps.retain(|step| {
            index += 1;
            index <= ranked || !is_short(step)
        });
    }
}

/// Returns the filtered lanes that are able to serve, best first.
fn rank(merged: &Merged, fleet: &FleetView) -> Vec<LaneId> {
    let mut able: Vec<_> = merged
        .lanes
        .iter()
        .filter_map(|(lane, score)| fleet.stat(*lane).map(|stat| (stat, *score)))
        .filter(|(stat, _)| stat.state.can_serve())
        .map(|(stat, score)| {
            let fit = merged.need.fit(max_context(fleet, stat.id));
            let start = (stat.start_in_ms(), Reverse(stat.slots_free), stat.id);
            (fit == ContextFit::TooLong, Reverse(score), fit, start)
        })
        .collect();
    able.sort_unstable();
    able.into_iter().map(|(.., (.., lane))| lane).collect()
}

#[cfg(test)]
mod tests;
