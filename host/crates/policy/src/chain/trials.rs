//! The trials in which one request counts.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{Facts, FleetView, Merged, Outcome, OutcomeWatch, Plan, PlanLimits};

use crate::chain::link::Link;
use crate::trial::{Arm, Judge};

/// The versions on trial that took part in a decision, or whose versions before did.
#[derive(Debug)]
struct Trials(Vec<(Arc<Judge>, Arm)>);

impl OutcomeWatch for Trials {
    fn ended(&self, outcome: &Outcome) {
        self.0.iter().for_each(|(judge, arm)| judge.ended(*arm, outcome));
    }
}

/// Reports a decision to the trials of the versions that took part in it. Returns what is told the
/// outcome; `None` without trials. `facts` are those before any edits, by which the versions were
/// chosen.
pub(crate) fn report_decision<'a>(
    links: impl Iterator<Item = &'a Link>,
    facts: &Facts,
    merged: &Merged,
    fleet: &FleetView,
) -> Option<Arc<dyn OutcomeWatch>> {
    /// Which lane is the first one does not depend on the limits.
    const LIMITS: PlanLimits = PlanLimits { max_wait: Duration::MAX, max_steps: 1 };
    let trials = links.filter_map(|link| link.trial(facts));
    let trials: Vec<(Arc<Judge>, Arm)> =
        trials.map(|(judge, arm)| (Arc::clone(judge), arm)).collect();
    if trials.is_empty() {
        return None;
    }
    let decision = Plan::from_advice(merged, fleet, &LIMITS);
    trials.iter().for_each(|(judge, arm)| judge.decided(*arm, &decision));
    Some(Arc::new(Trials(trials)))
}
