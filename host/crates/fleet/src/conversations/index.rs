//! The saved conversations: what is known of each file, which one serves a prompt best, and which
//! ones go when the budget is exceeded. Without I/O.

use std::collections::BTreeMap;
use std::time::Duration;

use super::plan::{ConversationPrompt, FileId, Owner, Stored, continues};

/// Maximum number of saved conversations, whatever their size: each takes up to 32 KiB of memory
/// for the hashes of its prompt.
const MAX_FILES: usize = 1024;

/// What is known of a saved conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) lane: String,
    /// The model, the engine and their settings; see [`super::engine::fingerprint`].
    pub(super) fingerprint: u64,
    pub(super) prompt: ConversationPrompt,
    pub(super) prompt_tokens: u32,
    /// Tokens in the file, as the engine reported them.
    pub(super) saved_tokens: u32,
    pub(super) bytes: u64,
    /// When it was saved or restored last, since the Unix epoch.
    pub(super) used: Duration,
}

/// Limits of what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    pub(super) bytes: u64,
    pub(super) age: Duration,
}

#[derive(Debug)]
pub(super) struct Index {
    records: BTreeMap<FileId, Record>,
    budget: Budget,
    share_tenants: bool,
}

/// A file to delete.
pub(super) type Evicted = (FileId, Record);

impl Index {
    pub(super) fn new(budget: Budget, share_tenants: bool) -> Self {
        Self { records: BTreeMap::new(), budget, share_tenants }
    }

    /// Returns the saved conversation with most of a prompt, if that are at least `min_tokens`.
    pub(super) fn best(
        &self,
        lane: &str,
        fingerprint: u64,
        prompt: &ConversationPrompt,
        min_tokens: u32,
    ) -> Option<Stored> {
        let fits = |record: &&Record| {
            let is_own = record.prompt.owner.tenant == prompt.owner.tenant;
            record.lane == lane
                && record.fingerprint == fingerprint
                && (is_own || self.share_tenants)
        };
        let stored = |(file, record): (&FileId, &Record)| {
            let common = prompt.common(&record.prompt.blocks);
            let is_worth = continues(common, record.prompt.blocks.len())
                && record.expected_tokens(common) >= min_tokens;
            is_worth.then_some((common, record.used, Stored { file: *file, common }))
        };
        let all = self.records.iter().filter(|(_, record)| fits(record));
        let best = all.filter_map(stored).max_by_key(|(common, used, _)| (*common, *used));
        best.map(|(_, _, stored)| stored)
    }

    /// Adds a saved conversation. Returns the files to delete: earlier turns of it, and those that
    /// were not used for longest if the budget is exceeded, which may be the new one.
    pub(super) fn insert(&mut self, file: FileId, record: Record, now: Duration) -> Vec<Evicted> {
        let is_earlier = |other: &Record| {
            let blocks = &other.prompt.blocks;
            other.lane == record.lane
                && other.prompt.owner.tenant == record.prompt.owner.tenant
                && other.fingerprint == record.fingerprint
                && record.prompt.common(blocks) == blocks.len()
        };
        let mut evicted = self.take_if(|other| is_earlier(other));
        self.records.insert(file, record);
        evicted.extend(self.enforce(now));
        evicted
    }

    /// Returns the files to delete so that the rest is within the budget.
    pub(super) fn enforce(&mut self, now: Duration) -> Vec<Evicted> {
        let oldest = now.saturating_sub(self.budget.age);
        let mut evicted = self.take_if(|record| record.used < oldest);
        let mut bytes = self.bytes(None);
        while bytes > self.budget.bytes || self.records.len() > MAX_FILES {
            let last = self.records.iter().min_by_key(|(_, record)| record.used);
            let Some(file) = last.map(|(file, _)| *file) else { break };
            let Some(record) = self.records.remove(&file) else { break };
            bytes = bytes.saturating_sub(record.bytes);
            evicted.push((file, record));
        }
        evicted
    }

    /// Removes the files of owners, and returns them.
    pub(super) fn erase(&mut self, is_erased: impl Fn(&Owner) -> bool) -> Vec<Evicted> {
        self.take_if(|record| is_erased(&record.prompt.owner))
    }

    /// Removes a file.
    pub(super) fn remove(&mut self, file: FileId) -> Option<Record> {
        self.records.remove(&file)
    }

    pub(super) fn get(&self, file: FileId) -> Option<&Record> {
        self.records.get(&file)
    }

    /// Notes that a file was used.
    pub(super) fn touch(&mut self, file: FileId, now: Duration) -> Option<&Record> {
        let record = self.records.get_mut(&file)?;
        record.used = now;
        Some(record)
    }

    /// Returns the number of files of a lane.
    pub(super) fn files(&self, lane: &str) -> usize {
        self.records.values().filter(|record| record.lane == lane).count()
    }

    /// Returns the bytes of the files of a lane, or of all.
    pub(super) fn bytes(&self, lane: Option<&str>) -> u64 {
        let of_lane = |record: &&Record| lane.is_none_or(|lane| record.lane == lane);
        // Saturating: the sizes are read from files that could be damaged.
        self.records
            .values()
            .filter(of_lane)
            .fold(0, |sum, record| sum.saturating_add(record.bytes))
    }

    fn take_if(&mut self, is_taken: impl Fn(&Record) -> bool) -> Vec<Evicted> {
        self.records.extract_if(.., |_, record| is_taken(record)).collect()
    }
}

impl Record {
    /// Returns how many tokens the engine should find in its cache for a prompt that has so many
    /// leading blocks in common.
    pub(super) fn expected_tokens(&self, common: usize) -> u32 {
        let all = self.prompt.blocks.len().max(1) as u64;
        let tokens = u64::from(self.prompt_tokens) * (common as u64).min(all) / all;
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
