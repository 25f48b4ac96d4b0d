//! What other hosts have used of the limits of an account.
//!
//! ```text
//!   charge, settle ──add──> counter of a span ──(the store, by itself)──> counters of other hosts
//!   the next check <──refresh, what others have added since the last look──────────┘
//! ```
//!
//! A span is ten seconds of the limits per minute, or a period of a budget. What others have used
//! is counted when it is learned, so the clocks of hosts need only agree to about a span. No call
//! waits: a counter that is not known yet has no effect.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use super::figures::Figures;
use super::window::Windows;
use crate::limits::{AccountId, Period};
use crate::moment::Moment;

/// Length of a span of the limits per minute.
const SPAN_MS: u64 = 10_000;
/// Spans before the current one that have requests of the last 60 seconds.
const HISTORY: u64 = 6;
/// For how long the store keeps a span of the limits per minute.
const SPAN_LIFETIME: Duration = Duration::from_secs(180);
/// For how long the store keeps a budget after the end of its period: clocks differ.
pub(super) const AFTER_PERIOD: Duration = Duration::from_secs(24 * 3600);
/// Time without requests after which the counters of an account are closed: more than a span of
/// the limits per minute counts.
pub(super) const OPEN_TIME: Duration = Duration::from_secs(120);

/// Counters that several hosts share. No call waits.
pub trait SharedCounters: fmt::Debug + Send + Sync {
    /// Opens the counter with this name. The store may forget it after `lifetime`.
    fn open(&self, name: &str, lifetime: Duration) -> Arc<dyn SharedCounter>;
}

/// A counter that several hosts share. Its value is kept up to date while it is open; what was
/// added is not lost when it is closed.
pub trait SharedCounter: fmt::Debug + Send + Sync {
    /// Adds to the counter.
    fn add(&self, delta: i64);

    /// Returns the sum of what all hosts have added, with what this host has added up to now;
    /// `None` while the value of the store is not known.
    fn total(&self) -> Option<i64>;
}

/// The counters of a span, which are open.
#[derive(Debug, Clone)]
struct Span {
    requests: Arc<dyn SharedCounter>,
    tokens: Arc<dyn SharedCounter>,
    /// Only of budgets.
    engine_ms: Option<Arc<dyn SharedCounter>>,
    /// What others had used at the last look; `None` while that is not known.
    seen: Option<Figures>,
}

/// What a look at a span has found.
enum News {
    Unknown,
    /// All that others have used.
    First(Figures),
    /// What they have used since the last look.
    More(Figures),
}

impl Span {
    fn open(counters: &dyn SharedCounters, name: &str, lifetime: Duration) -> Self {
        let open = |figure| counters.open(&format!("{name}/{figure}"), lifetime);
        Self { requests: open("requests"), tokens: open("tokens"), engine_ms: None, seen: None }
    }

    fn add(&self, used: Figures) {
        let engine = self.engine_ms.iter().map(|counter| (counter, used.engine_ms));
        let both = [(&self.requests, used.requests), (&self.tokens, used.tokens)];
        for (counter, delta) in both.into_iter().chain(engine).filter(|(_, delta)| *delta != 0) {
            counter.add(delta);
        }
    }

    /// Looks at the counters; `own` is what this host has added to them.
    fn look(&mut self, own: Figures) -> News {
        let engine_ms = self.engine_ms.as_ref().map_or(Some(0), |counter| counter.total());
        let (Some(requests), Some(tokens), Some(engine_ms)) =
            (self.requests.total(), self.tokens.total(), engine_ms)
        else {
            return News::Unknown;
        };
        let others = Figures { requests, tokens, engine_ms }.minus(own);
        match self.seen {
            None => {
                self.seen = Some(others);
                News::First(others)
            }
            // Requests are never taken back, so the store has lost its data. What was known of
            // others counts until they have told it again.
            Some(seen) if others.requests < seen.requests => News::More(Figures::default()),
            Some(seen) => {
                self.seen = Some(others);
                News::More(others.minus(seen))
            }
        }
    }
}

/// A span of the limits per minute.
#[derive(Debug, Clone)]
struct WindowSpan {
    /// Its number since 1970.
    number: u64,
    own: Figures,
    span: Span,
}

/// The counters of one account.
#[derive(Debug, Clone, Default)]
pub(super) struct Shared {
    /// In order, without gaps. The last one is that after the current one, for hosts whose clock is
    /// ahead.
    windows: VecDeque<WindowSpan>,
    /// In the order of the periods, with the begin of the period.
    budgets: [Option<(u64, Span)>; 3],
    refreshed: Duration,
}

impl Shared {
    /// Counts what others have used in the last 60 seconds.
    pub(super) fn refresh_windows(
        &mut self,
        counters: &dyn SharedCounters,
        id: &AccountId,
        windows: &mut Windows,
        now: Moment,
    ) {
        self.refreshed = now.running;
        let current = now.unix_ms / SPAN_MS;
        let oldest = current.saturating_sub(HISTORY);
        // A clock that was set back by more than a span begins anew.
        if self.windows.back().is_some_and(|last| last.number > current + 2) {
            self.windows.clear();
        }
        let first = self.windows.back().map_or(oldest, |last| (last.number + 1).max(oldest));
        for number in first..=current + 1 {
            let name = format!("{}/{number}", name_of(id));
            let span = Span::open(counters, &name, SPAN_LIFETIME);
            self.windows.push_back(WindowSpan { number, own: Figures::default(), span });
        }
        self.windows.retain_mut(|window| {
            let end = window.number.saturating_add(1).saturating_mul(SPAN_MS);
            let (is_recent, news) = (window.number + 1 >= current, window.span.look(window.own));
            let is_known = match news {
                News::Unknown => false,
                News::First(others) | News::More(others) => {
                    // Not later than at the end of the span, so that it is not counted too long.
                    let ago = Duration::from_millis(now.unix_ms.saturating_sub(end));
                    windows.add_others(now.running.saturating_sub(ago), others);
                    true
                }
            };
            is_recent || (!is_known && window.number >= oldest)
        });
    }

    /// Returns what others have used of the budget of a period that began at `start`: the greater
    /// one of what was `known` and what is known now.
    pub(super) fn refresh_budget(
        &mut self,
        counters: &dyn SharedCounters,
        id: &AccountId,
        (index, period): (usize, Period),
        (start, end): (u64, u64),
        (own, known): (Figures, Figures),
        now: Moment,
    ) -> Figures {
        self.refreshed = now.running;
        let budget = &mut self.budgets[index];
        if budget.as_ref().is_none_or(|(began, _)| *began != start) {
            let name = budget_name(id, period, start);
            let rest = Duration::from_millis(end.saturating_sub(now.unix_ms));
            let lifetime = rest.saturating_add(AFTER_PERIOD);
            let mut span = Span::open(counters, &name, lifetime);
            span.engine_ms = Some(counters.open(&format!("{name}/engine-ms"), lifetime));
            *budget = Some((start, span));
        }
        let news = budget.as_mut().map_or(News::Unknown, |(_, span)| span.look(own));
        match news {
            News::Unknown => known,
            News::First(others) => known.max(others),
            News::More(others) => known.plus(others).max(Figures::default()),
        }
    }

    /// Tells the other hosts what was used in the last 60 seconds.
    pub(super) fn add_to_windows(&mut self, used: Figures) {
        // The last one is that after the current one.
        let current = self.windows.len().checked_sub(2);
        if let Some(window) = current.and_then(|current| self.windows.get_mut(current)) {
            window.own = window.own.plus(used);
            window.span.add(used);
        }
    }

    /// Tells the other hosts what was used of the budget of a period.
    pub(super) fn add_to_budget(&self, index: usize, start: u64, used: Figures) {
        if let Some((_, span)) = self.budgets[index].as_ref().filter(|(began, _)| *began == start) {
            span.add(used);
        }
    }

    /// Notes that what another host has used of a budget is this host's from now on.
    pub(super) fn take_over(&mut self, index: usize, used: Figures) {
        let span = self.budgets[index].as_mut().map(|(_, span)| span);
        if let Some(seen) = span.and_then(|span| span.seen.as_mut()) {
            *seen = seen.minus(used);
        }
    }

    /// Returns true if the account has had no request for a while.
    pub(super) fn is_idle(&self, now: Moment) -> bool {
        now.running.saturating_sub(self.refreshed) > OPEN_TIME
    }
}

/// Returns the name of a budget in the store, of the period that began at `start`.
pub(super) fn budget_name(id: &AccountId, period: Period, start: u64) -> String {
    format!("{}/{period}/{start}", name_of(id))
}

/// Returns the name of an account in the store. Names of tenants and groups may be long, or secret.
fn name_of(id: &AccountId) -> String {
    let digest = match id {
        AccountId::Key(key) => return format!("key/{key:016x}"),
        AccountId::Group(name) => Sha256::digest(format!("group/{name}")),
        AccountId::Tenant(name) => Sha256::digest(format!("tenant/{name}")),
    };
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("all/{hex}")
}
