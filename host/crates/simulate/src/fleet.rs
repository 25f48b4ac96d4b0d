//! The lanes of a simulation: their dispatcher setup and the models of their engines.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{GroupSetup, LaneSetup, Rules};
use pointsman_domain::{Guards, LaneInfo, PlanLimits, Topology};

use crate::random::Distribution;

/// All lanes and the rules of the host.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// The lanes in the order of their ids.
    pub lanes: Vec<Lane>,
    /// The groups whose lanes share memory.
    pub groups: Vec<GroupSetup>,
    /// The host's queueing and switching rules.
    pub rules: Rules,
    /// The limits on every plan.
    pub limits: PlanLimits,
    /// Rules that no policy can break.
    pub guards: Guards,
    /// The maximum time from the arrival of a request to the first byte of its response, over all
    /// attempts.
    pub deadline: Duration,
    /// The weights of tenants; the others have weight 1.
    pub weights: BTreeMap<String, u32>,
}

/// A lane with the model of its engine.
#[derive(Debug, Clone)]
pub struct Lane {
    /// The part that policies see.
    pub info: LaneInfo,
    /// The part that the dispatcher uses.
    pub setup: LaneSetup,
    /// The maximum time to the first byte of a response, unless the plan sets one.
    pub first_byte_timeout: Duration,
    /// The model of the engine.
    pub engine: EngineModel,
}

/// The performance model of an engine. Times are in seconds.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineModel {
    /// From the load command until the engine serves.
    pub load_time: Distribution,
    /// From the stop command until the engine's memory is free.
    pub stop_time: Distribution,
    /// How requests are processed.
    pub service: ServiceModel,
    /// The capacity of the key-value cache in tokens; a request that does not fit waits inside the
    /// engine. `None` means unlimited.
    pub kv_tokens: Option<u64>,
    /// Whether prompt prefixes are cached and not prefilled again.
    pub prefix_cache: bool,
    /// How long the host takes to detect a hang.
    pub hang_detection_time: Duration,
}

/// How an engine processes requests.
#[derive(Debug, Clone, PartialEq)]
pub enum ServiceModel {
    /// Each request takes a fixed time, independent of the engine's load.
    Fixed {
        /// To the first token of the response, in seconds.
        first_token: Distribution,
        /// From the first token to the end of the response, in seconds.
        rest: Distribution,
        /// Whether requests from decision records take their recorded times instead, on whichever
        /// lane they run.
        use_recorded: bool,
    },
    /// Prompts are prefilled one after the other, and responses are decoded in parallel.
    Rates {
        /// A constant part of each request, in seconds.
        overhead: Distribution,
        /// Prompt tokens per second.
        prefill: f64,
        /// Response tokens per second.
        decode: DecodeRates,
    },
}

/// The total decode rate of an engine in tokens per second, by the number of concurrent responses.
///
/// The rate is interpolated linearly between these points, constant beyond the last one, and
/// proportional to the number of responses below the first one.
#[derive(Debug, Clone, PartialEq)]
pub struct DecodeRates(pub Vec<(u32, f64)>);

impl DecodeRates {
    /// Returns the rate of a single response, in tokens per second, while this many are decoded.
    pub fn per_response(&self, responses: u32) -> f64 {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return 0.0 };
        let count = f64::from(responses.max(1));
        if responses <= first.0 {
            return first.1 / f64::from(first.0.max(1));
        }
        let segment = self.0.windows(2).find(|pair| responses <= pair[1].0);
        let total = segment.map_or(last.1, |pair| {
            let fraction = (count - f64::from(pair[0].0)) / f64::from(pair[1].0 - pair[0].0);
            pair[0].1 + (pair[1].1 - pair[0].1) * fraction
        });
        total / count
    }
}

impl Fleet {
    /// Returns the table of lanes that policies see.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::new(Topology::new(1, self.lanes.iter().map(|lane| lane.info.clone()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::DecodeRates;

    #[test]
    fn decode_rate_is_interpolated_linearly() {
        let decode = DecodeRates(vec![(1, 30.0), (4, 90.0), (8, 120.0)]);
        for (responses, expected) in
            [(0, 30.0), (1, 30.0), (2, 25.0), (4, 22.5), (6, 17.5), (8, 15.0), (16, 7.5)]
        {
            let rate = decode.per_response(responses);
            assert!((rate - expected).abs() < 1e-9, "{responses}: {rate}");
        }
        assert!((DecodeRates(vec![(4, 80.0)]).per_response(1) - 20.0).abs() < 1e-9);
        assert!(DecodeRates(Vec::new()).per_response(1) < 1e-9);
    }
}
