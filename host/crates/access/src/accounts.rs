//! The accounts on which requests are counted.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{Allowance, TokenCounts};

use crate::identity::Identity;
use crate::limits::{AccountId, Limit};
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
