//! The outcomes of requests by which new versions of policies are judged.

use serde::{Deserialize, Serialize};

/// An outcome of a request that a new version should not cause more often than the version before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JudgedOutcome {
    /// A policy rejected the request.
    Refused,
    /// No lane was left for the request.
    NoLane,
    /// The last attempt failed, or the client's request was an error to the engine.
    Error,
    /// The first attempt failed, and another one followed.
    Fallback,
    /// The first byte came late.
    SlowStart,
}

impl JudgedOutcome {
    /// All outcomes, in the order of their discriminants.
    pub const ALL: [Self; 5] =
        [Self::Refused, Self::NoLane, Self::Error, Self::Fallback, Self::SlowStart];

    /// Returns the name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::NoLane => "no-lane",
            Self::Error => "error",
            Self::Fallback => "fallback",
            Self::SlowStart => "slow-start",
        }
    }
}

/// A set of outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JudgedOutcomes([bool; JudgedOutcome::ALL.len()]);

impl JudgedOutcomes {
    /// The set of all outcomes.
    pub const ALL: Self = Self([true; JudgedOutcome::ALL.len()]);

    /// Returns true if the set has the outcome.
    pub fn contains(self, outcome: JudgedOutcome) -> bool {
        self.0[outcome as usize]
    }
}

impl FromIterator<JudgedOutcome> for JudgedOutcomes {
    fn from_iter<I: IntoIterator<Item = JudgedOutcome>>(outcomes: I) -> Self {
        let mut set = Self([false; JudgedOutcome::ALL.len()]);
        outcomes.into_iter().for_each(|outcome| set.0[outcome as usize] = true);
        set
    }
}
