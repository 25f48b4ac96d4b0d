//! The memory of request bodies: how much there is, and how much of it each body has.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use parking_lot::RwLock;
use prometheus_client::metrics::gauge::Gauge;

use crate::error::RouteError;

/// Bodies up to this size may use all of the memory for bodies, larger ones only three quarters,
/// so that large ones cannot keep small ones out.
const SMALL_SHARE: usize = 1 << 20;

/// The memory that all bodies of requests in flight use.
#[derive(Debug)]
pub(crate) struct BodyMemory {
    limits: RwLock<MemoryLimits>,
    pub(super) used: AtomicUsize,
    /// The bytes that each tenant uses for bodies larger than [`SMALL_SHARE`], if any.
    large_by_tenant: Mutex<HashMap<String, usize>>,
    /// The bytes in use, as a metric.
    pub(super) gauge: Gauge,
}

/// How much memory there is, in bytes.
#[derive(Debug, Clone, Copy)]
struct MemoryLimits {
    all: usize,
    /// Limit for bodies larger than [`SMALL_SHARE`].
    large: usize,
    /// Limit for such bodies of one tenant.
    tenant: usize,
}

impl MemoryLimits {
    fn new(all: usize, max_body: usize) -> Self {
        let one_body = max_body.min(all);
        let large = (all - all / 4).max(one_body);
        Self { all, large, tenant: (large / 2).max(one_body) }
    }
}

impl BodyMemory {
    /// Creates the memory of `limit` bytes, of which one body has at most `max_body`.
    pub(crate) fn new(limit: usize, max_body: usize, gauge: Gauge) -> Self {
        Self {
            limits: RwLock::new(MemoryLimits::new(limit, max_body)),
            used: AtomicUsize::new(0),
            large_by_tenant: Mutex::default(),
            gauge,
        }
    }

    /// Changes the limit. What exceeds a lower one stays until its requests end.
    pub(crate) fn set_limit(&self, limit: usize, max_body: usize) {
        *self.limits.write() = MemoryLimits::new(limit, max_body);
    }

    pub(super) fn large_by_tenant(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        // Every statement leaves a valid state behind, so a panic elsewhere does no harm.
        self.large_by_tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the large bodies of a tenant, up to its limit.
    fn add_large(&self, tenant: &str, bytes: usize) -> Result<(), RouteError> {
        let mut tenants = self.large_by_tenant();
        let used = tenants.get(tenant).copied().unwrap_or(0).saturating_add(bytes);
        if used > self.limits.read().tenant {
            return Err(RouteError::BodyMemory);
        }
        tenants.insert(tenant.to_owned(), used);
        Ok(())
    }

    /// Subtracts from the large bodies of a tenant.
    fn subtract_large(&self, tenant: &str, bytes: usize) {
        let mut tenants = self.large_by_tenant();
        if let Some(used) = tenants.get_mut(tenant) {
            *used = used.saturating_sub(bytes);
            if *used == 0 {
                tenants.remove(tenant);
            }
        }
    }
}

/// The memory of one body. It is given back on drop: when the request has ended and nothing refers
/// to the received bytes any more. Edited copies of the body take its place, and are not counted.
#[derive(Debug)]
pub(crate) struct Reservation {
    memory: Arc<BodyMemory>,
    tenant: Option<String>,
    bytes: usize,
    /// The bytes that count as the tenant's: all, once the body is large.
    tenant_bytes: usize,
    /// The space of the spool file, which is given back together with the memory.
    pub(super) spooled: Option<Box<Self>>,
}

impl Reservation {
    pub(crate) fn new(memory: &Arc<BodyMemory>, tenant: Option<&str>) -> Self {
        let (memory, tenant) = (Arc::clone(memory), tenant.map(str::to_owned));
        Self { memory, tenant, bytes: 0, tenant_bytes: 0, spooled: None }
    }

    /// Returns the bytes that are reserved.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the memory of the next chunk.
    pub(crate) fn grow(&mut self, bytes: usize) -> Result<(), RouteError> {
        let length = self.bytes + bytes;
        let memory = &self.memory;
        let is_large = length > SMALL_SHARE;
        if let Some(tenant) = &self.tenant
            && is_large
        {
            memory.add_large(tenant, length - self.tenant_bytes)?;
            self.tenant_bytes = length;
        }
        let limits = *memory.limits.read();
        let limit = if is_large { limits.large } else { limits.all };
        let add = |used: usize| used.checked_add(bytes).filter(|used| *used <= limit);
        // Relaxed: the counter guards no other memory.
        memory
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
            .map_err(|_| RouteError::BodyMemory)?;
        memory.gauge.inc_by(bytes as i64);
        self.bytes = length;
        Ok(())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.memory.gauge.dec_by(self.bytes as i64);
        if let Some(tenant) = &self.tenant
            && self.tenant_bytes > 0
        {
            self.memory.subtract_large(tenant, self.tenant_bytes);
        }
    }
}
