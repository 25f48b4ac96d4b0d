//! The policies of a host, in order, as one advisor. A chain is immutable: a change creates a new
//! chain, and a request keeps the chain that decided it.

mod attribution;
pub(crate) mod baseline;
pub(crate) mod cases;
pub(crate) mod evaluate;
pub(crate) mod link;
mod notes;
mod preview;
pub(crate) mod problem;
pub(crate) mod queues;
pub(crate) mod schedule;
pub(crate) mod shadow;
mod trials;

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Advice, Advised, Advisor, BuiltIn, ChainInfo, Facts, FailureReport, FleetView, Merge, Merged,
    Note, OnConflict, Outcome, OutcomeWatch, PolicyRef, Recovered, Recovery, Trace,
};

use crate::chain::evaluate::{Evaluation, evaluate, evaluate_recovery};
use crate::chain::link::Link;
use crate::chain::queues::Queues;
use crate::chain::shadow::ShadowJob;
use crate::version::call_error::CallError;
use crate::version::call_trace::CallTrace;
use crate::version::pace::MAX_DEADLINE;
use crate::version::{Version, policy_span};
use pointsman_spec::{Hook, OnError};
use tracing::dispatcher::{Dispatch, with_default};

/// Maximum size of a body, in bytes, about which policies are called on the thread that serves the
/// request. Reading and editing a body of this size takes less than a millisecond, and it was
/// parsed on this thread as well. A switch to another thread and back takes tens of microseconds.
const MAX_INLINE_BODY: u64 = 256 << 10;

/// The policies in the order in which they are called.
#[derive(Debug)]
pub(crate) struct Chain {
    links: Vec<Link>,
    on_conflict: OnConflict,
    // `None` in dry runs, which have no background threads.
    queues: Option<Queues>,
    has_on_failure: bool,
    has_on_complete: bool,
    has_on_outcome: bool,
    info: Arc<ChainInfo>,
}

impl Default for Chain {
    fn default() -> Self {
        Self::new(Vec::new(), OnConflict::default(), None)
    }
}

impl Chain {
    pub(crate) fn new(links: Vec<Link>, on_conflict: OnConflict, queues: Option<Queues>) -> Self {
        let has = |hook: fn(&Version) -> bool| {
            links.iter().flat_map(Link::versions).any(|version| hook(version))
        };
        Self {
            has_on_failure: has(|version| version.artifact().hooks().on_failure),
            has_on_complete: has(|version| version.artifact().hooks().on_complete),
            has_on_outcome: has(|version| version.artifact().hooks().on_outcome),
            info: Arc::new(ChainInfo::new(
                on_conflict,
                links.iter().flat_map(Link::infos).collect(),
            )),
            links,
            on_conflict,
            queues,
        }
    }

    /// Returns the active versions, without candidates.
    pub(crate) fn active_versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.links.iter().filter_map(|link| link.active.as_ref().ok())
    }

    /// Returns all versions, including candidates and those that they are compared with.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.links.iter().flat_map(Link::versions)
    }

    /// Calls `on-complete` and `on-outcome` of all versions that export them.
    pub(crate) fn observe(&self, fleet: &Arc<FleetView>, now_ms: u64, ended: &[Outcome]) {
        for version in self.links.iter().flat_map(Link::observing) {
            let hooks = version.artifact().hooks();
            if hooks.on_complete {
                let _span = version.span(Hook::Complete.name()).entered();
                let result = version.observe(fleet, now_ms, ended, &mut CallTrace::default());
                log_dropped_outcomes(result, ended);
            }
            if hooks.on_outcome {
                let _span = version.span(Hook::Outcome.name()).entered();
                let result = version.learn(fleet, now_ms, ended, &mut CallTrace::default());
                log_dropped_outcomes(result, ended);
            }
        }
    }
}

/// Logs that a hook failed that is told the outcomes of requests; the span names it.
fn log_dropped_outcomes(result: Result<(), CallError>, ended: &[Outcome]) {
    if let Err(error) = result {
        let (kind, outcomes) = (error.kind(), ended.len());
        tracing::warn!(kind, %error, outcomes, "hook failed; outcomes dropped");
    }
}

/// Logs that a policy gave no advice, and what that means for the request.
fn log_failure(error: &CallError, on_error: OnError) {
    let (kind, on_error) = (error.kind(), on_error.name());
    tracing::warn!(event = "advice_failed", kind, %error, on_error, "no advice from policy");
}

/// The result of calling one policy of the chain.
struct Consulted {
    policy: PolicyRef,
    advice: Option<Advice>,
    /// The effect on the request if there is no advice.
    on_error: OnError,
}

impl Chain {
    /// Calls one policy, and applies its edits to `facts`.
    fn consult(
        &self,
        link: &Link,
        facts: &mut Facts,
        fleet: &Arc<FleetView>,
        trace: &mut Trace,
    ) -> Consulted {
        // Others have to see the request as the deciding version did, before its edits.
        let before = facts.clone();
        let deciding = link.deciding(facts);
        let mut on_error = link.on_error;
        let policy =
            deciding.map_or_else(|_| link.unavailable(), |version| version.reference().clone());
        let span = policy_span(&policy, Hook::Request.name());
        let advice = span.in_scope(|| match deciding {
            Ok(version) => {
                let Evaluation { result, defect } =
                    evaluate(version, facts, fleet, on_error, trace);
                if let Some(defect) = defect {
                    let inputs = (&before, fleet, None);
                    link.report_defect(version, defect, inputs, self.queues.as_ref());
                }
                let result = result.inspect_err(|error| {
                    on_error = link.effect_of(error);
                    log_failure(error, on_error);
                });
                attribution::count_advice(version, result.as_ref().ok(), on_error);
                result.ok()
            }
            Err(problem) => {
                let (code, on_error) = (problem.code(), link.on_error.name());
                tracing::warn!(code, error = %problem, on_error, "policy is not loaded");
                None
            }
        });
        if let (Some(shadow), Some(queues)) = (link.shadow(), &self.queues) {
            queues.evaluate_shadow(Box::new(ShadowJob {
                request_span: tracing::Span::current(),
                shadow: Arc::clone(shadow),
                facts: before,
                fleet: Arc::clone(fleet),
                advice: advice.clone(),
            }));
        }
        Consulted { policy, advice, on_error }
    }

    /// Reports a decision to the trials of the first `consulted` policies, and returns what is told
    /// the outcome.
    fn watch(
        &self,
        consulted: usize,
        facts: &Facts,
        merged: &Merged,
        fleet: &FleetView,
    ) -> Option<Arc<dyn OutcomeWatch>> {
        trials::report_decision(self.links.iter().take(consulted), facts, merged, fleet)
    }
}

impl Advisor for Chain {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Advised {
        let endpoint = facts.request.info().endpoint;
        let mut merge = Merge::new(fleet, facts.request.model(), endpoint);
        let mut facts = facts.clone();
        let mut edited = None;
        let mut consulted = 0;
        for link in &self.links {
            consulted += 1;
            // To the first policy, all candidates are left.
            facts.lanes_left = (consulted > 1).then(|| merge.lanes_left().into());
            let Consulted { policy, advice, on_error } =
                self.consult(link, &mut facts, fleet, trace);
            let Some(advice) = advice else {
                match on_error {
                    OnError::Skip => continue,
                    OnError::Default => {
                        let advised = BuiltIn.advise(&facts, fleet, trace);
                        let watch = self.watch(consulted, &facts, &advised.merged, fleet);
                        return Advised { watch, ..advised };
                    }
                    OnError::Refuse => {
                        let reject = Some(OnError::refusal(&policy));
                        merge.add(&policy, 0, Advice { reject, ..Advice::default() });
                        break;
                    }
                }
            };
            let has_edits = !advice.edits.is_empty();
            match link.on_error {
                OnError::Refuse => merge.add_required(&policy, link.weight, advice),
                OnError::Skip | OnError::Default => merge.add(&policy, link.weight, advice),
            }
            if merge.ended() {
                break;
            }
            if has_edits {
                edited = Some(Arc::clone(&facts.request));
            }
        }
        merge.set_need(facts.request.info().into());
        let merged = merge.finish(self.on_conflict);
        let version =
            |policy: &PolicyRef| self.versions().find(|version| *version.reference() == *policy);
        attribution::count_filters(version, &merged);
        let watch = self.watch(consulted, &facts, &merged, fleet);
        Advised { merged, edited, watch }
    }

    fn advise_without_effects(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        trace: &mut Trace,
    ) -> Advised {
        // The log of the host is about requests that there are.
        with_default(&Dispatch::none(), || self.preview(facts).advise(facts, fleet, trace))
    }

    fn may_block(&self, facts: &Facts) -> bool {
        if self.links.is_empty() {
            return false;
        }
        let versions = || self.links.iter().filter_map(move |link| link.deciding(facts).ok());
        let deadlines: Duration = versions().map(|version| version.config().limits.deadline).sum();
        let is_long = deadlines > MAX_DEADLINE;
        facts.request.info().body_bytes > MAX_INLINE_BODY
            || versions().any(|version| version.may_block(is_long))
    }

    fn chain(&self) -> Option<&Arc<ChainInfo>> {
        Some(&self.info)
    }

    fn uses_cached_tokens(&self) -> bool {
        !self.links.is_empty()
    }

    fn has_recovery(&self) -> bool {
        self.has_on_failure
    }

    /// Returns the first recovery that differs from the plan. Only policies that export
    /// `on-failure` are asked.
    fn recover(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: &FailureReport,
        trace: &mut Trace,
    ) -> Recovered {
        for link in &self.links {
            let Ok(version) = link.deciding(facts) else { continue };
            if !version.artifact().hooks().on_failure {
                continue;
            }
            let _span = version.span(Hook::Failure.name()).entered();
            let Evaluation { result, defect } =
                evaluate_recovery(version, facts, fleet, failed, trace);
            if let Some(defect) = defect {
                let inputs = (facts, fleet, Some(*failed));
                link.report_defect(version, defect, inputs, self.queues.as_ref());
            }
            match result {
                Ok(Recovery::Planned) => {}
                Ok(recovery) => {
                    return Recovered { recovery, by: Some(version.reference().clone()) };
                }
                Err(error) => {
                    tracing::warn!(kind = error.kind(), %error, "on-failure hook failed");
                }
            }
        }
        Recovered::default()
    }

    fn observes_outcomes(&self) -> bool {
        self.has_on_complete || self.has_on_outcome
    }

    fn kept_notes(&self, merged: &Merged) -> Vec<(PolicyRef, Note)> {
        if !self.has_on_outcome {
            return Vec::new();
        }
        let learns = |name: &str| {
            let mut observing = self.links.iter().flat_map(Link::observing);
            observing.any(|version| {
                *version.reference().name == *name && version.artifact().hooks().on_outcome
            })
        };
        let policies = merged.by.iter().filter(|policy| learns(&policy.name));
        policies.flat_map(|policy| notes::kept(policy, &merged.notes)).collect()
    }

    fn ended(&self, outcome: &Outcome) {
        if let Some(queues) = &self.queues {
            queues.report_outcome(outcome);
        }
    }
}
