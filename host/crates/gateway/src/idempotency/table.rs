//! The executions that retries can find, and those of which the response is kept.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use parking_lot::Mutex;
use pointsman_access::Identity;

use super::buffer::End;
use super::execution::{Execution, Join};
use super::fingerprint::Fingerprint;
use super::memory::{Charge, Memory};
use super::reader::Reader;
use crate::error::RouteError;
use crate::settings::IdempotencySettings;

/// Maximum number of executions that run, and of responses that are kept.
const MAX_IDEMPOTENT: usize = 5_000;
/// Bytes that the head of a response and its entry take at least.
const ENTRY_BYTES: usize = 2 << 10;

type Key = [u8; 32];

/// All executions with a key.
pub(super) struct Table {
    running: Mutex<Running>,
    /// Responses that are replayed; those that were used least recently make room for others.
    kept: Cache<Key, Arc<Execution>>,
    keeps: bool,
    memory: Arc<Memory>,
    /// Maximum weight of all responses that are kept.
    kept_limit: usize,
}

#[derive(Default)]
struct Running {
    executions: HashMap<Key, Entry>,
    /// Of each tenant, the responses that are kept, oldest first, with their weights.
    kept_by_tenant: HashMap<Option<Arc<str>>, VecDeque<(Key, usize)>>,
}

struct Entry {
    execution: Arc<Execution>,
    tenant: Option<Arc<str>>,
}

/// The result of looking for an execution.
pub(super) enum Found {
    Joined(Reader),
    Started(Arc<Execution>, Reader),
    /// There are too many executions, or the rights do not allow to join the one with the key.
    Untracked,
}

impl Table {
    pub(super) fn new(settings: &IdempotencySettings) -> Self {
        // One half for what runs, and one for what is kept.
        let limit = settings.memory / 2;
        let weigh = move |_: &Key, execution: &Arc<Execution>| {
            let weight = weight(execution.kept_size().unwrap_or(0), limit);
            u32::try_from(weight).unwrap_or(u32::MAX)
        };
        let kept = Cache::builder()
            .max_capacity(limit as u64)
            .weigher(weigh)
            .time_to_live(settings.keep)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self {
            running: Mutex::default(),
            kept,
            keeps: !settings.keep.is_zero(),
            memory: Memory::new(limit),
            kept_limit: limit,
        }
    }

    /// Returns true if keys are ignored.
    pub(super) fn is_disabled(&self) -> bool {
        self.kept_limit == 0
    }

    /// Joins the execution of a request, or starts one. A key that may not use all lanes and models
    /// any more that it could when its request began does not join it.
    ///
    /// # Errors
    /// If the key was used for another request, or the execution cannot be joined.
    pub(super) fn find_or_start(
        &self,
        fingerprint: Fingerprint,
        identity: &Arc<Identity>,
    ) -> Result<Found, RouteError> {
        let Fingerprint { key, content } = fingerprint;
        let mut running = self.running.lock();
        let found = running.executions.get(&key).map(|entry| Arc::clone(&entry.execution));
        // Kept before it ceases to be a running one, so that it is one of them at any time.
        if let Some(execution) = found.or_else(|| self.kept.get(&key)) {
            if !execution.has_content(&content) {
                return Err(RouteError::IdempotencyKeyReused);
            }
            if !execution.is_allowed(&identity.rights) {
                return Ok(Found::Untracked);
            }
            match execution.join() {
                Join::Joined(reader) => {
                    return Ok(Found::Joined(Reader::new(execution, reader)));
                }
                Join::InUse => return Err(RouteError::IdempotencyKeyInUse),
                Join::Gone => {}
            }
        }
        let tenant: Option<Arc<str>> = identity.tenant.as_deref().map(Arc::from);
        // One tenant must not take the places of all others.
        let share = if tenant.is_some() { MAX_IDEMPOTENT / 2 } else { MAX_IDEMPOTENT };
        if running.executions.len() >= MAX_IDEMPOTENT || self.memory.executions(&tenant) >= share {
            return Ok(Found::Untracked);
        }
        let charge = Charge::new(&self.memory, tenant.clone());
        let execution = Execution::new(content, Arc::clone(identity), charge);
        let Join::Joined(reader) = execution.join() else {
            // Never: a new execution can be joined.
            return Ok(Found::Untracked);
        };
        let reader = Reader::new(Arc::clone(&execution), reader);
        let entry = Entry { execution: Arc::clone(&execution), tenant };
        running.executions.insert(key, entry);
        Ok(Found::Started(execution, reader))
    }

    /// Keeps the response of an execution that has ended, if a retry should get it.
    fn ended(&self, key: Key, execution: &Arc<Execution>) {
        let mut running = self.running.lock();
        // A retry may have begun anew.
        let is_current = |entry: &&Entry| Arc::ptr_eq(&entry.execution, execution);
        let Some(entry) = running.executions.get(&key).filter(is_current) else { return };
        let tenant = entry.tenant.clone();
        if let Some(size) = execution.kept_size().filter(|_| self.keeps) {
            execution.release_charge();
            self.kept.insert(key, Arc::clone(execution));
            self.limit_tenant(&mut running, tenant, key, weight(size, self.kept_limit));
        }
        running.executions.remove(&key);
    }

    /// Removes the oldest responses of a tenant that has more than its share.
    fn limit_tenant(
        &self,
        running: &mut Running,
        tenant: Option<Arc<str>>,
        key: Key,
        weight: usize,
    ) {
        let share = if tenant.is_some() { self.kept_limit / 2 } else { self.kept_limit };
        let kept = running.kept_by_tenant.entry(tenant).or_default();
        kept.push_back((key, weight));
        let mut total: usize = kept.iter().map(|(_, weight)| weight).sum();
        while total > share
            && let Some((oldest, weight)) = kept.pop_front()
        {
            total -= weight;
            // If the response was kept anew since, it is only forgotten early.
            self.kept.invalidate(&oldest);
        }
    }

    /// Returns the bytes of the executions that run.
    #[cfg(test)]
    pub(super) fn running_bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Returns the number of executions that run, and of responses that are kept.
    #[cfg(test)]
    pub(super) fn entries(&self) -> (usize, u64) {
        self.kept.run_pending_tasks();
        (self.running.lock().executions.len(), self.kept.entry_count())
    }
}

/// Returns what a response of this size counts as, if all may have `limit`.
fn weight(size: usize, limit: usize) -> usize {
    (size + ENTRY_BYTES).max(limit / MAX_IDEMPOTENT)
}

/// Ends an execution when it is dropped.
pub(super) struct OnEnd {
    table: Arc<Table>,
    key: Key,
    execution: Arc<Execution>,
}

impl OnEnd {
    pub(super) fn new(table: Arc<Table>, key: Key, execution: Arc<Execution>) -> Self {
        Self { table, key, execution }
    }
}

impl Drop for OnEnd {
    fn drop(&mut self) {
        self.execution.end(End::Broken);
        self.table.ended(self.key, &self.execution);
    }
}
