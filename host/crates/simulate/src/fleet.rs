//! The lanes of a simulation: what the dispatcher is told of them, and how their engines behave.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::{GroupSetup, LaneSetup, Rules};
use pointsman_domain::{LaneInfo, PlanLimits, Topology};

use crate::random::Spread;

/// All lanes, and the rules of the host.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// The lanes in the order of their ids.
    pub lanes: Vec<Lane>,
    /// The groups that they share memory in.
    pub groups: Vec<GroupSetup>,
    /// The host's rules of queue and switching.
    pub rules: Rules,
    /// Limits on every plan.
    pub limits: PlanLimits,
    /// Longest time from a request to the first byte of its answer, on all lanes together.
    pub deadline: Duration,
}

/// One lane.
#[derive(Debug, Clone)]
pub struct Lane {
    /// What policies see of it.
    pub info: LaneInfo,
    /// What the dispatcher is told.
    pub setup: LaneSetup,
    /// The first byte of an answer may take this long, where the plan does not say.
    pub first_byte: Duration,
    /// How its engine behaves.
    pub engine: EngineModel,
}

/// How an engine behaves.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineModel {
    /// From the order to load until it serves.
    pub load: Spread,
    /// From the order to stop until its memory is free.
    pub stop: Spread,
    /// How it works on requests.
    pub service: Service,
    /// Tokens that its key-value cache holds; a request that does not fit waits in the engine. `None`: no limit.
    pub kv_tokens: Option<u64>,
    /// It keeps the beginnings of prompts and does not work on them again.
    pub prefix_cache: bool,
    /// How long the host takes to see that it hangs.
    pub notices_hang: Duration,
}

/// How an engine works on requests.
#[derive(Debug, Clone, PartialEq)]
pub enum Service {
    /// Each request takes its time, whatever else goes on.
    Fixed {
        /// To the first byte of the answer, in seconds.
        first: Spread,
        /// From there to its end, in seconds.
        rest: Spread,
        /// Requests of which a record says how long they took take as long again, whichever lane they go to.
        recorded: bool,
    },
    /// Prompts are read one after the other, and answers are written together.
    Rates {
        /// What each request takes beside that, in seconds.
        overhead: Spread,
        /// Tokens of prompts read in a second.
        prefill: f64,
        /// Tokens of answers written in a second.
        decode: Decode,
    },
}

/// Tokens that an engine writes in a second, all answers together, by how many it writes at once: straight lines between
/// these points, and flat beyond the last one. Below the first one, in proportion to the answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Decode(pub Vec<(u32, f64)>);

impl Decode {
    /// Tokens a second of each of so many answers.
    pub fn each(&self, answers: u32) -> f64 {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return 0.0 };
        let at_once = f64::from(answers.max(1));
        if answers <= first.0 {
            return first.1 / f64::from(first.0.max(1));
        }
        let between = self.0.windows(2).find(|pair| answers <= pair[1].0);
        let together = between.map_or(last.1, |pair| {
            let part = (at_once - f64::from(pair[0].0)) / f64::from(pair[1].0 - pair[0].0);
            pair[0].1 + (pair[1].1 - pair[0].1) * part
        });
        together / at_once
    }
}

impl Fleet {
    /// The table of lanes that policies see.
    pub fn topology(&self) -> Arc<Topology> {
        Arc::new(Topology::new(1, self.lanes.iter().map(|lane| lane.info.clone()).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::Decode;

    #[test]
    fn rates_lie_on_straight_lines() {
        let decode = Decode(vec![(1, 30.0), (4, 90.0), (8, 120.0)]);
        for (answers, each) in
            [(0, 30.0), (1, 30.0), (2, 25.0), (4, 22.5), (6, 17.5), (8, 15.0), (16, 7.5)]
        {
            assert!(
                (decode.each(answers) - each).abs() < 1e-9,
                "{answers}: {}",
                decode.each(answers)
            );
        }
        assert!((Decode(vec![(4, 80.0)]).each(1) - 20.0).abs() < 1e-9);
        assert!(Decode(Vec::new()).each(1) < 1e-9);
    }
}
