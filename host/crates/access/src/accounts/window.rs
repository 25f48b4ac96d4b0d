//! What was used in the last 60 seconds.

use std::collections::VecDeque;
use std::time::Duration;

use super::figures::Figures;

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

/// What this host and the others have used in the last 60 seconds.
#[derive(Debug, Clone, Default)]
pub(super) struct Windows {
    pub(super) own: Window,
    others: Window,
}

impl Windows {
    /// Removes what was used more than 60 seconds ago, and returns what is left.
    pub(super) fn advance(&mut self, now: u32) -> Used {
        self.own.advance(now);
        self.others.advance(now);
        self.used()
    }

    /// Returns what is counted.
    pub(super) fn used(&self) -> Used {
        let (own, others) = (self.own.used, self.others.used);
        Used {
            requests: own.requests + others.requests,
            tokens: own.tokens.saturating_add(others.tokens),
        }
    }

    /// Counts what other hosts have used at a point in time. Tokens that they give back are taken
    /// from what they have used first, so that the rest counts longer rather than shorter.
    pub(super) fn add_others(&mut self, running: Duration, used: Figures) {
        // Not negative: the caller counts them once.
        let requests = u32::try_from(used.requests).unwrap_or(0);
        match u64::try_from(used.tokens) {
            Ok(tokens) if requests > 0 || tokens > 0 => {
                self.others.insert(step_of(running), requests, tokens);
            }
            Ok(_) => {}
            Err(_) => {
                if requests > 0 {
                    self.others.insert(step_of(running), requests, 0);
                }
                self.others.take_oldest(used.tokens.unsigned_abs());
            }
        }
    }

    /// Returns the step from which on at most `requests` and `tokens` are counted, if nothing is
    /// added until then.
    pub(super) fn step_with(&self, requests: u64, tokens: u64) -> u32 {
        let Used { requests: mut counted, tokens: mut sum } = self.used();
        let (mut own, mut others) =
            (self.own.steps.iter().peekable(), self.others.steps.iter().peekable());
        let mut at = 0;
        while counted > requests || sum > tokens {
            let is_own = match (own.peek(), others.peek()) {
                (Some(own), Some(other)) => own.at <= other.at,
                (own, _) => own.is_some(),
            };
            let next = if is_own { own.next() } else { others.next() };
            let Some(step) = next else { break };
            counted -= u64::from(step.requests);
            sum = sum.saturating_sub(step.tokens);
            at = end_of(step);
        }
        at
    }

    /// Returns the step from which on nothing is counted.
    pub(super) fn end(&self) -> u32 {
        let last = [&self.own, &self.others].into_iter().filter_map(|window| window.steps.back());
        last.map(end_of).max().unwrap_or(0)
    }
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
    /// Removes what was used more than 60 seconds ago.
    fn advance(&mut self, now: u32) {
        while let Some(first) = self.steps.front()
            && end_of(first) <= now
        {
            self.used.requests -= u64::from(first.requests);
            self.used.tokens = self.used.tokens.saturating_sub(first.tokens);
            self.steps.pop_front();
        }
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

    /// Replaces the tokens of a request that was counted in a step. Returns false, without effect,
    /// if that step does not count any more.
    pub(super) fn correct(&mut self, step: u32, reserved: u64, used: u64) -> bool {
        let Ok(index) = self.steps.binary_search_by_key(&step, |step| step.at) else {
            return false;
        };
        let tokens = &mut self.steps[index].tokens;
        for sum in [tokens, &mut self.used.tokens] {
            *sum = sum.saturating_sub(reserved).saturating_add(used);
        }
        true
    }

    /// Counts requests and tokens in a step that may be before others.
    fn insert(&mut self, at: u32, requests: u32, tokens: u64) {
        self.used.requests += u64::from(requests);
        self.used.tokens = self.used.tokens.saturating_add(tokens);
        match self.steps.binary_search_by_key(&at, |step| step.at) {
            Ok(index) => {
                let step = &mut self.steps[index];
                step.requests = step.requests.saturating_add(requests);
                step.tokens = step.tokens.saturating_add(tokens);
            }
            Err(index) => self.steps.insert(index, Step { at, requests, tokens }),
        }
    }

    /// Removes tokens, of the oldest steps first.
    fn take_oldest(&mut self, tokens: u64) {
        let mut left = tokens;
        for step in &mut self.steps {
            let taken = step.tokens.min(left);
            step.tokens -= taken;
            left -= taken;
            self.used.tokens = self.used.tokens.saturating_sub(taken);
        }
    }
}

/// Returns the first step for which a step does not count any more.
fn end_of(step: &Step) -> u32 {
    step.at.saturating_add(STEPS + 1)
}
