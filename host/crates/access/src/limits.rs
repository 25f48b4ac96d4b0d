//! The limits of an account.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What an account is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccountId {
    /// One key, by [`Identity::key`](crate::Identity::key).
    Key(u64),
    /// All keys of a group together.
    Group(String),
    /// All keys of a tenant together.
    Tenant(String),
}

/// An account and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountLimits {
    /// What the account is for.
    pub id: AccountId,
    /// Its limits.
    pub limits: Limits,
}

/// Limits of an account. `None` stands for no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests in any 60 seconds.
    pub requests_per_minute: Option<u32>,
    /// Tokens in any 60 seconds: of prompts, without those that the engine had cached, and of
    /// outputs.
    pub tokens_per_minute: Option<u64>,
    /// Requests in flight.
    pub concurrent: Option<u32>,
    /// Requests that wait in queues.
    pub queued: Option<u32>,
    /// Budgets of periods; at most one for each period.
    pub budgets: Vec<Budget>,
}

impl Limits {
    /// Returns true if there is a limit that hosts can count together.
    pub(crate) fn are_shared(&self) -> bool {
        self.requests_per_minute.is_some()
            || self.tokens_per_minute.is_some()
            || !self.budgets.is_empty()
    }
}

/// What may be used in a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// The period.
    pub period: Period,
    /// Tokens, counted as those of [`Limits::tokens_per_minute`].
    pub tokens: Option<u64>,
    /// Requests.
    pub requests: Option<u64>,
    /// Seconds for which engines worked on requests.
    pub engine_seconds: Option<u64>,
}

/// A period of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From Monday to Sunday.
    Week,
    /// A month.
    Month,
}

/// A limit that refuses a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// [`Limits::requests_per_minute`].
    RequestsPerMinute,
    /// [`Limits::tokens_per_minute`].
    TokensPerMinute,
    /// [`Limits::concurrent`].
    Concurrent,
    /// [`Limits::queued`].
    Queued,
    /// [`Budget::tokens`].
    TokenBudget(Period),
    /// [`Budget::requests`].
    RequestBudget(Period),
    /// [`Budget::engine_seconds`].
    EngineBudget(Period),
}

impl Limit {
    /// Returns the name of the limit in metrics and reports. That of a budget does not have its
    /// period.
    pub fn label(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests-per-minute",
            Self::TokensPerMinute => "tokens-per-minute",
            Self::Concurrent => "concurrent",
            Self::Queued => "queued",
            Self::TokenBudget(_) => "token-budget",
            Self::RequestBudget(_) => "request-budget",
            Self::EngineBudget(_) => "engine-budget",
        }
    }

    /// Returns the period of a budget; `None` for other limits.
    pub fn period(self) -> Option<Period> {
        match self {
            Self::TokenBudget(period)
            | Self::RequestBudget(period)
            | Self::EngineBudget(period) => Some(period),
            Self::RequestsPerMinute | Self::TokensPerMinute | Self::Concurrent | Self::Queued => {
                None
            }
        }
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(_) => f.write_str("this key"),
            Self::Group(name) => write!(f, "group `{name}`"),
            Self::Tenant(name) => write!(f, "tenant `{name}`"),
        }
    }
}
