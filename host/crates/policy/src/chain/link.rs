//! One policy of a chain, with its versions.

use std::sync::Arc;

use pointsman_domain::{ChainLink, Facts, FailureReport, FleetView, PolicyRef};

use crate::chain::baseline::{Baseline, Defect, hash, spread};
use crate::chain::problem::PolicyProblem;
use crate::chain::queues::Queues;
use crate::trial::{Arm, Judge};
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
    /// Returns all versions that may be called.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.observing().chain(self.baselines.iter().filter_map(Baseline::control))
    }

    /// Returns the versions that receive outcomes. Those that only decide about requests for
    /// comparison do not: they share the state of the policy, in which outcomes would count twice.
    pub(crate) fn observing(&self) -> impl Iterator<Item = &Arc<Version>> {
        self.active.iter().chain(self.candidate.iter().map(|(version, _)| version))
    }

    /// Describes the versions for records.
    pub(crate) fn infos(&self) -> impl Iterator<Item = ChainLink> {
        let info = |version: &Version, trial: Option<&str>| ChainLink {
            policy: version.reference().clone(),
            fingerprint: version.fingerprint().to_owned(),
            component: version.artifact().digest().to_owned(),
            weight: self.weight,
            on_error: self.on_error.name().to_owned(),
            trial: trial.map(str::to_owned),
            config: version.config().settings.config.clone(),
        };
        let active = self.active.as_ref().ok().map(|version| info(version, None));
        let candidate = self.candidate.iter();
        let candidate =
            candidate.map(move |(version, rollout)| info(version, Some(rollout.name())));
        let is_active = |version: &Arc<Version>| {
            self.active.as_ref().is_ok_and(|active| Arc::ptr_eq(active, version))
        };
        let controls = self.baselines.iter().filter_map(Baseline::control);
        let controls = controls.filter(move |version| !is_active(version));
        let controls = controls.map(move |version| info(version, Some("control")));
        active.into_iter().chain(candidate).chain(controls)
    }

    /// Returns the version that decides about this request.
    pub(crate) fn deciding(&self, facts: &Facts) -> Result<&Arc<Version>, &PolicyProblem> {
        let selected = self.selected(facts)?;
        let baseline = self.baselines.iter().find(|baseline| baseline.is_about(selected));
        let control = baseline.and_then(|baseline| match baseline.assign(facts)? {
            (_, Arm::Control) => baseline.control(),
            (_, Arm::New) => None,
        });
        Ok(control.unwrap_or(selected))
    }

    /// Returns the trial in which this request counts, and for which version.
    pub(crate) fn trial(&self, facts: &Facts) -> Option<(&Arc<Judge>, Arm)> {
        if self.baselines.is_empty() {
            return None;
        }
        let selected = self.selected(facts).ok()?;
        self.baselines.iter().find(|baseline| baseline.is_about(selected))?.assign(facts)
    }

    /// Returns the version that decides about this request unless it stays with the one before.
    fn selected(&self, facts: &Facts) -> Result<&Arc<Version>, &PolicyProblem> {
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
    spread(tenant.map_or(facts.seed, hash)) % 1000 < u64::from(share)
}
