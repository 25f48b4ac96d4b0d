//! The status of policies, as operators and tools see it.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::chain::problem::PolicyProblem;
use crate::registry::slot::{PolicySlot, RejectionCode, short};
use crate::trial::TrialStatus;
use crate::version::Version;
use crate::version::comparison::Comparison;
use crate::version::last_faults::FaultRecord;
use pointsman_spec::{OnError, PolicySpec, Rollout};

/// The status of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyStatus {
    /// The name.
    pub name: String,
    /// `active`, `breaker-open`, `failed` (no active version) or `disabled`.
    pub state: &'static str,
    /// The active version, with the beginning of its fingerprint; empty without one.
    pub version: String,
    /// The digest of component, manifest and settings; empty without an active version.
    pub fingerprint: String,
    /// The SHA-256 of the component.
    pub component_sha256: String,
    /// The optional hooks that the component exports.
    pub hooks: Vec<&'static str>,
    /// The weight of its scores, in thousandths.
    pub weight: u32,
    /// The effect of a failed call on the request.
    pub on_error: OnError,
    /// The effect of a breaker that is open for all tenants on the request.
    pub on_open: OnError,
    /// Tenants for whose requests alone the policy is not called, because it failed too often.
    pub stopped_tenants: usize,
    /// The configuration.
    pub config: serde_json::Value,
    /// The latest problem: a version that was not loaded, or that was rolled back automatically.
    pub error: Option<PolicyErrorStatus>,
    /// The probation of the active version, while it lasts.
    pub probation: Option<ProbationStatus>,
    /// The candidate.
    pub candidate: Option<CandidateStatus>,
    /// Versions to roll back to, the latest first.
    pub history: Vec<EarlierVersion>,
    /// Versions that are not loaded again.
    pub rejected: Vec<RejectedVersion>,
    /// Idle instances.
    pub idle_instances: usize,
    /// Calls since the version was created.
    pub calls: u64,
    /// Calls that ended in a fault.
    pub faults: u64,
    /// Calls that exceeded the budget.
    pub slow: u64,
    /// Hooks that are not called, because they failed too often.
    pub stopped_hooks: Vec<&'static str>,
    /// The last failed calls of the active version, the latest first; equal ones are counted.
    pub last_faults: Vec<FaultRecord>,
}

/// The latest problem of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyErrorStatus {
    /// The stable, machine-readable code.
    pub code: &'static str,
    /// The message.
    pub message: String,
    /// The time of the problem, in milliseconds since the Unix epoch.
    pub since_ms: u64,
}

/// The probation of an active version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProbationStatus {
    /// The remaining time in milliseconds.
    pub left_ms: u64,
    /// Calls since the probation began.
    pub calls: u64,
    /// Calls that ended in a fault.
    pub faults: u64,
    /// Calls that exceeded the budget.
    pub slow: u64,
    /// The comparison of outcomes with the version before.
    pub trial: Option<TrialStatus>,
}

/// The status of a candidate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CandidateStatus {
    /// The version.
    pub version: String,
    /// The SHA-256 of the component.
    pub component_sha256: String,
    /// `shadow` or `canary`.
    pub mode: &'static str,
    /// The share of the requests that a canary decides, in thousandths.
    pub share_permille: Option<u16>,
    /// Calls since the version was created.
    pub calls: u64,
    /// Calls that ended in a fault.
    pub faults: u64,
    /// The last failed calls, the latest first; equal ones are counted.
    pub last_faults: Vec<FaultRecord>,
    /// The comparison of a canary's outcomes with those of the active version.
    pub trial: Option<TrialStatus>,
    /// The comparison of a shadow with the active version.
    #[serde(flatten)]
    pub(crate) comparison: Comparison,
}

/// A version to roll back to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EarlierVersion {
    /// The version.
    pub version: String,
    /// The SHA-256 of the component.
    pub component_sha256: String,
}

/// A version that is not loaded again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RejectedVersion {
    /// The beginning of the fingerprint.
    pub version: String,
    /// The stable code of the reason.
    pub code: RejectionCode,
    /// The reason of the rejection.
    pub reason: String,
}

impl From<&PolicyProblem> for PolicyErrorStatus {
    fn from(problem: &PolicyProblem) -> Self {
        Self { code: problem.code(), message: problem.to_string(), since_ms: problem.since_ms() }
    }
}

/// Returns the status of a policy. `now` is in the time base of its slot.
pub(crate) fn policy_status(
    policy: &PolicySpec,
    slot: &PolicySlot<Arc<Version>>,
    problem: Option<&PolicyProblem>,
    now: Duration,
) -> PolicyStatus {
    let active = slot.active.as_deref();
    let counts = active.map(Version::counts).unwrap_or_default();
    PolicyStatus {
        name: policy.name.clone(),
        state: match active {
            _ if slot.disabled => "disabled",
            None => "failed",
            Some(version) if version.is_admitting() => "active",
            Some(_) => "breaker-open",
        },
        version: active.map_or_else(String::new, |version| version.id().to_owned()),
        fingerprint: active.map_or_else(String::new, |version| version.fingerprint().to_owned()),
        component_sha256: active
            .map_or_else(String::new, |version| version.artifact().digest().to_owned()),
        hooks: active.map_or_else(Vec::new, hooks),
        weight: policy.weight,
        on_error: policy.on_error,
        on_open: policy.on_open.unwrap_or(policy.on_error),
        stopped_tenants: active.map_or(0, Version::stopped_tenants),
        config: active
            .map_or(&policy.settings.config, |version| &version.config().settings.config)
            .clone(),
        error: problem.map(PolicyErrorStatus::from),
        probation: slot.watch.filter(|watch| watch.until > now).map(|watch| ProbationStatus {
            left_ms: u64::try_from((watch.until - now).as_millis()).unwrap_or(u64::MAX),
            calls: counts.calls.saturating_sub(watch.from.calls),
            faults: counts.faults.saturating_sub(watch.from.faults),
            slow: counts.slow.saturating_sub(watch.from.slow),
            trial: active.and_then(|version| trial(version, policy)),
        }),
        candidate: slot.candidate.as_ref().map(|(version, rollout)| CandidateStatus {
            trial: trial(version, policy).filter(|_| *rollout != Rollout::Shadow),
            ..candidate(version, *rollout)
        }),
        history: slot.history.iter().map(|version| earlier(version)).collect(),
        rejected: slot
            .rejected
            .iter()
            .map(|(version, reason)| RejectedVersion {
                version: short(version),
                code: reason.code,
                reason: reason.message.clone(),
            })
            .collect(),
        idle_instances: active.map_or(0, Version::idle_instances),
        calls: counts.calls,
        faults: counts.faults,
        slow: counts.slow,
        stopped_hooks: active.map_or_else(Vec::new, Version::stopped_hooks),
        last_faults: active.map_or_else(Vec::new, Version::last_faults),
    }
}

fn hooks(version: &Version) -> Vec<&'static str> {
    let hooks = version.artifact().hooks();
    let all = [
        ("on-failure", hooks.on_failure),
        ("on-complete", hooks.on_complete),
        ("on-outcome", hooks.on_outcome),
        ("on-tick", hooks.on_tick),
    ];
    all.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
}

fn earlier(version: &Version) -> EarlierVersion {
    EarlierVersion {
        version: version.id().to_owned(),
        component_sha256: version.artifact().digest().to_owned(),
    }
}

fn trial(version: &Version, policy: &PolicySpec) -> Option<TrialStatus> {
    version.judge()?.status(policy.probation.outcomes)
}

fn candidate(version: &Version, rollout: Rollout) -> CandidateStatus {
    let counts = version.counts();
    CandidateStatus {
        version: version.id().to_owned(),
        component_sha256: version.artifact().digest().to_owned(),
        mode: if rollout == Rollout::Shadow { "shadow" } else { "canary" },
        share_permille: match rollout {
            Rollout::Canary { share, .. } => Some(share),
            Rollout::Shadow | Rollout::Replace => None,
        },
        calls: counts.calls,
        faults: counts.faults,
        last_faults: version.last_faults(),
        trial: None,
        comparison: version.comparison(),
    }
}
