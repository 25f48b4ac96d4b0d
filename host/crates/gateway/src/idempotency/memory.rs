//! The memory of the executions that run.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Maximum size of a response that can be joined.
pub(super) const MAX_JOINABLE: usize = 4 << 20;

/// The memory of the executions that run, of all tenants.
#[derive(Debug)]
pub(super) struct Memory {
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    limit: usize,
    bytes: usize,
    by_tenant: HashMap<Option<Arc<str>>, TenantUse>,
}

#[derive(Debug, Default)]
struct TenantUse {
    bytes: usize,
    executions: usize,
}

impl Memory {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { used: Mutex::new(Used { limit, ..Used::default() }) })
    }

    /// Changes the limit. What exceeds a lower one stays until its executions end.
    pub(super) fn set_limit(&self, limit: usize) {
        self.used.lock().limit = limit;
    }

    /// Returns the number of a tenant's executions.
    pub(super) fn executions(&self, tenant: &Option<Arc<str>>) -> usize {
        self.used.lock().by_tenant.get(tenant).map_or(0, |tenant| tenant.executions)
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.used.lock().bytes
    }
}

/// The memory of one execution. It is given back on drop.
#[derive(Debug)]
pub(super) struct Charge {
    memory: Arc<Memory>,
    tenant: Option<Arc<str>>,
    bytes: usize,
}

impl Charge {
    /// Counts an execution, which has no bytes yet.
    pub(super) fn new(memory: &Arc<Memory>, tenant: Option<Arc<str>>) -> Self {
        memory.used.lock().by_tenant.entry(tenant.clone()).or_default().executions += 1;
        Self { memory: Arc::clone(memory), tenant, bytes: 0 }
    }

    /// Adds bytes; returns false if there is no memory for them.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let mut used = self.memory.used.lock();
        let limit = used.limit;
        // One tenant must not take the memory of all others, but may have one long response.
        let share = match self.tenant {
            Some(_) => (limit / 2).max(MAX_JOINABLE.min(limit)),
            None => limit,
        };
        let total = used.bytes + bytes;
        let tenant = used.by_tenant.entry(self.tenant.clone()).or_default();
        if total > limit || tenant.bytes + bytes > share {
            return false;
        }
        tenant.bytes += bytes;
        used.bytes = total;
        self.bytes += bytes;
        true
    }

    /// Gives back what is more than `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        let freed = self.bytes.saturating_sub(bytes);
        self.bytes -= freed;
        let mut used = self.memory.used.lock();
        used.bytes -= freed;
        if let Some(tenant) = used.by_tenant.get_mut(&self.tenant) {
            tenant.bytes -= freed;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.shrink_to(0);
        let mut used = self.memory.used.lock();
        if let Some(tenant) = used.by_tenant.get_mut(&self.tenant) {
            tenant.executions -= 1;
            if tenant.executions == 0 {
                used.by_tenant.remove(&self.tenant);
            }
        }
    }
}
