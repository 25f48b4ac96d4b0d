//! The prefix cache of an engine: prompt prefixes that are in its key-value cache.

use std::collections::BTreeMap;

use crate::traffic::ClassId;

/// The maximum number of prefixes. Bounds memory if the model sets no limit in tokens.
const MAX_PREFIXES: usize = 1 << 16;

/// The set of requests that share a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PrefixOwner {
    /// The requests of a class, which share a system prompt.
    Class(ClassId),
    /// The requests of a session, which share its history.
    Session(u64),
}

/// A cache of prefix lengths with least-recently-used eviction.
#[derive(Debug)]
pub(super) struct PrefixCache {
    /// The length of each prefix in tokens, and the sequence number of its last use.
    entries: BTreeMap<PrefixOwner, (u32, u64)>,
    by_last_use: BTreeMap<u64, PrefixOwner>,
    tokens: u64,
    capacity: u64,
    uses: u64,
}

impl PrefixCache {
    /// Creates an empty cache with a capacity in tokens.
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_last_use: BTreeMap::new(),
            tokens: 0,
            capacity,
            uses: 0,
        }
    }

    /// Returns the length of the cached prefix in tokens, without marking it as used.
    pub(super) fn get(&self, owner: PrefixOwner) -> u32 {
        self.entries.get(&owner).map_or(0, |(tokens, _)| *tokens)
    }

    /// Inserts a prefix, or marks it as used and extends it if the new one is longer.
    pub(super) fn insert(&mut self, owner: PrefixOwner, tokens: u32) {
        let before = self.entries.get(&owner).copied();
        if let Some((before, last_use)) = before {
            self.by_last_use.remove(&last_use);
            self.tokens -= u64::from(before);
        }
        let tokens = tokens.max(before.map_or(0, |(tokens, _)| tokens));
        self.uses += 1;
        self.entries.insert(owner, (tokens, self.uses));
        self.by_last_use.insert(self.uses, owner);
        self.tokens += u64::from(tokens);
        while (self.tokens > self.capacity || self.entries.len() > MAX_PREFIXES)
            && let Some((_, oldest)) = self.by_last_use.pop_first()
        {
            let (tokens, _) = self.entries.remove(&oldest).unwrap_or_default();
            self.tokens -= u64::from(tokens);
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.by_last_use.clear();
        self.tokens = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_recently_used_prefix_is_evicted_first() {
        let mut cache = PrefixCache::new(100);
        let session = PrefixOwner::Session;
        cache.insert(session(1), 40);
        cache.insert(session(2), 40);
        cache.insert(session(1), 30);
        assert_eq!(
            (cache.get(session(1)), cache.tokens),
            (40, 80),
            "a cached prefix does not become shorter"
        );
        cache.insert(PrefixOwner::Class(ClassId(1)), 30);
        assert_eq!((cache.get(session(1)), cache.get(session(2)), cache.tokens), (40, 0, 70));
        cache.insert(session(3), 200);
        assert_eq!(
            (cache.get(session(3)), cache.tokens),
            (0, 0),
            "a prefix that does not fit is not cached"
        );
        cache.insert(session(4), 1);
        cache.clear();
        assert_eq!((cache.get(session(4)), cache.tokens, cache.by_last_use.len()), (0, 0, 0));
    }
}
