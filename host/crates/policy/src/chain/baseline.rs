//! Faults and slow calls of a version on probation, compared with the version before: what a
//! request does to both says nothing about the new one. Without this, a client could keep out a new
//! version with requests that no version can handle.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{Facts, FailureReport, FleetView, fnv1a_chain};
use pointsman_spec::Hook;

use crate::trial::{Arm, Judge};
use crate::version::Version;
use crate::version::call_error::CallError;
use crate::version::call_trace::CallTrace;
use crate::version::config::VersionConfig;

/// A version on probation, or a canary, with the version before.
#[derive(Debug)]
pub(crate) struct Baseline {
    version: Arc<Version>,
    /// A fork of the version before, whose calls have no effect and are not counted.
    before: Arc<Version>,
    /// The version before, which decides about a share of the requests.
    control: Arc<Version>,
    judge: Option<Arc<Judge>>,
    /// Makes the assignments of several policies independent of each other.
    salt: u64,
}

impl Baseline {
    pub(crate) fn new(version: &Arc<Version>, before: &Arc<Version>) -> Self {
        Self {
            version: Arc::clone(version),
            before: Arc::new(before.fork_uncounted()),
            control: Arc::clone(before),
            judge: version.judge(),
            salt: hash(version.fingerprint()),
        }
    }

    /// Returns the version before, if it decides about a share of the requests.
    pub(crate) fn control(&self) -> Option<&Arc<Version>> {
        self.trial().map(|_| &self.control)
    }

    fn trial(&self) -> Option<&Arc<Judge>> {
        self.judge.as_ref().filter(|judge| judge.has_control())
    }

    /// Returns the trial and the version that decides about a request in it.
    pub(crate) fn assign(&self, facts: &Facts) -> Option<(&Arc<Judge>, Arm)> {
        let judge = self.trial()?;
        Some((judge, judge.arm(spread(facts.request.draw() ^ self.salt))))
    }

    /// Returns whether `version` is the one on probation.
    pub(crate) fn is_about(&self, version: &Arc<Version>) -> bool {
        Arc::ptr_eq(&self.version, version)
    }

    /// Returns a job that repeats a call with the version before.
    pub(crate) fn job(
        &self,
        defect: Defect,
        facts: Facts,
        fleet: &Arc<FleetView>,
        failed: Option<FailureReport>,
    ) -> BaselineJob {
        BaselineJob {
            request_span: tracing::Span::current(),
            version: Arc::clone(&self.version),
            before: Arc::clone(&self.before),
            defect,
            facts,
            fleet: Arc::clone(fleet),
            failed,
        }
    }
}

/// Returns a hash of a text.
pub(crate) fn hash(text: &str) -> u64 {
    let length = text.len().max(1);
    fnv1a_chain([text.as_bytes()], length, 1).first().copied().unwrap_or_default()
}

/// Spreads a hash over the numbers below 2^32. The low bits of FNV are weak for short texts; the
/// high bits of a product are not.
pub(crate) fn spread(hash: u64) -> u64 {
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

/// What can end a probation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    /// The call ended in a fault other than a timeout.
    Fault,
    /// The call exceeded its deadline.
    Timeout,
    /// The call exceeded its budget.
    Slow,
}

impl Defect {
    /// Returns what counts against a version after this call, if anything does.
    pub(crate) fn find(
        version: &Version,
        call: &CallTrace,
        error: Option<&CallError>,
    ) -> Option<Self> {
        match error {
            Some(error) if error.is_preempted() => None,
            Some(error) if error.is_timeout() => Some(Self::Timeout),
            Some(error) if error.is_fault() => Some(Self::Fault),
            Some(_) | None => (call.cpu_time > version.config().budget).then_some(Self::Slow),
        }
    }

    /// Returns whether it counts as a fault, and not as a slow call.
    pub(crate) fn is_fault(self) -> bool {
        match self {
            Self::Fault | Self::Timeout => true,
            Self::Slow => false,
        }
    }

    /// Returns whether only the version with `config` has this defect, if the version before took
    /// `before` for the same request. If both take almost as long, only one exceeds a limit by
    /// chance.
    fn is_own(self, config: &VersionConfig, before: Duration) -> bool {
        let limit = match self {
            Self::Fault => return true,
            Self::Timeout => config.limits.deadline,
            Self::Slow => config.budget,
        };
        before < limit / 2
    }
}

/// A call of a version on probation that is repeated with the version before.
#[derive(Debug)]
pub(crate) struct BaselineJob {
    request_span: tracing::Span,
    version: Arc<Version>,
    before: Arc<Version>,
    defect: Defect,
    facts: Facts,
    fleet: Arc<FleetView>,
    /// The failed attempt, for a call of `on-failure`.
    failed: Option<FailureReport>,
}

impl BaselineJob {
    /// Returns the size of the body that the job keeps in memory.
    pub(crate) fn body_bytes(&self) -> u64 {
        self.facts.request.info().body_bytes
    }

    /// Repeats the call, and counts it against the version on probation if the version before does
    /// better.
    pub(crate) fn run(self) {
        let Self { request_span, version, before, defect, facts, fleet, failed } = self;
        let _request_span = request_span.entered();
        let mut call = CallTrace::default();
        let result = match failed {
            None => {
                let _span = before.span(Hook::Request.name()).entered();
                before.advise(&facts, &fleet, &mut call).map(drop)
            }
            Some(failed) => {
                let _span = before.span(Hook::Failure.name()).entered();
                before.recover(&facts, &fleet, &failed, &mut call).map(drop)
            }
        };
        match result {
            // The version before has no breakers, so the last two do not occur.
            Err(CallError::Fault(_) | CallError::BreakerOpen | CallError::TenantBreakerOpen) => {}
            Ok(()) | Err(CallError::Policy(_) | CallError::InvalidFilter(_)) => {
                if defect.is_own(version.config(), call.cpu_time) {
                    version.add_defect(defect.is_fault());
                }
            }
        }
    }
}
