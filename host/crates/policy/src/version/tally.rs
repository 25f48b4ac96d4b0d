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
}

/// The counters behind [`Counts`]. They are independent of each other, so relaxed ordering
/// suffices.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    calls: AtomicU64,
    faults: AtomicU64,
    slow: AtomicU64,
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

    pub(crate) fn counts(&self) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts { calls: load(&self.calls), faults: load(&self.faults), slow: load(&self.slow) }
    }

    pub(crate) fn fuel(&self) -> u64 {
        self.fuel.load(Ordering::Relaxed)
    }

    pub(crate) fn first_fault(&self) -> Option<&str> {
        self.first_fault.get().map(String::as_str)
    }
}
