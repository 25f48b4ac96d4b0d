//! The injection of a scenario's faults.

use std::time::Duration;

use crate::fault::{InjectedFault, Schedule};
use crate::random::Random;

/// The minimum time between two injections of a fault. A distribution that yields zeros would
/// otherwise stop virtual time.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// The faults of a scenario with the times of their next injections.
#[derive(Debug)]
pub(super) struct FaultInjector<'a>(Vec<ScheduledFault<'a>>);

#[derive(Debug)]
struct ScheduledFault<'a> {
    fault: &'a InjectedFault,
    random: Random,
    /// Fixed times in descending order, so that the next one is at the end.
    times: Vec<Duration>,
    next: Option<Duration>,
}

impl<'a> FaultInjector<'a> {
    pub(super) fn new(faults: &'a [InjectedFault], seed: u64) -> Self {
        let schedule = |(index, fault): (usize, &'a InjectedFault)| {
            let mut times = match &fault.schedule {
                Schedule::At(times) => times.clone(),
                Schedule::Every(_) => Vec::new(),
            };
            times.sort_unstable_by(|a, b| b.cmp(a));
            let random = Random::new(seed, &format!("failure {index}"));
            let mut scheduled = ScheduledFault { fault, random, times, next: None };
            scheduled.next = scheduled.next_after(Duration::ZERO);
            scheduled
        };
        Self(faults.iter().enumerate().map(schedule).collect())
    }

    /// Returns the time of the next injection.
    pub(super) fn next(&self) -> Option<Duration> {
        self.0.iter().filter_map(|scheduled| scheduled.next).min()
    }

    /// Returns a fault that is due, and schedules its next injection. To be called until it returns
    /// `None`.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<&'a InjectedFault> {
        let due =
            self.0.iter_mut().find(|scheduled| scheduled.next.is_some_and(|next| next <= now))?;
        due.next = due.next_after(now);
        Some(due.fault)
    }
}

impl ScheduledFault<'_> {
    fn next_after(&mut self, now: Duration) -> Option<Duration> {
        match &self.fault.schedule {
            Schedule::At(_) => self.times.pop(),
            Schedule::Every(interval) => {
                let interval = interval.sample_time(&mut self.random).max(MIN_INTERVAL);
                Some(now.saturating_add(interval))
            }
        }
    }
}
