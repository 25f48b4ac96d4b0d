//! The advisor of a simulation: the policy chain, or any [`Advisor`].

mod chain;

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{Advisor, FleetView, LaneId, Outcome};

pub use self::chain::ChainAdvisor;

/// A lane hint with an expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimedHint {
    /// The lane.
    pub lane: LaneId,
    /// The hint; `None` withdraws the previous one.
    pub hint: Option<LaneHint>,
    /// How long the hint is valid.
    pub duration: Duration,
}

/// An advisor that runs in virtual time.
pub trait SimAdvisor {
    /// Sets the current time, for policy state that expires and for circuit breakers.
    fn set_now(&mut self, _: Duration) {}

    /// Returns the advisor that is asked about requests.
    fn advisor(&self) -> &dyn Advisor;

    /// Reports the outcomes of requests. Only called if [`Advisor::observes_outcomes`] returns
    /// true.
    fn observe(&mut self, _fleet: &Arc<FleetView>, _now_ms: u64, _outcomes: &[Outcome]) {}

    /// Returns the time of the next tick, if the advisor has a tick hook.
    fn next_tick(&self) -> Option<Duration> {
        None
    }

    /// Runs the tick hook and returns its hints.
    fn tick(&mut self, _fleet: &Arc<FleetView>, _now: Duration, _now_ms: u64) -> Vec<TimedHint> {
        Vec::new()
    }
}

impl<A: Advisor> SimAdvisor for A {
    fn advisor(&self) -> &dyn Advisor {
        self
    }

    fn observe(&mut self, _: &Arc<FleetView>, _: u64, outcomes: &[Outcome]) {
        outcomes.iter().for_each(|outcome| self.ended(outcome));
    }
}
