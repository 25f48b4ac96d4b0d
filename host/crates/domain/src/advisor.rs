//! Who is asked where a request should go.

use std::fmt;
use std::sync::Arc;

use crate::facts::Facts;
use crate::fleet_view::FleetView;
use crate::merge::{Merge, Merged, OnConflict};

/// Gives advice about requests. Implemented by the chain of policies, and by [`BuiltIn`] for when there is none.
///
/// Synchronous on purpose: a call that cannot be suspended cannot be abandoned half-way when a client leaves. It
/// returns no error, because what a failing policy means for a request is the chain's own business.
pub trait Advisor: Send + Sync + fmt::Debug {
    /// The merged advice about one request, from one snapshot of the fleet.
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>) -> Merged;
}

impl<A: Advisor> Advisor for Arc<A> {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>) -> Merged {
        self.as_ref().advise(facts, fleet)
    }
}

/// The advisor of last resort: no opinion at all. The host's own rule then decides, in
/// [`Plan::from_advice`](crate::Plan::from_advice): the candidate with the shortest time to start, and the other
/// candidates as fallbacks.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltIn;

impl Advisor for BuiltIn {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>) -> Merged {
        Merge::new(fleet, facts.request.model()).finish(OnConflict::Refuse)
    }
}
