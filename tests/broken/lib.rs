//! Fails in `advise`, at the line with a marker.

use pointsman_sdk::{Advice, Call, Policy, PolicyError};

pub struct Broken;

impl Policy for Broken {
    const NAME: &'static str = "broken-rust";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn configure(_json: &str) -> Result<Self, PolicyError> {
        Ok(Self)
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let lanes = call.fleet.candidates();
        let lane = lanes[lanes.len()]; // advise fails here
        Ok(Advice::only([lane]))
    }
}

pointsman_sdk::export_policy!(Broken);
