//! Balances load with prefix-cache affinity.
//!
//! An engine that has a prefix of a prompt in its cache responds sooner, so prompts with a common
//! prefix should go to one lane, unless that lane is busy. Among the lanes whose load exceeds that
//! of the least loaded lane by at most the slack, the request prefers, in this order:
//!
//! 1. the lane that served the longest known prefix of the prompt last (*remembered* from finished
//!    requests in the host's `state`);
//! 2. the lane that has the most tokens of the prompt cached, as estimated by the host;
//! 3. for an unknown prefix, the lane given by rendezvous hashing, so that the next request with
//!    the same prefix goes there too, even before the first has finished, and few prefixes move
//!    when a lane is added or removed;
//! 4. for a prompt shorter than a block, the least loaded lane.
//!
//! The other lanes are scored by load, so that other policies in the chain can still weigh in.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Background, Call, LaneId, LaneStat, Observe, Outcome, Permille, Policy, PolicyError,
    TopologyCache, TryResult, mix64, stable_hash,
};

use self::config::Config;

/// The configured policy.
#[derive(Debug)]
pub struct Spread {
    config: Config,
    lanes: TopologyCache<Vec<Lane>>,
}

pointsman_sdk::export_policy!(Spread, on_complete);

/// Maximum score of lanes that are not preferred. The preferred lane has 1000.
const MAX_OTHER_SCORE: u64 = 900;
/// How long the landmarks of a request are kept until it finishes.
const REQUEST_TTL_MS: u32 = 30 * 60 * 1000;

/// Properties of a lane that rarely change.
#[derive(Debug)]
struct Lane {
    name: String,
    hash: u64,
    slots: u32,
}

/// A lane that can serve the request.
#[derive(Debug, Clone, Copy)]
struct LaneLoad {
    id: LaneId,
    /// Running, waiting and queued requests per slot, in thousandths.
    load: u64,
    cached_tokens: u32,
}

impl Policy for Spread {
    const NAME: &'static str = "spread";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)?, lanes: TopologyCache::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let lanes = self.lanes.get_or_insert_with(call.context.topology, || lane_properties(call));
        let loads = lane_loads(call, &lanes);
        let Some(min) = loads.iter().map(|lane| lane.load).min() else {
            return Ok(Advice::any());
        };
        let max = loads.iter().map(|lane| lane.load).max().unwrap_or(min);
        let within_slack: Vec<LaneLoad> = loads
            .iter()
            .filter(|lane| lane.load <= min + u64::from(self.config.slack))
            .copied()
            .collect();
        let landmarks = if self.config.affinity { self.landmarks(call) } else { Vec::new() };
        let (preferred, reason) = self.preferred(call, &lanes, &loads, &within_slack, &landmarks);
        if !landmarks.is_empty() {
            let bytes: Vec<u8> = landmarks.iter().flat_map(|hash| hash.to_le_bytes()).collect();
            // If the state is full, this request is not remembered. Hashing still keeps its prefix
            // on one lane.
            call.state.put(&request_key(&call.request.id()), &bytes, REQUEST_TTL_MS).ok();
        }
        let score = |lane: &LaneLoad| match lane.id == preferred {
            true => 1000,
            false => match max - min {
                0 => MAX_OTHER_SCORE,
                range => MAX_OTHER_SCORE * (max - lane.load) / range,
            },
        };
        let scores =
            loads.iter().map(|lane| (lane.id, Permille::try_from(score(lane)).unwrap_or(0)));
        Ok(Advice::scores(scores).with_reason(reason))
    }
}

impl Observe for Spread {
    fn observe(&self, background: &Background<'_>, done: &[Outcome]) {
        for outcome in done {
            let key = request_key(&outcome.request_id);
            let Some(bytes) = background.state.get(&key) else { continue };
            background.state.delete(&key);
            let served_by = (outcome.ended == TryResult::Ok)
                .then(|| background.fleet.info(outcome.lane))
                .flatten();
            let Some(lane) = served_by else { continue };
            for landmark in bytes.chunks_exact(8) {
                let landmark = u64::from_le_bytes(landmark.try_into().unwrap_or_default());
                // If the state is full, the prefix is not remembered and its lane is found by
                // hashing.
                background
                    .state
                    .put(&prefix_key(landmark), lane.name.as_bytes(), self.config.prefix_ttl_ms)
                    .ok();
            }
        }
    }
}

impl Spread {
    /// Returns hashes of the first 1, 2, 4, 8, … blocks of the prompt. That is enough to find the
    /// longest known prefix to within a factor of two with few state lookups.
    fn landmarks(&self, call: &Call<'_>) -> Vec<u64> {
        let hashes = call.request.prefix_hashes(self.config.block_bytes, self.config.max_blocks);
        let block_counts = (0..usize::BITS)
            .map(|power| 1usize << power)
            .take_while(|blocks| *blocks <= hashes.len());
        block_counts.map(|blocks| hashes[blocks - 1]).collect()
    }

    /// Returns the preferred lane and the reason.
    fn preferred(
        &self,
        call: &Call<'_>,
        lanes: &[Lane],
        loads: &[LaneLoad],
        within_slack: &[LaneLoad],
        landmarks: &[u64],
    ) -> (LaneId, String) {
        let name = |lane: LaneId| lanes.get(lane as usize).map_or("", |lane| lane.name.as_str());
        let remembered = landmarks.iter().rev().find_map(|landmark| {
            let lane_name = call.state.get(&prefix_key(*landmark))?;
            loads.iter().find(|lane| name(lane.id).as_bytes() == lane_name).map(|lane| lane.id)
        });
        if let Some(id) = remembered {
            if within_slack.iter().any(|lane| lane.id == id) {
                call.metrics.add("remembered", 1);
                return (id, format!("{} served this prefix before", name(id)));
            }
            call.metrics.add("overloaded", 1);
        }
        let cached =
            within_slack.iter().filter(|lane| lane.cached_tokens >= self.config.min_cached_tokens);
        if let Some(lane) =
            cached.max_by_key(|lane| (lane.cached_tokens, std::cmp::Reverse(lane.id)))
        {
            call.metrics.add("cached", 1);
            let reason = format!("{} has {} tokens cached", name(lane.id), lane.cached_tokens);
            return (lane.id, reason);
        }
        let hash_landmarks = self.config.hash_blocks.ilog2() as usize + 1;
        if let Some(prefix) = landmarks.iter().take(hash_landmarks).next_back() {
            let weight = |load: &&LaneLoad| {
                lanes.get(load.id as usize).map(|lane| mix64(lane.hash ^ prefix))
            };
            if let Some(lane) = within_slack.iter().max_by_key(weight) {
                call.metrics.add("hashed", 1);
                return (lane.id, format!("{} by prefix hash", name(lane.id)));
            }
        }
        // The seed breaks ties, so that idle lanes share the requests.
        let least_loaded = within_slack
            .iter()
            .min_by_key(|lane| (lane.load, mix64(call.context.seed ^ u64::from(lane.id))));
        let id = least_loaded.map_or(0, |lane| lane.id);
        (id, format!("{} is the least loaded", name(id)))
    }
}

/// Returns the properties of all lanes, by lane id.
fn lane_properties(call: &Call<'_>) -> Vec<Lane> {
    let lane = |stat: &LaneStat| {
        let info = call.fleet.info(stat.id);
        let (name, slots) = info.map_or_else(|| (String::new(), 1), |info| (info.name, info.slots));
        Lane { hash: stable_hash(&[name.as_bytes()]), name, slots: slots.max(1) }
    };
    call.fleet.stats().iter().map(lane).collect()
}

/// Returns the candidates that are serving; if there are none, those that could be loaded.
fn lane_loads(call: &Call<'_>, lanes: &[Lane]) -> Vec<LaneLoad> {
    let stats: Vec<LaneStat> = call
        .fleet
        .candidates()
        .iter()
        .filter_map(|lane| call.fleet.stat(*lane))
        .filter(LaneStat::is_available)
        .collect();
    let any_serving = stats.iter().any(LaneStat::is_serving);
    let load = |stat: &LaneStat| {
        let work = u64::from(stat.running) + u64::from(stat.waiting) + u64::from(stat.queued);
        let slots = lanes.get(stat.id as usize).map_or(1, |lane| u64::from(lane.slots));
        LaneLoad { id: stat.id, load: work * 1000 / slots, cached_tokens: stat.cached_tokens }
    };
    stats.iter().filter(|stat| stat.is_serving() || !any_serving).map(load).collect()
}

/// Returns the state key of the landmarks of a request that has not finished.
fn request_key(request_id: &str) -> String {
    format!("asked/{:016x}", stable_hash(&[request_id.as_bytes()]))
}

/// Returns the state key of the lane that served a prefix.
fn prefix_key(landmark: u64) -> String {
    format!("went/{landmark:016x}")
}
