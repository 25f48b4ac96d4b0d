//! Faults of guests.

pub(crate) mod report;

use std::sync::Arc;
use std::time::Duration;

use crate::contract_version::VERSION;
use crate::fault::report::FaultReport;

/// A fault of a guest, after which its instance is dropped.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Fault {
    /// The call exceeded its deadline, in CPU time.
    #[error("call did not finish within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The thread did not get the CPU time of the deadline before the wall clock limit. Other work
    /// preempted it, so the call does not count against the policy.
    #[error("call did not get {} ms of CPU time before the wall clock limit", .0.as_millis())]
    WallLimit(Duration),
    /// The guest exceeded its memory limit, in bytes.
    #[error("memory limit of {0} bytes exceeded")]
    Memory(u64),
    /// The guest passed more than the maximum number of bytes to the host.
    #[error("output exceeds {0} bytes")]
    Output(usize),
    /// The host calls of the call examined more than the maximum number of bytes.
    #[error("host calls examined more than {0} bytes")]
    HostCalls(u64),
    /// The guest trapped, or returned a value that violates the contract.
    #[error("trapped: {0:#}")]
    Trap(Arc<wasmtime::Error>),
    /// The guest trapped after its SDK had reported the cause.
    #[error("trapped: {0}")]
    Reported(Arc<FaultReport>),
    /// No instance could be created.
    #[error("instantiation failed: {0:#}")]
    Instantiate(Arc<wasmtime::Error>),
    /// The host panicked during the call.
    #[error("internal error while calling the policy: {0}")]
    Panic(String),
}

/// The types of a component's exports do not match the contract. A context of the error in
/// [`Fault::Instantiate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("built for an incompatible contract version (host: {VERSION})")]
pub(crate) struct ContractMismatch;

impl Fault {
    /// Returns true if the component was built for a contract that does not match the host's.
    pub(crate) fn is_contract_mismatch(&self) -> bool {
        matches!(self, Self::Instantiate(error) if error.is::<ContractMismatch>())
    }

    /// All values that [`Fault::kind`] returns.
    pub(crate) const KINDS: [&str; 8] = [
        "timeout",
        "wall-limit",
        "memory",
        "output-too-large",
        "host-calls",
        "trap",
        "instantiate",
        "panic",
    ];

    /// Returns the kind of this fault, which is a value of the metric labels `kind` and `result`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout(_) => "timeout",
            Self::WallLimit(_) => "wall-limit",
            Self::Memory(_) => "memory",
            Self::Output(_) => "output-too-large",
            Self::HostCalls(_) => "host-calls",
            Self::Trap(_) | Self::Reported(_) => "trap",
            Self::Instantiate(_) => "instantiate",
            Self::Panic(_) => "panic",
        }
    }
}

/// Faults are equal if they have the same kind and message: errors of wasmtime cannot be compared.
impl PartialEq for Fault {
    fn eq(&self, other: &Self) -> bool {
        self.kind() == other.kind() && self.to_string() == other.to_string()
    }
}

impl Eq for Fault {}
