//! The prompts of one lane, with eviction.
//!
//! Blocks are kept in a few generations, from the newest to the oldest. A prompt is inserted as a
//! whole into the newest one; when that is full, a new one begins and the oldest is dropped. This
//! evicts the blocks that were not used for longest, like an engine does, at the cost of one set
//! insertion per block and without any links between blocks.
//!
//! **Invariant:** every generation is closed under prefixes: if it has a block of a prompt, it has
//! all blocks before it. The longest known prefix is therefore found by bisection.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::BLOCK_BYTES;
use super::digest::{DIGEST_BLOCKS, DigestCursor, DigestPart, LaneDigest};

/// Maximum number of generations. Between 3/4 and all of the capacity is in use if prompts do not
/// repeat; a prompt that is used in several generations takes space in each of them.
pub(super) const GENERATIONS: usize = 4;

/// Bytes per token until an engine has reported the length of a prompt.
const BYTES_PER_TOKEN: f64 = 4.0;

/// Weight of a new observation in a moving average.
const SMOOTHING: f64 = 1.0 / 8.0;

/// What the index knew about a prompt when it was served. Needed to interpret the engine's report.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServedPrompt {
    /// Length of the prompt.
    bytes: u64,
    /// The number of each generation, and how many blocks of the prompt it had; newest first.
    known: [(u64, usize); GENERATIONS],
}

impl ServedPrompt {
    /// Returns the number of blocks that were known.
    fn known(&self) -> usize {
        self.known.iter().map(|(_, blocks)| *blocks).max().unwrap_or(0)
    }
}

/// A set of hashes, which need not be hashed again.
type BlockSet = HashSet<u64, BuildHasherDefault<BlockHasher>>;

#[derive(Debug, Default)]
struct BlockHasher(u64);

impl Hasher for BlockHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not used for `u64`, but any hash is correct.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Debug)]
struct Generation {
    /// Sequence number, never reused.
    number: u64,
    blocks: BlockSet,
}

impl Generation {
    /// Returns the number of leading blocks of `prompt` in this generation.
    fn matched(&self, prompt: &[u64]) -> usize {
        prompt.partition_point(|block| self.blocks.contains(block))
    }
}

/// The blocks of one lane, and what was learned about its engine.
#[derive(Debug)]
pub(super) struct LanePrefixes {
    max_blocks: usize,
    /// Newest first.
    generations: VecDeque<Generation>,
    /// The number of the next generation.
    next_number: u64,
    bytes_per_token: f64,
    /// How much of the expected tokens the engine had cached, from 0 to 1. Near 0 for engines
    /// without a prefix cache.
    hit_rate: f64,
    /// `None` if other hosts could not read it.
    digest: Option<LaneDigest>,
}

impl LanePrefixes {
    pub(super) fn new(max_blocks: usize) -> Self {
        Self {
            max_blocks,
            generations: VecDeque::new(),
            next_number: 1,
            bytes_per_token: BYTES_PER_TOKEN,
            hit_rate: 1.0,
            digest: None,
        }
    }

    /// Returns these prefixes with an empty digest.
    pub(super) fn with_digest(self) -> Self {
        Self { digest: Some(LaneDigest::default()), ..self }
    }

    /// Returns what a reader does not have of the digest.
    pub(super) fn digest(&self, cursor: DigestCursor) -> Option<DigestPart> {
        // The cast saturates.
        let milli_tokens = (self.tokens(DIGEST_BLOCKS) * 1000.0) as u32;
        self.digest.as_ref()?.since(cursor, milli_tokens)
    }

    /// Removes from the digest what no generation has.
    fn prune_digest(&mut self) {
        let Self { digest: Some(digest), generations, .. } = self else { return };
        digest.retain(|block| generations.iter().any(|found| found.blocks.contains(block)));
    }

    /// Forgets all blocks. What was learned about the engine still holds for the next one.
    pub(super) fn reset(&mut self, capacity: Option<u64>, max_blocks: usize) {
        self.generations.clear();
        self.prune_digest();
        let blocks = capacity
            .map_or(f64::MAX, |tokens| tokens as f64 * self.bytes_per_token / BLOCK_BYTES as f64);
        // The cast saturates.
        self.max_blocks = max_blocks.min(blocks as usize);
    }

    /// Lowers the maximum number of blocks, because there are more lanes.
    pub(super) fn limit(&mut self, max_blocks: usize) {
        self.max_blocks = self.max_blocks.min(max_blocks);
        self.drop_surplus(usize::MAX);
    }

    /// Drops the oldest generations while there are too many of them or of their blocks.
    fn drop_surplus(&mut self, max_generations: usize) {
        let before = self.generations.len();
        self.generations.truncate(max_generations);
        while self.len() > self.max_blocks && self.generations.len() > 1 {
            self.generations.pop_back();
        }
        if self.generations.len() < before {
            self.prune_digest();
        }
    }

    /// Returns the estimated number of cached tokens of a prompt.
    pub(super) fn cached_tokens(&self, prompt: &[u64]) -> u32 {
        // The cast saturates.
        self.tokens(self.matched(prompt)) as u32
    }

    /// Returns the estimated number of cached tokens in this number of known blocks.
    fn tokens(&self, blocks: usize) -> f64 {
        (blocks * BLOCK_BYTES) as f64 / self.bytes_per_token * self.hit_rate
    }

    /// Returns the number of leading blocks of a prompt that are known.
    pub(super) fn matched(&self, prompt: &[u64]) -> usize {
        let matched = self.generations.iter().map(|generation| generation.matched(prompt));
        matched.max().unwrap_or(0)
    }

    /// Inserts the blocks of a prompt, and returns what was known of it before.
    pub(super) fn insert(&mut self, prompt: &[u64], bytes: u64) -> ServedPrompt {
        let mut served = ServedPrompt { bytes, ..ServedPrompt::default() };
        for (known, generation) in served.known.iter_mut().zip(&self.generations) {
            *known = (generation.number, generation.matched(prompt));
        }
        let prompt = &prompt[..prompt.len().min(self.max_blocks)];
        let quota = self.max_blocks.div_ceil(GENERATIONS);
        let begins = match self.generations.front() {
            None => true,
            Some(newest) => {
                let new = prompt.len().saturating_sub(served.known[0].1);
                !newest.blocks.is_empty() && newest.blocks.len() + new > quota
            }
        };
        if begins {
            let number = self.next_number;
            self.next_number += 1;
            self.generations.push_front(Generation { number, blocks: BlockSet::default() });
        }
        if let Some(newest) = self.generations.front_mut() {
            newest.blocks.extend(prompt);
        }
        self.drop_surplus(GENERATIONS);
        if let Some(digest) = &mut self.digest {
            digest.insert(prompt);
        }
        served
    }

    /// Learns from the engine's report about a served prompt.
    pub(super) fn learn(&mut self, served: &ServedPrompt, prompt_tokens: u32, cached: Option<u32>) {
        if prompt_tokens == 0 || served.bytes == 0 {
            return;
        }
        let bytes_per_token = served.bytes as f64 / f64::from(prompt_tokens);
        self.bytes_per_token += (bytes_per_token - self.bytes_per_token) * SMOOTHING;
        let (Some(cached), known) = (cached, served.known()) else { return };
        if known == 0 {
            return;
        }
        let found = f64::from(cached) * bytes_per_token / BLOCK_BYTES as f64;
        // Tokens are not evenly distributed over a prompt, and engines cache blocks of their own.
        let found = found + 1.0;
        self.hit_rate += ((found / known as f64).min(1.0) - self.hit_rate) * SMOOTHING;
        self.forget(served, found as usize);
    }

    /// Draws the conclusion if the engine did not have block `missing` of a prompt that was known.
    /// The blocks of the prompt itself are cached again, but all that were used no later than the
    /// missing one have probably been evicted before it. The newest generation is kept: much of it
    /// was used later.
    fn forget(&mut self, served: &ServedPrompt, missing: usize) {
        let newest = served.known.iter().find(|(_, blocks)| *blocks > missing);
        if let Some((evicted, _)) = newest {
            let newest = self.generations.front().map_or(0, |generation| generation.number);
            self.generations
                .retain(|generation| generation.number > *evicted || generation.number == newest);
            self.prune_digest();
        }
    }

    /// Returns the number of blocks, counted once per generation.
    pub(super) fn len(&self) -> usize {
        self.generations.iter().map(|generation| generation.blocks.len()).sum()
    }

    /// Returns the number of generations.
    #[cfg(test)]
    pub(super) fn generations(&self) -> usize {
        self.generations.len()
    }

    /// Returns true if no generation has a block of these prompts without the blocks before it.
    #[cfg(test)]
    pub(super) fn is_closed(&self, prompts: &[Vec<u64>]) -> bool {
        self.generations.iter().all(|generation| {
            prompts.iter().all(|prompt| {
                let rest = &prompt[generation.matched(prompt)..];
                rest.iter().all(|block| !generation.blocks.contains(block))
            })
        })
    }
}
