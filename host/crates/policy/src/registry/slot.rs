//! The slot of a policy in the chain: the active version, the candidate, and the versions to roll
//! back to.
//!
//! ```text
//!             stage (Replace)                         promote
//!   folder ─────────────────────────────> active <──────────────── candidate (shadow or canary)
//!      │      stage (Shadow or Canary)      │  ▲                       ▲    │
//!      └────────────────────────────────────┼──┼───────────────────────┘    │ roll back, or faults
//!                          new active       ▼  │ roll back                  ▼
//!                                         history                        rejected (never loaded)
//! ```
//!
//! This module is generic over the type of versions, so that tests can use a simple one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::trial::Verdict;
use crate::version::tally::Counts;
use pointsman_spec::{JudgedOutcome, JudgedOutcomes, Probation, Rollout};

/// Faults below which a fault rate is not significant.
const MIN_FAULTS: u64 = 3;
/// Calls below which a rate of slow calls is not significant.
const MIN_CALLS: u64 = 50;
/// Maximum rejected versions that are remembered.
const MAX_REJECTED: usize = 64;
/// Digits of a fingerprint that are shown.
const SHORT_FINGERPRINT: usize = 8;

/// A version of a policy, as a slot sees it.
pub(crate) trait Versioned: Clone {
    /// Returns the unique identifier of the version.
    fn fingerprint(&self) -> &str;
    /// Returns the counters of its calls.
    fn counts(&self) -> Counts;
    /// Returns whether its circuit breaker is open.
    fn is_breaker_open(&self) -> bool;
    /// Begins to compare outcomes of its requests with those of the version before, which keeps
    /// `control` thousandths of them.
    fn begin_trial(&self, control: u16);
    /// Returns the outcome of requests, among these, that is more frequent than with the version
    /// before.
    fn verdict(&self, outcomes: JudgedOutcomes) -> Option<Verdict>;
}

/// The probation of a version that replaced another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watch {
    /// The end of the probation, relative to an arbitrary fixed instant.
    pub(crate) until: Duration,
    /// The counters at the start of the probation.
    pub(crate) from: Counts,
}

/// Why a version was rejected, as a stable code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectionCode {
    /// An operator rolled it back.
    RolledBackByOperator,
    /// Too many of its calls faulted during its probation or as a canary.
    FaultRate,
    /// Too many of its calls exceeded their budget during its probation or as a canary.
    SlowCalls,
    /// Its circuit breaker opened during its probation or as a canary.
    BreakerOpen,
    /// More requests were rejected than with the version before.
    RefusalRate,
    /// No lane was left for more requests than with the version before.
    NoLaneRate,
    /// More requests ended in an error than with the version before.
    ErrorRate,
    /// More first attempts failed than with the version before.
    FallbackRate,
    /// The first bytes came later than with the version before.
    SlowStart,
}

impl RejectionCode {
    /// Returns the code as it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RolledBackByOperator => "rolled_back_by_operator",
            Self::FaultRate => "fault_rate",
            Self::SlowCalls => "slow_calls",
            Self::BreakerOpen => "breaker_open",
            Self::RefusalRate => "refusal_rate",
            Self::NoLaneRate => "no_lane_rate",
            Self::ErrorRate => "error_rate",
            Self::FallbackRate => "fallback_rate",
            Self::SlowStart => "slow_start",
        }
    }
}

/// Why a version was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "StoredReason")]
pub(crate) struct RejectReason {
    pub(crate) code: RejectionCode,
    pub(crate) message: String,
}

/// The forms of a reason in the store. Format 1 has the message only, and operators were the usual
/// cause.
#[derive(Deserialize)]
#[serde(untagged)]
enum StoredReason {
    Message(String),
    Full { code: RejectionCode, message: String },
}

impl From<StoredReason> for RejectReason {
    fn from(stored: StoredReason) -> Self {
        match stored {
            StoredReason::Message(message) => {
                Self { code: RejectionCode::RolledBackByOperator, message }
            }
            StoredReason::Full { code, message } => Self { code, message },
        }
    }
}

impl From<&Verdict> for RejectReason {
    fn from(verdict: &Verdict) -> Self {
        let (code, what) = match verdict.outcome {
            JudgedOutcome::Refused => (RejectionCode::RefusalRate, "were rejected"),
            JudgedOutcome::NoLane => (RejectionCode::NoLaneRate, "were left without a lane"),
            JudgedOutcome::Error => (RejectionCode::ErrorRate, "ended in an error"),
            JudgedOutcome::Fallback => (RejectionCode::FallbackRate, "needed another attempt"),
            JudgedOutcome::SlowStart => (RejectionCode::SlowStart, "had a late first byte"),
        };
        let ((new, of_new), (control, of_control)) = (verdict.new, verdict.control);
        let message = format!(
            "{new} of {of_new} requests {what}, and {control} of {of_control} with the version \
             before"
        );
        Self { code, message }
    }
}

impl RejectReason {
    /// Returns the reason of a roll back that an operator asked for.
    pub(crate) fn operator() -> Self {
        let message = "rolled back by an operator".to_owned();
        Self { code: RejectionCode::RolledBackByOperator, message }
    }
}

/// The versions of one policy.
#[derive(Debug, Clone)]
pub(crate) struct PolicySlot<V> {
    pub(crate) active: Option<V>,
    pub(crate) candidate: Option<(V, Rollout)>,
    /// Earlier versions, the latest first.
    pub(crate) history: Vec<V>,
    pub(crate) watch: Option<Watch>,
    /// Fingerprints that are not loaded again, and the reasons; oldest first.
    pub(crate) rejected: Vec<(String, RejectReason)>,
    pub(crate) disabled: bool,
}

impl<V> Default for PolicySlot<V> {
    fn default() -> Self {
        Self {
            active: None,
            candidate: None,
            history: Vec::new(),
            watch: None,
            rejected: Vec::new(),
            disabled: false,
        }
    }
}

/// The role of a version after staging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Staged {
    Active,
    Candidate,
}

/// An error of changing the version of a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// All earlier versions were rejected, or none exists.
    #[error("no earlier version to roll back to")]
    NoEarlierVersion,
    /// No version has this fingerprint.
    #[error("no version `{version}`; expected one of {known}", known = known.join(", "))]
    VersionNotFound {
        /// The beginning of a fingerprint.
        version: String,
        /// The beginnings of the fingerprints of all versions.
        known: Vec<String>,
    },
    /// No candidate is staged.
    #[error("no candidate to promote; name a version")]
    NoCandidate,
    /// The version is active already.
    #[error("version {0} is already active")]
    AlreadyActive(String),
}

impl SlotError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoEarlierVersion => "no_earlier_version",
            Self::VersionNotFound { .. } => "version_not_found",
            Self::NoCandidate => "no_candidate",
            Self::AlreadyActive(_) => "version_already_active",
        }
    }
}

impl<V: Versioned> PolicySlot<V> {
    /// Takes a validated version into the slot. The first one becomes active; for a later one,
    /// `rollout` decides.
    pub(crate) fn stage(
        &mut self,
        version: V,
        rollout: Rollout,
        probation: Probation,
        now: Duration,
        keep: usize,
    ) -> Staged {
        if self.active.is_some() && rollout != Rollout::Replace {
            version.begin_trial(probation.control);
            self.candidate = Some((version, rollout));
            return Staged::Candidate;
        }
        self.candidate = None;
        self.activate(version, probation, now, keep);
        Staged::Active
    }

    /// Activates the candidate, or the version whose fingerprint begins with `version`.
    pub(crate) fn promote(
        &mut self,
        version: Option<&str>,
        probation: Probation,
        now: Duration,
        keep: usize,
    ) -> Result<V, SlotError> {
        let chosen = match version {
            None => {
                self.candidate.take().map(|(version, _)| version).ok_or(SlotError::NoCandidate)?
            }
            Some(prefix) => self.find_inactive(prefix)?,
        };
        // An explicit promotion overrides an earlier rejection.
        self.rejected.retain(|(fingerprint, _)| fingerprint != chosen.fingerprint());
        let is_chosen = |candidate: &V| candidate.fingerprint() == chosen.fingerprint();
        if self.candidate.as_ref().is_some_and(|(candidate, _)| is_chosen(candidate)) {
            self.candidate = None;
        }
        self.activate(chosen.clone(), probation, now, keep);
        Ok(chosen)
    }

    /// Drops the candidate; without one, or if `to` is given, rolls back to an earlier version.
    /// Rejects and returns the version that is replaced.
    pub(crate) fn roll_back(
        &mut self,
        to: Option<&str>,
        reason: &RejectReason,
    ) -> Result<V, SlotError> {
        if let (None, Some((candidate, _))) = (to, self.candidate.clone()) {
            self.candidate = None;
            self.reject(&candidate, reason);
            return Ok(candidate);
        }
        let chosen = match to {
            Some(prefix) => self.find_inactive(prefix)?,
            None => self.earlier().cloned().ok_or(SlotError::NoEarlierVersion)?,
        };
        let replaced = self.active.take();
        let before = self.history.len();
        self.history.retain(|version| version.fingerprint() != chosen.fingerprint());
        let was_candidate = self.history.len() == before;
        self.candidate.take_if(|(version, _)| version.fingerprint() == chosen.fingerprint());
        let last = self.history.last().and_then(|last| self.rejection_reason(last.fingerprint()));
        if was_candidate && last.is_some() {
            // The history keeps one more version than it is to have, and not more: that which was
            // rejected last.
            self.history.pop();
        }
        self.watch = None;
        self.active = Some(chosen.clone());
        let Some(replaced) = replaced else { return Ok(chosen) };
        self.reject(&replaced, reason);
        // Last in the history: it can still be promoted by name, but the next roll back goes
        // further.
        self.history.push(replaced.clone());
        Ok(replaced)
    }

    /// Returns the latest earlier version that was not rejected.
    pub(crate) fn earlier(&self) -> Option<&V> {
        self.history.iter().find(|version| self.rejection_reason(version.fingerprint()).is_none())
    }

    /// Evaluates the versions on probation and in a canary. Rolls back, and returns the version
    /// that failed with the reason.
    pub(crate) fn evaluate(
        &mut self,
        limits: Probation,
        now: Duration,
    ) -> Option<(V, RejectReason)> {
        // A shadow decides nothing, so it does no harm.
        let canary = self.candidate.as_ref().filter(|(_, rollout)| *rollout != Rollout::Shadow);
        if let Some(reason) =
            canary.and_then(|(candidate, _)| violation(candidate, Counts::default(), limits))
        {
            let replaced = self.roll_back(None, &reason).ok()?;
            return Some((replaced, reason));
        }
        let (watch, active) = (self.watch?, self.active.clone()?);
        let reason = violation(&active, watch.from, limits);
        if reason.is_none() && now >= watch.until {
            self.watch = None;
        }
        let reason = reason?;
        self.watch = None;
        // Without an earlier version nothing is better, and `on-error` applies. By its fingerprint,
        // so that a candidate stays staged.
        let earlier = self.earlier()?.fingerprint().to_owned();
        let replaced = self.roll_back(Some(&earlier), &reason).ok()?;
        Some((replaced, reason))
    }

    /// Returns the reason why a version was rejected, if it was.
    pub(crate) fn rejection_reason(&self, fingerprint: &str) -> Option<&RejectReason> {
        let mut rejected = self.rejected.iter();
        rejected.find(|(rejected, _)| rejected == fingerprint).map(|(_, reason)| reason)
    }

    /// Returns all versions.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &V> {
        let candidate = self.candidate.iter().map(|(version, _)| version);
        self.active.iter().chain(candidate).chain(&self.history)
    }

    fn activate(&mut self, version: V, probation: Probation, now: Duration, keep: usize) {
        self.history.retain(|other| other.fingerprint() != version.fingerprint());
        self.watch = None;
        let is_other = |active: &V| active.fingerprint() != version.fingerprint();
        if let Some(before) = self.active.take().filter(is_other) {
            self.history.insert(0, before);
            self.history.truncate(keep);
            // Without an earlier version there is nothing to roll back to.
            if !probation.lasts.is_zero() && !self.history.is_empty() {
                let until = now.saturating_add(probation.lasts);
                version.begin_trial(probation.control);
                self.watch = Some(Watch { until, from: version.counts() });
            }
        }
        self.active = Some(version);
    }

    /// Finds a version by the beginning of its fingerprint; the active one is an error.
    fn find_inactive(&self, prefix: &str) -> Result<V, SlotError> {
        match &self.active {
            Some(active) if active.fingerprint().starts_with(prefix) => {
                Err(SlotError::AlreadyActive(short(active.fingerprint())))
            }
            _ => self.find(prefix),
        }
    }

    fn find(&self, prefix: &str) -> Result<V, SlotError> {
        let found = self
            .versions()
            .find(|version| version.fingerprint().starts_with(prefix) && !prefix.is_empty());
        found.cloned().ok_or_else(|| SlotError::VersionNotFound {
            version: prefix.to_owned(),
            known: self.versions().map(|version| short(version.fingerprint())).collect(),
        })
    }

    fn reject(&mut self, version: &V, reason: &RejectReason) {
        self.rejected.retain(|(fingerprint, _)| fingerprint != version.fingerprint());
        if self.rejected.len() == MAX_REJECTED {
            self.rejected.remove(0);
        }
        self.rejected.push((version.fingerprint().to_owned(), reason.clone()));
    }
}

/// Returns the beginning of a fingerprint, as shown in versions.
pub(crate) fn short(fingerprint: &str) -> String {
    fingerprint.get(..SHORT_FINGERPRINT).unwrap_or(fingerprint).to_owned()
}

/// Returns why a version has to be rolled back: the limit that its calls violate, or the outcome
/// that is too frequent.
fn violation(version: &impl Versioned, from: Counts, limits: Probation) -> Option<RejectReason> {
    let counts = version.counts();
    let (calls, faults, slow) = (
        counts.calls - from.calls,
        counts.own_faults - from.own_faults,
        counts.own_slow - from.own_slow,
    );
    // Faults that the version before has as well may open the breaker, too.
    if version.is_breaker_open() && faults >= MIN_FAULTS {
        let message = format!("circuit breaker opened: {faults} of {calls} calls faulted");
        return Some(RejectReason { code: RejectionCode::BreakerOpen, message });
    }
    if faults >= MIN_FAULTS && faults * 1000 > calls * u64::from(limits.faults) {
        let message = format!("{faults} of {calls} calls faulted");
        return Some(RejectReason { code: RejectionCode::FaultRate, message });
    }
    if calls >= MIN_CALLS && slow * 1000 > calls * u64::from(limits.slow) {
        let message = format!("{slow} of {calls} calls exceeded their budget");
        return Some(RejectReason { code: RejectionCode::SlowCalls, message });
    }
    version.verdict(limits.outcomes).as_ref().map(RejectReason::from)
}

#[cfg(test)]
mod tests;
