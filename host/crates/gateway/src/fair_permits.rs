//! Permits of which one tenant cannot take all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Number of tenants from which on those without a permit are forgotten.
const MAX_TENANTS: usize = 1024;

/// A number of permits, of which each tenant has at most half at a time. A tenant's flood waits for
/// its own half first, so that it is not ahead of others in the queue for all.
#[derive(Debug)]
pub(crate) struct FairPermits {
    shared: Arc<Semaphore>,
    /// Permits of one tenant.
    share: usize,
    tenants: Mutex<HashMap<String, Arc<Semaphore>>>,
}

/// A permit, which is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct FairPermit {
    _tenant: Option<OwnedSemaphorePermit>,
    _shared: Option<OwnedSemaphorePermit>,
}

impl FairPermits {
    pub(crate) fn new(permits: usize) -> Self {
        let (shared, share) = (Arc::new(Semaphore::new(permits)), (permits / 2).max(1));
        Self { shared, share, tenants: Mutex::default() }
    }

    /// Waits for a permit. Requests without a tenant share all permits.
    pub(crate) async fn acquire(&self, tenant: Option<&str>) -> FairPermit {
        // The semaphores are never closed; without a permit a call would only be unlimited.
        let tenant = match tenant {
            Some(tenant) => self.of_tenant(tenant).acquire_owned().await.ok(),
            None => None,
        };
        let shared = Arc::clone(&self.shared).acquire_owned().await.ok();
        FairPermit { _tenant: tenant, _shared: shared }
    }

    fn of_tenant(&self, tenant: &str) -> Arc<Semaphore> {
        // Every statement leaves a valid state behind, so a panic elsewhere does no harm.
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permits) = tenants.get(tenant) {
            return Arc::clone(permits);
        }
        if tenants.len() >= MAX_TENANTS {
            // Permits, and those who wait for one, have references.
            tenants.retain(|_, permits| Arc::strong_count(permits) > 1);
        }
        let permits = Arc::new(Semaphore::new(self.share));
        tenants.insert(tenant.to_owned(), Arc::clone(&permits));
        permits
    }

    #[cfg(test)]
    pub(crate) fn available(&self) -> usize {
        self.shared.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn one_tenant_has_half_of_the_permits() {
        let permits = FairPermits::new(4);
        let acquire = |tenant| permits.acquire(tenant).now_or_never();
        let first = [acquire(Some("a")).unwrap(), acquire(Some("a")).unwrap()];
        assert!(acquire(Some("a")).is_none());
        let second = [acquire(Some("b")).unwrap(), acquire(Some("c")).unwrap()];
        assert!(acquire(Some("d")).is_none() && acquire(None).is_none());
        drop(first);
        assert!(acquire(Some("a")).is_some());
        drop(second);
        assert_eq!(permits.available(), 4);
        let all: Vec<_> = (0..4).map(|_| acquire(None).unwrap()).collect();
        assert!(acquire(None).is_none());
        drop(all);
        let single = FairPermits::new(1);
        assert!(single.acquire(Some("a")).now_or_never().is_some());
    }

    #[test]
    fn tenants_without_a_permit_are_forgotten() {
        let permits = FairPermits::new(4);
        let held = permits.acquire(Some("held")).now_or_never().unwrap();
        for number in 0..3 * MAX_TENANTS {
            assert!(permits.acquire(Some(&number.to_string())).now_or_never().is_some());
        }
        let tenants = permits.tenants.lock().unwrap();
        assert!(tenants.len() <= MAX_TENANTS && tenants.contains_key("held"));
        drop(held);
    }
}
