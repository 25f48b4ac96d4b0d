//! Errors of policy calls.

use std::sync::Arc;

use pointsman_domain::BreakerScope;

use crate::contract::types::PolicyError;
use crate::fault::Fault;
use crate::fault::report::FaultReport;

impl From<BreakerScope> for CallError {
    fn from(scope: BreakerScope) -> Self {
        match scope {
            BreakerScope::All => Self::BreakerOpen,
            BreakerScope::Tenant => Self::TenantBreakerOpen,
        }
    }
}

/// Maximum attempts of a validation call that times out.
const MAX_ATTEMPTS: u32 = 5;

/// An error of a policy call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The call ended in a fault.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The policy returned an error.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The policy was not called, because it had failed too often.
    #[error("circuit breaker open after repeated faults")]
    BreakerOpen,
    /// The policy was not called, because it had failed too often for requests of this tenant.
    #[error("circuit breaker open for this tenant after repeated faults")]
    TenantBreakerOpen,
    /// The filter of the policy was dropped, and its configuration does not allow requests without
    /// it.
    #[error("invalid filter: {0}")]
    InvalidFilter(String),
}

impl CallError {
    /// Returns the kind of this error: a value of the metric label `result`, except for an
    /// invalid filter, and the beginning of the [note](CallError::to_note) in records.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.kind(),
            Self::Policy(_) => "error",
            Self::BreakerOpen | Self::TenantBreakerOpen => "breaker-open",
            Self::InvalidFilter(_) => "invalid-filter",
        }
    }

    /// Returns the note that a record keeps of this error: `KIND: MESSAGE`.
    pub fn to_note(&self) -> String {
        format!("{}: {self}", self.kind())
    }

    /// Adds what the SDK of the policy reported of the cause. An error with a category of its own
    /// is kept: the policy returned it on purpose.
    pub(crate) fn with_report(self, report: Option<FaultReport>) -> Self {
        match (self, report.map(Arc::new)) {
            (Self::Fault(Fault::Trap(_)), Some(report)) => Self::Fault(Fault::Reported(report)),
            (Self::Policy(PolicyError::Other(_)), Some(report)) => {
                Self::Policy(PolicyError::Uncaught(report))
            }
            (error, _) => error,
        }
    }

    /// Returns what the SDK of the policy reported of the cause.
    pub(crate) fn report(&self) -> Option<&FaultReport> {
        match self {
            Self::Fault(Fault::Reported(report)) | Self::Policy(PolicyError::Uncaught(report)) => {
                Some(report)
            }
            Self::Fault(_)
            | Self::Policy(_)
            | Self::BreakerOpen
            | Self::TenantBreakerOpen
            | Self::InvalidFilter(_) => None,
        }
    }

    /// Returns whether the call ended in a fault of the guest.
    pub(crate) fn is_fault(&self) -> bool {
        matches!(self, Self::Fault(_)) && !self.is_preempted()
    }

    /// Returns whether the call ended because its thread got no CPU time, which says nothing about
    /// the guest.
    pub(crate) fn is_preempted(&self) -> bool {
        matches!(self, Self::Fault(Fault::WallLimit(_)))
    }

    /// Returns whether the call exceeded its CPU time.
    pub(crate) fn is_timeout(&self) -> bool {
        matches!(self, Self::Fault(Fault::Timeout(_)))
    }
}

/// Repeats a validation call while it times out or is preempted, up to [`MAX_ATTEMPTS`] times. The
/// CPU time of a call depends on caches and other threads of its core: a policy that really is too
/// slow times out in every attempt.
pub(crate) fn retry_on_timeout<T>(
    mut call: impl FnMut() -> Result<T, CallError>,
) -> Result<T, CallError> {
    let mut result = call();
    for _ in 1..MAX_ATTEMPTS {
        match &result {
            Err(error) if error.is_timeout() || error.is_preempted() => result = call(),
            _ => break,
        }
    }
    result
}
