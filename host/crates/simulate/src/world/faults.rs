//! When what goes wrong.

use std::time::Duration;

use crate::fault::{Failure, When};
use crate::random::Random;

/// The least time between two of a kind: without it, a spread that gives zeros would stop time.
const LEAST: Duration = Duration::from_millis(1);

/// The failures of a scenario, each with the time when it happens next.
#[derive(Debug)]
pub(super) struct Troubles<'a>(Vec<Coming<'a>>);

#[derive(Debug)]
struct Coming<'a> {
    failure: &'a Failure,
    random: Random,
    /// Times that are known, the first one last.
    times: Vec<Duration>,
    next: Option<Duration>,
}

impl<'a> Troubles<'a> {
    pub(super) fn new(failures: &'a [Failure], seed: u64) -> Self {
        let coming = |(index, failure): (usize, &'a Failure)| {
            let mut times = match &failure.when {
                When::At(times) => times.clone(),
                When::Every(_) => Vec::new(),
            };
            times.sort_unstable_by(|a, b| b.cmp(a));
            let random = Random::new(seed, &format!("failure {index}"));
            let mut coming = Coming { failure, random, times, next: None };
            coming.next = coming.after(Duration::ZERO);
            coming
        };
        Self(failures.iter().enumerate().map(coming).collect())
    }

    /// When something goes wrong next.
    pub(super) fn next(&self) -> Option<Duration> {
        self.0.iter().filter_map(|coming| coming.next).min()
    }

    /// What goes wrong by now; to be asked until there is nothing.
    pub(super) fn due(&mut self, now: Duration) -> Option<&'a Failure> {
        let due = self.0.iter_mut().find(|coming| coming.next.is_some_and(|next| next <= now))?;
        due.next = due.after(now);
        Some(due.failure)
    }
}

impl Coming<'_> {
    fn after(&mut self, now: Duration) -> Option<Duration> {
        match &self.failure.when {
            When::At(_) => self.times.pop(),
            When::Every(spread) => {
                Some(now.saturating_add(spread.time(&mut self.random).max(LEAST)))
            }
        }
    }
}
