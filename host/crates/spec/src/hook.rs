//! The hooks of the contract.

use schemars::JsonSchema;
use serde::Deserialize;

/// A hook of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
pub enum Hook {
    /// A request is decided about. Every policy has this hook.
    #[default]
    #[serde(rename = "on-request")]
    Request,
    /// An attempt has failed.
    #[serde(rename = "on-failure")]
    Failure,
    /// Requests have ended.
    #[serde(rename = "on-complete")]
    Complete,
    /// Requests have ended, with all their attempts and the notes of the policy.
    #[serde(rename = "on-outcome")]
    Outcome,
    /// An interval has passed.
    #[serde(rename = "on-tick")]
    Tick,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 5] =
        [Self::Request, Self::Failure, Self::Complete, Self::Outcome, Self::Tick];

    /// Returns the name of the hook in the contract, which is also the value of the metric label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "on-request",
            Self::Failure => "on-failure",
            Self::Complete => "on-complete",
            Self::Outcome => "on-outcome",
            Self::Tick => "on-tick",
        }
    }
}
