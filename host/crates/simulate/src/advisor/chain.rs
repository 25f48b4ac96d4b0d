//! The chain of policies as who decides: the components that serve, in the time of the simulation.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{Advisor, FleetView, Outcome};
use pointsman_policy::{CallStats, DryRunSession};

use super::{Deciders, Hinted};

/// A chain of policies.
#[derive(Debug)]
pub struct Chain(DryRunSession);

impl Chain {
    /// How the calls of each policy went so far, in the order of the chain.
    pub fn conduct(&self) -> Vec<CallStats> {
        self.0.conduct()
    }
}

impl From<DryRunSession> for Chain {
    fn from(performance: DryRunSession) -> Self {
        Self(performance)
    }
}

impl Deciders for Chain {
    fn now(&mut self, now: Duration) {
        self.0.now(now);
    }

    fn advisor(&self) -> &dyn Advisor {
        self.0.advisor()
    }

    fn learn(&mut self, fleet: &Arc<FleetView>, now_ms: u64, ended: &[Outcome]) {
        self.0.observe(fleet, now_ms, ended);
    }

    fn next_tick(&self) -> Option<Duration> {
        self.0.next_tick()
    }

    /// The seed is the time, as it is in a host.
    fn tick(&mut self, fleet: &Arc<FleetView>, now: Duration, now_ms: u64) -> Vec<Hinted> {
        let hints = self.0.tick(fleet, now, now_ms, now_ms);
        hints.into_iter().map(|(lane, hint, lasts)| Hinted { lane, hint, lasts }).collect()
    }
}
