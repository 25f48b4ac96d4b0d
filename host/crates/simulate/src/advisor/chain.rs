//! The policy chain as the advisor of a simulation: the components that serve in production, in
//! virtual time.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{Advisor, FleetView, Outcome};
use pointsman_policy::{CallStats, DryRunSession};
use pointsman_report::PolicyCalls;

use super::{SimAdvisor, TimedHint};

/// Maximum number of log lines of a policy that reports show.
const MAX_LOG_LINES: usize = 10;

/// A chain of policies that runs in virtual time.
#[derive(Debug)]
pub struct ChainAdvisor(DryRunSession);

impl ChainAdvisor {
    /// Returns the call statistics of each policy so far, in the order of the chain.
    pub fn call_stats(&self) -> Vec<CallStats> {
        self.0.conduct()
    }

    /// Returns the calls of each policy so far, as reports show them.
    pub fn policy_calls(&self) -> Vec<PolicyCalls> {
        let calls = |stats: CallStats| PolicyCalls {
            policy: stats.policy.to_string(),
            calls: stats.calls,
            faults: stats.faults,
            errors: stats.errors,
            dropped: stats.dropped,
            first_fault: stats.first_fault,
            first_error: stats.first_error,
            first_dropped: stats.first_dropped,
            log: (stats.log.iter().take(MAX_LOG_LINES))
                .map(|line| format!("{:<5} {}", line.level, line.message))
                .collect(),
            marks: stats.marks,
        };
        self.call_stats().into_iter().map(calls).collect()
    }
}

impl From<DryRunSession> for ChainAdvisor {
    fn from(session: DryRunSession) -> Self {
        Self(session)
    }
}

impl SimAdvisor for ChainAdvisor {
    fn set_now(&mut self, now: Duration) {
        self.0.now(now);
    }

    fn advisor(&self) -> &dyn Advisor {
        self.0.advisor()
    }

    fn observe(&mut self, fleet: &Arc<FleetView>, now_ms: u64, outcomes: &[Outcome]) {
        self.0.observe(fleet, now_ms, outcomes);
    }

    fn next_tick(&self) -> Option<Duration> {
        self.0.next_tick()
    }

    fn tick(&mut self, fleet: &Arc<FleetView>, now: Duration, now_ms: u64) -> Vec<TimedHint> {
        // The wall clock is the seed of a tick, as in a host.
        let hints = self.0.tick(fleet, now, now_ms, now_ms);
        hints.into_iter().map(|(lane, hint, duration)| TimedHint { lane, hint, duration }).collect()
    }
}
