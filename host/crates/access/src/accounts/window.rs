//! What was used in the last 60 seconds.

use std::collections::VecDeque;
use std::time::Duration;

/// Length of a step. A limit is exact for any 60 seconds, and what is used counts for at most one
/// step longer.
const STEP: Duration = Duration::from_millis(100);
/// Steps after that of a request for which it counts. Two points in time that are this number of
/// steps apart can be less than 60 seconds apart.
const STEPS: u32 = 600;

/// What was used in the last 60 seconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Window {
    /// In order; steps in which nothing was used are left out.
    steps: VecDeque<Step>,
    /// The sums of all steps.
    used: Used,
}

/// Requests and tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Used {
    pub(super) requests: u64,
    pub(super) tokens: u64,
}

#[derive(Debug, Clone)]
struct Step {
    at: u32,
    requests: u32,
    tokens: u64,
}

/// Returns the step of a point in time. Saturates after 13 years.
pub(super) fn step_of(running: Duration) -> u32 {
    u32::try_from(running.as_millis() / STEP.as_millis()).unwrap_or(u32::MAX)
}

/// Returns the time until a step begins.
pub(super) fn time_until(step: u32, running: Duration) -> Duration {
    STEP.saturating_mul(step).saturating_sub(running)
}

impl Window {
    /// Removes what was used more than 60 seconds ago, and returns what is left.
    pub(super) fn advance(&mut self, now: u32) -> Used {
        while let Some(first) = self.steps.front()
            && end_of(first) <= now
        {
            self.used.requests -= u64::from(first.requests);
            self.used.tokens = self.used.tokens.saturating_sub(first.tokens);
            self.steps.pop_front();
        }
        self.used
    }

    /// Returns what is counted.
    pub(super) fn used(&self) -> Used {
        self.used
    }

    /// Counts a request and its tokens in a step that is not before those counted already.
    pub(super) fn add(&mut self, now: u32, tokens: u64) {
        self.used.requests += 1;
        self.used.tokens = self.used.tokens.saturating_add(tokens);
        match self.steps.back_mut() {
            Some(last) if last.at == now => {
                last.requests += 1;
                last.tokens = last.tokens.saturating_add(tokens);
            }
            Some(_) | None => self.steps.push_back(Step { at: now, requests: 1, tokens }),
        }
    }

    /// Replaces the tokens of a request that was counted in a step. Without effect if that step
    /// does not count any more.
    pub(super) fn correct(&mut self, step: u32, reserved: u64, used: u64) {
        if let Ok(index) = self.steps.binary_search_by_key(&step, |step| step.at) {
            let tokens = &mut self.steps[index].tokens;
            for sum in [tokens, &mut self.used.tokens] {
                *sum = sum.saturating_sub(reserved).saturating_add(used);
            }
        }
    }

    /// Returns the step from which on at most `requests` and `tokens` are counted, if nothing is
    /// added until then.
    pub(super) fn step_with(&self, requests: u64, tokens: u64) -> u32 {
        let Used { requests: mut counted, tokens: mut sum } = self.used;
        let mut at = 0;
        for step in &self.steps {
            if counted <= requests && sum <= tokens {
                break;
            }
            counted -= u64::from(step.requests);
            sum = sum.saturating_sub(step.tokens);
            at = end_of(step);
        }
        at
    }

    /// Returns the step from which on nothing is counted.
    pub(super) fn end(&self) -> u32 {
        self.steps.back().map_or(0, end_of)
    }
}

/// Returns the first step for which a step does not count any more.
fn end_of(step: &Step) -> u32 {
    step.at.saturating_add(STEPS + 1)
}
