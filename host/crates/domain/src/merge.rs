//! Merging the advice of several policies into one result, by the rules in the WIT
//! (`types.advice`).
//!
//! Filters and scores do not depend on the order of the chain. For `queue`, `fallback` and `edits`
//! the order matters, as the contract says.

mod opinion;

use serde::{Deserialize, Serialize};

pub use self::opinion::{LaneOpinion, OpinionKind};
use crate::advice::{
    Advice, Edit, FallbackAdvice, FallbackStep, LaneAdvice, Metric, MetricWeight, Note,
    QueueAdvice, Rejection, Switching,
};
use crate::context_need::ContextNeed;
use crate::endpoint::Endpoint;
use crate::fleet_view::{FleetView, LaneId, LaneStat};
use crate::policy_ref::PolicyRef;

/// What to do when the filters of several policies leave no lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnConflict {
    /// Reject the request with status 503.
    #[default]
    Refuse,
    /// Ignore filters, starting with the last policy, until a lane is left. Those of required
    /// policies are never ignored, see [`Merge::add_required`].
    IgnoreFilters,
}

/// The merged advice of all policies that gave advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Merged {
    /// The policies that gave advice, in chain order. Empty when the built-in rule decides alone.
    pub by: Vec<PolicyRef>,
    /// The rejection of the request and the policy that issued it.
    pub reject: Option<(PolicyRef, Rejection)>,
    /// Lanes that serve the request's model and endpoint, before any filter.
    pub candidates: Vec<LaneId>,
    /// What the request, with the edits, needs of a lane's context.
    #[serde(default, skip_serializing_if = "ContextNeed::is_unknown")]
    pub need: ContextNeed,
    /// Candidates that passed the filters, with their scores, in id order.
    pub lanes: Vec<(LaneId, i64)>,
    /// What each policy that distinguishes the candidates says of them, in chain order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub opinions: Vec<LaneOpinion>,
    /// The strictest switching advice.
    pub switching: Switching,
    /// Queue advice of the last policy that gave any.
    pub queue: Option<QueueAdvice>,
    /// Fallback advice of the last policy that gave any.
    pub fallback: Option<FallbackAdvice>,
    /// Edits of all policies, in chain order.
    pub edits: Vec<Edit>,
    /// Notes of all policies, in chain order.
    pub notes: Vec<(PolicyRef, Note)>,
}

impl Merged {
    /// Returns the reason shown to people: the value of the last note named `why`.
    pub fn why(&self) -> Option<String> {
        self.notes
            .iter()
            .rev()
            .find(|(_, note)| note.key == "why")
            .map(|(_, note)| note.value.to_string())
    }
}

/// Accumulates advice in chain order.
#[derive(Debug)]
pub struct Merge<'a> {
    fleet: &'a FleetView,
    endpoint: Endpoint,
    merged: Merged,
    scores: Vec<i64>,
    filters: Vec<Filter>,
    /// The index in `merged.by` of the policy whose fallback advice is in `merged`.
    fallback_by: usize,
}

/// The filter of one policy.
#[derive(Debug)]
struct Filter {
    /// The lanes that the policy named, in id order.
    lanes: Vec<LaneId>,
    /// Whether these lanes are excluded, or all others.
    excludes: bool,
    /// The index of the policy in `merged.by`.
    by: usize,
    /// Whether the filter must not be ignored.
    is_required: bool,
    /// The index of its opinion, if it excludes a candidate.
    opinion: Option<usize>,
}

impl Filter {
    /// Returns the filter in the advice of a policy; `None` if the advice excludes no lane.
    fn new(advice: &LaneAdvice, by: usize, is_required: bool) -> Option<Self> {
        let (mut lanes, excludes) = match advice {
            LaneAdvice::Only(lanes) | LaneAdvice::Ordered(lanes) => (lanes.clone(), false),
            LaneAdvice::Avoid(lanes) => (lanes.clone(), true),
            LaneAdvice::Any | LaneAdvice::Scores(_) | LaneAdvice::Blend(_) => return None,
        };
        lanes.sort_unstable();
        Some(Self { lanes, excludes, by, is_required, opinion: None })
    }

    fn passes(&self, lane: LaneId) -> bool {
        self.lanes.binary_search(&lane).is_ok() != self.excludes
    }
}

impl<'a> Merge<'a> {
    /// Creates an empty merge for a request for `model` at `endpoint`.
    pub fn new(fleet: &'a FleetView, model: &str, endpoint: Endpoint) -> Self {
        let candidates: Vec<LaneId> = fleet.topology.candidates_for(model, endpoint).collect();
        let merged = Merged {
            by: Vec::new(),
            reject: None,
            need: ContextNeed::default(),
            lanes: Vec::new(),
            opinions: Vec::new(),
            switching: Switching::Allow,
            queue: None,
            fallback: None,
            edits: Vec::new(),
            notes: Vec::new(),
            candidates,
        };
        let scores = vec![0; merged.candidates.len()];
        Self { fleet, endpoint, scores, merged, filters: Vec::new(), fallback_by: 0 }
    }

    /// Sets what the request needs of a lane's context, with the edits so far. Without it, the
    /// request fits into any lane.
    pub fn set_need(&mut self, need: ContextNeed) {
        self.merged.need = need;
    }

    /// Returns true if a policy rejected the request, which ends the chain.
    pub fn ended(&self) -> bool {
        self.merged.reject.is_some()
    }

    /// Adds the advice of one policy. `weight` scales its scores, in thousandths. Ignored after a
    /// rejection.
    pub fn add(&mut self, policy: &PolicyRef, weight: u32, advice: Advice) {
        self.add_advice(policy, (weight, false), advice);
    }

    /// Adds the advice of a policy without which requests are refused, like [`Merge::add`]. Its
    /// filter is never ignored.
    pub fn add_required(&mut self, policy: &PolicyRef, weight: u32, advice: Advice) {
        self.add_advice(policy, (weight, true), advice);
    }

    fn add_advice(
        &mut self,
        policy: &PolicyRef,
        (weight, is_required): (u32, bool),
        advice: Advice,
    ) {
        if self.ended() {
            return;
        }
        self.merged.by.push(policy.clone());
        self.merged.notes.extend(advice.notes.into_iter().map(|note| (policy.clone(), note)));
        if let Some(rejection) = advice.reject {
            self.merged.reject = Some((policy.clone(), rejection));
            return;
        }
        self.add_lanes(policy, (i64::from(weight), is_required), &advice.lanes);
        self.merged.edits.extend(advice.edits);
        if let Some(switching) = advice.switching {
            self.merged.switching = self.merged.switching.min(switching);
        }
        if advice.queue.is_some() {
            self.merged.queue = advice.queue;
        }
        if let Some(mut fallback) = advice.fallback {
            // A lane that cannot serve the endpoint counts as one that does not exist, which the
            // plan leaves out.
            let topology = &self.fleet.topology;
            let is_unknown = |lane| topology.lane(lane).is_none();
            fallback.steps.retain(|FallbackStep { lane, .. }| {
                is_unknown(*lane) || topology.can_serve(*lane, self.endpoint)
            });
            self.merged.fallback = Some(fallback);
            self.fallback_by = self.merged.by.len() - 1;
        }
    }

    /// Returns the candidates that pass all filters so far, in id order.
    pub fn lanes_left(&self) -> Vec<LaneId> {
        self.left().map(|index| self.merged.candidates[index]).collect()
    }

    /// Returns the indices of the candidates that pass all filters.
    fn left(&self) -> impl Iterator<Item = usize> {
        let passes = |index: &usize| {
            let lane = self.merged.candidates[*index];
            self.filters.iter().all(|filter| filter.passes(lane))
        };
        (0..self.merged.candidates.len()).filter(passes)
    }

    /// Resolves conflicting filters, removes the fallback steps that leave the filter of another
    /// policy, and returns the merged advice. A policy may fall back to lanes that its own filter
    /// excludes.
    pub fn finish(mut self, conflict: OnConflict) -> Merged {
        self.merged.lanes = loop {
            let left: Vec<(LaneId, i64)> = self
                .left()
                .map(|index| (self.merged.candidates[index], self.scores[index]))
                .collect();
            if !left.is_empty() || conflict == OnConflict::Refuse || !self.ignore_filter() {
                break left;
            }
        };
        if let Some(fallback) = &mut self.merged.fallback {
            let others = || self.filters.iter().filter(|filter| filter.by != self.fallback_by);
            fallback.steps.retain(|step| others().all(|filter| filter.passes(step.lane)));
        }
        self.merged
    }

    /// Removes the last filter that may be ignored. Returns false if there is none.
    fn ignore_filter(&mut self) -> bool {
        let Some(last) = self.filters.iter().rposition(|filter| !filter.is_required) else {
            return false;
        };
        let opinion = self.filters.remove(last).opinion;
        if let Some(opinion) = opinion.and_then(|index| self.merged.opinions.get_mut(index)) {
            opinion.kind = OpinionKind::IgnoredFilter;
        }
        true
    }

    fn add_lanes(
        &mut self,
        policy: &PolicyRef,
        (weight, is_required): (i64, bool),
        lanes: &LaneAdvice,
    ) {
        let candidates = &self.merged.candidates;
        let filter = Filter::new(lanes, self.merged.by.len() - 1, is_required);
        let scores = scores(self.fleet, candidates, lanes).filter(|_| weight > 0);
        let best = scores.iter().flatten().max().copied();
        let preferred: Vec<bool> = match (&filter, &scores) {
            (Some(filter), _) => candidates.iter().map(|lane| filter.passes(*lane)).collect(),
            (None, Some(scores)) => scores.iter().map(|score| Some(*score) == best).collect(),
            (None, None) => Vec::new(),
        };
        let opinion = preferred.contains(&false).then(|| LaneOpinion {
            policy: policy.clone(),
            kind: if filter.is_some() { OpinionKind::Filter } else { OpinionKind::Scores },
            lanes: candidates
                .iter()
                .zip(preferred)
                .filter_map(|(lane, is_preferred)| is_preferred.then_some(*lane))
                .collect(),
        });
        for (total, score) in self.scores.iter_mut().zip(scores.into_iter().flatten()) {
            *total += weight * score;
        }
        if let Some(filter) = filter {
            let opinion = opinion.as_ref().map(|_| self.merged.opinions.len());
            self.filters.push(Filter { opinion, ..filter });
        }
        self.merged.opinions.extend(opinion);
    }
}

/// Returns the score that lane advice gives to each candidate; `None` if it gives no scores.
fn scores(fleet: &FleetView, candidates: &[LaneId], lanes: &LaneAdvice) -> Option<Vec<i64>> {
    match lanes {
        LaneAdvice::Any | LaneAdvice::Only(_) | LaneAdvice::Avoid(_) => None,
        LaneAdvice::Scores(scores) => {
            let score = |lane: &LaneId| {
                scores.iter().find(|score| score.lane == *lane).map_or(0, |score| score.score)
            };
            Some(candidates.iter().map(|lane| i64::from(score(lane).min(1000))).collect())
        }
        LaneAdvice::Ordered(ordered) => {
            let steps = i64::try_from(ordered.len().max(1)).unwrap_or(i64::MAX);
            let score = |lane: &LaneId| {
                let rank = ordered.iter().position(|other| other == lane);
                rank.map_or(0, |rank| 1000 * (steps - i64::try_from(rank).unwrap_or(steps)) / steps)
            };
            Some(candidates.iter().map(score).collect())
        }
        LaneAdvice::Blend(weights) => Some(blend(fleet, candidates, weights)),
    }
}

/// Returns the weighted mean of the scaled metrics for each candidate, -1000 to 1000.
fn blend(fleet: &FleetView, candidates: &[LaneId], weights: &[MetricWeight]) -> Vec<i64> {
    let mut totals = vec![0i64; candidates.len()];
    let mut sum = 0i64;
    for MetricWeight { metric, weight } in weights {
        let weight = i64::from((*weight).clamp(-1000, 1000));
        sum += weight.abs();
        for (total, scaled) in totals.iter_mut().zip(scale(fleet, candidates, *metric)) {
            *total += weight * scaled;
        }
    }
    // All weights may be zero.
    totals.iter().map(|total| total / sum.max(1)).collect()
}

/// Scales a metric over the candidates: 1000 for the best, 0 for the worst, 1000 for all if they
/// are equal.
fn scale(fleet: &FleetView, candidates: &[LaneId], metric: Metric) -> Vec<i64> {
    let utilities: Vec<i64> = candidates
        .iter()
        .map(|lane| {
            let cost = fleet.topology.lane(*lane).map_or(0, |info| info.cost_milli);
            // A candidate without statistics ranks last. A quarter of the range keeps `best -
            // worst` from
            // overflowing.
            fleet.stat(*lane).map_or(i64::MIN / 4, |stat| utility(&stat, cost, metric))
        })
        .collect();
    let best = utilities.iter().copied().max().unwrap_or(0);
    let worst = utilities.iter().copied().min().unwrap_or(0);
    let span = best - worst;
    utilities
        .iter()
        .map(|value| if span == 0 { 1000 } else { (value - worst).saturating_mul(1000) / span })
        .collect()
}

/// Returns the metric as a number of which larger is better.
fn utility(stat: &LaneStat, cost_milli: u32, metric: Metric) -> i64 {
    match metric {
        Metric::SlotsFree => i64::from(stat.slots_free),
        Metric::Queue => -(i64::from(stat.queued) + i64::from(stat.waiting)),
        Metric::KvFree => -i64::from(stat.kv_used),
        Metric::EstWait => -i64::from(stat.est_wait_ms),
        Metric::ReadyIn => -i64::from(stat.ready_in_ms),
        Metric::Ttft => -i64::from(stat.ttft_p50_ms),
        Metric::DecodeSpeed => i64::from(stat.decode_tps),
        Metric::CachedTokens => i64::from(stat.cached_tokens),
        Metric::ErrorRate => -i64::from(stat.errors),
        Metric::Cost => -i64::from(cost_milli),
    }
}

#[cfg(test)]
mod tests;
