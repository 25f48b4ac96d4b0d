//! One account: what requests have used, and whether another one fits.

use std::time::Duration;

use pointsman_domain::{Allowance, Remaining};

use super::budget::{Spent, Used};
use super::excess::Excess;
use super::figures::Figures;
use super::limit_use::LimitUse;
use super::shared::{Shared, SharedCounters};
use super::window::{Windows, step_of, time_until};
use crate::limits::{AccountId, Limit, Limits, Period};
use crate::moment::Moment;

/// The periods of budgets, in the order in which an account has them.
pub(super) const PERIODS: [Period; 3] = [Period::Day, Period::Week, Period::Month];
/// Tokens that the first response of an account without an output limit is expected to have.
pub(super) const FIRST_OUTPUT: u64 = 512;
/// The shortest time after which a client is told to retry if it has too many requests at a time.
const MIN_PAUSE: Duration = Duration::from_secs(1);
/// The longest: the duration of requests is an estimate.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// What requests of an account have used. The limits themselves are those of the request, so that
/// changed ones apply at once.
#[derive(Debug, Clone)]
pub(super) struct Account {
    window: Windows,
    in_flight: u32,
    waiting: u32,
    /// In the order of [`PERIODS`]; `None` without a budget for the period.
    budgets: [Option<Spent>; 3],
    /// Tokens that a response is expected to have: above the average, if they differ.
    output: u64,
    /// Average duration of requests.
    duration: Duration,
    /// Its budgets have changed since they were stored.
    pub(super) is_dirty: bool,
    /// Rounds in which other hosts are told of its budgets, which have changed.
    pub(super) untold_rounds: u8,
    /// The counters that other hosts see; `None` if it has no request, or hosts share nothing.
    shared: Option<Box<Shared>>,
}

/// A request that was counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charge {
    pub(super) at: Moment,
    /// What it is expected to use.
    pub(super) tokens: u64,
}

impl Default for Account {
    fn default() -> Self {
        Self {
            window: Windows::default(),
            in_flight: 0,
            waiting: 0,
            budgets: [None; 3],
            output: FIRST_OUTPUT,
            duration: Duration::ZERO,
            is_dirty: false,
            untold_rounds: 0,
            shared: None,
        }
    }
}

impl Account {
    /// Returns the number of tokens that a response is expected to have.
    pub(super) fn expected_output(&self) -> u64 {
        self.output
    }

    /// Begins what the time has begun, before a request is checked.
    pub(super) fn advance(&mut self, limits: &Limits, now: Moment) {
        self.window.advance(step_of(now.running));
        for budget in &limits.budgets {
            let spent = self.budgets[index_of(budget.period)].get_or_insert_default();
            spent.advance(budget.period, now.unix_ms);
        }
    }

    /// Counts what other hosts have used, of an account that is as of now.
    pub(super) fn refresh(
        &mut self,
        counters: &dyn SharedCounters,
        id: &AccountId,
        limits: &Limits,
        now: Moment,
    ) {
        if !limits.are_shared() {
            return;
        }
        let shared = self.shared.get_or_insert_default();
        if limits.requests_per_minute.is_some() || limits.tokens_per_minute.is_some() {
            shared.refresh_windows(counters, id, &mut self.window, now);
        }
        for budget in &limits.budgets {
            let index = index_of(budget.period);
            let Some(spent) = &mut self.budgets[index] else { continue };
            let (bounds, known) = ((spent.start, spent.end), (spent.own(), spent.others));
            let period = (index, budget.period);
            spent.others = shared.refresh_budget(counters, id, period, bounds, known, now);
        }
    }

    /// Closes the counters that other hosts see, unless there were requests of late.
    pub(super) fn close_idle(&mut self, now: Moment) {
        if self.in_flight == 0 && self.shared.as_ref().is_some_and(|shared| shared.is_idle(now)) {
            self.shared = None;
        }
    }

    /// Returns the account without the counters that other hosts see.
    pub(super) fn detached(&self) -> Self {
        Self { shared: None, ..self.clone() }
    }

    /// Returns how a request exceeds the limits.
    pub(super) fn excess(&self, limits: &Limits, charge: Charge) -> Option<Excess> {
        let Charge { at: Moment { running, unix_ms }, tokens } = charge;
        let budgets = limits.budgets.iter().filter_map(|budget| {
            self.budgets[index_of(budget.period)]?.excess(budget, tokens, unix_ms)
        });
        let excesses = self.window_excesses(limits, tokens, running).into_iter().flatten();
        let concurrent = self.crowd(Limit::Concurrent, limits.concurrent, self.in_flight);
        excesses.chain(concurrent).chain(budgets).reduce(Excess::longer)
    }

    fn window_excesses(
        &self,
        limits: &Limits,
        tokens: u64,
        running: Duration,
    ) -> [Option<Excess>; 2] {
        let used = self.window.used();
        let after = |requests, tokens| time_until(self.window.step_with(requests, tokens), running);
        let requests = limits.requests_per_minute.map(u64::from);
        let requests = requests.filter(|max| used.requests >= *max).map(|max| {
            let after = max.checked_sub(1).map(|others| after(others, u64::MAX));
            Excess { limit: Limit::RequestsPerMinute, max, asked: 1, after }
        });
        let max = limits.tokens_per_minute;
        let tokens = max.filter(|max| used.tokens.saturating_add(tokens) > *max).map(|max| {
            let after = max.checked_sub(tokens).map(|others| after(u64::MAX, others));
            Excess { limit: Limit::TokensPerMinute, max, asked: tokens, after }
        });
        [requests, tokens]
    }

    /// Returns how another request exceeds a number of requests at a time.
    fn crowd(&self, limit: Limit, max: Option<u32>, others: u32) -> Option<Excess> {
        let max = max.filter(|max| others >= *max)?;
        // If their ends are spread evenly, one of them ends in this time.
        let next = self.duration / self.in_flight.max(1);
        let after = (max > 0).then(|| next.clamp(MIN_PAUSE, MAX_PAUSE));
        Some(Excess { limit, max: u64::from(max), asked: 1, after })
    }

    /// Counts a request.
    pub(super) fn charge(&mut self, limits: &Limits, charge: Charge) {
        self.window.own.add(step_of(charge.at.running), charge.tokens);
        self.in_flight += 1;
        let used = Figures { requests: 1, tokens: signed(charge.tokens), engine_ms: 0 };
        if let Some(shared) = &mut self.shared {
            shared.add_to_windows(used);
        }
        for budget in &limits.budgets {
            let index = index_of(budget.period);
            if let Some(spent) = &mut self.budgets[index] {
                spent.requests += 1;
                spent.reserved = spent.reserved.saturating_add(charge.tokens);
                if let Some(shared) = &self.shared {
                    shared.add_to_budget(index, spent.start, used);
                }
            }
        }
    }

    /// Ends a request that was counted with these limits: it has used these tokens instead, and
    /// engines worked on it for some time.
    pub(super) fn settle(
        &mut self,
        limits: &Limits,
        charge: Charge,
        tokens: u64,
        engine: Duration,
    ) {
        let tokens_more = signed(tokens).saturating_sub(signed(charge.tokens));
        let more = Figures { tokens: tokens_more, ..Figures::default() };
        let counts = self.window.own.correct(step_of(charge.at.running), charge.tokens, tokens);
        if let Some(shared) = self.shared.as_mut().filter(|_| counts) {
            shared.add_to_windows(more);
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        for budget in &limits.budgets {
            // It counts in the period in which it was accepted.
            let index = index_of(budget.period);
            let spent = self.budgets[index].as_mut();
            if let Some(spent) = spent.filter(|spent| spent.contains(charge.at.unix_ms)) {
                spent.reserved = spent.reserved.saturating_sub(charge.tokens);
                spent.tokens = spent.tokens.saturating_add(tokens);
                let engine = u64::try_from(engine.as_millis()).unwrap_or(u64::MAX);
                spent.engine_ms = spent.engine_ms.saturating_add(engine);
                if let Some(shared) = &self.shared {
                    let used = Figures { engine_ms: signed(engine), ..more };
                    shared.add_to_budget(index, spent.start, used);
                }
            }
        }
    }

    /// Learns from a request that has ended: how long it took, and how many tokens its response
    /// had, if it had one.
    pub(super) fn learn(&mut self, duration: Duration, output: u64) {
        self.duration = match self.duration {
            Duration::ZERO => duration,
            average => (average * 7 + duration) / 8,
        };
        if output > self.output {
            self.output += (output - self.output).div_ceil(2);
        } else if output > 0 {
            self.output -= (self.output - output) / 16;
        }
    }

    /// Returns how another waiting request exceeds the limits.
    pub(super) fn queue_excess(&self, limits: &Limits) -> Option<Excess> {
        self.crowd(Limit::Queued, limits.queued, self.waiting)
    }

    pub(super) fn wait(&mut self) {
        self.waiting += 1;
    }

    pub(super) fn stop_waiting(&mut self) {
        self.waiting = self.waiting.saturating_sub(1);
    }

    /// Returns what is left of the limits.
    pub(super) fn allowance(&self, limits: &Limits, now: Moment) -> Allowance {
        let used = self.window.used();
        let reset_ms = millis(time_until(self.window.end(), now.running));
        let left = |limit: u64, used: u64, reset_ms| Remaining {
            limit,
            left: limit.saturating_sub(used),
            reset_ms: if used == 0 { 0 } else { reset_ms },
        };
        let budgets = limits.budgets.iter().filter_map(|budget| {
            let (limit, spent) = (budget.tokens?, self.budgets[index_of(budget.period)]?);
            let used = spent.used().tokens;
            Some(left(limit, used, spent.rest_ms(now.unix_ms)))
        });
        let requests = limits.requests_per_minute.map(u64::from);
        Allowance {
            requests: requests.map(|limit| left(limit, used.requests, reset_ms)),
            tokens: limits.tokens_per_minute.map(|limit| left(limit, used.tokens, reset_ms)),
            budget: budgets.reduce(tighter),
        }
    }

    /// Returns what is used of each limit.
    pub(super) fn limit_uses(&self, id: &AccountId, limits: &Limits, now: Moment) -> Vec<LimitUse> {
        let used = self.window.used();
        let window_end =
            now.unix_ms.saturating_add(millis(time_until(self.window.end(), now.running)));
        let limit_use = |limit, max: Option<u64>, used: u64, end: Option<u64>| {
            let resets_unix_ms = end.filter(|_| used > 0);
            Some(LimitUse { account: id.clone(), limit, max: max?, used, resets_unix_ms })
        };
        let (requests, concurrent) = (limits.requests_per_minute, limits.concurrent);
        let (in_flight, waiting) = (self.in_flight.into(), self.waiting.into());
        let end = Some(window_end);
        let mut uses = vec![
            limit_use(Limit::RequestsPerMinute, requests.map(u64::from), used.requests, end),
            limit_use(Limit::TokensPerMinute, limits.tokens_per_minute, used.tokens, end),
            limit_use(Limit::Concurrent, concurrent.map(u64::from), in_flight, None),
            limit_use(Limit::Queued, limits.queued.map(u64::from), waiting, None),
        ];
        for budget in &limits.budgets {
            let spent = self.budgets[index_of(budget.period)].unwrap_or_default();
            let (period, end) = (budget.period, Some(spent.end));
            let Used { requests, tokens, engine_ms } = spent.used();
            let seconds = engine_ms / 1000;
            uses.extend([
                limit_use(Limit::TokenBudget(period), budget.tokens, tokens, end),
                limit_use(Limit::RequestBudget(period), budget.requests, requests, end),
                limit_use(Limit::EngineBudget(period), budget.engine_seconds, seconds, end),
            ]);
        }
        uses.into_iter().flatten().collect()
    }

    /// Returns what was used of each budget.
    pub(super) fn budgets(&self) -> impl Iterator<Item = (Period, Spent)> {
        PERIODS.into_iter().zip(self.budgets).filter_map(|(period, spent)| Some((period, spent?)))
    }

    /// Notes what other hosts have told of the budget of a period that began at `start`.
    pub(super) fn tell(&mut self, period: Period, start: u64, told: Figures) {
        let spent = self.budgets[index_of(period)].as_mut();
        if let Some(spent) = spent.filter(|spent| spent.start == start) {
            // The store may have lost what they told before.
            spent.told = spent.told.max(told);
        }
    }

    /// Adds what another host has used of a budget.
    pub(super) fn add(&mut self, period: Period, used: Spent) {
        match &mut self.budgets[index_of(period)] {
            Some(spent) if spent.start == used.start => {
                spent.tokens = spent.tokens.saturating_add(used.tokens);
                spent.requests = spent.requests.saturating_add(used.requests);
                spent.engine_ms = spent.engine_ms.saturating_add(used.engine_ms);
                // That host has told it by the shared counters as well.
                spent.others = spent.others.minus(used.own()).max(Figures::default());
                if let Some(shared) = &mut self.shared {
                    shared.take_over(index_of(period), used.own());
                }
            }
            // Of a period that is over.
            Some(spent) if spent.start > used.start => {}
            other => *other = Some(used),
        }
    }

    /// Removes what was used at another host. The shared counters have it still, and as nothing of
    /// this host, so that it counts as used by others from the next look on.
    pub(super) fn disown(&mut self, period: Period, used: Spent) {
        let spent = self.budgets[index_of(period)].as_mut();
        if let Some(spent) = spent.filter(|spent| spent.start == used.start) {
            spent.tokens = spent.tokens.saturating_sub(used.tokens);
            spent.requests = spent.requests.saturating_sub(used.requests);
            spent.engine_ms = spent.engine_ms.saturating_sub(used.engine_ms);
        }
    }

    /// Continues a budget.
    pub(super) fn restore(&mut self, period: Period, spent: Spent) {
        self.budgets[index_of(period)] = Some(spent);
    }

    /// Returns true if nothing would change if the account were forgotten, but for what it has
    /// learned.
    pub(super) fn is_idle(&mut self, now: Moment) -> bool {
        let used = self.window.advance(step_of(now.running));
        used.requests == 0
            && self.in_flight == 0
            && self.budgets().all(|(_, spent)| spent.is_unused(now.unix_ms))
    }
}

/// Returns the tighter one of two limits of the same kind.
pub(super) fn tighter(one: Remaining, other: Remaining) -> Remaining {
    if other.left < one.left { other } else { one }
}

fn index_of(period: Period) -> usize {
    match period {
        Period::Day => 0,
        Period::Week => 1,
        Period::Month => 2,
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
