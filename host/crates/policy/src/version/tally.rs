//! Counters of the calls of one version.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fault::Fault;

/// The calls of a version since it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) faults: u64,
    /// Calls that took longer than the budget.
    pub(crate) slow: u64,
    /// Faults that the version before did not have for the same inputs.
    pub(crate) own_faults: u64,
    /// Slow calls that were not slow with the version before.
    pub(crate) own_slow: u64,
}

/// The counters behind [`Counts`]. They are independent of each other, so relaxed ordering
/// suffices.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    calls: AtomicU64,
    faults: AtomicU64,
    slow: AtomicU64,
    own_faults: AtomicU64,
    own_slow: AtomicU64,
    fuel: AtomicU64,
    first_fault: OnceLock<String>,
}

impl Tally {
    pub(crate) fn add_call(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_slow(&self) {
        self.slow.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn add_fuel(&self, fuel: u64) {
        self.fuel.fetch_add(fuel, Ordering::Relaxed);
    }

    pub(crate) fn add_fault(&self, fault: &Fault) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        self.first_fault.get_or_init(|| fault.to_string());
    }

    /// Counts a fault, or a slow call, that the version before did not have.
    pub(crate) fn add_own(&self, is_fault: bool) {
        let counter = if is_fault { &self.own_faults } else { &self.own_slow };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            calls: load(&self.calls),
            faults: load(&self.faults),
            slow: load(&self.slow),
            own_faults: load(&self.own_faults),
            own_slow: load(&self.own_slow),
        }
    }

    pub(crate) fn fuel(&self) -> u64 {
        self.fuel.load(Ordering::Relaxed)
    }

    pub(crate) fn first_fault(&self) -> Option<&str> {
        self.first_fault.get().map(String::as_str)
    }
}
