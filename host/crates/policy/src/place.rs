//! One policy's place in the chain: which of its versions is in service, which is tried out, and which it can go back to.
//!
//! ```text
//!                 offer, Replace                        promote
//!   folder ─────────────────────────────> active <──────────────── trial (shadow or canary)
//!      │          offer, Shadow or Canary   │  ▲                       ▲    │
//!      └────────────────────────────────────┼──┼───────────────────────┘    │ roll back, or faults
//!                             new active    ▼  │ roll back                  ▼
//!                                         history                       set aside: not taken from the folder again
//! ```
//!
//! Nothing here knows what a version is, so that all of it is tested with letters.

use std::time::Duration;

use crate::spec::{Probation, Rollout};
use crate::version::Counts;

/// Faults that are too few to say anything.
const FEW_FAULTS: u64 = 3;
/// Calls that are too few to say anything about their times.
const FEW_CALLS: u64 = 50;

/// What a place needs to know of versions.
pub(crate) trait Versioned: Clone {
    /// What tells it from all others.
    fn fingerprint(&self) -> &str;
    /// How its calls went.
    fn counts(&self) -> Counts;
    /// Does its breaker hold it back?
    fn out_of_service(&self) -> bool;
}

/// A version that is watched after it replaced another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watch {
    /// When it is over. Times are since any fixed moment.
    pub(crate) until: Duration,
    /// Its counts when the watch began.
    pub(crate) from: Counts,
}

/// One policy's versions.
#[derive(Debug, Clone)]
pub(crate) struct PolicySlot<V> {
    pub(crate) active: Option<V>,
    pub(crate) trial: Option<(V, Rollout)>,
    /// Earlier ones, the latest first.
    pub(crate) history: Vec<V>,
    pub(crate) watch: Option<Watch>,
    /// Fingerprints that are not taken from the folder again, and why; oldest first.
    pub(crate) set_aside: Vec<(String, String)>,
    pub(crate) disabled: bool,
}

impl<V> Default for PolicySlot<V> {
    fn default() -> Self {
        Self {
            active: None,
            trial: None,
            history: Vec::new(),
            watch: None,
            set_aside: Vec::new(),
            disabled: false,
        }
    }
}

/// What became of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offered {
    /// It is in service.
    Active,
    /// It is tried out.
    Trial,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("there is no earlier version to go back to")]
    NoEarlier,
    #[error("there is no version `{0}`; there are: {1}")]
    NoSuch(String, String),
    #[error("no version of it is tried out; name the version that should be in service")]
    NoTrial,
    #[error("version {0} is in service already")]
    InService(String),
}

impl<V: Versioned> PolicySlot<V> {
    /// A proven version is there. The first one is in service at once; a later one begins as `rollout` says.
    pub(crate) fn offer(
        &mut self,
        version: V,
        rollout: Rollout,
        probation: Probation,
        now: Duration,
        keep: usize,
    ) -> Offered {
        if self.active.is_some() && rollout != Rollout::Replace {
            self.trial = Some((version, rollout));
            return Offered::Trial;
        }
        self.trial = None;
        self.activate(version, Some(probation), now, keep);
        Offered::Active
    }

    /// Put the version that is tried out into service, or one of the earlier ones by the beginning of its fingerprint.
    pub(crate) fn promote(
        &mut self,
        version: Option<&str>,
        probation: Probation,
        now: Duration,
        keep: usize,
    ) -> Result<V, Refused> {
        let chosen = match version {
            None => self.trial.take().map(|(version, _)| version).ok_or(Refused::NoTrial)?,
            Some(wanted) => {
                if let Some(active) =
                    self.active.as_ref().filter(|it| it.fingerprint().starts_with(wanted))
                {
                    return Err(Refused::InService(short(active.fingerprint())));
                }
                self.find(wanted)?
            }
        };
        self.set_aside.retain(|(fingerprint, _)| fingerprint != chosen.fingerprint());
        if self.trial.as_ref().is_some_and(|(trial, _)| trial.fingerprint() == chosen.fingerprint())
        {
            self.trial = None;
        }
        self.activate(chosen.clone(), Some(probation), now, keep);
        Ok(chosen)
    }

    /// Give up what is tried out; without a trial, go back to an earlier version. What is left is set aside.
    /// Returns the version that was left.
    pub(crate) fn roll_back(&mut self, to: Option<&str>, why: &str) -> Result<V, Refused> {
        if let (None, Some((trial, _))) = (to, self.trial.clone()) {
            self.trial = None;
            self.put_aside(&trial, why);
            return Ok(trial);
        }
        let chosen = match to {
            Some(to) => match &self.active {
                Some(active) if active.fingerprint().starts_with(to) => {
                    return Err(Refused::InService(short(active.fingerprint())));
                }
                _ => self.find(to)?,
            },
            None => self.earlier().cloned().ok_or(Refused::NoEarlier)?,
        };
        let left = self.active.take();
        self.history.retain(|version| version.fingerprint() != chosen.fingerprint());
        self.watch = None;
        self.active = Some(chosen.clone());
        let Some(left) = left else { return Ok(chosen) };
        self.put_aside(&left, why);
        // It can still be promoted by name; the next one to go back to is before it.
        self.history.push(left.clone());
        Ok(left)
    }

    /// The latest of the earlier versions that was not left for a reason.
    fn earlier(&self) -> Option<&V> {
        self.history.iter().find(|version| self.why_set_aside(version.fingerprint()).is_none())
    }

    /// Look at whoever is on probation or tried out. Returns a version that did not stand it, and why.
    pub(crate) fn judge(&mut self, limits: Probation, now: Duration) -> Option<(V, String)> {
        // A shadow decides nothing, and so does no harm.
        let canary = self.trial.as_ref().filter(|(_, rollout)| *rollout != Rollout::Shadow);
        if let Some(why) = canary.and_then(|(trial, _)| fault_in(trial, Counts::default(), limits))
        {
            let left = self.roll_back(None, &why).ok()?;
            return Some((left, why));
        }
        let (watch, active) = (self.watch?, self.active.clone()?);
        let why = fault_in(&active, watch.from, limits);
        if why.is_none() && now >= watch.until {
            self.watch = None;
        }
        let why = why?;
        self.watch = None;
        // Without an earlier version there is nothing better; its failure mode applies. What is tried out meanwhile stays.
        let earlier = self.earlier()?.fingerprint().to_owned();
        let left = self.roll_back(Some(&earlier), &why).ok()?;
        Some((left, why))
    }

    /// Why a version is not taken from the folder again.
    pub(crate) fn why_set_aside(&self, fingerprint: &str) -> Option<&str> {
        self.set_aside.iter().find(|(aside, _)| aside == fingerprint).map(|(_, why)| why.as_str())
    }

    /// Every version there is.
    pub(crate) fn versions(&self) -> impl Iterator<Item = &V> {
        self.active.iter().chain(self.trial.iter().map(|(version, _)| version)).chain(&self.history)
    }

    fn activate(&mut self, version: V, probation: Option<Probation>, now: Duration, keep: usize) {
        self.history.retain(|other| other.fingerprint() != version.fingerprint());
        self.watch = None;
        if let Some(before) =
            self.active.take().filter(|it| it.fingerprint() != version.fingerprint())
        {
            self.history.insert(0, before);
            self.history.truncate(keep);
            let lasts = probation.map_or(Duration::ZERO, |probation| probation.lasts);
            if !lasts.is_zero() && !self.history.is_empty() {
                self.watch =
                    Some(Watch { until: now.saturating_add(lasts), from: version.counts() });
            }
        }
        self.active = Some(version);
    }

    fn find(&self, wanted: &str) -> Result<V, Refused> {
        let found = self
            .versions()
            .find(|version| version.fingerprint().starts_with(wanted) && !wanted.is_empty());
        found.cloned().ok_or_else(|| {
            let known: Vec<String> =
                self.versions().map(|version| short(version.fingerprint())).collect();
            Refused::NoSuch(wanted.to_owned(), known.join(", "))
        })
    }

    fn put_aside(&mut self, version: &V, why: &str) {
        self.set_aside.retain(|(fingerprint, _)| fingerprint != version.fingerprint());
        if self.set_aside.len() == MOST_SET_ASIDE {
            self.set_aside.remove(0);
        }
        self.set_aside.push((version.fingerprint().to_owned(), why.to_owned()));
    }
}

/// Fingerprints that are remembered as set aside.
const MOST_SET_ASIDE: usize = 64;

/// The beginning of a fingerprint, as versions show it.
pub(crate) fn short(fingerprint: &str) -> String {
    fingerprint.get(..8).unwrap_or(fingerprint).to_owned()
}

/// What is wrong with how a version's calls went, if there is something.
fn fault_in(version: &impl Versioned, from: Counts, limits: Probation) -> Option<String> {
    let counts = version.counts();
    let (calls, faults, slow) =
        (counts.calls - from.calls, counts.faults - from.faults, counts.slow - from.slow);
    if version.out_of_service() {
        return Some(format!(
            "it was taken out of service: {faults} of {calls} calls ended in a fault"
        ));
    }
    if faults >= FEW_FAULTS && faults * 1000 > calls * u64::from(limits.faults) {
        return Some(format!("{faults} of {calls} calls ended in a fault"));
    }
    if calls >= FEW_CALLS && slow * 1000 > calls * u64::from(limits.slow) {
        return Some(format!("{slow} of {calls} calls took longer than its budget"));
    }
    None
}

#[cfg(test)]
mod tests;
