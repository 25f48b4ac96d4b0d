//! Which slot of an engine a request gets, what is restored into it before, and which slots are
//! worth saving. Without I/O: files are known by their [`Stored`] facts only.
//!
//! A conversation is recognised by its prompt: a later turn begins with the prompt of an earlier
//! one. Prompts are compared by the hashes of their leading blocks, of which each covers all blocks
//! before it, so that the common prefix of two prompts is found by bisection.

use std::sync::Arc;

/// Whose prompts and caches these are. Caches are not shared between tenants, unless the operator
/// allows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Owner {
    /// The tenant; `None` for a host without keys.
    pub tenant: Option<Arc<str>>,
    /// The name of the key.
    pub key: Option<Arc<str>>,
}

/// A prompt, as far as caches of its prefixes are concerned.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConversationPrompt {
    /// Who sent it.
    pub owner: Owner,
    /// Chained hashes of its leading blocks; the same in every process.
    pub blocks: Arc<[u64]>,
}

impl ConversationPrompt {
    /// Returns the number of leading blocks that two prompts have in common.
    pub(super) fn common(&self, other: &[u64]) -> usize {
        let longest = self.blocks.len().min(other.len());
        // Chained: once two blocks differ, all later ones do.
        let (mut same, mut different) = (0, longest);
        while same < different {
            let middle = usize::midpoint(same, different);
            if self.blocks[middle] == other[middle] {
                same = middle + 1;
            } else {
                different = middle;
            }
        }
        same
    }
}

/// Returns true if a prompt with `common` leading blocks of a cached prompt of `cached` blocks goes
/// on with it: with less than half, more of the cache would be lost than gained.
pub(super) fn continues(common: usize, cached: usize) -> bool {
    common > 0 && common * 2 >= cached
}

/// A saved conversation that a prompt goes on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) file: FileId,
    /// Leading blocks that it has in common with the prompt.
    pub(super) common: usize,
}

/// The id of a saved conversation, which is also the name of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct FileId(pub(super) u128);

impl std::fmt::Display for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a slot has cached, as far as the host knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) prompt: ConversationPrompt,
    /// Tokens of the prompt.
    pub(super) prompt_tokens: u32,
    /// Tokens of the prompt and of the response; 0 if the engine has not said so, because the
    /// request did not end well. The slot then probably has the prompt, but is not worth saving.
    pub(super) tokens: u32,
    /// The file with exactly this content.
    pub(super) file: Option<FileId>,
}

impl Held {
    /// Returns true if no file has this content, and it could be recognised again: its prompt has a
    /// whole block.
    fn is_unsaved(&self) -> bool {
        self.file.is_none() && self.tokens > 0 && !self.prompt.blocks.is_empty()
    }

    /// Returns true if a slot with so many tokens can have this content. The last token of a
    /// response is not in the cache; with speculative decoding, a few more can be.
    pub(super) fn can_have(&self, saved: u32) -> bool {
        saved.saturating_add(1) >= self.prompt_tokens && saved <= self.tokens.saturating_add(8)
    }
}

#[derive(Debug, Clone, Default)]
struct SlotState {
    is_busy: bool,
    /// When the slot was assigned last, in assignments; 0 if never.
    used: u64,
    /// `None` if the host knows of nothing that is cached.
    held: Option<Held>,
}

/// The slots of one start of an engine.
#[derive(Debug)]
pub(super) struct SlotTable {
    slots: Vec<SlotState>,
    assignments: u64,
    share_tenants: bool,
}

/// The slot of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placement {
    pub(super) slot: u32,
    /// The file to restore before the request is sent.
    pub(super) restore: Option<Stored>,
    /// What the restore overwrites, and what no file has: it is saved before.
    pub(super) overwritten: Option<Held>,
}

impl SlotTable {
    pub(super) fn new(slots: u32, share_tenants: bool) -> Self {
        let slots = vec![SlotState::default(); slots as usize];
        Self { slots, assignments: 0, share_tenants }
    }

    /// Assigns a free slot to a request: that of its own conversation, else an unused one, else
    /// the one that was not used for longest. `stored` is the best saved conversation; it is
    /// restored if no free slot has as much of the prompt. Returns `None` if no slot is free: the
    /// engine has fewer slots than the lane.
    pub(super) fn place(
        &mut self,
        prompt: &ConversationPrompt,
        stored: Option<Stored>,
    ) -> Option<Placement> {
        let own = (0..self.slots.len())
            .filter_map(|slot| Some((self.common(slot, prompt)?, slot)))
            .max_by_key(|(common, slot)| (*common, std::cmp::Reverse(*slot)));
        let restore = stored.filter(|stored| own.is_none_or(|(common, _)| stored.common > common));
        let slot = match own {
            Some((_, slot)) => slot,
            None => {
                let free = (0..self.slots.len()).filter(|slot| !self.slots[*slot].is_busy);
                // A slot with nothing is used before one that can be of use again.
                free.min_by_key(|slot| {
                    (self.slots[*slot].held.is_some(), self.slots[*slot].used, *slot)
                })?
            }
        };
        self.assignments += 1;
        let state = &mut self.slots[slot];
        (state.is_busy, state.used) = (true, self.assignments);
        let held = state.held.take();
        let overwritten = held.filter(|held| restore.is_some() && held.is_unsaved());
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        Some(Placement { slot, restore, overwritten })
    }

    /// Returns the common prefix of a prompt and a free slot of its own conversation.
    fn common(&self, slot: usize, prompt: &ConversationPrompt) -> Option<usize> {
        let state = &self.slots[slot];
        let held = state.held.as_ref().filter(|_| !state.is_busy)?;
        if !self.share_tenants && held.prompt.owner.tenant != prompt.owner.tenant {
            return None;
        }
        let common = prompt.common(&held.prompt.blocks);
        continues(common, held.prompt.blocks.len()).then_some(common)
    }

    /// Frees a slot. `held` is what it has cached now, if that is known.
    pub(super) fn release(&mut self, slot: u32, held: Option<Held>) {
        if let Some(state) = self.slots.get_mut(slot as usize) {
            (state.is_busy, state.held) = (false, held);
        }
    }

    /// Takes the free slots with at least `min_tokens` that no file has, those used last first:
    /// they are busy until they are released.
    pub(super) fn take_unsaved(&mut self, min_tokens: u32) -> Vec<(u32, Held)> {
        let mut unsaved: Vec<usize> = (0..self.slots.len())
            .filter(|slot| {
                let SlotState { is_busy, held, .. } = &self.slots[*slot];
                let is_worth = |held: &Held| held.is_unsaved() && held.tokens >= min_tokens;
                !is_busy && held.as_ref().is_some_and(is_worth)
            })
            .collect();
        unsaved.sort_by_key(|slot| std::cmp::Reverse(self.slots[*slot].used));
        unsaved
            .into_iter()
            .filter_map(|slot| {
                let state = &mut self.slots[slot];
                state.is_busy = true;
                Some((u32::try_from(slot).ok()?, state.held.take()?))
            })
            .collect()
    }

    /// Forgets what slots have cached for the owners that `is_erased` selects.
    pub(super) fn forget(&mut self, is_erased: impl Fn(&Owner) -> bool) {
        for state in &mut self.slots {
            state.held.take_if(|held| is_erased(&held.prompt.owner));
        }
    }

    #[cfg(test)]
    pub(super) fn busy(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_busy).count()
    }
}

#[cfg(test)]
mod tests;
