//! What hosts tell each other of budgets, beside the counters that they share.
//!
//! Shared counters have what processes have added that are running. If the store has lost its data,
//! what a process before had added is missing in them. So each host tells what it has used of a
//! budget since the period began, as an absolute value that it restores from its own store. What
//! others have used is the greater one of both: neither is ever more than that.

use std::time::Duration;

use super::account::Account;
use super::budget::Spent;
use super::figures::Figures;
use super::shared::{AFTER_PERIOD, budget_name};
use crate::limits::{AccountId, Period};

/// What a host has used of a budget.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetUse {
    /// The budget and its period: a name that all hosts have for it.
    pub name: String,
    /// Requests, tokens, and milliseconds of engines.
    pub used: [u64; 3],
    /// For how long it counts, and some time more.
    pub keep: Duration,
    pub(super) account: AccountId,
    pub(super) period: Period,
    pub(super) start: u64,
}

impl BudgetUse {
    /// Returns what this host has used; `None` of a period that is over.
    pub(super) fn new(
        account: &AccountId,
        (period, spent): (Period, Spent),
        unix_ms: u64,
    ) -> Option<Self> {
        if !spent.contains(unix_ms) {
            return None;
        }
        Some(Self {
            name: budget_name(account, period, spent.start),
            used: [spent.requests, spent.tokens, spent.engine_ms],
            keep: Duration::from_millis(spent.rest_ms(unix_ms)).saturating_add(AFTER_PERIOD),
            account: account.clone(),
            period,
            start: spent.start,
        })
    }
}

/// Returns figures of what others have used.
pub(super) fn figures([requests, tokens, engine_ms]: [u64; 3]) -> Figures {
    let signed = |count| i64::try_from(count).unwrap_or(i64::MAX);
    Figures { requests: signed(requests), tokens: signed(tokens), engine_ms: signed(engine_ms) }
}

/// Rounds in which a change is told: what others tell in the same round is learned in the next one.
const ROUNDS: u8 = 3;

/// Accounts whose budgets have changed, each of them once.
#[derive(Debug, Clone, Default)]
pub(super) struct ChangedBudgets {
    unwritten: Vec<AccountId>,
    /// Accounts to be told in this round, and in the next one.
    untold: Vec<AccountId>,
    next: Vec<AccountId>,
    /// True if other hosts are told.
    pub(super) are_told: bool,
}

impl ChangedBudgets {
    /// Notes that the budgets of an account have changed.
    pub(super) fn mark(&mut self, id: &AccountId, account: &mut Account) {
        if !account.is_dirty {
            account.is_dirty = true;
            self.unwritten.push(id.clone());
        }
        self.mark_untold(id, account);
    }

    /// Notes that other hosts have to be told of the budgets of an account.
    pub(super) fn mark_untold(&mut self, id: &AccountId, account: &mut Account) {
        if !self.are_told {
            return;
        }
        if account.untold_rounds == 0 {
            self.untold.push(id.clone());
        }
        account.untold_rounds = ROUNDS;
    }

    /// Returns a copy of which no other host is told.
    pub(super) fn detached(&self) -> Self {
        Self { are_told: false, ..self.clone() }
    }

    /// Takes the accounts that are not written.
    pub(super) fn take_unwritten(&mut self) -> Vec<AccountId> {
        std::mem::take(&mut self.unwritten)
    }

    /// Takes accounts to be told in this round, at most `max`. If there are none, the next round
    /// begins.
    pub(super) fn take_untold(&mut self, max: usize) -> Vec<AccountId> {
        if self.untold.is_empty() {
            std::mem::swap(&mut self.untold, &mut self.next);
            return Vec::new();
        }
        self.untold.split_off(self.untold.len().saturating_sub(max))
    }

    /// Notes that an account is told in this round.
    pub(super) fn told(&mut self, id: AccountId, account: &mut Account) {
        account.untold_rounds = account.untold_rounds.saturating_sub(1);
        if account.untold_rounds > 0 {
            self.next.push(id);
        }
    }
}
