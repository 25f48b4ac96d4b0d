//! The digest of the prompts of a lane, which other hosts may have: truncated hashes of every
//! fourth block, of which the newest are kept.
//!
//! Other hosts hash a prompt with the same key and look for its blocks in the digest. Without the
//! key, neither a prompt nor whether two lanes have the same one can be told from a digest.
//!
//! Hashes are kept in two halves. One that is in the newer half is not added again, so that prompts
//! that repeat need not be sent again and again; when the newer half is full, it becomes the older
//! one, and what was in that is forgotten. What is in use is therefore added once per half.

use std::collections::HashSet;

use super::PromptHashes;

/// Number of blocks for each hash of a digest: 512 bytes, about 128 tokens.
pub const DIGEST_BLOCKS: usize = 4;

/// Maximum number of hashes in the digest of a lane: 2 MiB of prompts, about 500,000 tokens, in
/// 16 KiB.
pub const MAX_DIGEST: usize = 4096;

/// What a reader of a digest has; the default has nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DigestCursor {
    revision: u64,
    /// Number of hashes of the newer half.
    newer: usize,
}

/// A part of a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestPart {
    /// The reader forgets what it has: the part is the whole digest.
    pub is_whole: bool,
    /// Hashes, in no order.
    pub hashes: Vec<u32>,
    /// Expected cached tokens for each hash of a prompt that is in the digest, in thousandths.
    pub milli_tokens: u32,
    /// What a reader with this part has.
    pub cursor: DigestCursor,
}

/// The digest of a lane.
#[derive(Debug)]
pub(super) struct LaneDigest {
    /// Changes when hashes are forgotten, and is never 0.
    revision: u64,
    /// In the order in which they were added.
    newer: Vec<u64>,
    is_newer: HashSet<u64>,
    older: Vec<u64>,
}

impl Default for LaneDigest {
    fn default() -> Self {
        Self { revision: 1, newer: Vec::new(), is_newer: HashSet::new(), older: Vec::new() }
    }
}

impl LaneDigest {
    /// Adds the blocks of a prompt.
    pub(super) fn insert(&mut self, prompt: &[u64]) {
        // The beginning of a prompt last, so that its end is forgotten first.
        for hash in prompt.iter().skip(DIGEST_BLOCKS - 1).step_by(DIGEST_BLOCKS).rev() {
            if self.newer.len() >= MAX_DIGEST / 2 && !self.is_newer.contains(hash) {
                self.older = std::mem::take(&mut self.newer);
                self.is_newer.clear();
                self.revision += 1;
            }
            if self.is_newer.insert(*hash) {
                self.newer.push(*hash);
            }
        }
    }

    /// Forgets the blocks that are not to be kept.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&u64) -> bool) {
        let before = self.newer.len() + self.older.len();
        self.newer.retain(&is_kept);
        self.is_newer.retain(&is_kept);
        self.older.retain(&is_kept);
        if self.newer.len() + self.older.len() < before {
            self.revision += 1;
        }
    }

    /// Returns what a reader does not have; `None` if it has everything.
    pub(super) fn since(&self, cursor: DigestCursor, milli_tokens: u32) -> Option<DigestPart> {
        let is_whole = cursor.revision != self.revision || cursor.newer > self.newer.len();
        let (older, sent) = if is_whole { (&self.older[..], 0) } else { (&[][..], cursor.newer) };
        if !is_whole && sent == self.newer.len() {
            return None;
        }
        let hashes = older.iter().chain(&self.newer[sent..]).map(|hash| truncated(*hash)).collect();
        let cursor = DigestCursor { revision: self.revision, newer: self.newer.len() };
        Some(DigestPart { is_whole, hashes, milli_tokens, cursor })
    }
}

impl PromptHashes {
    /// Returns how many hashes of a digest the prompt would add.
    pub fn digest_len(&self) -> usize {
        self.blocks.len() / DIGEST_BLOCKS
    }

    /// Returns one of the hashes that a digest has of the prompt, of which the first ones cover its
    /// beginning; `None` after the last one.
    pub fn digest_hash(&self, index: usize) -> Option<u32> {
        let block = index.checked_mul(DIGEST_BLOCKS)?.checked_add(DIGEST_BLOCKS - 1)?;
        self.blocks.get(block).map(|hash| truncated(*hash))
    }
}

/// Returns the low 32 bits of a hash, of which all bits are equally good.
fn truncated(hash: u64) -> u32 {
    (hash & u64::from(u32::MAX)) as u32
}
