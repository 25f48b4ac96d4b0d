//! What was used of the budget of a period.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::calendar;
use super::excess::Excess;
use super::figures::Figures;
use crate::limits::{AccountId, Budget, Limit, Period};

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

impl BudgetRow {
    /// Returns the account and period, and what was used.
    pub(super) fn into_spent(self) -> (AccountId, Period, Spent) {
        let Self { account, period, start_unix_ms: start, tokens, requests, engine_ms } = self;
        let (_, end) = calendar::bounds(period, start);
        let spent = Spent { start, end, tokens, requests, engine_ms, ..Spent::default() };
        (account, period, spent)
    }

    /// Returns what was used since an earlier row of the same account and period; all of it if
    /// another period has begun.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if earlier.start_unix_ms != self.start_unix_ms {
            return self.clone();
        }
        Self {
            tokens: self.tokens.saturating_sub(earlier.tokens),
            requests: self.requests.saturating_sub(earlier.requests),
            engine_ms: self.engine_ms.saturating_sub(earlier.engine_ms),
            ..self.clone()
        }
    }
}

/// What was used of the budget of a period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// When the period began, in milliseconds since 1970.
    pub(super) start: u64,
    /// When it ends.
    pub(super) end: u64,
    /// Tokens of requests that have ended.
    pub(super) tokens: u64,
    /// Tokens that requests in flight are expected to use.
    pub(super) reserved: u64,
    pub(super) requests: u64,
    pub(super) engine_ms: u64,
    /// What other hosts have used and reserved, as far as it is known. Never less than zero.
    pub(super) others: Figures,
    /// What other hosts have told that they have used since the period began.
    pub(super) told: Figures,
}

/// What was used of a budget by all hosts, with what requests in flight are expected to use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    pub(super) requests: u64,
    pub(super) tokens: u64,
    pub(super) engine_ms: u64,
}

impl Spent {
    /// Returns what this host has used, with what requests in flight are expected to use.
    pub(super) fn own(&self) -> Figures {
        let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let tokens = signed(self.tokens.saturating_add(self.reserved));
        Figures { requests: signed(self.requests), tokens, engine_ms: signed(self.engine_ms) }
    }

    /// Returns what all hosts have used.
    pub(super) fn used(&self) -> Used {
        let sum = |own: u64, others: i64| own.saturating_add(u64::try_from(others).unwrap_or(0));
        // Neither is more than what they have used.
        let others = self.others.max(self.told);
        Used {
            requests: sum(self.requests, others.requests),
            tokens: sum(self.tokens.saturating_add(self.reserved), others.tokens),
            engine_ms: sum(self.engine_ms, others.engine_ms),
        }
    }

    /// Begins a new period if that of the budget is not the current one.
    pub(super) fn advance(&mut self, period: Period, unix_ms: u64) {
        if !self.contains(unix_ms) {
            let (start, end) = calendar::bounds(period, unix_ms);
            *self = Self { start, end, ..Self::default() };
        }
    }

    /// Returns true if a point in time is in the period.
    pub(super) fn contains(&self, unix_ms: u64) -> bool {
        (self.start..self.end).contains(&unix_ms)
    }

    /// Returns the milliseconds until the period ends.
    pub(super) fn rest_ms(&self, unix_ms: u64) -> u64 {
        self.end.saturating_sub(unix_ms)
    }

    /// Returns how a request with this number of tokens exceeds the budget.
    pub(super) fn excess(&self, budget: &Budget, tokens: u64, unix_ms: u64) -> Option<Excess> {
        let period = budget.period;
        let rest = Duration::from_millis(self.rest_ms(unix_ms));
        let over = |limit, max: Option<u64>, used: u64, asked: u64| {
            let max = max.filter(|max| used.saturating_add(asked) > *max)?;
            Some(Excess { limit, max, asked, after: (asked <= max).then_some(rest) })
        };
        let used = self.used();
        // What a request takes of the engine's time is not known before its end.
        let seconds = used.engine_ms / 1000;
        let excesses = [
            over(Limit::TokenBudget(period), budget.tokens, used.tokens, tokens),
            over(Limit::RequestBudget(period), budget.requests, used.requests, 1),
            over(Limit::EngineBudget(period), budget.engine_seconds, seconds, 1),
        ];
        excesses.into_iter().flatten().reduce(Excess::longer)
    }

    /// Returns true if nothing of the period is to be remembered.
    pub(super) fn is_unused(&self, unix_ms: u64) -> bool {
        !self.contains(unix_ms) || (self.requests == 0 && self.tokens == 0 && self.engine_ms == 0)
    }
}
