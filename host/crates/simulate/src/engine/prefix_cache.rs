//! Beginnings of prompts that an engine has in its key-value cache.

use std::collections::BTreeMap;

use crate::traffic::ClassId;

/// Most beginnings that are kept where tokens set no limit.
const MOST: usize = 1 << 16;

/// Whose prompts begin so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    /// Those of a class: a system prompt.
    Class(ClassId),
    /// Those of a session: its history.
    Session(u64),
}

/// The beginnings, of which the one that was used longest ago goes first.
#[derive(Debug)]
pub(super) struct Cache {
    held: BTreeMap<Owner, (u32, u64)>,
    used: BTreeMap<u64, Owner>,
    tokens: u64,
    most: u64,
    uses: u64,
}

impl Cache {
    /// Of at most so many tokens.
    pub(super) fn new(most: u64) -> Self {
        Self { held: BTreeMap::new(), used: BTreeMap::new(), tokens: 0, most, uses: 0 }
    }

    /// How many tokens of the beginning are here.
    pub(super) fn held(&self, owner: Owner) -> u32 {
        self.held.get(&owner).map_or(0, |(tokens, _)| *tokens)
    }

    /// So many tokens of the beginning are here now.
    pub(super) fn keep(&mut self, owner: Owner, tokens: u32) {
        let before = self.held.get(&owner).copied();
        if let Some((before, used)) = before {
            self.used.remove(&used);
            self.tokens -= u64::from(before);
        }
        let tokens = tokens.max(before.map_or(0, |(tokens, _)| tokens));
        self.uses += 1;
        self.held.insert(owner, (tokens, self.uses));
        self.used.insert(self.uses, owner);
        self.tokens += u64::from(tokens);
        while (self.tokens > self.most || self.held.len() > MOST)
            && let Some((_, oldest)) = self.used.pop_first()
        {
            let (tokens, _) = self.held.remove(&oldest).unwrap_or_default();
            self.tokens -= u64::from(tokens);
        }
    }

    pub(super) fn clear(&mut self) {
        self.held.clear();
        self.used.clear();
        self.tokens = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut cache = Cache::new(100);
        let session = Owner::Session;
        cache.keep(session(1), 40);
        cache.keep(session(2), 40);
        cache.keep(session(1), 30);
        assert_eq!(
            (cache.held(session(1)), cache.tokens),
            (40, 80),
            "what is there does not get shorter"
        );
        cache.keep(Owner::Class(ClassId(1)), 30);
        assert_eq!((cache.held(session(1)), cache.held(session(2)), cache.tokens), (40, 0, 70));
        cache.keep(session(3), 200);
        assert_eq!((cache.held(session(3)), cache.tokens), (0, 0), "what does not fit is not kept");
        cache.keep(session(4), 1);
        cache.clear();
        assert_eq!((cache.held(session(4)), cache.tokens, cache.used.len()), (0, 0, 0));
    }
}
