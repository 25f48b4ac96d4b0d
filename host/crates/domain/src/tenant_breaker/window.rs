//! Counters of the calls within the last seconds.

use std::time::Duration;

/// The length of the window in seconds. The oldest second leaves it as a whole.
const SECONDS: usize = 10;

/// The calls of the last ten seconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Window([Second; SECONDS]);

/// The calls of one second.
#[derive(Debug, Clone, Copy, Default)]
struct Second {
    /// The number of the second, from 1, so that 0 is a second without calls.
    number: u64,
    calls: u32,
    faults: u32,
}

impl Window {
    /// Counts a call.
    pub(super) fn add(&mut self, now: Duration, is_fault: bool) {
        let number = now.as_secs() + 1;
        let index = usize::try_from(number % SECONDS as u64).unwrap_or_default();
        let second = &mut self.0[index];
        if second.number != number {
            *second = Second { number, ..Second::default() };
        }
        // Saturates far above any rate.
        second.calls = second.calls.saturating_add(1);
        second.faults = second.faults.saturating_add(is_fault.into());
    }

    /// Returns the calls within the window, and the faults among them.
    pub(super) fn totals(&self, now: Duration) -> (u32, u32) {
        let number = now.as_secs() + 1;
        let recent = self
            .0
            .iter()
            .filter(|second| second.calls > 0 && second.number + SECONDS as u64 > number);
        recent.fold((0, 0), |(calls, faults), second| {
            (second.calls.saturating_add(calls), second.faults.saturating_add(faults))
        })
    }
}
