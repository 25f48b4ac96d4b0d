//! The hooks of the contract.

/// A hook of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Request,
    Failure,
    Complete,
    Tick,
}

impl Hook {
    /// Returns the name of the hook in the contract, which is also the value of the metric label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Request => "on-request",
            Self::Failure => "on-failure",
            Self::Complete => "on-complete",
            Self::Tick => "on-tick",
        }
    }
}
