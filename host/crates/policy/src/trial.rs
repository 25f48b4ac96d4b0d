//! The trial of a new version: a random share of its requests stays with the version before, and
//! the outcomes of both are compared.
//!
//! ```text
//!   request ─ Judge::arm ─┬─ control: the version before ─┐
//!                         └─ new version ─────────────────┴─ outcome ─> a test for each kind
//! ```

mod rate_test;

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_domain::{AttemptResult, Decision, Outcome};
use pointsman_spec::{JudgedOutcome, JudgedOutcomes};
use serde::Serialize;

use self::rate_test::RateTest;

/// Probability with which a version that is not worse is ever rolled back by its outcomes.
const FALSE_ALARMS: f64 = 0.001;
/// Evidence that ends a trial: each of the tests has the same part of the probability.
const THRESHOLD: f64 = JudgedOutcome::ALL.len() as f64 / FALSE_ALARMS;
/// First bytes of the version before, to whose median others are compared.
const FIRST_BYTES: usize = 31;
/// First bytes below which there is no median to compare with.
const MIN_FIRST_BYTES: usize = 5;
/// A first byte is late after one and a half times the median and this time, which clients do not
/// notice.
const NOTICEABLE: Duration = Duration::from_millis(10);

/// The version that decides about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arm {
    /// The version before.
    Control,
    /// The version on trial.
    New,
}

/// The requests of one version during a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct ArmCounts {
    /// Requests that the version decided.
    pub requests: u64,
    /// Requests that were rejected by a policy.
    pub refused: u64,
    /// Requests for which no lane was left.
    pub no_lane: u64,
    /// Requests whose last attempt failed.
    pub error: u64,
    /// Requests with more than one attempt.
    pub fallback: u64,
    /// Requests whose first byte came late.
    pub slow_start: u64,
}

impl ArmCounts {
    fn of_outcome(&mut self, outcome: JudgedOutcome) -> &mut u64 {
        match outcome {
            JudgedOutcome::Refused => &mut self.refused,
            JudgedOutcome::NoLane => &mut self.no_lane,
            JudgedOutcome::Error => &mut self.error,
            JudgedOutcome::Fallback => &mut self.fallback,
            JudgedOutcome::SlowStart => &mut self.slow_start,
        }
    }
}

/// The state of a trial, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TrialStatus {
    /// The requests of the version on trial.
    pub new: ArmCounts,
    /// The requests that stayed with the version before.
    pub control: ArmCounts,
    /// The outcome with the most evidence against the new version.
    pub suspect: JudgedOutcome,
    /// The evidence on a logarithmic scale; at 100 the version is rolled back.
    pub evidence_percent: u8,
}

/// An outcome that is more frequent with the new version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) outcome: JudgedOutcome,
    /// Requests with the outcome, and all requests, with the new version.
    pub(crate) new: (u64, u64),
    /// The same with the version before.
    pub(crate) control: (u64, u64),
}

/// Judges a version by the outcomes of its requests.
#[derive(Debug)]
pub(crate) struct Judge {
    /// The share of the requests that stay with the version before, in thousandths.
    control: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    tests: [RateTest; JudgedOutcome::ALL.len()],
    new: ArmCounts,
    control: ArmCounts,
    /// The latest times to the first byte with the version before.
    first_bytes: VecDeque<Duration>,
}

impl Judge {
    /// Begins a trial in which this share of the requests, in thousandths, stays with the version
    /// before. With 0, all requests get the new version, and there is no judgement.
    pub(crate) fn new(control: u16) -> Self {
        let control = control.min(1000);
        let test = RateTest::new(1.0 - f64::from(control) / 1000.0);
        let state = State {
            tests: std::array::from_fn(|_| test.clone()),
            new: ArmCounts::default(),
            control: ArmCounts::default(),
            first_bytes: VecDeque::new(),
        };
        Self { control, state: Mutex::new(state) }
    }

    /// Returns whether any requests stay with the version before.
    pub(crate) fn has_control(&self) -> bool {
        self.control > 0
    }

    /// Returns the version for a request, by a number that is random for each request.
    pub(crate) fn arm(&self, random: u64) -> Arm {
        if random % 1000 < u64::from(self.control) { Arm::Control } else { Arm::New }
    }

    /// Adds the decision about a request.
    pub(crate) fn decided(&self, arm: Arm, decision: &Decision) {
        let mut state = self.state.lock();
        state.counts(arm).requests += 1;
        let (refused, no_lane) = match decision {
            Decision::Route(_) => (false, false),
            Decision::Reject(..) => (true, false),
            Decision::NoLane(_) => (false, true),
        };
        state.observe(arm, JudgedOutcome::Refused, refused);
        state.observe(arm, JudgedOutcome::NoLane, no_lane);
        if refused || no_lane {
            // Otherwise the tests of attempts would see fewer requests of a version that refuses.
            state.observe(arm, JudgedOutcome::Error, false);
            state.observe(arm, JudgedOutcome::Fallback, false);
            state.observe(arm, JudgedOutcome::SlowStart, false);
        }
    }

    /// Adds the outcome of a request that was routed.
    pub(crate) fn ended(&self, arm: Arm, outcome: &Outcome) {
        let is_error = match outcome.ended {
            AttemptResult::Ok | AttemptResult::ClientGone => false,
            AttemptResult::QueueTimeout
            | AttemptResult::ConnectError
            | AttemptResult::Overloaded
            | AttemptResult::ServerError
            | AttemptResult::EngineRestart
            | AttemptResult::FirstTokenTimeout
            | AttemptResult::Other => true,
        };
        // Without a first byte, it would have come later than the end.
        let first_byte = if outcome.ttft.is_zero() { outcome.total } else { outcome.ttft };
        let mut state = self.state.lock();
        let is_late = state.late_after().is_some_and(|late| first_byte > late);
        state.observe(arm, JudgedOutcome::Error, is_error);
        state.observe(arm, JudgedOutcome::Fallback, outcome.tries > 1);
        state.observe(arm, JudgedOutcome::SlowStart, is_late);
        if arm == Arm::Control && !outcome.ttft.is_zero() {
            if state.first_bytes.len() == FIRST_BYTES {
                state.first_bytes.pop_front();
            }
            state.first_bytes.push_back(outcome.ttft);
        }
    }

    /// Returns the outcome because of which the version has to be rolled back, if there is one
    /// among `outcomes`.
    pub(crate) fn verdict(&self, outcomes: JudgedOutcomes) -> Option<Verdict> {
        let mut state = self.state.lock();
        let (outcome, evidence) = state.strongest(outcomes)?;
        if !self.has_control() || evidence < THRESHOLD {
            return None;
        }
        let mut figures = |arm| {
            let counts = state.counts(arm);
            (*counts.of_outcome(outcome), counts.requests)
        };
        let (new, control) = (figures(Arm::New), figures(Arm::Control));
        Some(Verdict { outcome, new, control })
    }

    /// Returns the state of the trial; `None` if no requests stay with the version before.
    pub(crate) fn status(&self, outcomes: JudgedOutcomes) -> Option<TrialStatus> {
        let state = self.state.lock();
        let (suspect, evidence) = state.strongest(outcomes).filter(|_| self.has_control())?;
        let percent = (100.0 * evidence.max(1.0).ln() / THRESHOLD.ln()).min(100.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100")]
        let evidence_percent = percent as u8;
        let State { new, control, .. } = *state;
        Some(TrialStatus { new, control, suspect, evidence_percent })
    }
}

impl State {
    fn counts(&mut self, arm: Arm) -> &mut ArmCounts {
        match arm {
            Arm::Control => &mut self.control,
            Arm::New => &mut self.new,
        }
    }

    fn observe(&mut self, arm: Arm, outcome: JudgedOutcome, occurred: bool) {
        self.tests[outcome as usize].observe(arm, occurred);
        *self.counts(arm).of_outcome(outcome) += u64::from(occurred);
    }

    /// Returns after which time a first byte is late. A multiple of the median, which outliers do
    /// not move.
    fn late_after(&self) -> Option<Duration> {
        if self.first_bytes.len() < MIN_FIRST_BYTES {
            return None;
        }
        let mut sorted: Vec<Duration> = self.first_bytes.iter().copied().collect();
        let (_, median, _) = sorted.select_nth_unstable(self.first_bytes.len() / 2);
        Some(*median * 3 / 2 + NOTICEABLE)
    }

    fn strongest(&self, outcomes: JudgedOutcomes) -> Option<(JudgedOutcome, f64)> {
        let judged = JudgedOutcome::ALL.into_iter().filter(|outcome| outcomes.contains(*outcome));
        judged
            .map(|outcome| (outcome, self.tests[outcome as usize].evidence()))
            .max_by(|a, b| a.1.total_cmp(&b.1))
    }
}

#[cfg(test)]
mod tests;
