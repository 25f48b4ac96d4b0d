//! First come, first served: what a router does that has no opinion.
//!
//! Each request waits for the first lane that answers to its model name, in one line with all others, until it is served or
//! the host's longest wait is over. There is no falling back, no priority and no turn of a tenant. A policy that does not do
//! better than this one in a simulation is not worth having.

use pointsman_sdk::{
    Advice, Call, FallbackAdvice, OnTimeout, Policy, PolicyError, QueueAdvice, Triggers,
};

/// The policy, which has no configuration.
#[derive(Debug)]
pub struct FirstCome;

pointsman_sdk::export_policy!(FirstCome);

/// The one line that everybody stands in.
const EVERYBODY: &str = "everybody";

impl Policy for FirstCome {
    const NAME: &'static str = "first-come";
    const VERSION: &'static str = "0.1.0";

    fn configure(_: &str) -> Result<Self, PolicyError> {
        Ok(Self)
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let queue = QueueAdvice {
            priority: 0,
            flow: Some(EVERYBODY.into()),
            max_wait_ms: None,
            on_timeout: OnTimeout::Reject,
        };
        let nowhere =
            FallbackAdvice { on: Triggers::empty(), steps: Vec::new(), first_token_ms: None };
        let first = call.fleet.candidates().first().copied();
        let advice = first.map_or_else(Advice::any, |lane| Advice::only([lane]));
        Ok(Advice { queue: Some(queue), fallback: Some(nowhere), ..advice })
    }
}

#[cfg(test)]
mod tests {
    use pointsman_sdk::LaneAdvice;
    use pointsman_sdk::testing::{FakeFleet, FakeHost, FakeRequest};

    use super::*;

    #[test]
    fn everybody_waits_in_one_line_for_the_first_lane() {
        let mut host = FakeHost::new(FakeFleet::new(&["a", "b"]));
        host.fleet.stat_mut("a").queued = 99;
        let request = FakeRequest::chat(r#"{"model": "auto", "messages": []}"#);
        let advice = host.advise(&FirstCome, &request).unwrap();
        assert_eq!(advice.lanes, LaneAdvice::Only(vec![0]));
        assert_eq!(advice.queue.unwrap().flow.as_deref(), Some(EVERYBODY));
        assert!(advice.fallback.unwrap().steps.is_empty());
    }
}
