//! The accounts on which requests are counted.
//!
//! ```text
//!   admit ──> all accounts have space? ──yes──> charge all: request, slot, expected tokens
//!                                 └──no───> refusal, with the time of the limit that lasts longest
//!   settle ─> the tokens that were used replace the expected ones, in the step of the admission
//! ```
//!
//! One lock guards all accounts, because a request is counted on several of them or on none. It is
//! held for about a microsecond.

mod account;
mod ask;
mod budget;
mod calendar;
mod excess;
mod figures;
mod limit_use;
mod refusal;
mod shared;
#[cfg(test)]
mod shared_tests;
mod table;
#[cfg(test)]
mod tests;
mod told;
#[cfg(test)]
mod told_tests;
mod window;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_domain::{Allowance, TokenCounts};

use self::account::Charge;
pub use self::ask::Ask;
pub use self::budget::BudgetRow;
pub use self::limit_use::LimitUse;
pub use self::refusal::Refusal;
pub use self::shared::{SharedCounter, SharedCounters};
use self::table::{Ended, Table, Used};
pub use self::told::BudgetUse;
use crate::identity::Identity;
use crate::moment::Moment;

/// All accounts of a host.
#[derive(Debug, Default)]
pub struct Accounts {
    table: Mutex<Table>,
}

/// A request that was accepted, and is counted on its accounts until it is settled.
#[derive(Debug)]
pub struct Admission {
    allowance: Allowance,
    /// `None` if nothing is to be given back.
    open: Option<Open>,
}

/// What a request is to give back.
#[derive(Debug)]
struct Open {
    accounts: Arc<Accounts>,
    identity: Arc<Identity>,
    charge: Charge,
    choices: u32,
    is_waiting: bool,
}

impl Accounts {
    /// Counts a request, or refuses it: on all of the key's accounts, or on none of them.
    ///
    /// # Errors
    /// If it exceeds a limit.
    pub fn admit(
        self: &Arc<Self>,
        identity: &Arc<Identity>,
        ask: Ask,
        now: Moment,
    ) -> Result<Admission, Refusal> {
        if identity.accounts.is_empty() {
            return Ok(Admission { allowance: Allowance::default(), open: None });
        }
        let (charge, allowance) = self.table.lock().admit(&identity.accounts, ask, now)?;
        let (accounts, identity) = (Arc::clone(self), Arc::clone(identity));
        let open = Open { accounts, identity, charge, choices: ask.choices, is_waiting: false };
        Ok(Admission { allowance, open: Some(open) })
    }

    /// Returns accounts that have used the same, and on which nothing counts for these.
    #[must_use]
    pub fn copy(&self) -> Arc<Self> {
        let table = self.table.lock().detached();
        Arc::new(Self { table: Mutex::new(table) })
    }

    /// Counts requests, tokens and budgets together with other hosts, before the first request.
    /// Requests in flight and in queues are those of this host.
    pub fn share(&self, counters: Arc<dyn SharedCounters>) {
        self.table.lock().share(counters);
    }

    /// Returns what is left of the limits of a key.
    pub fn allowance(&self, identity: &Identity, now: Moment) -> Allowance {
        match identity.accounts.is_empty() {
            true => Allowance::default(),
            false => self.table.lock().allowance(&identity.accounts, now),
        }
    }

    /// Returns what is used of each limit of a key: of its own account first, and those of groups
    /// and of its tenant.
    pub fn limit_uses(&self, identity: &Identity, now: Moment) -> Vec<LimitUse> {
        match identity.accounts.is_empty() {
            true => Vec::new(),
            false => self.table.lock().limit_uses(&identity.accounts, now),
        }
    }

    /// Returns what the budgets have changed since the last call: all of a row, not the difference.
    /// A row replaces that of the same account and period, also if it began earlier.
    pub fn take_dirty(&self) -> Vec<BudgetRow> {
        self.table.lock().take_dirty()
    }

    /// Returns what this host has used of budgets that have changed, for other hosts: of at most
    /// `max` accounts. A change is part of several rounds; if nothing is returned, a round is over,
    /// and the next call begins another one. What cannot be told has to be given back by
    /// [`Accounts::give_back_untold`].
    pub fn take_untold(&self, max: usize, now: Moment) -> Vec<BudgetUse> {
        self.table.lock().take_untold(max, now)
    }

    /// Notes what all other hosts have used of these budgets, in their order: requests, tokens, and
    /// milliseconds of engines.
    pub fn tell(&self, uses: &[BudgetUse], others: &[[u64; 3]]) {
        self.table.lock().tell(uses, others);
    }

    /// Notes that other hosts were not told of these budgets.
    pub fn give_back_untold(&self, uses: &[BudgetUse]) {
        self.table.lock().give_back(uses);
    }

    /// Notes that other hosts have to be told of all budgets again.
    pub fn mark_all_untold(&self) {
        self.table.lock().mark_all_untold();
    }

    /// Continues budgets from stored rows, before the first request. Rows of periods that are over
    /// do no harm.
    pub fn restore(&self, rows: impl IntoIterator<Item = BudgetRow>) {
        let mut table = self.table.lock();
        rows.into_iter().for_each(|row| table.restore(row));
    }

    /// Notes that what these rows have was used at another host, which tells it as its own: the
    /// rows were restored from a copy of its store.
    pub fn disown(&self, rows: impl IntoIterator<Item = BudgetRow>) {
        let mut table = self.table.lock();
        rows.into_iter().for_each(|row| table.disown(row));
    }

    /// Adds what another host has used of budgets: differences, not totals.
    pub fn add(&self, rows: impl IntoIterator<Item = BudgetRow>) {
        let mut table = self.table.lock();
        rows.into_iter().for_each(|row| table.add(row));
    }

    /// Returns a number that changes with everything that is counted; `None` if other hosts count
    /// on the accounts, too. What limits per minute count also changes with time.
    pub fn changes(&self) -> Option<u64> {
        self.table.lock().changes()
    }

    /// Returns the number of accounts that are remembered. Those that are idle and have nothing to
    /// remember are forgotten.
    pub fn count(&self) -> usize {
        self.table.lock().count()
    }
}

impl Admission {
    /// Returns what is left of the limits, with this request.
    pub fn allowance(&self) -> &Allowance {
        &self.allowance
    }

    /// Returns true if an account limits the number of requests that wait.
    pub fn limits_queue(&self) -> bool {
        let accounts = self.open.iter().flat_map(|open| &open.identity.accounts);
        accounts.into_iter().any(|account| account.limits.queued.is_some())
    }

    /// Notes that the request waits in a queue; call [`Admission::stop_waiting`] when it does not
    /// any more.
    ///
    /// # Errors
    /// If too many requests of an account wait.
    pub fn wait(&mut self) -> Result<(), Refusal> {
        if let Some(open) = self.open.as_mut().filter(|open| !open.is_waiting) {
            open.accounts.table.lock().wait(&open.identity.accounts)?;
            open.is_waiting = true;
        }
        Ok(())
    }

    /// Notes that the request does not wait any more.
    pub fn stop_waiting(&mut self) {
        if let Some(open) = self.open.as_mut().filter(|open| open.is_waiting) {
            open.accounts.table.lock().stop_waiting(&open.identity.accounts);
            open.is_waiting = false;
        }
    }

    /// Ends the request, and replaces what it was expected to use by what it has used. A request
    /// that is dropped without it is counted as it was expected.
    pub fn settle(mut self, used: TokenCounts, engine: Duration, now: Moment) {
        self.stop_waiting();
        if let Some(Open { accounts, identity, charge, choices, .. }) = self.open.take() {
            let tokens =
                u64::from(used.prompt.saturating_sub(used.cached)) + u64::from(used.output);
            let duration = now.running.saturating_sub(charge.at.running);
            // Rounded up: a response with one token is not one without any.
            let output = u64::from(used.output.div_ceil(choices.max(1)));
            let used = Used { tokens, engine, ended: Some(Ended { duration, output }) };
            accounts.table.lock().settle(&identity.accounts, charge, used, Some(now));
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.stop_waiting();
        if let Some(Open { accounts, identity, charge, .. }) = self.open.take() {
            let used = Used { tokens: charge.tokens, engine: Duration::ZERO, ended: None };
            accounts.table.lock().settle(&identity.accounts, charge, used, None);
        }
    }
}
