//! Counters of the calls of one version.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fault::Fault;

/// The calls of a version since it was created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) faults: u64,
    /// Calls that returned an error.
    pub(crate) errors: u64,
    /// Parts of advice that the host dropped.
    pub(crate) dropped: u64,
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
    errors: AtomicU64,
    dropped: AtomicU64,
    slow: AtomicU64,
    own_faults: AtomicU64,
    own_slow: AtomicU64,
    fuel: AtomicU64,
    first_fault: OnceLock<String>,
    first_error: OnceLock<String>,
    first_dropped: OnceLock<String>,
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

    pub(crate) fn add_error(&self, message: &str) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        self.first_error.get_or_init(|| message.to_owned());
    }

    /// Counts a part of advice that was dropped: its kind and the reason.
    pub(crate) fn add_dropped(&self, part: &str, reason: &str) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.first_dropped.get_or_init(|| format!("{part}: {reason}"));
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
            errors: load(&self.errors),
            dropped: load(&self.dropped),
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

    pub(crate) fn first_error(&self) -> Option<&str> {
        self.first_error.get().map(String::as_str)
    }

    pub(crate) fn first_dropped(&self) -> Option<&str> {
        self.first_dropped.get().map(String::as_str)
    }
}
