//! Who is asked where a request should go.

use std::fmt;
use std::sync::Arc;

use crate::chain::ChainInfo;
use crate::facts::Facts;
use crate::fleet_view::FleetView;
use crate::merge::{Merge, Merged, OnConflict};
use crate::outcome::{FailureReport, Outcome, Recovery};
use crate::trace::Trace;

/// Gives advice about requests. Implemented by the chain of policies, and by [`BuiltIn`] for when there is none.
///
/// Synchronous on purpose: a call that cannot be suspended cannot be abandoned half-way when a client leaves. It
/// returns no error, because what a failing policy means for a request is the chain's own business.
pub trait Advisor: Send + Sync + fmt::Debug {
    /// The merged advice about one request, from one snapshot of the fleet.
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Merged;

    /// The policies behind it, for those who record what they advised; `None` where there are none.
    fn chain(&self) -> Option<&Arc<ChainInfo>> {
        None
    }

    /// Could [`Advisor::recover`] say anything but [`Recovery::Planned`]?
    fn recovers(&self) -> bool {
        false
    }

    /// What to do after a failed try. Asked of the advisor that decided about the request, and of no later one.
    fn recover(&self, _: &Facts, _: &Arc<FleetView>, _: &FailureReport, _: &mut Trace) -> Recovery {
        Recovery::Planned
    }

    /// Does [`Advisor::ended`] do anything? If not, nobody puts outcomes together.
    fn learns(&self) -> bool {
        false
    }

    /// A request has ended about which this advisor decided, after a lane was tried for it. Must not take long: learning
    /// from it happens elsewhere.
    fn ended(&self, _: &Outcome) {}
}

impl<A: Advisor> Advisor for Arc<A> {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, trace: &mut Trace) -> Merged {
        self.as_ref().advise(facts, fleet, trace)
    }

    fn chain(&self) -> Option<&Arc<ChainInfo>> {
        self.as_ref().chain()
    }

    fn recovers(&self) -> bool {
        self.as_ref().recovers()
    }

    fn recover(
        &self,
        facts: &Facts,
        fleet: &Arc<FleetView>,
        failed: &FailureReport,
        trace: &mut Trace,
    ) -> Recovery {
        self.as_ref().recover(facts, fleet, failed, trace)
    }

    fn learns(&self) -> bool {
        self.as_ref().learns()
    }

    fn ended(&self, outcome: &Outcome) {
        self.as_ref().ended(outcome);
    }
}

/// The advisor of last resort: no opinion at all. The host's own rule then decides, in
/// [`Plan::from_advice`](crate::Plan::from_advice): the candidate with the shortest time to start, and the other
/// candidates as fallbacks.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

impl Advisor for BuiltIn {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, _: &mut Trace) -> Merged {
        Merge::new(fleet, facts.request.model()).finish(OnConflict::Refuse)
    }
}
