//! The times of calls of policies.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::{Advisor, Facts, FleetView, Trace};
use pointsman_policy::Policies;

/// Unmeasured calls before a measurement.
const WARM_UP: usize = 200;
/// Calls of a measurement.
pub(crate) const CALLS: usize = 5_000;
/// The deadline of calls that compete with others for the CPU or run in an interpreter. The time of
/// a call is measured; its deadline should not end it.
pub(crate) const LONG_DEADLINE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Percentiles {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl Percentiles {
    /// Sorts the times. There has to be at least one.
    pub(crate) fn from_times(times: &mut [Duration]) -> Self {
        times.sort_unstable();
        let at = |permille: usize| times[(times.len() - 1) * permille / 1000];
        Self { p50: at(500), p99: at(990) }
    }
}

/// Returns the duration of a call, and whether `policies` policies gave advice.
pub(crate) fn timed_call(
    advisor: &dyn Advisor,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    policies: usize,
) -> (Duration, bool) {
    let started = Instant::now();
    let merged = std::hint::black_box(advisor.advise(facts, fleet, &mut Trace::off())).merged;
    (started.elapsed(), merged.by.len() == policies)
}

/// Measures calls of a chain of which `advised` policies give advice.
pub(crate) fn measure(
    policies: &Policies,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    advised: usize,
) -> Percentiles {
    measure_calls(policies, facts, fleet, advised, CALLS)
}

pub(crate) fn measure_calls(
    policies: &Policies,
    facts: &Facts,
    fleet: &Arc<FleetView>,
    advised: usize,
    calls: usize,
) -> Percentiles {
    let advisor = policies.slot().load_full();
    let call = || timed_call(&**advisor, facts, fleet, advised);
    for _ in 0..WARM_UP.min(calls) {
        call();
    }
    let results: Vec<(Duration, bool)> = (0..calls).map(|_| call()).collect();
    // On a busy machine a call may reach its deadline, whose time is not that of a complete call.
    let mut times: Vec<Duration> =
        results.into_iter().filter(|(_, advised)| *advised).map(|(time, _)| time).collect();
    assert!(times.len() * 10 > calls * 9, "only {} of {calls} calls had advice", times.len());
    Percentiles::from_times(&mut times)
}
