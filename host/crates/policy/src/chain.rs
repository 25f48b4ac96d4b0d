//! The policies of a host, in order, as one advisor. A chain is immutable: a change creates a new
//! chain, and a request keeps the chain that decided it.

use std::sync::Arc;

use pointsman_domain::{
    Advice, Advisor, BuiltIn, ChainInfo, ChainLink, Facts, FailureReport, FleetView, Merge, Merged,
    OnConflict, Outcome, PolicyCall, PolicyRef, Recovery, Trace, enforce_allow,
    enforce_allow_edits, fnv1a_chain,
};

use crate::background::{Background, ShadowJob};
use crate::host_call_mode::CallTrace;
use crate::policies::PolicyProblem;
use crate::spec::{CanaryBy, OnError, Rollout};
use crate::version::{CallError, Hook, Version, policy_span};

/// The policies in the order in which they are called.
#[derive(Debug)]
pub(crate) struct Chain {
    links: Vec<Link>,
    on_conflict: OnConflict,
    // `None` in dry runs, which have no threads of their own.
    background: Option<Arc<Background>>,
    has_on_failure: bool,
    has_on_complete: bool,
    info: Arc<ChainInfo>,
}

/// One policy of the chain.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) weight: u32,
    pub(crate) on_error: OnError,
    /// The active version, or the reason why there is none.
    pub(crate) active: Result<Arc<Version>, PolicyProblem>,
    /// The candidate, a shadow or a canary.
    pub(crate) candidate: Option<(Arc<Version>, Rollout)>,
}

impl Default for Chain {
    fn default() -> Self {
        Self::new(Vec::new(), OnConflict::default(), None)
    }
}

impl Chain {
    pub(crate) fn new(
        links: Vec<Link>,
        on_conflict: OnConflict,
        background: Option<Arc<Background>>,
    ) -> Self {
        let has = |hook: fn(&Version) -> bool| {
            links.iter().flat_map(Link::versions).any(|version| hook(version))
        };
        Self {
            has_on_failure: has(|version| version.hooks().on_failure),
            has_on_complete: has(|version| version.hooks().on_complete),
            info: Arc::new(ChainInfo::new(
                on_conflict,
                links.iter().flat_map(Link::infos).collect(),
            )),
            links,
            on_conflict,
            background,
        }
    }

    /// Returns the active versions, without candidates.
    pub(crate) fn active_versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.links.iter().filter_map(|link| link.active.as_ref().ok())
    }

    /// Returns all versions, including candidates.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.links.iter().flat_map(Link::versions)
    }

    /// Calls `on-complete` of all versions that export it.
    pub(crate) fn observe(&self, fleet: &Arc<FleetView>, now_ms: u64, ended: &[Outcome]) {
        for version in self.versions().filter(|version| version.hooks().on_complete) {
            let _span = version.span(Hook::Complete.name()).entered();
            if let Err(error) = version.observe(fleet, now_ms, ended) {
                tracing::warn!(
                    kind = error.kind(),
                    %error,
                    outcomes = ended.len(),
                    "on-complete hook failed; outcomes dropped"
                );
            }
        }
    }
}

impl Link {
    fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.active.iter().chain(self.candidate.iter().map(|(version, _)| version))
    }

    /// Describes the versions for records.
    fn infos(&self) -> impl Iterator<Item = ChainLink> {
        let info = |version: &Version, candidate: Option<&Rollout>| ChainLink {
            policy: version.reference.clone(),
            fingerprint: version.fingerprint.clone(),
            component: version.component_sha256().to_owned(),
            weight: self.weight,
            on_error: self.on_error.name().to_owned(),
            trial: candidate.map(|rollout| rollout.name().to_owned()),
            config: version.settings.config.clone(),
        };
        let active = self.active.as_ref().ok().map(|version| info(version, None));
        active.into_iter().chain(
            self.candidate.iter().map(move |(version, rollout)| info(version, Some(rollout))),
        )
    }

    /// Returns the version that decides about this request.
    fn deciding(&self, facts: &Facts) -> Result<&Arc<Version>, &PolicyProblem> {
        match &self.candidate {
            Some((version, Rollout::Canary { share, by })) if is_canary(facts, *share, *by) => {
                Ok(version)
            }
            _ => self.active.as_ref(),
        }
    }

    /// Returns the version that is evaluated in the background.
    fn shadow(&self) -> Option<&Arc<Version>> {
        self.candidate
            .as_ref()
            .filter(|(_, rollout)| *rollout == Rollout::Shadow)
            .map(|(version, _)| version)
    }

    /// Returns the reference of a policy without an active version.
    fn unavailable(&self) -> PolicyRef {
        PolicyRef::new(&self.name, "none")
    }
}

/// Returns whether the request is one of the `share` thousandths that the canary decides. The
/// result only depends on the request.
fn is_canary(facts: &Facts, share: u16, by: CanaryBy) -> bool {
    let request = &facts.request;
    let key = match by {
        CanaryBy::Tenant => request.tenant().unwrap_or(request.id()),
        CanaryBy::Request => request.id(),
    };
    let hash =
        fnv1a_chain([key.as_bytes()], key.len().max(1), 1).first().copied().unwrap_or_default();
    // The low bits of FNV are weak for short keys; the high bits of a product are not.
    let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    spread % 1000 < u64::from(share)
}

impl Advisor for Chain {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Merged {
        let mut merge = Merge::new(fleet, facts.request.model());
        let mut facts = facts.clone();
        for link in &self.links {
            // The shadow has to see the request as the deciding version did, before its edits.
            let before = link.shadow().map(|shadow| (shadow, facts.clone()));
            let deciding = link.deciding(&facts);
            let policy =
                deciding.map_or_else(|_| link.unavailable(), |version| version.reference.clone());
            let span = policy_span(&policy, Hook::Request.name());
            let advised = span.in_scope(|| match deciding {
                Ok(version) => {
                    let advice = evaluate(version, &mut facts, fleet, trace);
                    advice
                        .inspect_err(|error| {
                            let on_error = link.on_error.name();
                            let kind = error.kind();
                            tracing::warn!(
                                event = "advice_failed",
                                kind,
                                %error,
                                on_error,
                                "no advice from policy"
                            );
                        })
                        .ok()
                }
                Err(problem) => {
                    let (code, on_error) = (problem.code(), link.on_error.name());
                    tracing::warn!(code, error = %problem, on_error, "policy is not loaded");
                    None
                }
            });
            if let (Some((shadow, facts)), Some(background)) = (before, &self.background) {
                background.evaluate_shadow(ShadowJob {
                    request_span: tracing::Span::current(),
                    shadow: Arc::clone(shadow),
                    facts,
                    fleet: Arc::clone(fleet),
                    advice: advised.clone(),
                });
            }
            if let Some(advice) = advised {
                merge.add(&policy, link.weight, advice);
                if merge.ended() {
                    break;
                }
                continue;
            }
            match link.on_error {
                OnError::Skip => {}
                OnError::Default => return BuiltIn.advise(&facts, fleet, trace),
                OnError::Refuse => {
                    let reject = Some(OnError::refusal(&policy));
                    merge.add(&policy, 0, Advice { reject, ..Advice::default() });
                    break;
                }
            }
        }
        merge.finish(self.on_conflict)
    }

    fn chain(&self) -> Option<&Arc<ChainInfo>> {
        Some(&self.info)
    }

    fn has_recovery(&self) -> bool {
        self.has_on_failure
    }

    /// Returns the first recovery that differs from the plan.
    fn recover(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: &FailureReport,
        trace: &mut Trace,
    ) -> Recovery {
        for link in &self.links {
            let Ok(version) = link.deciding(facts) else { continue };
            if !version.hooks().on_failure {
                continue;
            }
            let _span = version.span(Hook::Failure.name()).entered();
            match evaluate_recovery(version, facts, fleet, failed, trace) {
                Ok(Recovery::Planned) => {}
                Ok(recovery) => return recovery,
                Err(error) => {
                    tracing::warn!(kind = error.kind(), %error, "on-failure hook failed");
                }
            }
        }
        Recovery::Planned
    }

    fn observes_outcomes(&self) -> bool {
        self.has_on_complete
    }

    fn ended(&self, outcome: &Outcome) {
        if let Some(background) = &self.background {
            background.report_outcome(outcome);
        }
    }
}

/// Calls one policy, drops the parts of its advice that it is not allowed to give, and applies its
/// edits to `facts`, for the policies that follow.
pub(crate) fn evaluate(
    version: &Version,
    facts: &mut Facts,
    fleet: &Arc<FleetView>,
    trace: &mut Trace,
) -> Result<Advice, CallError> {
    let mut call = CallTrace::for_decision(trace);
    let (advised, dropped) = call_on_request(version, facts, fleet, &mut call);
    trace.consulted(|| PolicyCall {
        policy: version.reference.clone(),
        hook: Hook::Request.name().to_owned(),
        took: call.duration,
        reads: call.into_reads(),
        advice: advised.as_ref().ok().cloned(),
        note: advised.as_ref().err().map(CallError::to_note),
        dropped,
        fleet: Vec::new(),
    });
    advised
}

/// Calls `on-request` like [`evaluate`], with host calls as `call` says. Also returns the parts
/// that were dropped, with the reasons.
pub(crate) fn call_on_request(
    version: &Version,
    facts: &mut Facts,
    fleet: &Arc<FleetView>,
    call: &mut CallTrace,
) -> (Result<Advice, CallError>, Vec<String>) {
    let mut dropped_parts = Vec::new();
    let mut advised = version.advise(facts, fleet, call);
    if let Ok(advice) = &mut advised {
        for dropped in enforce_allow(advice, &version.allow) {
            version.metrics().record_dropped(dropped.what);
            tracing::debug!(part = dropped.what, reason = %dropped.reason, "dropped advice");
            dropped_parts.push(format!("{}: {}", dropped.what, dropped.reason));
        }
        // This host has no experimental hints; the metric tells the author that they had no effect.
        advice.hints.iter().for_each(|_| version.metrics().record_dropped("hint"));
        if !advice.edits.is_empty() {
            let (edited, rejected) = facts.request.edited(&advice.edits);
            for (edit, reason) in rejected {
                version.metrics().record_dropped(edit.kind());
                tracing::warn!(part = edit.kind(), reason, "dropped edit");
                dropped_parts.push(format!("{}: {reason}", edit.kind()));
                advice.edits.retain(|other| *other != edit);
            }
            facts.request = edited;
        }
    }
    (advised, dropped_parts)
}

fn evaluate_recovery(
    version: &Version,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    failed: &FailureReport,
    trace: &mut Trace,
) -> Result<Recovery, CallError> {
    let mut call = CallTrace::for_decision(trace);
    let (recovery, dropped) = call_on_failure(version, facts, fleet, failed, &mut call);
    trace.consulted(|| PolicyCall {
        policy: version.reference.clone(),
        hook: Hook::Failure.name().to_owned(),
        took: call.duration,
        reads: call.into_reads(),
        advice: None,
        note: Some(match &recovery {
            Ok(recovery) => serde_json::to_string(recovery).unwrap_or_default(),
            Err(error) => error.to_note(),
        }),
        dropped,
        fleet: fleet.stats.clone(),
    });
    recovery
}

/// Calls `on-failure`, and drops the edits that the policy is not allowed to make. Also returns
/// these, with the reasons.
pub(crate) fn call_on_failure(
    version: &Version,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    failed: &FailureReport,
    call: &mut CallTrace,
) -> (Result<Recovery, CallError>, Vec<String>) {
    let mut dropped_parts = Vec::new();
    let mut recovery = version.recover(facts, fleet, failed, call);
    if let Ok(Recovery::Retry(step)) = &mut recovery {
        for dropped in enforce_allow_edits(&mut step.edits, &version.allow) {
            version.metrics().record_dropped(dropped.what);
            dropped_parts.push(format!("{}: {}", dropped.what, dropped.reason));
        }
    }
    (recovery, dropped_parts)
}
