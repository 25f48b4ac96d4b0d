//! First come, first served: the baseline that other policies are compared with.
//!
//! Each request waits for the first lane that serves its model name, in a single queue, until it is
//! served or the host's maximum wait expires. There are no fallbacks, no priorities and no fairness
//! between tenants. A policy should do better than this one in a simulation.

use pointsman_sdk::{
    Advice, Call, FallbackAdvice, OnTimeout, Policy, PolicyError, QueueAdvice, Triggers,
};

/// The policy. It has no configuration.
#[derive(Debug)]
pub struct FirstCome;

pointsman_sdk::export_policy!(FirstCome);

/// The flow of all requests, which disables fairness between tenants.
const FLOW: &str = "all";

impl Policy for FirstCome {
    const NAME: &'static str = "first-come";
    const VERSION: &'static str = "0.1.0";

    fn configure(_: &str) -> Result<Self, PolicyError> {
        Ok(Self)
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let queue = QueueAdvice {
            priority: 0,
            flow: Some(FLOW.into()),
            max_wait_ms: None,
            on_timeout: OnTimeout::Reject,
        };
        let no_fallback =
            FallbackAdvice { on: Triggers::empty(), steps: Vec::new(), first_token_ms: None };
        let first = call.fleet.candidates().first().copied();
        let advice = first.map_or_else(Advice::any, |lane| Advice::only([lane]));
        Ok(Advice { queue: Some(queue), fallback: Some(no_fallback), ..advice })
    }
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::LaneAdvice;
    use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};

    use super::*;

    #[test]
    fn all_requests_wait_in_one_flow_for_the_first_lane() {
        let mut host = FakeHost::new(FakeFleet::new(&["a", "b"]));
        host.fleet.stat_mut("a").queued = 99;
        let request = FakeRequest::chat(r#"{"model": "auto", "messages": []}"#);
        let advice = host.advise(&FirstCome, &request).unwrap();
        assert_eq!(advice.lanes, LaneAdvice::Only(vec![0]));
        assert_eq!(advice.queue.unwrap().flow.as_deref(), Some(FLOW));
        assert!(advice.fallback.unwrap().steps.is_empty());
    }
}
