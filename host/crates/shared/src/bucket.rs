//! A part of the entries of a namespace, which is in one slot of a cluster.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::batch::{BatchReply, Item, Kind, Op};
use crate::counter::Counter;
use crate::entry::{Entry, EntryValue};
use crate::stamp::Stamp;
use crate::usage::{Now, Usage};
use crate::value::Value;

/// The weight of an entry beyond its key and value.
const ENTRY_OVERHEAD: usize = 100;

#[derive(Debug)]
pub(crate) struct Bucket {
    entries: HashMap<(Kind, Arc<str>), Cell>,
    /// Entries that may have to be sent or refreshed.
    active: VecDeque<(Kind, Arc<str>)>,
    weight: usize,
    max_weight: usize,
    max_entries: usize,
    /// Changes that were given up, because there were too many.
    dropped: u64,
}

#[derive(Debug)]
enum Cell {
    Counter(Counter),
    Value(Value),
}

impl Bucket {
    pub(crate) fn new(max_weight: usize, max_entries: usize) -> Self {
        Self {
            entries: HashMap::new(),
            active: VecDeque::new(),
            weight: 0,
            max_weight,
            max_entries: max_entries.max(1),
            dropped: 0,
        }
    }

    /// Adds to a counter and returns its total. `field` names a counter that is new here.
    pub(crate) fn add(
        &mut self,
        key: &str,
        (delta, ttl): (i64, u64),
        field: impl FnOnce() -> Arc<str>,
        now: Now,
    ) -> i64 {
        let counter = self.counter(key, field, now);
        counter.add(delta, ttl, now)
    }

    /// Returns the total of a counter, and asks the store for it.
    pub(crate) fn total(&mut self, key: &str, field: impl FnOnce() -> Arc<str>, now: Now) -> i64 {
        self.counter(key, field, now).total()
    }

    /// Removes a counter.
    pub(crate) fn reset(
        &mut self,
        key: &str,
        stamp: Stamp,
        field: impl FnOnce() -> Arc<str>,
        now: Now,
    ) {
        self.counter(key, field, now).reset(stamp);
    }

    /// Writes a value, or its removal.
    pub(crate) fn write(
        &mut self,
        key: &str,
        stamp: Stamp,
        (bytes, ttl): (Option<Arc<[u8]>>, u64),
        now: Now,
    ) {
        let size = |value: &Value| value.get().map_or(0, |bytes| bytes.len());
        let value = self.value(key, now);
        let before = size(value);
        value.write(stamp, bytes, ttl, now);
        let after = size(value);
        self.weight = self.weight.saturating_sub(before).saturating_add(after);
        self.shrink(now);
    }

    /// Returns a value, and asks the store for a newer one.
    pub(crate) fn get(&mut self, key: &str, now: Now) -> Option<Arc<[u8]>> {
        self.value(key, now).get().cloned()
    }

    /// Returns true if there is such an entry, which is not a use of it.
    pub(crate) fn has(&self, kind: Kind, key: &str, now: Now) -> bool {
        let cell = self.entries.get(&(kind, Arc::from(key)));
        cell.is_some_and(|cell| !cell.is_absent() && !cell.is_expired(now))
    }

    /// Returns what is to be sent, in at most `max` items: changes, and questions for entries in
    /// use. Entries that have expired are removed.
    pub(crate) fn collect(&mut self, max: usize, now: Now) -> Vec<Item> {
        let mut items = Vec::new();
        if self.active.len() > 2 * self.entries.len() + 16 {
            // Entries that were removed and created again are listed more than once.
            let mut seen = HashSet::new();
            self.active.retain(|id| seen.insert(id.clone()));
        }
        for _ in 0..self.active.len() {
            if items.len() >= max {
                break;
            }
            let Some(id) = self.active.pop_front() else { break };
            let Some(cell) = self.entries.get_mut(&id) else { continue };
            if cell.is_expired(now) {
                self.remove(&id);
                continue;
            }
            if cell.usage().take_due(now) || cell.is_dirty() {
                items.push(Item { key: Arc::clone(&id.1), op: cell.op(now) });
            }
            if cell.is_dirty() || cell.usage().is_warm(now) {
                self.active.push_back(id);
            } else if cell.is_absent() {
                self.remove(&id);
            } else {
                cell.usage().is_listed = false;
            }
        }
        items
    }

    /// Takes up the reply to items. `observe` gets the stamps of other replicas.
    pub(crate) fn apply(
        &mut self,
        items: &[Item],
        reply: &BatchReply,
        now: Now,
        mut observe: impl FnMut(Stamp),
    ) {
        for (item, got) in items.iter().zip(&reply.items) {
            let id = (item.op.kind(), Arc::clone(&item.key));
            let Some(cell) = self.entries.get_mut(&id) else { continue };
            match (cell, &item.op) {
                (Cell::Counter(counter), Op::Count(sent)) => {
                    let epoch = counter.apply(sent, got, reply.now, now);
                    epoch.into_iter().for_each(&mut observe);
                }
                (Cell::Value(value), Op::Write(_) | Op::Read(_)) => {
                    let sent = match &item.op {
                        Op::Write(write) => Some(write.stamp),
                        Op::Read(stamp) => *stamp,
                        Op::Count(_) => None,
                    };
                    let before = value.get().map_or(0, |bytes| bytes.len());
                    value.apply(sent, got, reply.now, now).into_iter().for_each(&mut observe);
                    let after = value.get().map_or(0, |bytes| bytes.len());
                    self.weight = self.weight.saturating_sub(before).saturating_add(after);
                }
                (Cell::Counter(_), Op::Write(_) | Op::Read(_)) | (Cell::Value(_), Op::Count(_)) => {
                }
            }
            // A value that the store has lost is sent once more.
            self.list(id);
        }
        self.shrink(now);
    }

    /// Asks for an entry that the store has.
    pub(crate) fn discover(
        &mut self,
        kind: Kind,
        key: &str,
        field: impl FnOnce() -> Arc<str>,
        now: Now,
    ) {
        match kind {
            Kind::Counter => _ = self.counter(key, field, now),
            Kind::Value => _ = self.value(key, now),
        }
    }

    /// Returns the number of entries with changes that are not confirmed.
    pub(crate) fn pending(&self) -> usize {
        self.entries.values().filter(|cell| cell.is_dirty()).count()
    }

    /// Returns how many changes were given up.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Returns all entries.
    pub(crate) fn entries(&self, now: Now) -> Vec<Entry> {
        let entry = |((_, key), cell): (&(Kind, Arc<str>), &Cell)| {
            if cell.is_absent() || cell.is_expired(now) {
                return None;
            }
            let (value, left) = match cell {
                Cell::Counter(counter) => (EntryValue::Counter(counter.total()), counter.left(now)),
                Cell::Value(value) => (EntryValue::Bytes(value.get()?.to_vec()), value.left(now)),
            };
            let expires_ms = left.map(|left| now.wall.saturating_add(left));
            Some(Entry { key: key.to_string(), value, expires_ms })
        };
        self.entries.iter().filter_map(entry).collect()
    }

    fn counter(&mut self, key: &str, field: impl FnOnce() -> Arc<str>, now: Now) -> &mut Counter {
        let cell = self.cell(Kind::Counter, key, || Cell::Counter(Counter::new(field())), now);
        match cell {
            Cell::Counter(counter) => counter,
            Cell::Value(_) => unreachable!("the kind is part of the key"),
        }
    }

    fn value(&mut self, key: &str, now: Now) -> &mut Value {
        match self.cell(Kind::Value, key, || Cell::Value(Value::default()), now) {
            Cell::Value(value) => value,
            Cell::Counter(_) => unreachable!("the kind is part of the key"),
        }
    }

    /// Returns an entry that is in use now; one that has expired begins again.
    fn cell(&mut self, kind: Kind, key: &str, new: impl FnOnce() -> Cell, now: Now) -> &mut Cell {
        let id = (kind, Arc::<str>::from(key));
        if self.entries.get(&id).is_some_and(|cell| cell.is_expired(now)) {
            self.remove(&id);
        }
        if !self.entries.contains_key(&id) {
            self.weight += key.len() + ENTRY_OVERHEAD;
            self.make_room(now);
        }
        let cell = self.entries.entry((kind, Arc::clone(&id.1))).or_insert_with(new);
        cell.usage().touch(now);
        if !std::mem::replace(&mut cell.usage().is_listed, true) {
            self.active.push_back(id);
        }
        cell
    }

    /// Adds an entry to those that may have to be sent or refreshed.
    fn list(&mut self, id: (Kind, Arc<str>)) {
        if let Some(cell) = self.entries.get_mut(&id)
            && !std::mem::replace(&mut cell.usage().is_listed, true)
        {
            self.active.push_back(id);
        }
    }

    fn remove(&mut self, id: &(Kind, Arc<str>)) {
        if let Some(cell) = self.entries.remove(id) {
            self.weight = self.weight.saturating_sub(id.1.len() + ENTRY_OVERHEAD + cell.size());
        }
    }

    fn make_room(&mut self, now: Now) {
        while self.entries.len() >= self.max_entries && self.evict(now) {}
        self.shrink(now);
    }

    fn shrink(&mut self, now: Now) {
        while self.weight > self.max_weight && self.entries.len() > 1 && self.evict(now) {}
    }

    /// Removes entries that have expired, or else the one without changes that was not used for the
    /// longest time, or else the one with changes.
    fn evict(&mut self, now: Now) -> bool {
        let expired = self.entries.iter().filter(|(_, cell)| cell.is_expired(now));
        let expired: Vec<_> = expired.map(|(id, _)| id.clone()).collect();
        if !expired.is_empty() {
            expired.iter().for_each(|id| self.remove(id));
            return true;
        }
        let age = |cell: &Cell| (cell.is_dirty(), cell.touched());
        let oldest = self.entries.iter().min_by_key(|(_, cell)| age(cell));
        let Some((id, is_dirty)) = oldest.map(|(id, cell)| (id.clone(), cell.is_dirty())) else {
            return false;
        };
        self.dropped += u64::from(is_dirty);
        self.remove(&id);
        true
    }
}

impl Cell {
    fn usage(&mut self) -> &mut Usage {
        match self {
            Self::Counter(counter) => &mut counter.usage,
            Self::Value(value) => &mut value.usage,
        }
    }

    fn touched(&self) -> u64 {
        match self {
            Self::Counter(counter) => counter.usage.touched(),
            Self::Value(value) => value.usage.touched(),
        }
    }

    fn is_dirty(&self) -> bool {
        match self {
            Self::Counter(counter) => counter.is_dirty(),
            Self::Value(value) => value.is_dirty(),
        }
    }

    fn is_expired(&self, now: Now) -> bool {
        match self {
            Self::Counter(counter) => counter.is_expired(now),
            Self::Value(value) => value.is_expired(now),
        }
    }

    /// Returns true if there is nothing to tell of it.
    fn is_absent(&self) -> bool {
        match self {
            Self::Counter(counter) => counter.total() == 0,
            Self::Value(value) => value.get().is_none(),
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Counter(_) => 0,
            Self::Value(value) => value.get().map_or(0, |bytes| bytes.len()),
        }
    }

    fn op(&self, now: Now) -> Op {
        match self {
            Self::Counter(counter) => Op::Count(counter.count()),
            Self::Value(value) => value.op(now),
        }
    }
}
