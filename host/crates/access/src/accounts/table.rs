//! All accounts, by what they are for.

use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use pointsman_domain::{Allowance, Remaining};

use super::account::{Account, Charge, FIRST_OUTPUT, tighter};
use super::ask::Ask;
use super::budget::BudgetRow;
use super::excess::Excess;
use super::limit_use::LimitUse;
use super::refusal::Refusal;
use super::shared::SharedCounters;
use super::told::{self, BudgetUse, ChangedBudgets};
use crate::limits::{AccountId, AccountLimits, Limits};
use crate::moment::Moment;

/// Time after which idle accounts are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// Milliseconds by which a clock may be set back without a new period: less is a correction.
const MAX_CORRECTION: u64 = 24 * 60 * 60 * 1000;
/// 2026-01-01. A clock that is before it has not been set since the machine was started.
const CLOCK_UNSET: u64 = 1_767_225_600_000;

/// What a request has used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    pub(super) tokens: u64,
    /// Time for which engines worked on it.
    pub(super) engine: Duration,
    /// What accounts learn from it.
    pub(super) ended: Option<Ended>,
}

/// What a request that has ended tells about the next one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) duration: Duration,
    /// Tokens of a response: the average, if there are several.
    pub(super) output: u64,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// The names in the keys are those of the configuration, or of an issuer that it trusts.
    accounts: HashMap<AccountId, Account>,
    changed: ChangedBudgets,
    /// The latest point in time that was seen. Callers read their clocks before they wait for the
    /// lock, so that one may come after a later one.
    latest: Moment,
    swept: Duration,
    /// What hosts count together; `None` if each host counts for itself.
    counters: Option<Arc<dyn SharedCounters>>,
    /// Changes with everything that is counted.
    changes: u64,
}

impl Table {
    pub(super) fn admit(
        &mut self,
        accounts: &[AccountLimits],
        ask: Ask,
        now: Moment,
    ) -> Result<(Charge, Allowance), Refusal> {
        let now = self.advance(now);
        self.sweep(now);
        let charge = Charge { at: now, tokens: self.expected(accounts, ask) };
        let excesses = accounts.iter().filter_map(|AccountLimits { id, limits }| {
            let account = self.accounts.entry_ref(id).or_default();
            account.advance(limits, now);
            if let Some(counters) = &self.counters {
                account.refresh(&**counters, id, limits, now);
            }
            Some((id, account.excess(limits, charge)?))
        });
        refuse_longest(excesses)?;
        self.changes += 1;
        let mut allowance = Allowance::default();
        for AccountLimits { id, limits } in accounts {
            if let Some(account) = self.accounts.get_mut(id) {
                account.charge(limits, charge);
                allowance = tightest(allowance, account.allowance(limits, now));
                if !limits.budgets.is_empty() {
                    self.changed.mark(id, account);
                }
            }
        }
        Ok((charge, allowance))
    }

    /// Returns the number of tokens that a request is expected to use.
    fn expected(&self, accounts: &[AccountLimits], ask: Ask) -> u64 {
        let prompt = u64::from(ask.prompt_tokens);
        let Some(output) = ask.output_tokens else {
            // Responses of one key are more alike than those of all keys of a tenant.
            let key = accounts.iter().find(|account| matches!(account.id, AccountId::Key(_)));
            let account = key.or(accounts.first()).and_then(|key| self.accounts.get(&key.id));
            let output = account.map_or(FIRST_OUTPUT, Account::expected_output);
            let output = output.saturating_mul(u64::from(ask.choices.max(1)));
            // An estimate is not a reason to refuse a request at all times.
            let budgets = |limits: &AccountLimits| {
                let budgets = limits.limits.budgets.iter().filter_map(|budget| budget.tokens);
                budgets.chain(limits.limits.tokens_per_minute).min()
            };
            let lowest = accounts.iter().filter_map(budgets).min().unwrap_or(u64::MAX);
            return prompt.saturating_add(output).min(lowest.max(prompt));
        };
        prompt.saturating_add(output.into())
    }

    /// Returns the point in time that counts: the latest one. A clock of the calendar that was set
    /// back by days counts too, unless it has not been set at all.
    fn advance(&mut self, now: Moment) -> Moment {
        let running = now.running.max(self.latest.running);
        let back = self.latest.unix_ms.saturating_sub(now.unix_ms);
        let is_set_back = back > MAX_CORRECTION && now.unix_ms >= CLOCK_UNSET;
        let unix_ms = if is_set_back { now.unix_ms } else { now.unix_ms.max(self.latest.unix_ms) };
        self.latest = Moment { running, unix_ms };
        self.latest
    }

    /// Forgets idle accounts.
    fn sweep(&mut self, now: Moment) {
        if now.running.saturating_sub(self.swept) < SWEEP_INTERVAL {
            return;
        }
        self.swept = now.running;
        self.accounts.retain(|_, account| {
            account.close_idle(now);
            !account.is_idle(now)
        });
        if self.accounts.len() < self.accounts.capacity() / 4 {
            self.accounts.shrink_to_fit();
        }
    }

    /// `now` is when the request ended; `None` for the latest point in time that was seen.
    pub(super) fn settle(
        &mut self,
        accounts: &[AccountLimits],
        charge: Charge,
        used: Used,
        now: Option<Moment>,
    ) {
        let now = self.advance(now.unwrap_or(self.latest));
        self.changes += 1;
        for AccountLimits { id, limits } in accounts {
            if let Some(account) = self.accounts.get_mut(id) {
                if let Some(counters) = &self.counters {
                    account.advance(limits, now);
                    account.refresh(&**counters, id, limits, now);
                }
                account.settle(limits, charge, used.tokens, used.engine);
                if let Some(Ended { duration, output }) = used.ended {
                    account.learn(duration, output);
                }
                if !limits.budgets.is_empty() {
                    self.changed.mark(id, account);
                }
            }
        }
    }

    pub(super) fn wait(&mut self, accounts: &[AccountLimits]) -> Result<(), Refusal> {
        let excesses = accounts.iter().filter_map(|AccountLimits { id, limits }| {
            Some((id, self.accounts.get(id)?.queue_excess(limits)?))
        });
        refuse_longest(excesses)?;
        self.changes += 1;
        for AccountLimits { id, .. } in accounts {
            self.accounts.get_mut(id).into_iter().for_each(Account::wait);
        }
        Ok(())
    }

    pub(super) fn stop_waiting(&mut self, accounts: &[AccountLimits]) {
        self.changes += 1;
        for AccountLimits { id, .. } in accounts {
            self.accounts.get_mut(id).into_iter().for_each(Account::stop_waiting);
        }
    }

    pub(super) fn allowance(&mut self, accounts: &[AccountLimits], now: Moment) -> Allowance {
        let now = self.advance(now);
        let unused = Account::default();
        accounts.iter().fold(Allowance::default(), |allowance, AccountLimits { id, limits }| {
            let account = self.advanced(id, limits, now).unwrap_or(&unused);
            tightest(allowance, account.allowance(limits, now))
        })
    }

    pub(super) fn limit_uses(&mut self, accounts: &[AccountLimits], now: Moment) -> Vec<LimitUse> {
        let now = self.advance(now);
        let unused = Account::default();
        let mut uses = Vec::new();
        for AccountLimits { id, limits } in accounts {
            let account = self.advanced(id, limits, now).unwrap_or(&unused);
            uses.extend(account.limit_uses(id, limits, now));
        }
        uses
    }

    /// Returns an account as it is now; `None` if nothing of it is remembered.
    fn advanced(&mut self, id: &AccountId, limits: &Limits, now: Moment) -> Option<&Account> {
        let account = self.accounts.get_mut(id)?;
        account.advance(limits, now);
        if let Some(counters) = &self.counters {
            account.refresh(&**counters, id, limits, now);
        }
        Some(account)
    }

    pub(super) fn take_dirty(&mut self) -> Vec<BudgetRow> {
        let mut rows = Vec::new();
        for id in self.changed.take_unwritten() {
            let Some(account) = self.accounts.get_mut(&id) else { continue };
            account.is_dirty = false;
            rows.extend(account.budgets().map(|(period, spent)| BudgetRow {
                account: id.clone(),
                period,
                start_unix_ms: spent.start,
                tokens: spent.tokens,
                requests: spent.requests,
                engine_ms: spent.engine_ms,
            }));
        }
        rows
    }

    /// Adds what another host has used of a budget.
    pub(super) fn add(&mut self, row: BudgetRow) {
        self.changes += 1;
        let (id, period, used) = row.into_spent();
        let account = self.accounts.entry(id.clone()).or_default();
        account.add(period, used);
        self.changed.mark(&id, account);
    }

    /// Removes what was used at another host from what was used at this one.
    pub(super) fn disown(&mut self, row: BudgetRow) {
        self.changes += 1;
        let (id, period, used) = row.into_spent();
        if let Some(account) = self.accounts.get_mut(&id) {
            account.disown(period, used);
            self.changed.mark(&id, account);
        }
    }

    pub(super) fn restore(&mut self, row: BudgetRow) {
        let (account, period, spent) = row.into_spent();
        // A clock that has not been set yet does not begin a new period.
        self.latest.unix_ms = self.latest.unix_ms.max(spent.start);
        self.accounts.entry(account).or_default().restore(period, spent);
    }

    /// Returns a number that changes with everything that is counted; `None` if other hosts count,
    /// too.
    pub(super) fn changes(&self) -> Option<u64> {
        self.counters.is_none().then_some(self.changes)
    }

    /// Counts together with other hosts from now on.
    pub(super) fn share(&mut self, counters: Arc<dyn SharedCounters>) {
        self.counters = Some(counters);
        self.changed.are_told = true;
        self.mark_all_untold();
    }

    /// Notes that other hosts have to be told of all budgets.
    pub(super) fn mark_all_untold(&mut self) {
        for (id, account) in &mut self.accounts {
            self.changed.mark_untold(id, account);
        }
    }

    /// Returns what is used of budgets of at most `max` accounts to be told in this round. If it is
    /// nothing, the next call begins another round.
    pub(super) fn take_untold(&mut self, max: usize, now: Moment) -> Vec<BudgetUse> {
        let now = self.advance(now);
        let mut uses = Vec::new();
        for id in self.changed.take_untold(max) {
            let Some(account) = self.accounts.get_mut(&id) else { continue };
            let budgets = account.budgets();
            uses.extend(budgets.filter_map(|budget| BudgetUse::new(&id, budget, now.unix_ms)));
            self.changed.told(id, account);
        }
        uses
    }

    /// Notes what other hosts have used of budgets, in the order of `uses`.
    pub(super) fn tell(&mut self, uses: &[BudgetUse], others: &[[u64; 3]]) {
        for (BudgetUse { account, period, start, .. }, others) in uses.iter().zip(others) {
            if let Some(account) = self.accounts.get_mut(account) {
                account.tell(*period, *start, told::figures(*others));
            }
        }
    }

    /// Notes that other hosts were not told.
    pub(super) fn give_back(&mut self, uses: &[BudgetUse]) {
        for BudgetUse { account: id, .. } in uses {
            if let Some(account) = self.accounts.get_mut(id) {
                self.changed.mark_untold(id, account);
            }
        }
    }

    /// Returns a copy that no other host sees.
    pub(super) fn detached(&self) -> Self {
        let accounts = self.accounts.iter();
        Self {
            accounts: accounts.map(|(id, account)| (id.clone(), account.detached())).collect(),
            changed: self.changed.detached(),
            counters: None,
            ..*self
        }
    }

    pub(super) fn count(&self) -> usize {
        self.accounts.len()
    }
}

/// Returns the refusal by the limit that lasts longest, if there is one.
fn refuse_longest<'a>(
    excesses: impl Iterator<Item = (&'a AccountId, Excess)>,
) -> Result<(), Refusal> {
    let longest =
        excesses.reduce(|one, other| if one.1.longer(other.1) == one.1 { one } else { other });
    longest.map_or(Ok(()), |(id, excess)| Err(excess.refusal(id)))
}

/// Returns the tightest limit of each kind.
fn tightest(one: Allowance, other: Allowance) -> Allowance {
    let both = |one: Option<Remaining>, other: Option<Remaining>| match (one, other) {
        (Some(one), Some(other)) => Some(tighter(one, other)),
        (one, other) => one.or(other),
    };
    Allowance {
        requests: both(one.requests, other.requests),
        tokens: both(one.tokens, other.tokens),
        budget: both(one.budget, other.budget),
    }
}

#[cfg(test)]
impl Table {
    /// Returns true if no account has anything to remember.
    pub(super) fn is_idle_at(&mut self, now: Moment) -> bool {
        self.accounts.values_mut().all(|account| account.is_idle(now))
    }
}
