//! Who decides in a simulation: the chain of policies, or any advisor.

mod chain;

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{Advisor, FleetView, LaneId, Outcome};

pub use self::chain::Chain;

/// A wish about a lane for a time from now; `None` takes the one before back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hinted {
    /// The lane.
    pub lane: LaneId,
    /// The wish.
    pub hint: Option<LaneHint>,
    /// How long it stands.
    pub lasts: Duration,
}

/// Whoever decides about the requests of a simulation, in its time.
pub trait Deciders {
    /// It is this time now: for what they remember for a while, and for how long they leave somebody alone who failed.
    fn now(&mut self, _: Duration) {}

    /// Whoever advises.
    fn advisor(&self) -> &dyn Advisor;

    /// Requests have ended about which they decided; only told where the advisor learns.
    fn learn(&mut self, _fleet: &Arc<FleetView>, _now_ms: u64, _ended: &[Outcome]) {}

    /// When somebody wants to be asked for wishes next.
    fn next_tick(&self) -> Option<Duration> {
        None
    }

    /// It is time to ask for wishes.
    fn tick(&mut self, _fleet: &Arc<FleetView>, _now: Duration, _now_ms: u64) -> Vec<Hinted> {
        Vec::new()
    }
}

/// Any advisor is somebody who decides.
impl<A: Advisor> Deciders for A {
    fn advisor(&self) -> &dyn Advisor {
        self
    }

    fn learn(&mut self, _: &Arc<FleetView>, _: u64, ended: &[Outcome]) {
        ended.iter().for_each(|outcome| self.ended(outcome));
    }
}
