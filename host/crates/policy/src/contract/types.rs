//! Arguments and results of calls, the same for all contracts.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{Facts, LaneId};

use crate::fault::report::FaultReport;

/// The arguments of a call about a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallContext<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) topology: u64,
    pub(crate) budget_us: u32,
}

/// A hint of a policy about a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PolicyHint {
    pub(crate) lane: LaneId,
    pub(crate) hint: LaneHint,
    /// The time for which the hint is valid.
    pub(crate) ttl: Duration,
}

/// The optional hooks that a component exports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Hooks {
    pub(crate) on_failure: bool,
    pub(crate) on_complete: bool,
    pub(crate) on_outcome: bool,
    pub(crate) on_tick: bool,
}

/// The description that a policy returns of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) hints: Vec<String>,
}

/// An error that a policy returned. It is not a fault: the instance is kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// `configure` rejected the configuration.
    #[error("invalid configuration: {0}")]
    InvalidConfig(String),
    /// The policy does not support this kind of request.
    #[error("unsupported request: {0}")]
    Unsupported(String),
    /// The policy stopped because its time budget did not suffice.
    #[error("time budget too small")]
    OutOfBudget,
    /// Another error; the message of the policy.
    #[error("{0}")]
    Other(String),
    /// An exception that the code of the policy did not catch, as its SDK reported it.
    #[error("{0}")]
    Uncaught(Arc<FaultReport>),
}
