//! A circuit breaker for something that several tenants use: what one tenant causes only stops the
//! use by that tenant.
//!
//! Each tenant has a breaker, and all tenants share one. A breaker opens by the rate of faults
//! within a window, and the shared one only if tenants other than the one with the most faults had
//! some as well. All requests without a tenant are those of one tenant.
//!
//! Time is an argument, so that a breaker works with any clock.

mod window;

use std::collections::BTreeMap;
use std::time::Duration;

use self::window::Window;
use crate::breaker::{Breaker, BreakerRules};

/// Maximum tenants with counters of their own; further ones share those of requests without a
/// tenant. A tenant takes about 500 bytes.
const MAX_TENANTS: usize = 1024;
/// Faults of tenants other than the one with the most faults, below which the shared breaker stays
/// closed: a single one may be a coincidence.
const MIN_OTHER_FAULTS: u32 = 2;

/// When a [`TenantBreaker`] opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TenantBreakerRules {
    /// Faults within the window below which nothing opens.
    pub min_faults: u32,
    /// The share of the calls within the window, in per cent, that has to be exceeded by faults.
    pub max_percent: u32,
}

impl TenantBreakerRules {
    fn are_exceeded(&self, calls: u32, faults: u32) -> bool {
        faults >= self.min_faults
            && u64::from(faults) * 100 > u64::from(calls) * u64::from(self.max_percent)
    }
}

/// Opens at the first failure that is recorded, because [`TenantBreakerRules`] decide when to
/// record one. Without memory of earlier failures, only a probe closes it.
static BACKOFF: BreakerRules = BreakerRules {
    failures: 1,
    window: Some(Duration::ZERO),
    initial_backoff: Duration::from_secs(1),
    max_backoff: Duration::from_secs(60),
};

/// Those whose calls a breaker stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerScope {
    /// One tenant with a name.
    Tenant,
    /// All tenants, or all requests without a tenant.
    All,
}

/// A breaker that changed its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerChange {
    /// Those whose calls it concerns.
    pub scope: BreakerScope,
    /// True if the breaker opened, or a probe failed; false if it closed.
    pub opened: bool,
}

/// A circuit breaker for several tenants.
#[derive(Debug, Clone)]
pub struct TenantBreaker {
    rules: &'static TenantBreakerRules,
    all: Guarded,
    anonymous: Guarded,
    tenants: BTreeMap<Box<str>, Guarded>,
}

/// The calls of some tenants, and the breaker that stops them.
#[derive(Debug, Clone)]
struct Guarded {
    /// The calls since its breaker opened.
    calls: Window,
    /// The calls since the shared breaker opened. Unused in the shared one.
    shared: Window,
    breaker: Breaker,
}

impl Default for Guarded {
    fn default() -> Self {
        let (calls, shared) = (Window::default(), Window::default());
        Self { calls, shared, breaker: Breaker::new(&BACKOFF) }
    }
}

impl Guarded {
    /// Counts a call, and records a fault with the breaker if `may_open`. Returns whether the
    /// breaker opened (true) or closed (false); `None` if neither.
    fn record(
        &mut self,
        rules: &TenantBreakerRules,
        now: Duration,
        is_fault: bool,
        may_open: bool,
    ) -> Option<bool> {
        self.calls.add(now, is_fault);
        if !is_fault {
            return self.breaker.record_success().then_some(false);
        }
        let (calls, faults) = self.calls.totals(now);
        let counts = self.breaker.is_open() || (may_open && rules.are_exceeded(calls, faults));
        let opened = counts && self.breaker.record_failure(now);
        if opened {
            // After a successful probe, one fault must not open it again.
            self.calls = Window::default();
        }
        opened.then_some(true)
    }
}

impl TenantBreaker {
    /// Creates a closed breaker.
    pub fn new(rules: &'static TenantBreakerRules) -> Self {
        Self {
            rules,
            all: Guarded::default(),
            anonymous: Guarded::default(),
            tenants: BTreeMap::new(),
        }
    }

    /// Returns whether a call for this tenant is admitted. A call that is admitted while a breaker
    /// is open is its probe.
    ///
    /// # Errors
    /// If a breaker is open; the error says whose.
    pub fn admit(&mut self, tenant: Option<&str>, now: Duration) -> Result<(), BreakerScope> {
        self.track(tenant, now);
        let scope = self.scope(tenant);
        let (own, all) = match tenant.and_then(|tenant| self.tenants.get_mut(tenant)) {
            Some(own) => (own, &mut self.all),
            None => (&mut self.anonymous, &mut self.all),
        };
        // Both are checked before either starts a probe, so that no probe is lost.
        all.breaker.check(now).map_err(|_| BreakerScope::All)?;
        own.breaker.check(now).map_err(|_| scope)?;
        all.breaker.start_probe(now);
        own.breaker.start_probe(now);
        Ok(())
    }

    /// Records the end of a call for this tenant. Returns the breakers that changed their state.
    pub fn record(
        &mut self,
        tenant: Option<&str>,
        now: Duration,
        is_fault: bool,
    ) -> [Option<BreakerChange>; 2] {
        self.track(tenant, now);
        let (rules, scope) = (self.rules, self.scope(tenant));
        let own = match tenant.and_then(|tenant| self.tenants.get_mut(tenant)) {
            Some(own) => own,
            None => &mut self.anonymous,
        };
        let own_was_open = own.breaker.is_open();
        own.shared.add(now, is_fault);
        let change = |scope| move |opened| BreakerChange { scope, opened };
        let own_change = own.record(rules, now, is_fault, true).map(change(scope));
        if is_fault && own_was_open && self.all.breaker.is_open() {
            // That this tenant still faults says nothing about the others.
            self.all.breaker.abandon_probe(now);
            return [own_change, None];
        }
        let of_several = is_fault && self.faults_of_others(now) >= MIN_OTHER_FAULTS;
        let all_change = self.all.record(rules, now, is_fault, of_several);
        if all_change == Some(true) {
            let all = self.tenants.values_mut().chain([&mut self.anonymous]);
            all.for_each(|tenant| tenant.shared = Window::default());
        }
        [own_change, all_change.map(change(BreakerScope::All))]
    }

    /// Records that a call for this tenant ended without a verdict: it does not count, and if it
    /// was a probe, another one is admitted.
    pub fn abandon(&mut self, tenant: Option<&str>, now: Duration) {
        let own = match tenant.and_then(|tenant| self.tenants.get_mut(tenant)) {
            Some(own) => own,
            None => &mut self.anonymous,
        };
        own.breaker.abandon_probe(now);
        self.all.breaker.abandon_probe(now);
    }

    /// Returns whether all tenants, or all requests without one, are stopped or probed.
    pub fn is_open(&self) -> bool {
        self.all.breaker.is_open() || self.anonymous.breaker.is_open()
    }

    /// Returns the number of tenants with a name that are stopped or probed by a breaker of their
    /// own.
    pub fn open_tenants(&self) -> usize {
        self.tenants.values().filter(|tenant| tenant.breaker.is_open()).count()
    }

    /// Returns the scope of the breaker of this tenant.
    fn scope(&self, tenant: Option<&str>) -> BreakerScope {
        match tenant {
            Some(tenant) if self.tenants.contains_key(tenant) => BreakerScope::Tenant,
            Some(_) | None => BreakerScope::All,
        }
    }

    /// Gives a tenant counters of its own, if there is space for them.
    fn track(&mut self, tenant: Option<&str>, now: Duration) {
        let Some(tenant) = tenant.filter(|tenant| !self.tenants.contains_key(*tenant)) else {
            return;
        };
        if self.tenants.len() >= MAX_TENANTS {
            self.tenants
                .retain(|_, other| other.breaker.is_open() || other.calls.totals(now) != (0, 0));
        }
        if self.tenants.len() < MAX_TENANTS {
            self.tenants.insert(tenant.into(), Guarded::default());
        }
    }

    /// Returns the faults within the window of all tenants but the one with the most faults.
    fn faults_of_others(&self, now: Duration) -> u32 {
        let all = self.tenants.values().chain([&self.anonymous]);
        let (sum, max) = all.fold((0u32, 0), |(sum, max), tenant| {
            let (_, faults) = tenant.shared.totals(now);
            (sum.saturating_add(faults), faults.max(max))
        });
        sum.saturating_sub(max)
    }
}

#[cfg(test)]
mod tests;
