//! What the limits of a key leave.

use serde::{Deserialize, Serialize};

/// What the limits of a key leave, of the tightest limit of each kind, and when the whole limit is
/// available again. `None` stands for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Allowance {
    /// Requests of this minute.
    pub requests: Option<Remaining>,
    /// Tokens of this minute.
    pub tokens: Option<Remaining>,
    /// Tokens of the budget.
    pub budget: Option<Remaining>,
}

/// What is left of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Remaining {
    /// The limit.
    pub limit: u64,
    /// What is left of it.
    pub left: u64,
    /// Milliseconds until all of it is available, if nothing is used until then.
    pub reset_ms: u64,
}
