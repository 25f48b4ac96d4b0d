//! How a request exceeds a limit.

use std::time::Duration;

use super::refusal::Refusal;
use crate::limits::{AccountId, Limit};

/// How a request exceeds a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Excess {
    pub(super) limit: Limit,
    pub(super) max: u64,
    pub(super) asked: u64,
    /// When it would be accepted; `None` if never.
    pub(super) after: Option<Duration>,
}

impl Excess {
    /// Returns the one of two that lasts longer. The time of all limits that a request exceeds is
    /// that of the longest.
    pub(super) fn longer(self, other: Self) -> Self {
        let duration = |excess: &Self| excess.after.unwrap_or(Duration::MAX);
        if duration(&other) > duration(&self) { other } else { self }
    }

    /// Returns the refusal that follows.
    pub(super) fn refusal(self, account: &AccountId) -> Refusal {
        let Self { limit, max, asked, after: retry_after } = self;
        Refusal { account: account.clone(), limit, max, asked, retry_after }
    }
}
