//! The accounts on which requests are counted.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{Allowance, TokenCounts};
use serde::{Deserialize, Serialize};

use crate::identity::Identity;
use crate::limits::{AccountId, Limit, Period};
use crate::moment::Moment;

/// What a request is expected to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// Estimated tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens that the response may have.
    pub output_tokens: u32,
}

/// A request that exceeds a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{account} has reached a limit: {limit:?} of {max}")]
pub struct Refusal {
    /// The account that has the limit.
    pub account: AccountId,
    /// Which limit it is.
    pub limit: Limit,
    /// Its value.
    pub max: u64,
    /// When the same request can be accepted, if nothing else is sent until then; `None` if never.
    pub retry_after: Option<Duration>,
}

/// What an account has used in a period, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetRow {
    /// The account.
    pub account: AccountId,
    /// The period.
    pub period: Period,
    /// When it began, in milliseconds since 1970.
    pub start_unix_ms: u64,
    /// Tokens of requests that have ended.
    pub tokens: u64,
    /// Requests.
    pub requests: u64,
    /// Milliseconds for which engines worked on requests that have ended.
    pub engine_ms: u64,
}

/// All accounts of a host.
#[derive(Debug, Default)]
pub struct Accounts {}

/// A request that was accepted, and is counted on its accounts until it is settled.
#[derive(Debug)]
pub struct Admission {
    allowance: Allowance,
}

impl Accounts {
    /// Counts a request, or refuses it: on all of the key's accounts, or on none of them.
    ///
    /// # Errors
    /// If it exceeds a limit.
    pub fn admit(
        self: &Arc<Self>,
        _identity: &Arc<Identity>,
        _ask: Ask,
        _now: Moment,
    ) -> Result<Admission, Refusal> {
        Ok(Admission { allowance: Allowance::default() })
    }

    /// Returns what the budgets have changed since the last call: all of a row, not the difference.
    /// A row replaces that of the same account and period, also if it began earlier.
    pub fn take_dirty(&self) -> Vec<BudgetRow> {
        Vec::new()
    }

    /// Continues budgets from stored rows, before the first request. Rows of periods that are over
    /// do no harm.
    pub fn restore(&self, _rows: impl IntoIterator<Item = BudgetRow>) {}
}

impl Admission {
    /// Returns what is left of the limits, with this request.
    pub fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    /// Notes that the request waits in a queue; call [`Admission::stop_waiting`] when it does not
    /// any more.
    ///
    /// # Errors
    /// If too many requests of an account wait.
    pub fn wait(&mut self) -> Result<(), Refusal> {
        Ok(())
    }

    /// Notes that the request does not wait any more.
    pub fn stop_waiting(&mut self) {}

    /// Ends the request, and replaces what it was expected to use by what it has used. A request
    /// that is dropped without it is counted as it was expected.
    pub fn settle(self, _used: TokenCounts, _engine: Duration, _now: Moment) {}
}
