//! The script, for a store in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::batch::{Batch, BatchReply, Count, Kind, Op, Reply, Write};
use crate::stamp::Stamp;

const REMOVAL_MS: u64 = 3_600_000;

#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    pub(super) now: u64,
    rounds: HashMap<u64, u64>,
    entries: BTreeMap<(bool, String), Stored>,
}

#[derive(Debug, Clone)]
struct Stored {
    /// 0 for none.
    until: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Counter { epoch: Option<Stamp>, fields: BTreeMap<Arc<str>, i64>, is_begun: bool },
    Value { stamp: Stamp, value: Option<Arc<[u8]>> },
}

impl MemoryStore {
    pub(super) fn lose_data(&mut self) {
        (self.rounds, self.entries) = Default::default();
    }

    pub(super) fn run(&mut self, batch: &Batch, replica: u64, round: u64) -> BatchReply {
        let now = self.now;
        self.entries.retain(|_, stored| stored.until == 0 || stored.until > now);
        let last = self.rounds.get(&replica).copied();
        if last.is_some_and(|last| round < last) {
            return BatchReply { now, items: Vec::new() };
        }
        if batch.has_changes {
            self.rounds.insert(replica, round);
        }
        let reply = |item: &crate::batch::Item| {
            let id = (item.op.kind() == Kind::Counter, item.key.to_string());
            match &item.op {
                Op::Count(count) => self.count(id, count),
                Op::Write(write) => self.write(id, write),
                Op::Read(stamp) => self.read(&id, *stamp),
            }
        };
        BatchReply { now, items: batch.items.iter().map(reply).collect() }
    }

    fn count(&mut self, id: (bool, String), sent: &Count) -> Reply {
        let begin = |epoch, until, is_begun| Stored {
            until,
            content: Content::Counter { epoch, fields: BTreeMap::new(), is_begun },
        };
        let stored = |entries: &BTreeMap<_, Stored>| match entries.get(&id) {
            Some(Stored { until, content: Content::Counter { epoch, .. } }) => {
                Some((*epoch, *until))
            }
            _ => None,
        };
        let current = stored(&self.entries);
        let is_same_end = current.is_some_and(|(_, until)| sent.until == Some(until));
        let is_alive = sent.until.is_none_or(|until| until == 0 || until > self.now);
        let epoch = sent.epoch.filter(|_| is_alive || is_same_end);
        if current.map_or(sent.is_reset, |(known, _)| known < epoch) {
            self.entries.insert(id.clone(), begin(epoch, self.now + REMOVAL_MS, false));
        }
        let value = match (stored(&self.entries), sent.until) {
            (Some((known, _)), _) if known == epoch && (is_alive || is_same_end) => sent.sum,
            (Some(_), _) => sent.delta,
            (None, Some(until)) if is_alive => {
                if sent.sum == 0 {
                    return Reply::Missing;
                }
                self.entries.insert(id.clone(), begin(epoch, until, true));
                sent.sum
            }
            (None, _) if sent.delta != 0 => {
                self.entries.insert(id.clone(), begin(epoch, 0, false));
                sent.delta
            }
            (None, _) => return Reply::Missing,
        };
        let stored = self.entries.get_mut(&id).unwrap();
        let Content::Counter { epoch, fields, is_begun } = &mut stored.content else {
            panic!("a value under the key of a counter")
        };
        if fields.get(&sent.field).copied().unwrap_or(0) != value {
            fields.insert(Arc::clone(&sent.field), value);
            if !std::mem::replace(is_begun, true) {
                stored.until = if sent.ttl == 0 { 0 } else { self.now + sent.ttl };
            }
        }
        let (epoch, total) = (*epoch, fields.values().sum());
        Reply::Count { total, applied: value, epoch, until: stored.until }
    }

    fn read(&self, id: &(bool, String), known: Option<Stamp>) -> Reply {
        let Some(Stored { until, content }) = self.entries.get(id) else { return Reply::Missing };
        let Content::Value { stamp, value } = content else { panic!("a counter") };
        match Some(*stamp) == known {
            true => Reply::Unchanged,
            false => Reply::Value { stamp: *stamp, value: value.clone(), until: *until },
        }
    }

    fn write(&mut self, id: (bool, String), write: &Write) -> Reply {
        if let Some(Stored { content: Content::Value { stamp, .. }, .. }) = self.entries.get(&id)
            && *stamp >= write.stamp
        {
            return self.read(&id, Some(write.stamp));
        }
        let until = if write.ttl == 0 { 0 } else { self.now + write.ttl };
        let content = Content::Value { stamp: write.stamp, value: write.value.clone() };
        self.entries.insert(id, Stored { until, content });
        Reply::Unchanged
    }
}
