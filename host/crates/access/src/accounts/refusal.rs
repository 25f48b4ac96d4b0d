//! Why a request is refused.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use crate::limits::{AccountId, Limit, Period};

/// A request that exceeds a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The account that has the limit.
    pub account: AccountId,
    /// Which limit it is.
    pub limit: Limit,
    /// Its value.
    pub max: u64,
    /// What the request would take of it, as far as it can be estimated.
    pub asked: u64,
    /// When the same request can be accepted, if nothing else is sent until then; `None` if never.
    pub retry_after: Option<Duration>,
}

impl Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { account, limit, max, asked, retry_after } = self;
        let Some(after) = retry_after else {
            return write!(
                f,
                "the request is larger than a limit of {account}: {max} {limit}, and it may need \
                 {asked}; send less, or limit the output"
            );
        };
        // Rounded up, like the header.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        write!(f, "limit of {account} reached: {max} {limit}; retry in {} s", seconds.max(1))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestsPerMinute => f.write_str("requests per minute"),
            Self::TokensPerMinute => f.write_str("tokens per minute"),
            Self::Concurrent => f.write_str("concurrent requests"),
            Self::Queued => f.write_str("queued requests"),
            Self::TokenBudget(period) => write!(f, "tokens per {period}"),
            Self::RequestBudget(period) => write!(f, "requests per {period}"),
            Self::EngineBudget(period) => write!(f, "engine seconds per {period}"),
        }
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        })
    }
}
