//! The prefix index: an estimate of the prompt prefixes in the prefix cache of each lane's engine.
//!
//! Engines do not report what they have cached, only how much of a prompt was cached when it is
//! done. The index remembers the prompts that each lane has served, as hashes of their blocks:
//!
//! ```text
//!   request ──hash──> PromptHashes ──annotate──> FleetView with `cached_tokens` ──> policies
//!   first byte of the response ──served──> the lane's blocks        (the prompt is cached now)
//!   usage that the engine reports ──report──> bytes per token, hit rate, blocks to forget
//!   engine starts or ends ──reset──> the lane has nothing
//! ```
//!
//! A prompt cannot be recovered from the index: it has 64-bit hashes only, keyed per process
//! (SipHash), and no text. The index is shared by all tenants, as the caches of the engines are.
//!
//! Memory is bounded by [`MAX_BLOCKS`], of which each lane has the same share, at about 20 bytes
//! per block. The index is an estimate, and errors are small: a block that is not known costs a
//! prefill, and a block that the engine has evicted is noticed with the next report.

mod lane;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::lane::LanePrefixes;
pub use self::lane::ServedPrompt;
use crate::fleet_view::{FleetView, LaneId};

/// Bytes of a block, about 32 tokens: the resolution of the estimate.
pub const BLOCK_BYTES: usize = 128;

/// Maximum number of blocks of one prompt: 512 KiB, about 130,000 tokens. The rest is not hashed.
const MAX_PROMPT_BLOCKS: usize = 1 << 12;

/// Maximum number of blocks of one lane: 4 MiB of prompts, about a million tokens.
const MAX_LANE_BLOCKS: usize = 1 << 15;

/// Maximum number of blocks of all lanes, which need about 20 MB of memory.
const MAX_BLOCKS: usize = 1 << 20;

/// Hashes prompts with a random key, so that hashes cannot be computed outside this process.
#[derive(Debug, Clone, Default)]
pub struct PromptHasher(RandomState);

impl PromptHasher {
    /// Hashes a prompt that is the concatenation of `parts`. Engines do not share caches between
    /// models, so the same prompt has other hashes for another model.
    pub fn hash<'a>(&self, model: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> PromptHashes {
        let mut hasher = self.0.build_hasher();
        hasher.write(model.as_bytes());
        // Not part of UTF-8, so no prompt continues a model name.
        hasher.write_u8(0xff);
        let (mut blocks, mut bytes, mut missing) = (Vec::new(), 0, BLOCK_BYTES);
        for mut part in parts {
            bytes += part.len() as u64;
            while let Some((end, rest)) = part.split_at_checked(missing)
                && blocks.len() < MAX_PROMPT_BLOCKS
            {
                hasher.write(end);
                // The state is not reset: the hash of a block covers all blocks before it.
                blocks.push(hasher.finish());
                (part, missing) = (rest, BLOCK_BYTES);
            }
            if blocks.len() < MAX_PROMPT_BLOCKS {
                hasher.write(part);
                missing -= part.len();
            }
        }
        PromptHashes { blocks: blocks.into(), bytes }
    }
}

/// The hashes of the leading blocks of a prompt. An incomplete last block has no hash.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PromptHashes {
    blocks: Box<[u64]>,
    /// Length of the whole prompt.
    bytes: u64,
}

impl PromptHashes {
    /// Returns true if the prompt is shorter than a block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }
}

/// The prompts that each lane of a topology has served.
#[derive(Debug)]
pub struct PrefixIndex {
    hasher: PromptHasher,
    lanes: Box<[Mutex<LanePrefixes>]>,
    /// Maximum number of blocks of one lane.
    max_lane_blocks: usize,
}

impl PrefixIndex {
    /// Creates an empty index for this number of lanes.
    pub fn new(lanes: usize) -> Self {
        let max_lane_blocks = (MAX_BLOCKS / lanes.max(1)).min(MAX_LANE_BLOCKS);
        let lane = |_| Mutex::new(LanePrefixes::new(max_lane_blocks));
        let hasher = PromptHasher::default();
        Self { hasher, lanes: (0..lanes).map(lane).collect(), max_lane_blocks }
    }

    /// Returns the hasher whose hashes the index understands.
    pub fn hasher(&self) -> &PromptHasher {
        &self.hasher
    }

    /// Returns the view as the policies of one request see it: with the estimate of cached tokens
    /// for the lanes that serve its model. `prompt_tokens` is the estimated length of the prompt,
    /// which no estimate exceeds. Without any cached token, that is the view itself.
    pub fn annotate(
        &self,
        view: &Arc<FleetView>,
        model: &str,
        prompt: &PromptHashes,
        prompt_tokens: u32,
    ) -> Arc<FleetView> {
        if prompt.is_empty() {
            return Arc::clone(view);
        }
        let cached = |lane: &LaneId| {
            let tokens = self.cached_tokens(*lane, prompt).min(prompt_tokens);
            (tokens > 0).then_some((*lane, tokens))
        };
        let cached: Vec<_> = view.topology.candidates(model).iter().filter_map(cached).collect();
        if cached.is_empty() { Arc::clone(view) } else { Arc::new(view.with_cached(cached)) }
    }

    /// Returns the estimated number of tokens of a prompt in the prefix cache of a lane.
    pub fn cached_tokens(&self, lane: LaneId, prompt: &PromptHashes) -> u32 {
        self.lane(lane).map_or(0, |lane| lane.cached_tokens(&prompt.blocks))
    }

    /// Notes that a lane's engine has processed a prompt, which is in its prefix cache now.
    pub fn served(&self, lane: LaneId, prompt: &PromptHashes) -> ServedPrompt {
        let lane = self.lane(lane);
        lane.map_or_else(ServedPrompt::default, |mut lane| {
            lane.insert(&prompt.blocks, prompt.bytes)
        })
    }

    /// Learns from the usage that the engine reported for a served prompt. `cached` is `None` if
    /// the engine does not report cached tokens.
    pub fn report(
        &self,
        lane: LaneId,
        served: &ServedPrompt,
        prompt_tokens: u32,
        cached: Option<u32>,
    ) {
        if let Some(mut lane) = self.lane(lane) {
            lane.learn(served, prompt_tokens, cached);
        }
    }

    /// Forgets the prompts of a lane whose engine has started, has ended, or sleeps. `capacity` is
    /// the size of the engine's cache in tokens, if it is known.
    pub fn reset(&self, lane: LaneId, capacity: Option<u64>) {
        if let Some(mut lane) = self.lane(lane) {
            lane.reset(capacity, self.max_lane_blocks);
        }
    }

    fn lane(&self, lane: LaneId) -> Option<MutexGuard<'_, LanePrefixes>> {
        // A panic within one of the short operations cannot leave more than a wrong estimate.
        Some(self.lanes.get(lane.index())?.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests;
