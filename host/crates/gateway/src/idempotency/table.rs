//! The executions that retries can find, and those of which the response is kept.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

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
    memory: Arc<Memory>,
}

struct Running {
    executions: HashMap<Key, Entry>,
    kept: Kept,
    /// Of each tenant, the responses that are kept, oldest first, with their weights.
    kept_by_tenant: HashMap<Option<Arc<str>>, VecDeque<(Key, usize)>>,
}

/// Responses that are replayed; those that were used least recently make room for others.
struct Kept {
    cache: Cache<Key, Arc<Execution>>,
    time: Duration,
    /// Maximum weight of all of them; zero ignores keys.
    limit: usize,
}

impl Kept {
    fn new(settings: &IdempotencySettings) -> Self {
        let limit = half(settings);
        let weigh = move |_: &Key, execution: &Arc<Execution>| {
            let weight = weight(execution.kept_size().unwrap_or(0), limit);
            u32::try_from(weight).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder()
            .max_capacity(limit as u64)
            .weigher(weigh)
            .time_to_live(settings.keep)
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { cache, time: settings.keep, limit }
    }
}

/// Returns one half of the memory for what runs, and one for what is kept.
fn half(settings: &IdempotencySettings) -> usize {
    settings.memory / 2
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
        let (executions, kept_by_tenant) = Default::default();
        let running = Running { executions, kept: Kept::new(settings), kept_by_tenant };
        Self { running: Mutex::new(running), memory: Memory::new(half(settings)) }
    }

    /// Changes the limits. Responses that are kept stay, for the new time from now on.
    pub(super) fn reconfigure(&self, settings: &IdempotencySettings) {
        let mut running = self.running.lock();
        if running.kept.time == settings.keep && running.kept.limit == half(settings) {
            return;
        }
        self.memory.set_limit(half(settings));
        let kept = Kept::new(settings);
        if !settings.keep.is_zero() {
            for (key, execution) in &running.kept.cache {
                kept.cache.insert(*key, execution);
            }
        }
        running.kept = kept;
    }

    /// Returns true if keys are ignored.
    pub(super) fn is_disabled(&self) -> bool {
        self.running.lock().kept.limit == 0
    }

    /// Joins the execution of a request, or starts one. A key that may not use all lanes and models
    /// any more that it could when its request began does not join it; nor does a request of which
    /// the guards demand something else.
    ///
    /// # Errors
    /// If the key was used for another request, or the execution cannot be joined.
    pub(super) fn find_or_start(
        &self,
        fingerprint: Fingerprint,
        identity: &Arc<Identity>,
    ) -> Result<Found, RouteError> {
        let Fingerprint { key, content, guards } = fingerprint;
        let mut running = self.running.lock();
        let found = running.executions.get(&key).map(|entry| Arc::clone(&entry.execution));
        // Kept before it ceases to be a running one, so that it is one of them at any time.
        if let Some(execution) = found.or_else(|| running.kept.cache.get(&key)) {
            if !execution.has_content(&content) {
                return Err(RouteError::IdempotencyKeyReused);
            }
            if !execution.is_allowed(&identity.rights, guards) {
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
        let execution = Execution::new(content, (Arc::clone(identity), guards), charge);
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
        let Kept { cache, time, limit } = &running.kept;
        if let Some(size) = execution.kept_size().filter(|_| !time.is_zero()) {
            execution.release_charge();
            cache.insert(key, Arc::clone(execution));
            let weight = weight(size, *limit);
            running.limit_tenant(tenant, key, weight);
        }
        running.executions.remove(&key);
    }

    /// Returns the bytes of the executions that run.
    #[cfg(test)]
    pub(super) fn running_bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Returns the number of executions that run, and of responses that are kept.
    #[cfg(test)]
    pub(super) fn entries(&self) -> (usize, u64) {
        let running = self.running.lock();
        running.kept.cache.run_pending_tasks();
        (running.executions.len(), running.kept.cache.entry_count())
    }
}

impl Running {
    /// Removes the oldest responses of a tenant that has more than its share.
    fn limit_tenant(&mut self, tenant: Option<Arc<str>>, key: Key, weight: usize) {
        let limit = self.kept.limit;
        let share = if tenant.is_some() { limit / 2 } else { limit };
        let kept = self.kept_by_tenant.entry(tenant).or_default();
        kept.push_back((key, weight));
        let mut total: usize = kept.iter().map(|(_, weight)| weight).sum();
        while total > share
            && let Some((oldest, weight)) = kept.pop_front()
        {
            total -= weight;
            // If the response was kept anew since, it is only forgotten early.
            self.kept.cache.invalidate(&oldest);
        }
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
