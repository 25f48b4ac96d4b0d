//! What the engine of a lane has cached, as another host tells it: hashes of prompts.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use pointsman_domain::{DigestPart, MAX_DIGEST, PromptHashes};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What has changed of the digest of a lane.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct DigestChange {
    /// The reader forgets what it has: the hashes are all that there are.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub whole: bool,
    /// Expected cached tokens for each hash of a prompt that is in the digest, in thousandths.
    pub milli_tokens: u32,
    /// The hashes: in JSON, base64 of four bytes each, the lowest byte first.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub hashes: Vec<u32>,
}

impl DigestChange {
    pub(crate) fn is_too_large(&self) -> bool {
        self.hashes.len() > MAX_DIGEST
    }
}

impl From<DigestPart> for DigestChange {
    fn from(part: DigestPart) -> Self {
        let DigestPart { is_whole, hashes, milli_tokens, cursor: _ } = part;
        Self { whole: is_whole, milli_tokens, hashes }
    }
}

/// The digest of a lane of another host: hashes of the blocks of prompts that its engine has
/// probably cached, with the key that the hosts share.
///
/// A prompt is looked up by bisection, so that up to ten of its hashes are compared with at most
/// [`MAX_DIGEST`] of 32 bits. That finds a hash that was never added with a probability of at most
/// 4096 / 2^32, about one in a million; the estimate is then too high by less than the prompt.
/// Besides, it is too low for what the host has forgotten, and for the last incomplete 512 bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Digest {
    /// Sorted, without duplicates; at most [`MAX_DIGEST`]. Shared, so that a copy of a digest that
    /// does not change costs nothing.
    hashes: Arc<Vec<u32>>,
    milli_tokens: u32,
}

impl Digest {
    /// Takes a change. What does not fit any more is ignored: a host with the same limits sends the
    /// whole digest before.
    pub fn apply(&mut self, change: &DigestChange) {
        if change.whole {
            self.hashes = Arc::default();
        }
        self.milli_tokens = change.milli_tokens;
        let left = MAX_DIGEST - self.hashes.len();
        let taken = change.hashes.iter().copied().take(left);
        let mut added: Vec<u32> = taken.filter(|hash| !self.contains(*hash)).collect();
        if added.is_empty() {
            return;
        }
        added.sort_unstable();
        added.dedup();
        let hashes = Arc::make_mut(&mut self.hashes);
        hashes.append(&mut added);
        // Stable, because that sort merges the two sorted parts in linear time.
        #[expect(clippy::stable_sort_primitive, reason = "it is the faster one here")]
        hashes.sort();
    }

    /// Returns true if a copy has the same value, without comparing the hashes: false negatives are
    /// possible.
    pub fn is_unchanged(&self, copy: &Self) -> bool {
        Arc::ptr_eq(&self.hashes, &copy.hashes) && self.milli_tokens == copy.milli_tokens
    }

    /// Returns the expected number of tokens of a prompt that the lane has cached. The hashes of
    /// the prompt have to be those of the key that the hosts share.
    pub fn cached_tokens(&self, prompt: &PromptHashes) -> u32 {
        let is_known = |index| prompt.digest_hash(index).is_some_and(|hash| self.contains(hash));
        let (mut known, mut unknown) = (0, prompt.digest_len());
        while known < unknown {
            let middle = known.midpoint(unknown);
            if is_known(middle) { known = middle + 1 } else { unknown = middle }
        }
        let tokens = known as u64 * u64::from(self.milli_tokens) / 1000;
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// Returns true if a hash is in the digest.
    pub fn contains(&self, hash: u32) -> bool {
        self.hashes.binary_search(&hash).is_ok()
    }

    /// Returns the number of hashes.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Returns true if nothing is known to be cached.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digest").field("len", &self.len()).finish_non_exhaustive()
    }
}

fn to_base64<S: Serializer>(hashes: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
    serializer.serialize_str(&STANDARD_NO_PAD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = STANDARD_NO_PAD.decode(text).map_err(|_| de::Error::custom("invalid base64"))?;
    let (hashes, rest) = bytes.as_chunks::<4>();
    match rest.is_empty() {
        true => Ok(hashes.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()),
        false => Err(de::Error::custom("expected four bytes for each hash")),
    }
}
