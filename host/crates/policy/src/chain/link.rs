//! One policy of a chain, with its versions.

use std::sync::Arc;

use pointsman_domain::{ChainLink, Facts, FailureReport, FleetView, PolicyRef, fnv1a_chain};

use crate::chain::baseline::{Baseline, Defect};
use crate::chain::problem::PolicyProblem;
use crate::chain::queues::Queues;
use crate::version::Version;
use crate::version::call_error::CallError;
use pointsman_spec::{CanaryBy, OnError, Rollout};

/// One policy of the chain.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) weight: u32,
    pub(crate) on_error: OnError,
    /// The effect of a breaker that is open for all tenants on the request.
    pub(crate) on_open: OnError,
    /// The active version, or the reason why there is none.
    pub(crate) active: Result<Arc<Version>, PolicyProblem>,
    /// The candidate, a shadow or a canary.
    pub(crate) candidate: Option<(Arc<Version>, Rollout)>,
    /// The version on probation and the canary, each with the version before.
    pub(crate) baselines: Vec<Baseline>,
}

impl Link {
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.active.iter().chain(self.candidate.iter().map(|(version, _)| version))
    }

    /// Describes the versions for records.
    pub(crate) fn infos(&self) -> impl Iterator<Item = ChainLink> {
        let info = |version: &Version, candidate: Option<&Rollout>| ChainLink {
            policy: version.reference().clone(),
            fingerprint: version.fingerprint().to_owned(),
            component: version.artifact().digest().to_owned(),
            weight: self.weight,
            on_error: self.on_error.name().to_owned(),
            trial: candidate.map(|rollout| rollout.name().to_owned()),
            config: version.config().settings.config.clone(),
        };
        let active = self.active.as_ref().ok().map(|version| info(version, None));
        active.into_iter().chain(
            self.candidate.iter().map(move |(version, rollout)| info(version, Some(rollout))),
        )
    }

    /// Returns the version that decides about this request.
    pub(crate) fn deciding(&self, facts: &Facts) -> Result<&Arc<Version>, &PolicyProblem> {
        match &self.candidate {
            Some((version, Rollout::Canary { share, by })) if is_canary(facts, *share, *by) => {
                Ok(version)
            }
            _ => self.active.as_ref(),
        }
    }

    /// Returns the version that is evaluated in the background.
    pub(crate) fn shadow(&self) -> Option<&Arc<Version>> {
        self.candidate
            .as_ref()
            .filter(|(_, rollout)| *rollout == Rollout::Shadow)
            .map(|(version, _)| version)
    }

    /// Counts a fault or a slow call against the version, if the version before does better.
    /// `inputs` are what the version got.
    pub(crate) fn report_defect(
        &self,
        version: &Arc<Version>,
        defect: Defect,
        inputs: (&Facts, &Arc<FleetView>, Option<FailureReport>),
        queues: Option<&Queues>,
    ) {
        let (facts, fleet, failed) = inputs;
        let baseline = self.baselines.iter().find(|baseline| baseline.is_about(version));
        match (baseline, queues) {
            (Some(baseline), Some(queues)) => {
                queues.compare_baseline(baseline.job(defect, facts.clone(), fleet, failed));
            }
            // Without a version before, everything is the version's own.
            _ => version.add_defect(defect.is_fault()),
        }
    }

    /// Returns the effect of a failed call on the request. A breaker of one tenant has the effect
    /// of the faults that opened it.
    pub(crate) fn effect_of(&self, error: &CallError) -> OnError {
        match error {
            CallError::BreakerOpen => self.on_open,
            CallError::Fault(_)
            | CallError::Policy(_)
            | CallError::TenantBreakerOpen
            | CallError::InvalidFilter(_) => self.on_error,
        }
    }

    /// Returns the reference of a policy without an active version.
    pub(crate) fn unavailable(&self) -> PolicyRef {
        PolicyRef::new(&self.name, "none")
    }
}

/// Returns whether the request is one of the `share` thousandths that the canary decides. The
/// result only depends on the tenant, or on the seed of the request, which a client cannot choose.
fn is_canary(facts: &Facts, share: u16, by: CanaryBy) -> bool {
    let request = &facts.request;
    let tenant = match by {
        CanaryBy::Tenant => request.tenant(),
        CanaryBy::Request => None,
    };
    let hash = match tenant {
        Some(key) => {
            fnv1a_chain([key.as_bytes()], key.len().max(1), 1).first().copied().unwrap_or_default()
        }
        None => facts.seed,
    };
    // The low bits of FNV are weak for short keys; the high bits of a product are not.
    let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    spread % 1000 < u64::from(share)
}
