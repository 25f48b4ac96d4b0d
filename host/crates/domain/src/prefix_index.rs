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
//! A prompt cannot be recovered from the index: it has no text, only 64-bit hashes with a key of
//! each process, which do not leave its memory. So the hash is a fast one (foldhash), and not a
//! cryptographic one. The index is shared by all tenants, as the caches of the engines are.
//!
//! Hosts of a fleet that share a secret use it as the key instead, and tell each other
//! [digests](DigestPart) of their lanes. These leave the process, so the hash is a pseudorandom
//! function then (SipHash-1-3): without the key, its values tell nothing.
//!
//! Memory is bounded by [`MAX_BLOCKS`], of which each lane has the same share, at about 20 bytes
//! per block. The index is an estimate, and errors are small: a block that is not known costs a
//! prefill, and a block that the engine has evicted is noticed with the next report.

mod digest;
mod lane;

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use foldhash::quality::RandomState;
use siphasher::sip::SipHasher13;

pub use self::digest::{DIGEST_BLOCKS, DigestCursor, DigestPart, MAX_DIGEST};
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

/// A secret that the hosts of a fleet share, by which their hashes of prompts are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FleetKey(pub [u8; 16]);

impl fmt::Debug for FleetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FleetKey")
    }
}

/// Hashes prompts with a key: of this process, or of a fleet.
#[derive(Clone)]
pub struct PromptHasher(Hash);

#[derive(Clone)]
enum Hash {
    Process(RandomState),
    Fleet(SipHasher13),
}

impl fmt::Debug for PromptHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromptHasher").field("is_shared", &self.is_shared()).finish()
    }
}

impl Default for PromptHasher {
    /// Creates a hasher with a new random key.
    fn default() -> Self {
        Self(Hash::Process(RandomState::default()))
    }
}

impl PromptHasher {
    /// Creates the hasher of the hosts of a fleet, whose hashes are the same on all of them.
    pub fn for_fleet(FleetKey(key): &FleetKey) -> Self {
        Self(Hash::Fleet(SipHasher13::new_with_key(key)))
    }

    /// Returns true if other hosts have the same key.
    pub fn is_shared(&self) -> bool {
        matches!(self.0, Hash::Fleet(_))
    }

    /// Hashes a prompt that is the concatenation of `parts`. Engines do not share caches between
    /// models, so the same prompt has other hashes for another model.
    pub fn hash<'a>(&self, model: &str, parts: impl IntoIterator<Item = &'a [u8]>) -> PromptHashes {
        let (mut blocks, mut bytes) = (Blocks::default(), 0);
        let mut chain = self.link(0, model.as_bytes());
        for part in parts {
            bytes += part.len() as u64;
            blocks.split(part, |block| {
                // The hash of a block covers all blocks before it.
                chain = self.link(chain, block);
                chain
            });
        }
        let blocks = blocks.hashes;
        PromptHashes { blocks: blocks.into(), bytes }
    }

    /// Returns the hash of some bytes after those with the hash `chain`.
    fn link(&self, chain: u64, bytes: &[u8]) -> u64 {
        match &self.0 {
            Hash::Process(state) => {
                let mut hasher = state.build_hasher();
                hasher.write_u64(chain);
                hasher.write(bytes);
                hasher.finish()
            }
            Hash::Fleet(keyed) => {
                // Bytes in a fixed order, so that all machines have the same hash.
                let mut hasher = *keyed;
                hasher.write(&chain.to_le_bytes());
                hasher.write(bytes);
                hasher.finish()
            }
        }
    }
}

/// Splits a prompt that comes in parts into blocks.
#[derive(Debug)]
struct Blocks {
    hashes: Vec<u64>,
    /// The beginning of a block that continues in the next part, and its length.
    begun: ([u8; BLOCK_BYTES], usize),
}

impl Default for Blocks {
    fn default() -> Self {
        Self { hashes: Vec::new(), begun: ([0; BLOCK_BYTES], 0) }
    }
}

impl Blocks {
    fn split(&mut self, mut part: &[u8], mut hash: impl FnMut(&[u8]) -> u64) {
        let (begun, len) = &mut self.begun;
        if *len > 0 {
            let (end, rest) = part.split_at(part.len().min(BLOCK_BYTES - *len));
            begun[*len..*len + end.len()].copy_from_slice(end);
            (*len, part) = (*len + end.len(), rest);
            if *len < BLOCK_BYTES {
                return;
            }
            *len = 0;
            if self.hashes.len() < MAX_PROMPT_BLOCKS {
                self.hashes.push(hash(begun));
            }
        }
        let (whole, rest) = part.as_chunks::<BLOCK_BYTES>();
        let whole = &whole[..whole.len().min(MAX_PROMPT_BLOCKS - self.hashes.len())];
        self.hashes.extend(whole.iter().map(|block| hash(block)));
        begun[..rest.len()].copy_from_slice(rest);
        *len = rest.len();
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

/// What another host says that the engine of a lane has cached, for prompts that are hashed with a
/// key which both hosts have.
pub trait CachedPrompts: fmt::Debug + Send + Sync {
    /// Returns the estimated number of tokens of a prompt that are cached.
    fn cached_tokens(&self, prompt: &PromptHashes) -> u32;
}

/// The prompts that each lane of a topology has served.
#[derive(Debug)]
pub struct PrefixIndex {
    hasher: PromptHasher,
    /// By lane id. The lock is only written to when lanes are added.
    lanes: RwLock<Vec<Mutex<LanePrefixes>>>,
    /// What other hosts say of their lanes.
    remote: RwLock<HashMap<LaneId, Arc<dyn CachedPrompts>>>,
}

impl PrefixIndex {
    /// Creates an empty index for this number of lanes.
    pub fn new(lanes: usize) -> Self {
        Self::with_hasher(lanes, PromptHasher::default())
    }

    /// Creates an empty index for this number of lanes. It has digests for other hosts if they have
    /// the same hasher.
    pub fn with_hasher(lanes: usize, hasher: PromptHasher) -> Self {
        let index = Self { hasher, lanes: RwLock::default(), remote: RwLock::default() };
        index.grow(lanes);
        index
    }

    /// Adds lanes until there are this many.
    pub fn grow(&self, lanes: usize) {
        let mut all = self.lanes.write().unwrap_or_else(PoisonError::into_inner);
        let max_blocks = max_lane_blocks(lanes.max(all.len()));
        while all.len() < lanes {
            all.push(Mutex::new(self.lane(max_blocks)));
        }
        for lane in all.iter_mut() {
            lane.get_mut().unwrap_or_else(PoisonError::into_inner).limit(max_blocks);
        }
    }

    /// Forgets everything about a lane, whose id another lane gets.
    pub fn replace(&self, lane: LaneId) {
        let new = |lane: &mut LanePrefixes, max| *lane = self.lane(max);
        self.with_lane(lane, new);
    }

    fn lane(&self, max_blocks: usize) -> LanePrefixes {
        let lane = LanePrefixes::new(max_blocks);
        if self.hasher.is_shared() { lane.with_digest() } else { lane }
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
        let own = self.with_lane(lane, |lane, _| lane.cached_tokens(&prompt.blocks)).unwrap_or(0);
        if !self.hasher.is_shared() {
            return own;
        }
        let remote = self.remote.read().unwrap_or_else(PoisonError::into_inner);
        // Requests that were sent from here lately are not in what the other host has said.
        remote.get(&lane).map_or(own, |remote| own.max(remote.cached_tokens(prompt)))
    }

    /// Sets what another host says that the engine of a lane has cached; `None` for a lane of this
    /// host.
    pub fn set_remote(&self, lane: LaneId, cached: Option<Arc<dyn CachedPrompts>>) {
        let mut remote = self.remote.write().unwrap_or_else(PoisonError::into_inner);
        match cached {
            Some(cached) => drop(remote.insert(lane, cached)),
            None => drop(remote.remove(&lane)),
        }
    }

    /// Notes that a lane's engine has processed a prompt, which is in its prefix cache now.
    pub fn served(&self, lane: LaneId, prompt: &PromptHashes) -> ServedPrompt {
        let served = |lane: &mut LanePrefixes, _| lane.insert(&prompt.blocks, prompt.bytes);
        self.with_lane(lane, served).unwrap_or_default()
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
        self.with_lane(lane, |lane, _| lane.learn(served, prompt_tokens, cached));
    }

    /// Forgets the prompts of a lane whose engine has started, has ended, or sleeps. `capacity` is
    /// the size of the engine's cache in tokens, if it is known.
    pub fn reset(&self, lane: LaneId, capacity: Option<u64>) {
        self.with_lane(lane, |lane, max_blocks| lane.reset(capacity, max_blocks));
    }

    /// Returns what a reader with `cursor` does not have of the digest of a lane; `None` if it has
    /// everything, or if other hosts could not read it. After [`PrefixIndex::replace`], a reader
    /// has to begin again.
    pub fn digest(&self, lane: LaneId, cursor: DigestCursor) -> Option<DigestPart> {
        self.with_lane(lane, |lane, _| lane.digest(cursor)).flatten()
    }

    /// Returns what `use_lane` returns for a lane and the maximum number of its blocks.
    fn with_lane<T>(
        &self,
        lane: LaneId,
        use_lane: impl FnOnce(&mut LanePrefixes, usize) -> T,
    ) -> Option<T> {
        let lanes = self.lanes.read().unwrap_or_else(PoisonError::into_inner);
        // A panic within one of the short operations cannot leave more than a wrong estimate.
        let mut prefixes = lanes.get(lane.index())?.lock().unwrap_or_else(PoisonError::into_inner);
        Some(use_lane(&mut prefixes, max_lane_blocks(lanes.len())))
    }
}

/// Returns the maximum number of blocks of one of this many lanes.
fn max_lane_blocks(lanes: usize) -> usize {
    (MAX_BLOCKS / lanes.max(1)).min(MAX_LANE_BLOCKS)
}

#[cfg(test)]
mod tests;
