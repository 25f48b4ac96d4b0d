//! Even load, and warm caches.
//!
//! An engine that has seen the beginning of a prompt answers sooner, so prompts with one beginning should meet on one lane;
//! but not in a queue. Of the lanes that are no busier than the idlest plus some slack, the request prefers, in this order:
//!
//! 1. the lane that the longest known beginning of its prompt went to last (*remembered*: learned from finished requests,
//!    kept in the host's `state`);
//! 2. the lane that by the host's estimate has most of it cached;
//! 3. for a beginning that nobody has seen, the lane that rendezvous hashing gives it, so that the next request with the
//!    same beginning goes there too, even before the first has finished, and few move when a lane comes or goes;
//! 4. for a prompt that is shorter than a block, the idlest lane.
//!
//! The others follow by load, so that the next policies in the chain can still weigh in.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Background, Call, LaneId, LaneStat, Learn, Outcome, PerTopology, Permille, Policy,
    PolicyError, TryResult, mixed, stable_hash,
};

use self::config::Config;

/// The configured policy.
#[derive(Debug)]
pub struct Spread {
    config: Config,
    lanes: PerTopology<Vec<Lane>>,
}

pointsman_sdk::export_policy!(Spread, on_complete);

/// The score of the best of the lanes that are not preferred; the preferred one has 1000.
const MOST_OF_OTHERS: u64 = 900;
/// How long a request may take until its end is not connected with its beginning any more.
const LONGEST_REQUEST_MS: u32 = 30 * 60 * 1000;

/// What rarely changes about a lane.
#[derive(Debug)]
struct Lane {
    name: String,
    hash: u64,
    slots: u32,
}

/// A lane that could take the request now.
#[derive(Debug, Clone, Copy)]
struct Choice {
    lane: LaneId,
    /// Work per slot, in thousandths.
    load: u64,
    cached_tokens: u32,
}

impl Policy for Spread {
    const NAME: &'static str = "spread";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)?, lanes: PerTopology::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let lanes = self.lanes.get(call.context.topology, || lanes(call));
        let choices = choices(call, &lanes);
        let Some(least) = choices.iter().map(|choice| choice.load).min() else {
            return Ok(Advice::any());
        };
        let most = choices.iter().map(|choice| choice.load).max().unwrap_or(least);
        let near: Vec<Choice> = choices
            .iter()
            .filter(|choice| choice.load <= least + u64::from(self.config.slack))
            .copied()
            .collect();
        let landmarks = if self.config.affinity { self.landmarks(call) } else { Vec::new() };
        let (preferred, why) = self.preferred(call, &lanes, &choices, &near, &landmarks);
        if !landmarks.is_empty() {
            let bytes: Vec<u8> = landmarks.iter().flat_map(|hash| hash.to_le_bytes()).collect();
            // Without room for it the request's end teaches nothing; hashing still keeps beginnings together.
            let _forgotten = call.state.put(&asked(&call.request.id()), &bytes, LONGEST_REQUEST_MS);
        }
        let score = |choice: &Choice| match choice.lane == preferred {
            true => 1000,
            false => match most - least {
                0 => MOST_OF_OTHERS,
                span => MOST_OF_OTHERS * (most - choice.load) / span,
            },
        };
        let scores = choices
            .iter()
            .map(|choice| (choice.lane, Permille::try_from(score(choice)).unwrap_or(0)));
        Ok(Advice::scores(scores).because(why))
    }
}

impl Learn for Spread {
    fn learn(&self, background: &Background<'_>, done: &[Outcome]) {
        for outcome in done {
            let key = asked(&outcome.request_id);
            let Some(bytes) = background.state.get(&key) else { continue };
            background.state.delete(&key);
            let served = (outcome.ended == TryResult::Ok)
                .then(|| background.fleet.info(outcome.lane))
                .flatten();
            let Some(lane) = served else { continue };
            for landmark in bytes.chunks_exact(8) {
                let landmark = u64::from_le_bytes(landmark.try_into().unwrap_or_default());
                // What is not remembered is hashed.
                let _full = background.state.put(
                    &went(landmark),
                    lane.name.as_bytes(),
                    self.config.remember_ms,
                );
            }
        }
    }
}

impl Spread {
    /// Hashes of the beginning's first 1, 2, 4, 8, … blocks: enough to find the longest known one to within half, in few
    /// questions to the state.
    fn landmarks(&self, call: &Call<'_>) -> Vec<u64> {
        let hashes = call.request.prefix_hashes(self.config.block_bytes, self.config.blocks);
        let places = (0..usize::BITS)
            .map(|power| 1usize << power)
            .take_while(|blocks| *blocks <= hashes.len());
        places.map(|blocks| hashes[blocks - 1]).collect()
    }

    fn preferred(
        &self,
        call: &Call<'_>,
        lanes: &[Lane],
        choices: &[Choice],
        near: &[Choice],
        landmarks: &[u64],
    ) -> (LaneId, String) {
        let name = |lane: LaneId| lanes.get(lane as usize).map_or("", |lane| lane.name.as_str());
        let took = landmarks.iter().rev().find_map(|landmark| {
            let lane = call.state.get(&went(*landmark))?;
            choices
                .iter()
                .find(|choice| name(choice.lane).as_bytes() == lane)
                .map(|choice| choice.lane)
        });
        if let Some(lane) = took {
            if near.iter().any(|choice| choice.lane == lane) {
                call.metrics.add("remembered", 1);
                return (lane, format!("{} has served this beginning before", name(lane)));
            }
            call.metrics.add("overloaded", 1);
        }
        let cached = near.iter().filter(|choice| choice.cached_tokens >= self.config.cached_tokens);
        if let Some(choice) =
            cached.max_by_key(|choice| (choice.cached_tokens, std::cmp::Reverse(choice.lane)))
        {
            call.metrics.add("cached", 1);
            return (
                choice.lane,
                format!("{} has {} tokens cached", name(choice.lane), choice.cached_tokens),
            );
        }
        let home_landmarks = self.config.home_blocks.ilog2() as usize + 1;
        if let Some(home) = landmarks.iter().take(home_landmarks).next_back() {
            let weight = |choice: &&Choice| {
                lanes.get(choice.lane as usize).map(|lane| mixed(lane.hash ^ home))
            };
            if let Some(choice) = near.iter().max_by_key(weight) {
                call.metrics.add("hashed", 1);
                return (
                    choice.lane,
                    format!("{} is the home of this beginning", name(choice.lane)),
                );
            }
        }
        // Among equals the seed decides, so that not all of them go to the first lane.
        let idlest = near
            .iter()
            .min_by_key(|choice| (choice.load, mixed(call.context.seed ^ u64::from(choice.lane))));
        let lane = idlest.map_or(0, |choice| choice.lane);
        (lane, format!("{} is the idlest", name(lane)))
    }
}

fn lanes(call: &Call<'_>) -> Vec<Lane> {
    let lane = |stat: &LaneStat| {
        let info = call.fleet.info(stat.id);
        let (name, slots) = info.map_or_else(|| (String::new(), 1), |info| (info.name, info.slots));
        Lane { hash: stable_hash(&[name.as_bytes()]), name, slots: slots.max(1) }
    };
    call.fleet.stats().iter().map(lane).collect()
}

/// The candidates that serve; where none does, those that could be loaded.
fn choices(call: &Call<'_>, lanes: &[Lane]) -> Vec<Choice> {
    let stats: Vec<LaneStat> = call
        .fleet
        .candidates()
        .iter()
        .filter_map(|lane| call.fleet.stat(*lane))
        .filter(LaneStat::able)
        .collect();
    let any_serves = stats.iter().any(LaneStat::serving);
    let choice = |stat: &LaneStat| {
        let work = u64::from(stat.running) + u64::from(stat.waiting) + u64::from(stat.queued);
        let slots = lanes.get(stat.id as usize).map_or(1, |lane| u64::from(lane.slots));
        Choice { lane: stat.id, load: work * 1000 / slots, cached_tokens: stat.cached_tokens }
    };
    stats.iter().filter(|stat| stat.serving() || !any_serves).map(choice).collect()
}

/// Key under which a request's landmarks wait for its end.
fn asked(request_id: &str) -> String {
    format!("asked/{:016x}", stable_hash(&[request_id.as_bytes()]))
}

/// Key under which it is kept where a beginning went.
fn went(landmark: u64) -> String {
    format!("went/{landmark:016x}")
}
