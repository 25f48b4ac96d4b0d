//! The interface to whatever advises on routing.

use std::fmt;
use std::sync::Arc;

use crate::advice::Note;
use crate::chain::ChainInfo;
use crate::facts::{Facts, RequestView};
use crate::fleet_view::FleetView;
use crate::merge::{Merge, Merged, OnConflict};
use crate::outcome::{FailureReport, Outcome, Recovered};
use crate::policy_ref::PolicyRef;
use crate::trace::Trace;

/// The result of [`Advisor::advise`].
#[derive(Debug, Clone)]
pub struct Advised {
    /// The merged advice.
    pub merged: Merged,
    /// The request with the edits of the merged advice, so that they are applied only once; `None`
    /// if there are no edits, or if the advisor has not applied them.
    pub edited: Option<Arc<dyn RequestView>>,
    /// Is told the outcome of the request, if a version of a policy is judged by it.
    pub watch: Option<Arc<dyn OutcomeWatch>>,
}

/// Is told how one request ended, if at least one lane was attempted.
pub trait OutcomeWatch: Send + Sync + fmt::Debug {
    /// Reports the end of the request. Must return quickly.
    fn ended(&self, outcome: &Outcome);
}

impl From<Merged> for Advised {
    /// For advice without edits, or whose edits have not been applied yet.
    fn from(merged: Merged) -> Self {
        Self { merged, edited: None, watch: None }
    }
}

/// A source of routing advice. Implemented by the chain of policies, and by [`BuiltIn`] when no
/// policies are configured.
///
/// Synchronous on purpose: a call that cannot be suspended cannot be abandoned half-way when a
/// client disconnects. Infallible on purpose: the chain itself decides what a failing policy means
/// for a request.
pub trait Advisor: Send + Sync + fmt::Debug {
    /// Returns the merged advice about one request, from one snapshot of the fleet.
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Advised;

    /// Returns the same advice as [`Advisor::advise`] would now, and changes nothing: what policies
    /// write to their states is dropped, and nothing is counted. May block.
    fn advise_without_effects(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        trace: &mut Trace,
    ) -> Advised {
        self.advise(facts, fleet, trace)
    }

    /// Returns whether [`Advisor::advise`] and [`Advisor::recover`] may take so long for this
    /// request that they must not be called on a thread that serves other requests as well.
    fn may_block(&self, _: &Facts) -> bool {
        false
    }

    /// Returns the description of the policy chain for records; `None` if there are no policies.
    fn chain(&self) -> Option<&Arc<ChainInfo>> {
        None
    }

    /// Returns true if the advice may depend on the lanes' cached tokens. If false, callers need
    /// not estimate them.
    fn uses_cached_tokens(&self) -> bool {
        true
    }

    /// Returns true if [`Advisor::recover`] may return anything but
    /// [`Recovery::Planned`](crate::Recovery::Planned).
    fn has_recovery(&self) -> bool {
        false
    }

    /// Returns what to do after a failed attempt. Called on the advisor that made the decision,
    /// even if a newer one is active by now.
    fn recover(
        &self,
        _: &Facts,
        _: &Arc<FleetView>,
        _: &FailureReport,
        _: &mut Trace,
    ) -> Recovered {
        Recovered::default()
    }

    /// Returns true if [`Advisor::ended`] has an effect. If false, callers need not assemble
    /// outcomes.
    fn observes_outcomes(&self) -> bool {
        false
    }

    /// Returns the notes of a decision that [`Advisor::ended`] needs with its outcome.
    fn kept_notes(&self, _: &Merged) -> Vec<(PolicyRef, Note)> {
        Vec::new()
    }

    /// Reports the end of a request that this advisor decided about, if at least one lane was
    /// attempted. Must return quickly: processing happens in the background.
    fn ended(&self, _: &Outcome) {}
}

impl<A: Advisor> Advisor for Arc<A> {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Advised {
        self.as_ref().advise(facts, fleet, trace)
    }

    fn advise_without_effects(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        trace: &mut Trace,
    ) -> Advised {
        self.as_ref().advise_without_effects(facts, fleet, trace)
    }

    fn may_block(&self, facts: &Facts) -> bool {
        self.as_ref().may_block(facts)
    }

    fn chain(&self) -> Option<&Arc<ChainInfo>> {
        self.as_ref().chain()
    }

    fn uses_cached_tokens(&self) -> bool {
        self.as_ref().uses_cached_tokens()
    }

    fn has_recovery(&self) -> bool {
        self.as_ref().has_recovery()
    }

    fn recover(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: &FailureReport,
        trace: &mut Trace,
    ) -> Recovered {
        self.as_ref().recover(facts, fleet, failed, trace)
    }

    fn observes_outcomes(&self) -> bool {
        self.as_ref().observes_outcomes()
    }

    fn kept_notes(&self, merged: &Merged) -> Vec<(PolicyRef, Note)> {
        self.as_ref().kept_notes(merged)
    }

    fn ended(&self, outcome: &Outcome) {
        self.as_ref().ended(outcome);
    }
}

/// The advisor without opinions. The host's own rule then decides in
/// [`Plan::from_advice`](crate::Plan::from_advice): the candidate with the shortest time to start,
/// with the other candidates as fallbacks.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

impl Advisor for BuiltIn {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, _: &mut Trace) -> Advised {
        let endpoint = facts.request.info().endpoint;
        let mut merge = Merge::new(fleet, facts.request.model(), endpoint);
        merge.set_need(facts.request.info().into());
        merge.finish(OnConflict::Refuse).into()
    }

    fn uses_cached_tokens(&self) -> bool {
        false
    }
}
