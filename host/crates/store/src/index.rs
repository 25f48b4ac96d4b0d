//! What a namespace has, in memory: sizes, owners and ages, in the order in which the entries were
//! written. It decides which entries have to go.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::namespace::Namespace;

/// Bytes of an entry besides its key and its value, in memory and in the file.
const OVERHEAD: u64 = 128;

/// What is known of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Arc<[u8]>,
    pub(crate) owner: u64,
    /// When the entry is too old, in milliseconds since 1970.
    pub(crate) expires: u64,
    /// Length of the value.
    pub(crate) value: u32,
}

impl Entry {
    fn bytes(&self) -> u64 {
        self.key.len() as u64 + u64::from(self.value) + OVERHEAD
    }
}

#[derive(Debug, Default)]
struct Owner {
    bytes: u64,
    entries: BTreeSet<u64>,
}

/// The entries of one namespace.
#[derive(Debug)]
pub(crate) struct Index {
    limits: Namespace,
    /// By number: an entry that was written later has a larger one.
    entries: BTreeMap<u64, Entry>,
    numbers: HashMap<Arc<[u8]>, u64>,
    owners: HashMap<u64, Owner>,
    /// The owners by the number of their entries, and by their bytes: the last one has the most.
    by_entries: BTreeSet<(usize, u64)>,
    by_bytes: BTreeSet<(u64, u64)>,
    bytes: u64,
}

impl Index {
    pub(crate) fn new(limits: Namespace) -> Self {
        let (entries, numbers, owners) = Default::default();
        let (by_entries, by_bytes) = Default::default();
        Self { limits, entries, numbers, owners, by_entries, by_bytes, bytes: 0 }
    }

    pub(crate) fn limits(&self) -> &Namespace {
        &self.limits
    }

    /// Returns the bytes of all entries.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the number of entries.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the number of the entry with this key, if it is not too old.
    pub(crate) fn find(&self, key: &[u8], now: u64) -> Option<u64> {
        let number = *self.numbers.get(key)?;
        (self.entries.get(&number)?.expires > now).then_some(number)
    }

    /// Adds an entry, which replaces the one with its key, and returns the keys of those that have
    /// to go for it.
    pub(crate) fn add(&mut self, number: u64, entry: Entry, now: u64) -> Vec<Arc<[u8]>> {
        self.remove(&entry.key);
        let (owner, bytes) = (entry.owner, entry.bytes());
        self.bytes += bytes;
        self.change_owner(owner, |of_owner| {
            of_owner.bytes += bytes;
            of_owner.entries.insert(number);
        });
        self.numbers.insert(Arc::clone(&entry.key), number);
        self.entries.insert(number, entry);
        let mut gone = Vec::new();
        while let Some(key) = self.surplus(owner, number, now) {
            self.remove(&key);
            gone.push(key);
        }
        gone
    }

    /// Changes what is known of an owner.
    fn change_owner(&mut self, owner: u64, change: impl FnOnce(&mut Owner)) {
        let of_owner = self.owners.entry(owner).or_default();
        self.by_entries.remove(&(of_owner.entries.len(), owner));
        self.by_bytes.remove(&(of_owner.bytes, owner));
        change(of_owner);
        if of_owner.entries.is_empty() {
            self.owners.remove(&owner);
            return;
        }
        self.by_entries.insert((of_owner.entries.len(), owner));
        self.by_bytes.insert((of_owner.bytes, owner));
    }

    /// Returns the key of an entry, other than the newest one, that is too old or exceeds a limit.
    /// If a limit of all owners is exceeded, the owner that has the most loses an entry: it cannot
    /// push out those of others.
    fn surplus(&self, owner: u64, newest: u64, now: u64) -> Option<Arc<[u8]>> {
        let limits = &self.limits;
        let (oldest, entry) = self.entries.first_key_value().filter(|(at, _)| **at != newest)?;
        let largest = if entry.expires <= now {
            return Some(Arc::clone(&entry.key));
        } else if self.entries.len() > limits.max_entries {
            self.by_entries.last().map(|(_, owner)| *owner)
        } else if self.bytes > limits.max_bytes {
            self.by_bytes.last().map(|(_, owner)| *owner)
        } else {
            let of_owner = self.owners.get(&owner)?;
            let oldest = of_owner.entries.first().filter(|at| **at != newest)?;
            let exceeds = of_owner.bytes > limits.max_owner_bytes;
            return exceeds.then(|| self.key(*oldest)).flatten();
        };
        // The newest entry stays, also if it is all that the owner has.
        let of_largest = largest.and_then(|owner| self.owners.get(&owner)?.entries.first());
        self.key(*of_largest.filter(|at| **at != newest).unwrap_or(oldest))
    }

    fn key(&self, number: u64) -> Option<Arc<[u8]>> {
        self.entries.get(&number).map(|entry| Arc::clone(&entry.key))
    }

    /// Removes an entry. Returns true if there was one.
    pub(crate) fn remove(&mut self, key: &[u8]) -> bool {
        let Some(number) = self.numbers.remove(key) else { return false };
        let Some(entry) = self.entries.remove(&number) else { return false };
        self.bytes = self.bytes.saturating_sub(entry.bytes());
        self.change_owner(entry.owner, |of_owner| {
            of_owner.bytes = of_owner.bytes.saturating_sub(entry.bytes());
            of_owner.entries.remove(&number);
        });
        true
    }

    /// Removes an entry if it is still the one with this number.
    pub(crate) fn forget(&mut self, key: &[u8], number: u64) {
        if self.numbers.get(key) == Some(&number) {
            self.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn limits() -> Namespace {
        Namespace {
            name: "test",
            max_entries: 8,
            max_bytes: 4000,
            max_owner_bytes: 1500,
            max_value: 1000,
            max_age: Duration::from_secs(1),
        }
    }

    proptest! {
        #[test]
        fn limits_hold_after_every_write(
            writes in prop::collection::vec((0u8..12, 0u64..4, 0u32..1000, 0u64..2000), 0..60),
        ) {
            let mut index = Index::new(limits());
            for (number, (key, owner, value, now)) in (1u64..).zip(writes) {
                let key: Arc<[u8]> = Arc::new([key]);
                let entry = Entry { key: key.clone(), owner, expires: now + 1000, value };
                let gone = index.add(number, entry, now);
                prop_assert!(!gone.contains(&key) && index.find(&key, now) == Some(number));
                prop_assert!(index.len() <= 8 && index.bytes() <= 4000);
                let bytes = |entries: Vec<&Entry>| entries.iter().map(|e| e.bytes()).sum::<u64>();
                prop_assert_eq!(index.bytes(), bytes(index.entries.values().collect()));
                let of_owner = index.entries.values().filter(|entry| entry.owner == owner);
                prop_assert!(bytes(of_owner.collect()) <= 1500);
                let counts = |index: &Index| index.owners.iter().map(|(owner, of_owner)| {
                    (of_owner.entries.len(), *owner)
                }).collect::<BTreeSet<_>>();
                prop_assert_eq!(&index.by_entries, &counts(&index));
                prop_assert_eq!(index.by_bytes.len(), index.owners.len());
            }
        }
    }

    #[test]
    fn old_entries_are_not_found() {
        let mut index = Index::new(limits());
        let entry = Entry { key: Arc::new([1]), owner: 0, expires: 10, value: 1 };
        index.add(1, entry, 0);
        assert_eq!((index.find(&[1], 9), index.find(&[1], 10)), (Some(1), None));
    }

    #[test]
    fn owner_with_many_entries_keeps_none_of_others_out() {
        let wide = Namespace { max_bytes: 1 << 20, max_owner_bytes: 1 << 20, ..limits() };
        let mut index = Index::new(wide);
        let mut number = 0;
        let mut add = |index: &mut Index, owner: u64| {
            number += 1;
            let key: Arc<[u8]> = Arc::from(u64::to_be_bytes(number));
            index.add(number, Entry { key, owner, expires: 100, value: 1 }, 0);
        };
        (0..3).for_each(|_| add(&mut index, 1));
        (0..50).for_each(|_| add(&mut index, 2));
        let of = |index: &Index, owner: u64| index.owners[&owner].entries.len();
        assert_eq!((of(&index, 1), of(&index, 2), index.len()), (3, 5, 8));
        (0..50).for_each(|_| add(&mut index, 1));
        assert_eq!((of(&index, 1), of(&index, 2)), (4, 4));
        // More owners than entries: the oldest go.
        (10..20).for_each(|owner| add(&mut index, owner));
        assert_eq!((index.len(), index.owners.len()), (8, 8));
    }
}
