//! The hooks of the contract.

use schemars::JsonSchema;
use serde::Deserialize;

/// A hook of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub(crate) enum Hook {
    #[default]
    #[serde(rename = "on-request")]
    Request,
    #[serde(rename = "on-failure")]
    Failure,
    #[serde(rename = "on-complete")]
    Complete,
    #[serde(rename = "on-outcome")]
    Outcome,
    #[serde(rename = "on-tick")]
    Tick,
}

impl Hook {
    /// All hooks.
    pub(crate) const ALL: [Self; 5] =
        [Self::Request, Self::Failure, Self::Complete, Self::Outcome, Self::Tick];

    /// Returns the name of the hook in the contract, which is also the value of the metric label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Request => "on-request",
            Self::Failure => "on-failure",
            Self::Complete => "on-complete",
            Self::Outcome => "on-outcome",
            Self::Tick => "on-tick",
        }
    }
}
