//! What one host has counted, and another one writes.

use serde::{Deserialize, Serialize};

use super::UsageBook;
use super::counts::Counts;
use super::row::{NamesRef, Span};

/// What was used in an hour, as one host tells it to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignUsage {
    /// The hour, in hours since 1970.
    pub hour: u32,
    /// The tenant; empty if there is none.
    pub tenant: String,
    /// The name of the key.
    pub key: String,
    /// The model name.
    pub model: String,
    /// The lane; empty if none was attempted.
    pub lane: String,
    /// What was used.
    pub counts: Counts,
}

impl UsageBook {
    /// Takes what is not written, for another host to write it.
    pub fn take(&self) -> Vec<ForeignUsage> {
        let mut unwritten = self.unwritten.lock();
        let mut batch = std::mem::take(&mut unwritten.batch);
        unwritten.number = None;
        drop(unwritten);
        for (row, counts) in self.memory.lock().take() {
            batch.entry(row).or_default().add(&counts);
        }
        let hours = batch.into_iter().filter(|(row, _)| row.span == Span::Hour);
        let usage = hours.map(|(row, counts)| ForeignUsage {
            hour: row.start,
            tenant: row.names.tenant.to_string(),
            key: row.names.key.to_string(),
            model: row.names.model.to_string(),
            lane: row.names.lane.to_string(),
            counts,
        });
        usage.collect()
    }

    /// Adds what another host has counted. Does not wait for the disk.
    pub fn add(&self, usage: &ForeignUsage) {
        let ForeignUsage { hour, tenant, key, model, lane, counts } = usage;
        self.memory.lock().add(*hour, NamesRef::new(tenant, key, model, lane), counts);
    }
}
